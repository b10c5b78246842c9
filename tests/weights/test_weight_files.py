"""Files of weights as people have them: content decides, no code runs, and what is none says what it is."""

import argparse
import io
import json
import os
import pickle
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from byol.base.errors import CheckpointError
from byol.weights.files import read_weights, show, split_source
from byol.weights.inert_pickle import UnreadableError, read_inert

State = dict[str, Tensor]


def make_state() -> State:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=0).state_dict()


def lightning(state: State) -> dict[str, Any]:
    rate = {"lr": np.float64(0.1), "device": torch.device("cpu"), "path": Path("a")}
    return {"epoch": 3, "hyper_parameters": argparse.Namespace(**rate), "state_dict": state}


def save_script(state: State, path: Path) -> None:
    network = timm.create_model("test_resnet", num_classes=0)
    network.load_state_dict(state)
    torch.jit.save(torch.jit.script(network), path)


def save_model(state: State, path: Path) -> None:
    network = timm.create_model("test_resnet", num_classes=0)
    network.load_state_dict(state)
    torch.save(nn.DataParallel(network), path)


def save_shards(state: State, folder: Path) -> None:
    folder.mkdir()
    names = {name: f"model-{at % 2}.safetensors" for at, name in enumerate(state)}
    for file in set(names.values()):
        save_file({name: state[name] for name in state if names[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def save_hub(state: State, folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    torch.save(state, folder / "pytorch_model.bin")


def to_numpy(state: State) -> dict[str, Any]:
    return {name: value.numpy() for name, value in state.items()}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("prefix", "write"),
    [
        ("", lambda state, path: torch.save(state, path)),
        ("", lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False)),
        ("", lambda state, path: save_file(state, path)),
        ("", save_shards),
        ("", save_hub),
        ("", save_script),
        ("module.", save_model),
        ("state_dict.", lambda state, path: torch.save(lightning(state), path)),
        (
            "state_dict.",
            lambda state, path: torch.save(lightning(state), path, _use_new_zipfile_serialization=False),
        ),
        ("a.0.", lambda state, path: torch.save({"a": [OrderedDict(state)], "epoch": 1}, path)),
        ("model.", lambda state, path: path.write_bytes(pickle.dumps({"model": to_numpy(state)}))),
        ("", lambda state, path: path.write_bytes(pickle.dumps(to_numpy(state), protocol=2))),
    ],
    ids=[
        *("zip", "legacy", "safetensors", "shards", "hub", "script", "whole model", "lightning"),
        *("legacy lightning", "list", "numpy pickle", "numpy pickle 2"),
    ],
)
def test_formats(prefix: str, write: Callable[[State, Path], None], tmp_path: Path) -> None:
    state = make_state()
    write(state, tmp_path / "weights.unusual")
    found = read_weights(tmp_path / "weights.unusual")
    assert {name: value.shape for name, value in found.items()} == {
        prefix + name: value.shape for name, value in state.items()
    }
    assert all(torch.equal(found[prefix + name], value) for name, value in state.items())


def test_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **to_numpy(make_state()))
    assert read_weights(tmp_path / "a.npz").keys() == make_state().keys()


def test_bfloat16_and_shared_storages_are_read_without_code(tmp_path: Path) -> None:
    whole = torch.arange(12.0).bfloat16().view(3, 4)
    content = {"a": whole, "b": whole.T, "c": nn.Parameter(whole[1:]), "x": argparse.Namespace()}
    for is_zip in (True, False):
        torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=is_zip)
        found = read_weights(tmp_path / "a.pt")
        assert found.keys() == {"a", "b", "c"}
        assert all(torch.equal(found[name], content[name]) for name in found)


# ---- No code


class Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> Any:
        return self.made


def attacks(marker: Path) -> list[Any]:
    command = f"touch {marker}"
    return [
        Calls(os.system, command),
        Calls(eval, f"open({str(marker)!r}, 'w')"),
        Calls(exec, f"open({str(marker)!r}, 'w')"),
        Calls(getattr, Calls(__import__, "os"), "system"),
        Calls(Calls, os.system, command),
        Calls(torch.load, str(marker)),
        Calls(open, str(marker), "w"),
        Calls(pickle.loads, pickle.dumps(Calls(os.system, command))),
    ]


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    """And the tensors beside it are read."""
    marker, state = tmp_path / "executed", {"a": torch.ones(2)}
    for attack in attacks(marker):
        torch.save({"state_dict": state, "x": attack}, tmp_path / "zip.pt")
        torch.save(
            {"state_dict": state, "x": attack}, tmp_path / "old.pt", _use_new_zipfile_serialization=False
        )
        for name in ("zip.pt", "old.pt"):
            assert read_weights(tmp_path / name).keys() == {"state_dict.a"}
        (tmp_path / "evil.pkl").write_bytes(pickle.dumps(attack))
        with pytest.raises(CheckpointError, match=r"evil\.pkl"):
            read_weights(tmp_path / "evil.pkl")
        assert not marker.exists()


