"""Alarms: what is wrong is told by its cause and one setting; a healthy run is never stopped."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from byol.base.errors import CollapsedError, DataError, DivergedError
from byol.config import Config, load_config
from byol.method.schedule import Plan
from byol.metrics.health import Health, Measures
from byol.training import alarms, loop
from byol.training.initial_weights import InitialWeights

TINY = [
    "network.name=test_resnet",
    "network.stem=standard",
    "network.projection_head.mlp_hidden_size=32",
    "network.projection_head.projection_size=16",
    "data_transforms.input_shape=[16,16,null]",
    "trainer.batch_size=16",
    "trainer.accumulation_steps=1",
    "trainer.max_epochs=1",
    "trainer.precision=fp32",
    "trainer.num_workers=1",
]
GOOD = Health(0.25, 12.0, "healthy")
BEFORE = Measures(0.5, 40.0, None)


def configure(source: Path, *overrides: str) -> Config:
    return load_config(None, [f"data.source={source}", *TINY, *overrides], preset="default")


def run(config: Config, run_dir: Path) -> str:
    said = io.StringIO()
    loop.train(config, run_dir, console=Console(file=said, width=500))
    return said.getvalue()


def save(folder: Path, images: np.ndarray) -> Path:
    np.save(folder / "images.npy", images)
    return folder / "images.npy"


def draw_objects() -> np.ndarray:
    """A small bright square somewhere on an empty background, with a little noise."""
    rng = np.random.default_rng(0)
    images = np.full((64, 32, 32, 1), 30.0) + rng.normal(0.0, 0.5, (64, 32, 32, 1))
    for image in images:
        top, left = rng.integers(0, 24, 2)
        image[top : top + 8, left : left + 8] += rng.normal(120.0, 30.0, (8, 8, 1))
    return images.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        (np.full((32, 16, 16, 3), 128), "32 images .* one value"),
        (
            np.arange(32).repeat(16 * 16).reshape(32, 16, 16, 1),
            "32 images .* one value",
        ),
        (np.arange(256).reshape(1, 16, 16, 1).repeat(32, 0), "32 images .* equal"),
    ],
)
def test_images_that_hold_nothing(tmp_path: Path, images: np.ndarray, problem: str) -> None:
    source = save(tmp_path, images.astype(np.uint8))
    with pytest.raises(DataError, match=rf"^data\.source: .*{problem}.*; .*give other images"):
        run(configure(source), tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "setting"),
    [
        (["data_transforms.view1.crop_area=[0.001,0.01]"], r"view1\.crop_area=\[0\.2,1\.0\]"),
        (["data_transforms.view2.crop_area=[0.001,0.01]"], r"view2\.crop_area=\[0\.2,1\.0\]"),
        (
            ["data_transforms.s=10", "data_transforms.view1.brightness=2", "data_transforms.view1.jitter=1",
             "data_transforms.view1.contrast=0", "data_transforms.view1.hue=0",
             "data_transforms.view2.hue=0", "data_transforms.view2.jitter=0"],
            r"view1\.brightness=0\.04",
        ),
    ],
)  # fmt: skip
def test_views_that_are_mostly_blank(tmp_path: Path, overrides: list[str], setting: str) -> None:
    images = draw_objects() if "crop_area" in setting else draw_objects() // 2 + 120
    with pytest.raises(DataError, match=rf"\d+ % of its views are blank .*: set data_transforms\.{setting}$"):
        run(configure(save(tmp_path, images), *overrides), tmp_path / "run")


def test_some_blank_views_are_a_warning(tmp_path: Path) -> None:
    crop = "data_transforms.view1.crop_area=[0.1,0.2]"
    said = run(configure(save(tmp_path, draw_objects()), crop), tmp_path / "run")
    assert "warning: data_transforms.view1: " in said and "; set data_transforms.view1.crop_area=[" in said
    assert "data_transforms.view2" not in said


def test_a_far_too_high_rate_is_named(tmp_path: Path) -> None:
    """1,000 times the 0.015 that suits 16 images."""
    source = save(tmp_path, np.random.default_rng(0).integers(0, 256, (128, 16, 16, 3), dtype=np.uint8))
    config = configure(source, "optimizer.params.lr=15.0", "trainer.max_epochs=25")
    with pytest.raises(
        (CollapsedError, DivergedError),
        match=r"at step (\d\d|1\d\d|200)\b.* times .*optimizer\.params\.lr=0\.015$",
    ):
        run(config, tmp_path / "run")


def make_watch(tmp_path: Path, *overrides: str) -> alarms.Watch:
    config = configure(tmp_path, *overrides)
    plan = Plan.of(config, num_images=1000)
    return alarms.Watch(config, plan, start=replace(InitialWeights("new", 0, 1.0), measures=BEFORE))


def test_collapsed_must_be_said_twice_in_a_row(tmp_path: Path) -> None:
    watch, collapsed = make_watch(tmp_path), replace(GOOD, verdict="collapsed")
    for health, is_over in ((collapsed, False), (GOOD, False), (collapsed, False), (collapsed, True)):
        watch.note(health, BEFORE, done=1)
        assert watch.is_over == is_over


@pytest.mark.parametrize(("rate", "is_over"), [("0.015", False), ("0.15", False), ("15.0", True)])
def test_weak_is_the_end_only_at_a_far_too_high_rate(tmp_path: Path, rate: str, is_over: bool) -> None:
    watch = make_watch(tmp_path, f"optimizer.params.lr={rate}")
    for _ in range(5):
        watch.note(replace(GOOD, verdict="weak"), BEFORE, done=100)
    assert watch.is_over == is_over


@pytest.mark.parametrize(
    "worse", [Measures(0.3, 40.0, None), Measures(0.5, 15.0, None)], ids=["retrieval", "rank"]
)
def test_worse_than_at_step_0_is_said_once(tmp_path: Path, worse: Measures) -> None:
    watch = make_watch(tmp_path)
    assert [watch.note(GOOD, worse, done=done) for done in (20, 50, 100)] == [None] * 3  # too early
    assert watch.note(GOOD, worse, done=200) is None
    warning = watch.note(GOOD, worse, done=400)
    assert warning is not None and "at step 400 the encoder is worse than at step 0 (" in warning
    assert warning.endswith("lower network.encoder_lr")
    assert watch.note(GOOD, worse, done=600) is None and not watch.is_over


def test_random_weights_may_lose_rank(tmp_path: Path) -> None:
    config = configure(tmp_path)
    plan = Plan.of(config, num_images=1000)
    watch = alarms.Watch(config, plan, start=replace(InitialWeights("random", 0, 1.0), measures=BEFORE))
    assert [watch.note(GOOD, Measures(0.5, 5.0, None), done=done) for done in (200, 400, 600)] == [None] * 3
    assert not watch.is_over


def test_a_little_worse_is_not_said(tmp_path: Path) -> None:
    watch = make_watch(tmp_path)
    assert [watch.note(GOOD, Measures(0.42, 25.0, None), done=d) for d in (200, 400, 600)] == [None] * 3


def test_blank_views_are_the_cause_unless_the_rate_is(tmp_path: Path) -> None:
    blank = ["warning: data_transforms.view1: 30% of its views are blank; better set X"]
    for rate, cause in (
        ("0.015", "30% of its views are blank; better set X"),
        ("15.0", "optimizer.params.lr="),
    ):
        config = configure(tmp_path, f"optimizer.params.lr={rate}")
        plan = Plan.of(config, num_images=1000)
        error = alarms.explain_collapse(config, plan, health=GOOD, done=9, saved="kept", views=blank)
        assert cause in str(error)
