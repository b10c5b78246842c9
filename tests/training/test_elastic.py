"""Another number of ranks at each start, under torchrun: the same run as one process without a stop."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import elastic_rank
import numpy as np
import pytest
import torch

from byol.base.errors import RunMismatchError
from byol.cli.main import main as byol
from byol.config import load_config
from byol.device.ranks import Ranks
from byol.runfolder import checkpoint, environment
from byol.training.loop import train
from byol.training.runlog import read_metrics
from web_store import serve

BATCH, STEPS_PER_EPOCH, EPOCHS = 16, 4, 3
TOTAL_STEPS = STEPS_PER_EPOCH * EPOCHS
STARTS = ((4, 3), (2, 3), (1, 3), (4, None))  # ranks; steps after which one of them is told to stop
OVERRIDES = [
    "network.name=resnet10t",
    "network.stem=standard",
    "network.projection_head.mlp_hidden_size=32",
    "network.projection_head.projection_size=16",
    "data_transforms.input_shape=[16,16,3]",
    "data.stored_px=16",
    f"trainer.batch_size={BATCH}",
    f"trainer.max_epochs={EPOCHS}",
    "trainer.checkpoint_interval=100",
    "trainer.log_interval=1",
    "trainer.health_interval=5",
    "trainer.precision=fp32",
    "trainer.device=cpu",
    "trainer.loggers=[]",
]


def start(run_dir: Path, *, num_ranks: int, stop_after: int | None, overrides: list[str]) -> dict[str, Any]:
    """Train until the end or the signal; return each step's images, all ranks together, and the outcome.

    Several ranks run under torchrun, one in this process (which saves its start).
    """
    notes = run_dir.with_name(f"{run_dir.name}-{len(list(run_dir.parent.glob('*')))}")
    notes.mkdir()
    job = {
        "overrides": overrides,
        "run_dir": str(run_dir),
        "notes": str(notes),
        "stop_after": stop_after,
    }
    if num_ranks == 1:
        with pytest.MonkeyPatch.context() as patch:
            elastic_rank.main(job, patch.setattr)
    else:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*torchrun, f"--nproc-per-node={num_ranks}", elastic_rank.__file__, json.dumps(job)]
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0, ended.stderr
    outcomes = [json.loads((notes / f"{rank}.outcome").read_text()) for rank in range(num_ranks)]
    assert outcomes == outcomes[:1] * num_ranks  # all agree
    by_rank = [
        [json.loads(line) for line in (notes / f"{rank}.jsonl").read_text().splitlines()]
        for rank in range(num_ranks)
    ]
    steps = [list(chain(*images)) for images in zip(*by_rank, strict=True)]
    return {"steps": steps, **outcomes[0]}


@pytest.mark.slow
def test_other_numbers_of_ranks_continue_the_same_run(tmp_path: Path) -> None:
    """4 ranks, then 2, 1 and 4, each stopped in mid-epoch by a signal to one rank; compared with one process.

    In fp64, so that rounding (here 1e-12) stays far below what another image would change.
    """
    source = save_images(tmp_path)
    overrides = [*OVERRIDES, f"data.source={source}", f"data.packs={tmp_path}/packs"]
    check_starts(tmp_path, STARTS, overrides=overrides)
    known = environment.read(tmp_path / "run")
    assert known is not None
    assert [(each.num_ranks, each.first_step) for each in known.starts] == [(4, 0), (2, 3), (1, 6), (4, 9)]


@pytest.mark.slow
def test_other_numbers_of_ranks_on_a_pack_in_object_storage(tmp_path: Path) -> None:
    """The ranks share one cache of shards, and visit the windows of shards that one process visits."""
    pytest.importorskip("aiohttp")
    source, count = save_images(tmp_path), 20
    packing = ["pack", str(source), f"--output={tmp_path}/web", *OVERRIDES]
    for number in range(1, count + 1):
        assert byol([*packing, f"--part={number}/{count}"]) == 0
    assert byol(packing) == 0
    (pack,) = (tmp_path / "web").glob("array-*")
    with serve(pack) as server:
        settings = [f"data.source={server.address}", f"data.packs={tmp_path}/packs"]
        check_starts(tmp_path, ((2, 3), (1, 3), (2, None)), overrides=[*OVERRIDES, *settings])
        shards = [path for path in server.requests if path.endswith("images.npy")]
        assert len(shards) == count and all(server.requests[path] == 1 for path in shards)


def save_images(folder: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (BATCH * STEPS_PER_EPOCH, 16, 16, 3), dtype=np.uint8)
    np.save(folder / "images.npy", images)
    return folder / "images.npy"


def check_starts(folder: Path, starts: Sequence[tuple[int, int | None]], *, overrides: list[str]) -> None:
    """Train once in one process without a stop, and once in `starts`; compare the runs."""
    whole = start(folder / "whole", num_ranks=1, stop_after=None, overrides=overrides)
    steps, done = [], 0
    for num_ranks, stop_after in starts:
        one = start(folder / "run", num_ranks=num_ranks, stop_after=stop_after, overrides=overrides)
        done = TOTAL_STEPS if stop_after is None else done + stop_after
        assert one["done"] == done and one["stopped_by"] == (None if stop_after is None else "SIGTERM")
        steps += one["steps"]

    # Each step has the images of the whole batch, and each epoch has every image once.
    assert [sorted(step) for step in steps] == [sorted(step) for step in whole["steps"]]
    for epoch in range(EPOCHS):
        in_epoch = list(chain(*steps[epoch * STEPS_PER_EPOCH : (epoch + 1) * STEPS_PER_EPOCH]))
        assert len(in_epoch) == len(set(in_epoch)) == BATCH * STEPS_PER_EPOCH

    assert_same_run(folder / "whole", folder / "run")


def test_ranks_with_other_checkpoints_or_images_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when each node has a run folder of its own: only the first would continue the run."""
    np.save(tmp_path / "images.npy", np.zeros((20, 16, 16, 3), dtype=np.uint8))
    config = load_config(None, [f"data.source={tmp_path}/images.npy", *OVERRIDES], preset="demo")
    seen: list[str] = []
    monkeypatch.setattr(Ranks, "agree", lambda _, text: seen.append(text))
    with pytest.raises(RunMismatchError, match=r"rank 0 of 1 would start at step 0 with 20 images .*shared"):
        train(config, tmp_path / "run")
    assert len(seen) == 1 and seen[0].startswith("0 ")


def assert_same_run(one: Path, two: Path) -> None:
    """The same losses, learning rates, weights, statistics and momentum; each step logged once."""
    lines = read_metrics(one), read_metrics(two)
    assert [line.done for line in lines[1]] == list(range(1, TOTAL_STEPS + 1))  # only one rank writes
    for a, b in zip(*lines, strict=True):
        assert (a.lr, a.tau) == (b.lr, b.tau)
        assert b.loss == pytest.approx(a.loss, abs=1e-6)  # the loss is computed in fp32
    states = [checkpoint.read_latest(folder) for folder in (one, two)]
    (first, problems), (second, more) = states
    assert first is not None and second is not None and problems == more == []
    for key, value in first["byol"].items():
        torch.testing.assert_close(second["byol"][key], value, atol=1e-9, rtol=1e-9, msg=key)
    for key, value in first["optimizer"]["state"].items():
        momentum = second["optimizer"]["state"][key]["momentum_buffer"]
        torch.testing.assert_close(momentum, value["momentum_buffer"], atol=1e-9, rtol=1e-9)
