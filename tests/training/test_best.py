"""The best encoder: marked by a measure without labels, and flat runs are told so once."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from byol.base.errors import CheckpointError, DiskReadError
from byol.config import load_config
from byol.encoder.encoder import save_encoder
from byol.method.networks import build_encoder
from byol.method.schedule import Plan
from byol.metrics.health import Health, Measures
from byol.training import best
from byol.training.best import Best, Marked, Marker, score
from failing_disk import fail_reading
from runs import make_spec

WELL = Health(0.25, 12.0, "healthy")


def make_plan(schedule: str = "cosine", *, warmup: float = 1) -> Plan:
    """100 steps, 10 of them warm-up."""
    overrides = [
        "trainer.batch_size=10",
        "trainer.max_epochs=10",
        f"optimizer.warmup_epochs={warmup}",
        f"optimizer.schedule={schedule}",
    ]
    return Plan.of(load_config(None, overrides, preset="demo"), num_images=100)


def measure(value: float, *, knn: float | None = None) -> Measures:
    """With `score` so high."""
    measures = Measures(0.5, 40.0, knn, 0.5, -0.5 - value)
    assert score(measures) == pytest.approx(value)
    return measures


def make_marker(run_dir: Path, plan: Plan, *, before: Marker | None = None) -> tuple[Marker, list[int]]:
    saved: list[int] = []
    state = None if before is None else before.best.state()
    marker = Marker(run_dir, plan, saved=state, warm_steps=0, save=lambda folder, done: saved.append(done))
    return marker, saved


def follow(marker: Marker, values: dict[int, float], *, health: Health = WELL) -> list[str]:
    """Checks after so many steps; what is said."""
    said = [
        marker.note(health, measure(value), done=done, position=float(done), last=done == 100)
        for done, value in values.items()
    ]
    return [line for line in said if line is not None]


def test_the_best_after_warm_up_is_kept(tmp_path: Path) -> None:
    marker, saved = make_marker(tmp_path, make_plan())
    follow(marker, {5: 9.0, 10: 1.0, 20: 2.0, 30: 1.5, 40: 2.0, 100: 1.0})
    assert saved == [10, 20, 40]  # of equal ones the later
    assert best.read(tmp_path) == Marked(40, best.MEASURE, 2.0)
    assert json.loads((tmp_path / "best.json").read_text())["format"] == 1


def test_a_damaged_best_json_is_written_anew_and_a_lost_encoder_is_replaced(tmp_path: Path) -> None:
    first, _ = make_marker(tmp_path, make_plan())
    follow(first, {20: 2.0})
    with torch.random.fork_rng():
        encoder = build_encoder("test_resnet", channels=3, view_px=16, stem="standard")
    save_encoder(tmp_path / "best", encoder, make_spec())
    (tmp_path / "best.json").write_text("{")
    marker, saved = make_marker(tmp_path, make_plan(), before=first)
    assert marker.mend() == [] and marker.best == first.best
    assert best.read(tmp_path) == Marked(20, best.MEASURE, 2.0)
    (tmp_path / "best" / "encoder.safetensors").write_bytes(b"cut")
    (line,) = marker.mend()
    assert "the encoder of step 20" in line and "is damaged" in line and best.read(tmp_path) is None
    follow(marker, {40: 1.0})
    assert saved == [40] and best.read(tmp_path) == Marked(40, best.MEASURE, 1.0)


@pytest.mark.parametrize("name", ["encoder.safetensors", "encoder.json", "best.json"])
def test_an_encoder_that_the_disk_does_not_give_is_not_lost(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = make_marker(tmp_path, make_plan())
    follow(first, {20: 2.0})
    with torch.random.fork_rng():
        encoder = build_encoder("test_resnet", channels=3, view_px=16, stem="standard")
    save_encoder(tmp_path / "best", encoder, make_spec())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    marker, _ = make_marker(tmp_path, make_plan(), before=first)
    with monkeypatch.context() as patched:
        fail_reading(patched, times=99, name=name)
        with pytest.raises(DiskReadError, match=f"{name}: .*may be intact"):
            marker.mend()
        if name == "best.json":
            with pytest.raises(DiskReadError, match="may be intact"):
                best.forget(tmp_path, after=10)
    assert marker.best == first.best
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    with monkeypatch.context() as patched:
        fail_reading(patched, times=2, name=name)
        assert marker.mend() == []


def test_a_run_that_is_all_warm_up_has_one_too(tmp_path: Path) -> None:
    marker, saved = make_marker(tmp_path, make_plan(warmup=10))
    follow(marker, {50: 2.0, 100: 1.0})
    assert saved == [100]


@pytest.mark.parametrize("verdict", ["collapsing", "collapsed"])
def test_a_collapsed_encoder_is_never_the_best(tmp_path: Path, verdict: str) -> None:
    marker, saved = make_marker(tmp_path, make_plan())
    follow(marker, {20: 2.0}, health=Health(0.0, 1.0, verdict))  # type: ignore[arg-type]
    assert saved == [] and best.read(tmp_path) is None


def test_labels_have_no_say() -> None:
    assert score(measure(1.0, knn=0.9)) == score(measure(1.0, knn=0.1)) == score(measure(1.0))


def test_stopped_and_continued_is_never_stopped(tmp_path: Path) -> None:
    values = {done: float(np.sin(done / 9.0)) for done in range(10, 101, 10)}
    plan = make_plan("constant")
    whole, _ = make_marker(tmp_path / "whole", plan)
    said = follow(whole, values)
    marker, said_in_parts = None, []
    for part in ((10, 20, 30), (40, 50), (60, 70, 80, 90, 100)):
        marker, _ = make_marker(tmp_path / "parts", plan, before=marker)
        said_in_parts += follow(marker, {done: values[done] for done in part})
    assert marker is not None and marker.best == whole.best
    assert [line.replace("whole", "parts") for line in said] == said_in_parts and len(said) == 1
    assert best.read(tmp_path / "whole") == best.read(tmp_path / "parts")


def test_a_new_start_from_step_0_forgets_what_was_marked(tmp_path: Path) -> None:
    follow(make_marker(tmp_path, make_plan())[0], {20: 2.0})
    assert best.read(tmp_path) is not None
    make_marker(tmp_path, make_plan())
    assert best.read(tmp_path) is None


def test_no_gain_for_long_is_said_once(tmp_path: Path) -> None:
    marker, _ = make_marker(tmp_path, make_plan("constant"))
    assert follow(marker, {20: 1.0, 30: 1.01, 40: 1.005}) == []
    (line,) = follow(marker, {50: 1.01, 60: 1.0, 70: 1.0})
    assert "for 30 % of the run" in line and "1.01" in line and "after step 50" in line
    assert line.endswith(f"The encoder of that step is in {tmp_path / 'best'}. You may stop and use it")


def test_slow_gains_are_gains(tmp_path: Path) -> None:
    """Each below the bound, together above it."""
    marker, _ = make_marker(tmp_path, make_plan("constant"))
    assert follow(marker, {done: done / 1000 for done in range(10, 100, 10)}) == []


def test_a_falling_rate_is_waited_for(tmp_path: Path) -> None:
    """With a cosine not before the middle, and then with a word on what may still come."""
    marker, _ = make_marker(tmp_path, make_plan("cosine"))
    assert follow(marker, {10: 1.0, 40: 1.0, 49: 1.0}) == []
    (line,) = follow(marker, {50: 1.0})
    assert line.endswith(
        "Let the run end and use its last encoder: its learning rate falls, which often helps"
    )


def test_at_the_end_it_is_not_worth_saying(tmp_path: Path) -> None:
    marker, _ = make_marker(tmp_path, make_plan("constant"))
    assert follow(marker, {65: 1.0, 95: 1.0, 100: 1.0}) == []


@pytest.mark.parametrize(
    "text", ["{", '{"format": 2, "done": 1, "measure": "", "value": 1}', '{"format": 1}']
)
def test_a_damaged_mark(tmp_path: Path, text: str) -> None:
    (tmp_path / "best.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"best\.json: cannot be read .*; delete it"):
        best.read(tmp_path)


def test_nothing_is_known_before_a_check() -> None:
    assert Best.of(None).done == 0 and Best.of(Best.of(None).state()) == Best.of(None)
