"""How long the demo is: by speeds and clocks of the tests' own."""

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

from byol.auto import demo, resolve
from byol.auto.demo import LEAST_S, TOTAL_S, choose_length, fit_to_time
from byol.auto.train import train
from byol.config import PartialConfig, load_config, load_partial
from byol.data.sources.motifs import NUM_TRAIN
from byol.method.schedule import Plan
from byol.training import loop, setup
from byol.training.loop import TrainingOutcome
from byol.training.runlog import read_metrics
from byol.training.step_benchmark import StepBenchmark
from byol.training.time_budget import TimeBudget

BEFORE = 624  # steps that the demo had when it did not look at the clock
STEPS_PER_EPOCH = NUM_TRAIN // 64
TINY = [
    "network.stem=standard",
    "network.projection_head.mlp_hidden_size=8",
    "network.projection_head.projection_size=4",
    "data_transforms.input_shape=[16,16,3]",
    "data.stored_px=16",
    "trainer.batch_size=16",
    "trainer.log_interval=1",
    "trainer.precision=fp32",
    "trainer.num_workers=1",
    "trainer.loggers=[]",
]


def choose(step_s: float, *, elapsed_s: float = 20.0, overrides: tuple[str, ...] = ()) -> demo.Length:
    config = load_config(None, list(overrides), preset="demo")
    return choose_length(config, num_images=NUM_TRAIN, step_s=step_s, elapsed_s=elapsed_s)


@pytest.mark.parametrize("step_s", [0.0005, 0.01, 0.05])
def test_a_fast_machine_makes_all_steps_of_the_preset(step_s: float) -> None:
    preset = load_config(None, [], preset="demo")
    length = choose(step_s)
    assert length.config == preset and preset.trainer.max_epochs is not None
    assert length.steps == preset.trainer.max_epochs * STEPS_PER_EPOCH >= BEFORE


@pytest.mark.parametrize("step_s", [0.0005, 0.05, 0.1, 0.12, 0.2, 0.25, 0.4])
@pytest.mark.parametrize("elapsed_s", [5.0, 40.0])
def test_the_whole_command_ends_within_four_minutes(step_s: float, elapsed_s: float) -> None:
    length = choose(step_s, elapsed_s=elapsed_s)
    assert elapsed_s + length.training_s + length.evaluation_s <= TOTAL_S < 240.0
    assert length.training_s >= length.steps * step_s  # and what comes beside the steps
    trainer = length.config.trainer
    assert (trainer.max_epochs is None) != (trainer.max_hours is None)
    if trainer.max_hours is not None:
        assert trainer.max_hours * 3600 == pytest.approx(length.training_s, abs=0.05)
    # A machine that was fast enough for the old number of steps still makes it.
    assert length.steps >= BEFORE or step_s * BEFORE > 120.0


def test_a_slower_machine_makes_fewer_steps() -> None:
    steps = [choose(step_s).steps for step_s in (0.05, 0.15, 0.2, 0.3, 0.5)]
    assert steps == sorted(steps, reverse=True) and len(set(steps)) == len(steps)


def test_the_slowest_machine_trains_for_a_minute() -> None:
    """More than the time is then used, and said. Its warm-up is no longer than its run."""
    length = choose(5.0)
    assert length.training_s == LEAST_S and length.steps * 5.0 <= LEAST_S
    expected = round(length.training_s / length.step_s)
    plan = Plan.of(length.config, num_images=NUM_TRAIN, expected_steps=expected)
    assert plan.warmup_steps < expected
    assert f"{demo.format_time(length.evaluation_s)} for the evaluation" in length.describe()


def test_what_is_said_adds_up() -> None:
    length = choose(0.3, elapsed_s=30.0)
    said = length.describe()
    total = demo.format_time(30.0 + demo.SETUP_S + length.training_s + length.evaluation_s)
    rest = demo.format_time(30.0 + demo.SETUP_S)
    parts = (
        total,
        f"{rest} for the preparation",
        f"{length.steps:,} ",
        demo.format_time(length.training_s),
        "trainer.max_epochs",
    )
    assert [part for part in parts if part not in said] == []
    assert total == demo.format_time(TOTAL_S)


# ---- In a run


@pytest.fixture
def images(tmp_path: Path) -> Path:
    path = tmp_path / "images.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (67, 16, 16, 3), dtype=np.uint8))
    return path


