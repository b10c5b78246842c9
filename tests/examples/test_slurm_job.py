"""`examples/slurm.sh` under a stand-in for Slurm: stopped at its time limits, it ends as if it had none."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from slurm_stand_in import Cluster, find_signal

from faults.scene import take_fingerprint, write_images
from runs import TINY
from shell_commands import ROOT

SCRIPT = ROOT / "examples" / "slurm.sh"
STEPS = (*TINY, "trainer.device=cpu", "trainer.log_interval=1", "trainer.max_epochs=5",
         "trainer.checkpoint_interval=1000", "trainer.health_interval=4", "trainer.loggers=[]")  # fmt: skip
TOTAL_STEPS = 20


def count_steps(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None or os.name == "nt", reason="needs bash")
def test_a_job_on_two_nodes_that_is_queued_again_ends_identical(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images")
    cluster = Cluster(tmp_path / "slurm")

    def run(name: str, *stops: int) -> list[int]:
        run_dir = tmp_path / name / "a"

        def reaches(step: int) -> Callable[[], bool]:
            return lambda: count_steps(run_dir) >= step

        near_limit = [reaches(step) for step in stops]
        return cluster.run(SCRIPT, ["images", str(run_dir), *STEPS], nodes=2, near_limit=near_limit)

    assert find_signal(SCRIPT)[1] == 120.0
    assert run("whole") == [0]
    codes = run("stopped", 3, 9)
    assert len(codes) == 3 and 0 not in codes[:2] and codes[2] == 0
    expected = take_fingerprint(tmp_path / "whole" / "a")
    assert take_fingerprint(tmp_path / "stopped" / "a") == expected
    starts = json.loads((tmp_path / "stopped" / "a" / "environment.json").read_text())["starts"]
    firsts = [start["first_step"] for start in starts]
    assert [start["num_ranks"] for start in starts] == [2, 2, 2]
    assert firsts[0] == 0 < 3 <= firsts[1] < 9 <= firsts[2] < TOTAL_STEPS