def test_opcodes_that_reach_for_attributes_and_modules(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    touch = f"touch {marker}".encode()
    programs = [
        b"cos\nsystem\n(S'" + touch + b"'\ntR.",
        b"(S'" + touch + b"'\nios\nsystem\n.",
        b"(cos\nsystem\nS'" + touch + b"'\no.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(touch)]) + touch + b"\x85R.",
        b"\x80\x04\x8c\x08builtins\x8c\x15getattr.__globals__.os\x93).",
        b"ctorch._utils\n_rebuild_tensor_v2\n(dS'__code__'\nNsS'x'\nNsb.",
        b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n.",
        b"ccollections\nOrderedDict\n)R(dS'items'\ncos\nsystem\nsb.",
        b"ccollections\nOrderedDict\nN}S'update'\ncos\nsystem\ns\x86b.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00K\x01K\x01tR.",
    ]
    for program in programs:
        (tmp_path / "a.pkl").write_bytes(program)
        with pytest.raises(CheckpointError, match=r"a\.pkl"):
            read_weights(tmp_path / "a.pkl")
        assert not marker.exists()


def test_a_tensor_does_not_reach_beyond_its_storage(tmp_path: Path) -> None:
    content = io.BytesIO()
    torch.save({"a": torch.zeros(4), "x": argparse.Namespace()}, content)
    # The size (4,) is written K\x04\x85 behind the offset 0.
    assert content.getvalue().count(b"K\x00K\x04\x85") == 1
    changed = content.getvalue().replace(b"K\x00K\x04\x85", b"K\x00K\xff\x85")
    (tmp_path / "a.pt").write_bytes(changed)
    with pytest.raises((UnreadableError, CheckpointError)):
        read_inert(tmp_path / "a.pt")


# ---- No weights


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; copy or download it again"),
        (b"\n<!DOCTYPE html><html>", "web page.*download the file again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer.*git lfs pull"),
        (b"\x1f\x8b\x08\x00", "gzip; unpack it"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"PK\x03\x04 and no end", "cut short"),
        (b"some text", "text, not weights; name the weights file"),
        (b"\x80\x02}q\x00.", "no named tensors"),
        (b"\x80", "cannot be read"),
    ],
)
def test_what_is_none_says_what_it_is(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"(?s)^network\.x: .*a\.pth .*{message}") as caught:
        read_weights(tmp_path / "a.pth", key="network.x")
    assert "\n" not in str(caught.value)


def test_every_truncation_is_one_line(tmp_path: Path) -> None:
    state = {"a": torch.rand(40, 40)}
    for is_zip in (True, False):
        torch.save(state, tmp_path / "whole.pth", _use_new_zipfile_serialization=is_zip)
        content = (tmp_path / "whole.pth").read_bytes()
        for end in range(1, len(content) - 1, 97):
            (tmp_path / "cut.pth").write_bytes(content[:end])
            with pytest.raises(CheckpointError, match=r"cut\.pth") as caught:
                read_weights(tmp_path / "cut.pth")
            assert "\n" not in str(caught.value)


def test_names_are_safe_to_print() -> None:
    assert show("a\x1b[31m\nb") == "a\\x1b[31m\\nb"
    assert show("größe") == "größe" and len(show("x" * 1000)) < 210


def test_a_prefix_behind_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a=b:c.pth"
    file.write_bytes(b"x")
    assert split_source(str(file)) == (file, None)
    assert split_source(f"{file}:teacher.backbone") == (file, "teacher.backbone")
    assert split_source(f"{tmp_path}/no.pth:x") == (Path(f"{tmp_path}/no.pth:x"), None)


@pytest.mark.parametrize("index", [[], {}, {"weight_map": 0.5}, {"weight_map": ["a"]}])
def test_an_index_that_lists_no_files(tmp_path: Path, index: object) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="lists no files"):
        read_weights(tmp_path)


@pytest.mark.parametrize("index", [2**24, 2**31 - 1, 2**32 - 1])
def test_a_number_in_a_pickle_reserves_no_memory(index: int, tmp_path: Path) -> None:
    """It says that its first value is to be known as number `index`."""
    path = tmp_path / "a.pt"
    path.write_bytes(b"\x80\x02}r" + index.to_bytes(4, "little") + b"\x03")
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableError):
            read_inert(path)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_every_damage_of_an_npz_is_one_line(tmp_path: Path) -> None:
    """Cut short, with changed bytes, and with other files beside the arrays."""
    path = tmp_path / "a.npz"
    np.savez(path, weight=np.ones((2, 3), np.float32), large=np.ones(2, np.longdouble))
    content = path.read_bytes()
    for at in range(0, len(content), 3):
        for changed in (content[:at], content[:at] + bytes([content[at] ^ 0x41]) + content[at + 1 :]):
            path.write_bytes(changed)
            with suppress(CheckpointError):
                read_weights(path)
    np.savez(path, weight=np.ones((2, 3), np.float32))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("note.txt", "text")
        archive.writestr("broken.npy", b"\x93NUM")
    assert set(read_weights(path)) == {"weight"}
