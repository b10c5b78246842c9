"""The record of where and when a run was made."""

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
import torch

import byol
from byol.base.errors import CheckpointError
from byol.device.ranks import Ranks
from byol.runfolder import environment
from edits import edit_json

RANKS = Ranks(0, 1, torch.device("cpu"), torch.float32)


def begin(run_dir: Path, *, first_step: int) -> environment.Environment:
    return environment.begin(run_dir, num_images=40, num_bad=2, first_step=first_step, ranks=RANKS)


def test_each_start_is_recorded(tmp_path: Path) -> None:
    first = begin(tmp_path, first_step=0)
    assert environment.read(tmp_path) is None
    environment.write(tmp_path, first, done=0)
    environment.write(tmp_path, first, done=7)
    second = begin(tmp_path, first_step=7)
    environment.write(tmp_path, second, done=9)
    known = environment.read(tmp_path)
    assert known is not None and known.run == first.run and len(known.run) == 32
    assert (known.num_images, known.num_bad) == (40, 2)
    assert [(start.first_step, start.done) for start in known.starts] == [(0, 7), (7, 9)]
    start = known.starts[0]
    assert (start.byol, start.torch) == (byol.__version__, torch.__version__)
    assert (start.gpu, start.num_ranks, start.precision) == (None, 1, "fp32") and "core" in start.cpu
    assert datetime.fromisoformat(start.started).utcoffset() is not None


def test_a_run_that_begins_again_is_another_run(tmp_path: Path) -> None:
    first = begin(tmp_path, first_step=0)
    environment.write(tmp_path, first, done=0)
    again = begin(tmp_path, first_step=0)
    assert again.run != first.run and len(again.starts) == 1


def test_a_start_on_another_kind_of_cpu_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "instruction_set", lambda: "avx512_bf16")
    first = begin(tmp_path, first_step=0)
    assert first.starts[0].instructions == "avx512_bf16" and environment.explain_change(first) == []
    fast = replace(first.starts[0], precision="bf16")
    environment.write(tmp_path, replace(first, starts=(fast,)), done=5)
    monkeypatch.setattr(environment, "instruction_set", lambda: "avx2")
    (line,) = environment.explain_change(begin(tmp_path, first_step=5))
    assert "avx512_bf16" in line and "avx2" in line and "trainer.precision=bf16" in line
    environment.write(tmp_path, begin(tmp_path, first_step=5), done=6)
    assert environment.explain_change(begin(tmp_path, first_step=6)) == []


def test_a_record_of_an_earlier_version_tells_no_change(tmp_path: Path) -> None:
    environment.write(tmp_path, begin(tmp_path, first_step=0), done=5)
    edit_json(tmp_path / "environment.json", lambda fields: fields["starts"][0].pop("instructions"))
    assert environment.explain_change(begin(tmp_path, first_step=5)) == []


def test_time_is_that_of_all_starts(tmp_path: Path) -> None:
    environment.write(tmp_path, begin(tmp_path, first_step=0), done=1)
    path = tmp_path / "environment.json"
    one = json.loads(path.read_text())["starts"][0]
    one |= {"started": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T01:00:00+00:00"}
    edit_json(path, starts=[one, one | {"ended": "2026-01-01T00:30:00+00:00"}])
    known = environment.read(tmp_path)
    assert known is not None and known.seconds == 5400.0


@pytest.mark.parametrize("text", ["[]", '{"format": 9}', '{"format": 1, "run": "a", "starts": [{"x": 1}]}'])
def test_a_damaged_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "environment.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"environment\.json: cannot be read .*; delete it"):
        environment.read(tmp_path)
