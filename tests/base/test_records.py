"""Records and tensors with checksums: any change is found, and what has none is read as it is."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from byol.base.errors import CheckpointError
from byol.base.files import read_fields, write_fields
from byol.base.records import KEY, check_tensors, seal_tensors


def read(path: Path) -> dict[str, Any] | None:
    return read_fields(path, versions=(1,), make=dict, advice="remove it")


def test_any_changed_number_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_fields(path, {"format": 1, "top1": 0.123456789, "names": ["ä", "\udcff", "b"], "none": None})
    text = path.read_text()
    assert read(path) == {"top1": 0.123456789, "names": ["ä", "\udcff", "b"], "none": None}
    for found in re.finditer(r"\d", text):
        digit = str((int(found[0]) + 1) % 10)
        path.write_text(text[: found.start()] + digit + text[found.end() :])
        if f'"{KEY}"' not in path.read_text():  # the checksum's own name: nothing else is changed
            continue
        with pytest.raises(CheckpointError, match=r"a\.json: .*its checksum differs.*remove it"):
            read(path)
    for end in range(0, len(text) - 1, 5):
        path.write_text(text[:end])
        with pytest.raises(CheckpointError):
            read(path)


def test_a_record_without_a_checksum_is_read(tmp_path: Path) -> None:
    """As those of earlier versions, and those that somebody has changed on purpose."""
    (tmp_path / "a.json").write_text(json.dumps({"format": 1, "a": 2}))
    assert read(tmp_path / "a.json") == {"a": 2}


def test_tensors_are_as_before_and_any_changed_value_is_found() -> None:
    tensors = {"b": torch.rand(3, 2), "a": torch.arange(5), "c": torch.zeros(0)}
    sealed = seal_tensors(save(tensors, metadata={"stem": "small"}))
    check_tensors(sealed)
    check_tensors(save(tensors))
    for key, value in load(sealed).items():
        torch.testing.assert_close(value, tensors[key])
    start = 8 + int.from_bytes(sealed[:8], "little")
    assert start % 8 == 0 and json.loads(sealed[8:start])["__metadata__"]["stem"] == "small"
    for at in range(start, len(sealed)):
        with pytest.raises(ValueError, match="checksum"):
            check_tensors(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :])
    for end in (0, 4, 8, 40, len(sealed) - 1):
        with pytest.raises(ValueError):
            check_tensors(sealed[:end])
