"""Steps that are not finite: not applied, recorded, and after three in a row the run goes back, once."""

import io
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from markupsafe import escape
from rich.console import Console

from byol.base.errors import DivergedError
from byol.config import Config, load_config
from byol.method.networks import Byol
from byol.method.schedule import Plan
from byol.reporting.card import make_card
from byol.reporting.report import write_report
from byol.reporting.run_summary import read_summary
from byol.runfolder import checkpoint
from byol.training import loop, rollback, skipped
from byol.training.loop import train
from byol.training.runlog import read_metrics

TINY = [
    "network.name=test_resnet",
    "network.projection_head.mlp_hidden_size=16",
    "network.projection_head.projection_size=8",
    "network.stem=standard",
    "data_transforms.input_shape=[16,16,3]",
    "data.stored_px=16",
    "trainer.batch_size=8",
    "trainer.max_epochs=3",
    "trainer.checkpoint_interval=7",
    "trainer.log_interval=1",
    "trainer.health_interval=1000",
    "trainer.precision=fp32",
    "trainer.num_workers=1",
    "trainer.loggers=[]",
]
TOTAL_STEPS = 3 * (64 // 8)
FORWARD, MAKE_VIEWS = Byol.forward, loop.make_training_views


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (67, 16, 16, 3), dtype=np.uint8))
    return path


def configure(images: Path, *overrides: str) -> Config:
    return load_config(None, [f"data.source={images}", *TINY, *overrides], preset="demo")


def run(config: Config, run_dir: Path) -> tuple[loop.TrainingOutcome, str]:
    printed = io.StringIO()
    outcome = train(config, run_dir, console=Console(file=printed, width=200))
    return outcome, printed.getvalue()


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    state, problems = checkpoint.read_latest(run_dir)
    assert state is not None and problems == []
    momentum = {str(key): value["momentum_buffer"] for key, value in state["optimizer"]["state"].items()}
    return {**state["byol"], **momentum}


def assert_same(one: Path, two: Path) -> None:
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []
    assert all(bool(torch.isfinite(value).all()) for value in first.values())