@pytest.fixture
def step_takes(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let a step take so long here, in the benchmark and by the clock of the run; fewer seconds in all."""
    monkeypatch.setattr(demo, "TOTAL_S", 50.0)
    monkeypatch.setattr(demo, "LEAST_S", 5.0)
    monkeypatch.setattr(demo, "EVALUATION_S", 10.0)

    def install(step_s: float) -> None:
        made = 0
        make_views = loop.make_training_views

        def step(*arguments: object, **others: object) -> object:
            nonlocal made
            made += 1
            return make_views(*arguments, **others)  # type: ignore[arg-type]

        monkeypatch.setattr(demo, "benchmark_step", lambda *_, **__: StepBenchmark(16, 1, step_s, 1, 2))
        monkeypatch.setattr(loop, "make_training_views", step)
        monkeypatch.setattr(setup, "TimeBudget", partial(TimeBudget, now=lambda: made * step_s))

    return install


def fit(partial_config: PartialConfig, run_dir: Path) -> tuple[PartialConfig, float | None, str]:
    output = io.StringIO()
    console = Console(file=output, width=200)
    given, step_s = fit_to_time(partial_config, run_dir, elapsed=lambda: 10.0, console=console)
    return given, step_s, output.getvalue()


def test_a_slow_machine_completes_its_schedules_and_continues_with_them(
    images: Path, tmp_path: Path, step_takes: Callable[[float], None]
) -> None:
    step_takes(0.25)
    partial_config = load_partial(None, [f"data.source={images}", *TINY], preset="demo")
    run_dir = tmp_path / "run"
    given, step_s, said = fit(partial_config, run_dir)
    assert given.config.trainer.max_hours is not None
    assert (
        given.config.trainer.max_hours * 3600 == pytest.approx(5.0, abs=0.05)
        and "the demo takes about" in said
    )
    quiet = Console(file=io.StringIO())
    assert train(given, run_dir, console=quiet, step_s=step_s) == TrainingOutcome(20, 20, None)
    lines = read_metrics(run_dir)
    assert lines[-1].lr < 0.001 and lines[-1].tau > 0.999
    # Again, at another speed: the length is that of the run.
    step_takes(0.001)
    again, step_s, said = fit(partial_config, run_dir)
    assert again == given and step_s is None and said == ""
    assert train(given, run_dir, console=quiet) == TrainingOutcome(20, 20, None)
    assert load_config(run_dir / "config.yaml", [], preset=None).trainer == given.config.trainer
    previewed: list[str] = []
    demo.preview(partial_config, run_dir, elapsed=lambda: 10.0, say=previewed.append)
    assert "all 20 steps are done" in previewed[0] and "nothing is left to train" in previewed[-1]


def test_the_preview_of_a_stopped_demo_says_what_is_left(
    images: Path, tmp_path: Path, step_takes: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    step_takes(0.25)
    partial_config = load_partial(None, [f"data.source={images}", *TINY], preset="demo")
    given, step_s, _ = fit(partial_config, tmp_path / "run")
    make_views, made = loop.make_training_views, 0

    def make(*arguments: object, **others: object) -> object:
        nonlocal made
        made += 1
        if made == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return make_views(*arguments, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "make_training_views", make)
    assert train(given, tmp_path / "run", step_s=step_s).done == 4
    said: list[str] = []
    demo.preview(partial_config, tmp_path / "run", elapsed=lambda: 10.0, say=said.append)
    assert "continue it after step 4 of about " in said[0]
    assert said[-2] == "training takes 0:04 (min:s) more: what is left of its time budget"


def test_a_run_keeps_the_threads_that_were_fastest(
    images: Path, tmp_path: Path, step_takes: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    step_takes(0.25)
    measured = StepBenchmark(16, 1, 0.25, 1, 2, num_threads=1, all_threads_s=1.5)
    monkeypatch.setattr(demo, "benchmark_step", lambda *_, **__: measured)
    partial_config = load_partial(None, [f"data.source={images}", *TINY], preset="demo")
    given, step_s, said = fit(partial_config, tmp_path / "run")
    assert "1 thread of the CPU (0.25 s per step, but 1.5 s with all threads" in said
    assert given.config.trainer.num_threads == 1
    make_views, seen = loop.make_training_views, set()

    def make(*arguments: object, **others: object) -> object:
        seen.add(torch.get_num_threads())
        return make_views(*arguments, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "make_training_views", make)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train(given, tmp_path / "run", step_s=step_s)
        assert seen == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert fit(partial_config, tmp_path / "run")[0] == given
    other = load_partial(None, [f"data.source={images}", *TINY, "trainer.num_threads=2"], preset="demo")
    assert fit(other, tmp_path / "run")[0].config.trainer.num_threads == 2


def test_a_given_length_is_kept_to(images: Path, tmp_path: Path, step_takes: Callable[[float], None]) -> None:
    step_takes(100.0)
    for override in ("trainer.max_epochs=4", "trainer.max_hours=0.5"):
        partial_config = load_partial(None, [f"data.source={images}", *TINY, override], preset="demo")
        given, step_s, said = fit(partial_config, tmp_path / "run")
        assert (given, step_s, said) == (partial_config, None, "")


def test_the_preview_says_the_time_and_writes_nothing(
    images: Path, tmp_path: Path, step_takes: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    step_takes(0.25)
    monkeypatch.setattr(resolve, "benchmark_step", lambda *_, **__: StepBenchmark(16, 1, 0.25, 1, 2))
    before, said = sorted(tmp_path.rglob("*")), list[str]()
    partial_config = load_partial(None, [f"data.source={images}", *TINY], preset="demo")
    demo.preview(partial_config, tmp_path / "run", elapsed=lambda: 10.0, say=said.append)
    assert "about 1:00" in said[0] and "0:05 for 18 training steps" in said[0]
    assert any(line.startswith("learning rate") for line in said) and "wrote nothing" in said[-1]
    assert sorted(tmp_path.rglob("*")) == before
    given = load_partial(None, [f"data.source={images}", *TINY, "trainer.max_epochs=4"], preset="demo")
    said.clear()
    demo.preview(given, tmp_path / "run", elapsed=lambda: 10.0, say=said.append)
    assert any("16 steps" in line for line in said) and not any("this takes" in line for line in said)
