"""Runs with a budget of time, by a clock of the tests' own, and runs that meet the end of memory."""

import io
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from byol.base.errors import RunMismatchError
from byol.config import Config, load_config
from byol.runfolder import checkpoint
from byol.training import loop, setup
from byol.training.loop import TrainingOutcome, train
from byol.training.runlog import read_metrics
from byol.training.step_benchmark import StepBenchmark
from byol.training.time_budget import TimeBudget

TINY = [
    "network.name=test_resnet",
    "network.stem=standard",
    "network.projection_head.mlp_hidden_size=8",
    "network.projection_head.projection_size=4",
    "data_transforms.input_shape=[16,16,3]",
    "data.stored_px=16",
    "trainer.batch_size=16",
    "trainer.log_interval=1",
    "trainer.precision=fp32",
    "trainer.num_workers=1",
    "optimizer.warmup_epochs=0",
]
STEP_S = 0.25  # exact in binary, so that sums are


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (67, 16, 16, 3), dtype=np.uint8))
    return path


def configure(images: Path, *overrides: str) -> Config:
    return load_config(None, [f"data.source={images}", *TINY, *overrides], preset="demo")


def run(config: Config, run_dir: Path, *, step_s: float | None = None) -> tuple[TrainingOutcome, str]:
    output = io.StringIO()
    outcome = train(config, run_dir, console=Console(file=output, width=200), step_s=step_s)
    return outcome, output.getvalue()


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    state, _ = checkpoint.read_latest(run_dir)
    assert state is not None
    return dict(state["byol"])


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> dict[int, Callable[[], None]]:
    """What to do in a step, by how many have been made in this test; the clock goes on by STEP_S in each."""
    actions: dict[int, Callable[[], None]] = {}
    made = 0
    make_views = loop.make_training_views

    def step(*arguments: object, **others: object) -> object:
        nonlocal made
        made += 1
        actions.get(made, lambda: None)()
        return make_views(*arguments, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "make_training_views", step)
    monkeypatch.setattr(setup, "TimeBudget", partial(TimeBudget, now=lambda: made * STEP_S))
    return actions


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_stopped_twice_is_never_stopped(
    images: Path, tmp_path: Path, at_step: dict[int, Callable[[], None]]
) -> None:
    """6 s at 0.25 s per step are 24 steps, though the first estimate was a second a step."""
    config = configure(images, f"trainer.max_hours={6 / 3600}")
    outcome, said = run(config, tmp_path / "whole", step_s=1.0)
    assert outcome == TrainingOutcome(24, 24, None)
    assert "about 6 steps (1.5 epochs) fit into 0:06 (min:s) at 1 s per step" in said and "0:00 left" in said
    whole = read_metrics(tmp_path / "whole")
    assert [line.done for line in whole] == list(range(1, 25))
    # From the highest rate to nearly 0, and tau to nearly 1: the schedules are complete.
    assert whole[0].lr == 0.06 and whole[-1].lr < 0.001 and whole[-1].tau > 0.999
    at_step |= {24 + 3: stop, 24 + 17: stop}
    stopped = tmp_path / "stopped"
    assert run(config, stopped, step_s=1.0)[0].done == 3
    outcome, said = run(config, stopped, step_s=123.0)  # the estimate of the start counts
    assert outcome.stopped_by == "SIGTERM" and outcome.done == 17
    assert "continuing after step 3 of about" in said and "0:01 of the time budget used" in said
    assert run(config, stopped)[0] == TrainingOutcome(24, 24, None)
    rates = [
        [(line.done, line.loss, line.lr, line.tau) for line in lines]
        for lines in (whole, read_metrics(stopped))
    ]
    assert rates[0] == rates[1]
    one, two = weights(tmp_path / "whole"), weights(stopped)
    assert [key for key in one if not torch.equal(one[key], two[key])] == []
    assert "this run is already finished: all 24 steps are done" in run(config, stopped)[1]
    with pytest.raises(RunMismatchError, match=r"trainer\.max_hours: "):
        run(configure(images, "trainer.max_hours=1"), stopped)


def test_the_speed_is_probed_before_the_start(
    images: Path, tmp_path: Path, at_step: dict[int, Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmarked: list[dict[str, int]] = []

    def benchmark_step(config: Config, **what: int) -> StepBenchmark:
        benchmarked.append(what)
        return StepBenchmark(16, 1, STEP_S, 1, 1)

    monkeypatch.setattr(setup, "benchmark_step", benchmark_step)
    config = configure(images, f"trainer.max_hours={2 / 3600}")
    outcome, said = run(config, tmp_path / "run")
    assert benchmarked == [{"channels": 3, "stored_px": 16, "bits": 8}] and outcome.done == 8
    assert "about 8 steps (2 epochs) fit into 0:02 (min:s) at 0.25 s per step;" in said
    run(config, tmp_path / "run")
    assert len(benchmarked) == 1


def test_a_known_speed_is_told_without_a_budget(images: Path, tmp_path: Path) -> None:
    _, said = run(configure(images, "trainer.max_epochs=1"), tmp_path / "run", step_s=30.0)
    assert "4 steps (full batches) per epoch" in said and "about 2 min at 30 s per step" in said


# ---- Out of memory


@pytest.mark.slow
def test_out_of_memory_goes_on_in_smaller_parts_and_so_does_a_continued_run(
    images: Path, tmp_path: Path, at_step: dict[int, Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the third of eight steps; stopped after the fifth. Equal to parts by hand from the third on."""

    def fail() -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 123 bytes")

    config = configure(images, "trainer.max_epochs=2")
    # Calls: 1, 2, 3 (fails), then two a step.
    at_step |= {3: fail, 9: stop}
    outcome, said = run(config, tmp_path / "run")
    assert outcome == TrainingOutcome(5, 8, "SIGTERM")
    assert said.count("trainer.accumulation_steps=2") == 1
    state, _ = checkpoint.read_latest(tmp_path / "run")
    assert state is not None and state["num_parts"] == 2
    parts: list[int] = []
    compute = loop.compute_within_memory
    monkeypatch.setattr(
        loop,
        "compute_within_memory",
        lambda *a, num_microbatches, **k: (
            parts.append(num_microbatches),
            compute(*a, num_microbatches=num_microbatches, **k),
        )[1],
    )
    outcome, said = run(config, tmp_path / "run")
    assert outcome == TrainingOutcome(8, 8, None) and parts == [2] * 3 and "out of memory" not in said

    at_step[9 + 6 + 2] = stop  # the same by hand: two steps whole, the others in two parts
    run(config, tmp_path / "by hand")
    run(configure(images, "trainer.max_epochs=2", "trainer.accumulation_steps=2"), tmp_path / "by hand")
    one, two = weights(tmp_path / "run"), weights(tmp_path / "by hand")
    assert [key for key in one if not torch.equal(one[key], two[key])] == []