class Poison:
    """Makes the loss of chosen steps NaN, the first `times` that a step is computed; may stop at a step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *steps: int, times: int = 100, stop_at: int = -1):
        self._steps, self._times, self._stop_at = steps, times, stop_at
        self._keys = {Plan.of(load_config(None, TINY, preset="demo"), num_images=67).key("views", step): step
                      for step in range(TOTAL_STEPS)}  # fmt: skip
        self._seen: dict[int, int] = {}
        self._step = -1
        monkeypatch.setattr(loop, "make_training_views", self.make_views)
        monkeypatch.setattr(
            Byol, "forward", lambda byol, *views, **options: self.forward(byol, *views, **options)
        )

    def make_views(self, *arguments: object, key: int, **others: object) -> object:
        self._step = self._keys[key]
        self._seen[self._step] = self._seen.get(self._step, 0) + 1
        if self._step == self._stop_at and self._seen[self._step] == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return MAKE_VIEWS(*arguments, key=key, **others)  # type: ignore[arg-type]

    def forward(self, byol: Byol, *views: torch.Tensor, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        loss, projection = FORWARD(byol, *views, **options)
        if self._step in self._steps and self._seen[self._step] <= self._times:
            loss, projection = loss * float("nan"), projection * float("nan")
        return loss, projection


def test_a_step_is_left_out_and_recorded(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Poison(monkeypatch, 9, 13, 14)
    outcome, printed = run(configure(images), tmp_path / "run")
    assert outcome == loop.TrainingOutcome(TOTAL_STEPS, TOTAL_STEPS, None)
    lines = [line for line in printed.splitlines() if "byol did not apply" in line]
    assert len(lines) == 3 and "step 9, which is not finite (loss nan, gradient norm nan)" in lines[0]
    assert f"`byol replay {tmp_path / 'run'} 9` finds where it begins" in lines[0]
    assert [m.done for m in read_metrics(tmp_path / "run")] == [
        done for done in range(1, TOTAL_STEPS + 1) if done not in (10, 14, 15)
    ]
    # A checkpoint in the middle of a series waits until a step is finite.
    names = [path.name for path in checkpoint.list_checkpoints(tmp_path / "run")]
    assert names == ["step-00000024.pt", "step-00000021.pt"]
    record = json.loads((tmp_path / "run" / skipped.FOLDER / "step-00000009.json").read_text())
    plan = Plan.of(configure(images), num_images=67)
    assert record["rows"] == plan.indices(9).tolist()
    assert record["images"] == [f"{row:06d}" for row in record["rows"]]
    assert (record["step"], record["loss"], record["views_key"]) == (9, "nan", plan.key("views", 9))
    assert record["lr"] == plan.lr(9) and record["accumulation_steps"] == 1


@pytest.mark.slow
def test_nothing_depends_on_when_the_host_looks(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Poison(monkeypatch, 9, 13)
    run(configure(images), tmp_path / "one")
    Poison(monkeypatch, 9, 13, stop_at=13)
    rarely = configure(images, "trainer.log_interval=1000", "trainer.checkpoint_interval=1000")
    assert run(rarely, tmp_path / "two")[0].stopped_by == "SIGTERM"
    assert run(rarely, tmp_path / "two")[0].done == TOTAL_STEPS
    assert_same(tmp_path / "one", tmp_path / "two")


def test_the_run_goes_back_with_half_the_rate(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    Poison(monkeypatch, 10, 11, 12, times=1)
    outcome, printed = run(configure(images), run_dir)
    assert outcome.done == TOTAL_STEPS
    assert "steps 10 to 12 are not finite; going back to the checkpoint of step 7 with half" in printed
    assert rollback.read(run_dir) == rollback.Rollback(failed_at=12, back_to=7, lr_share=0.5)
    summary = read_summary(run_dir)
    assert summary.incidents == (
        "3 steps were not applied, because loss or gradient was not finite (10, 11, 12).",
        "After step 12 the training went back to its checkpoint of step 7 and continued with 0.5 times the "
        "learning rate.",
    )
    assert all(sentence in make_card(summary) for sentence in summary.incidents)
    assert "The training was unstable" in make_card(summary)
    page = write_report(run_dir, most_images=20).read_text()
    assert all(escape(sentence) in page for sentence in summary.incidents)
    plan = Plan.of(configure(images), num_images=67)
    metrics = read_metrics(run_dir)
    assert [line.done for line in metrics] == list(range(1, TOTAL_STEPS + 1))
    assert [line.lr for line in metrics] == [
        plan.lr(step) * (1.0 if step < 7 else 0.5) for step in range(TOTAL_STEPS)
    ]


@pytest.mark.slow
def test_the_time_of_abandoned_steps_counts(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow failure takes most of the time, so few steps are left."""
    run_dir = tmp_path / "run"
    poison = Poison(monkeypatch, 10, 11, 12, times=1)
    forward = poison.forward

    def slow(byol: Byol, *views: torch.Tensor, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if poison._step in (10, 11, 12) and poison._seen[poison._step] == 1:
            time.sleep(1.0)
        return forward(byol, *views, **options)

    monkeypatch.setattr(poison, "forward", slow)
    config = configure(images, "trainer.max_epochs=null", f"trainer.max_hours={8 / 3600}")
    poison._keys |= {
        Plan.of(config, num_images=67, expected_steps=30).key("views", n): n for n in range(9999)
    }
    train(config, run_dir, step_s=8 / 30)
    record = rollback.read(run_dir)
    assert record is not None and record.abandoned_s >= 6.0
    state, _ = checkpoint.read_latest(run_dir)
    assert state is not None and 6.0 <= state["pace"]["elapsed_s"] <= 20.0


@pytest.mark.slow
def test_a_run_that_went_back_continues_exactly(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at the failure itself, before the first checkpoint after it, and later."""
    Poison(monkeypatch, 10, 11, 12, times=1)
    run(configure(images), tmp_path / "whole")
    for stop_at in (12, 18):
        run_dir = tmp_path / f"stopped{stop_at}"
        Poison(monkeypatch, 10, 11, 12, times=1, stop_at=stop_at)
        assert run(configure(images), run_dir)[0].stopped_by == "SIGTERM"
        outcome, printed = run(configure(images), run_dir)
        assert outcome.done == TOTAL_STEPS
        assert "from step 7 on, the learning rate is 0.5 times the configured one" in printed
        assert_same(tmp_path / "whole", run_dir)


@pytest.mark.parametrize(
    ("steps", "what"),
    [
        ((0, 1, 2), r"steps 0 to 2 .*there is no checkpoint to go back to.*optimizer\.params\.lr="),
        ((10, 11, 12), r"steps 10 to 12 .*already gone back once.*kept the last checkpoint"),
    ],
)
def test_a_run_that_fails_again_stops(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...], what: str
) -> None:
    run_dir = tmp_path / "run"
    Poison(monkeypatch, *steps)
    with pytest.raises(DivergedError, match=what):
        run(configure(images), run_dir)
    assert len(checkpoint.list_checkpoints(run_dir)) == (1 if steps[0] else 0)
    monkeypatch.undo()
    assert run(configure(images), run_dir)[0].done == TOTAL_STEPS


def test_the_best_encoder_of_the_abandoned_steps_goes(tmp_path: Path, images: Path) -> None:
    from byol.training import best

    run(configure(images, "trainer.health_interval=5"), tmp_path / "run")
    marked = best.read(tmp_path / "run")
    assert marked is not None
    best.forget(tmp_path / "run", after=marked.done)
    assert best.read(tmp_path / "run") == marked
    best.forget(tmp_path / "run", after=marked.done - 1)
    assert best.read(tmp_path / "run") is None
    assert not any((tmp_path / "run" / best.FOLDER).iterdir())


def test_a_tensorboard_that_cannot_be_written_is_a_warning(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are opened before the first step; a disk may be full just then."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", fail)
    outcome, said = run(configure(images, "trainer.loggers=[tensorboard]"), tmp_path / "run")
    assert outcome.done == TOTAL_STEPS
    assert "warning: tensorboard does not start" in said and "curves are in metrics.jsonl" in said
