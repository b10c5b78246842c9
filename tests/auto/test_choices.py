"""Choices: a table of surveys and what follows; given values stay; every line says why."""

from dataclasses import replace
from typing import Any

import pytest

from byol.auto import choices
from byol.auto.choices import Chosen, Machine, choose
from byol.base.errors import ConfigError, DataError
from byol.config import Config, load_partial
from byol.data.sources.survey import Survey
from byol.training.step_benchmark import StepBenchmark

CPU = Machine("cpu", "fp32", 1)
GPU = Machine("cuda", "bf16", 1)
PHOTOS = Survey(
    num_images=20_000,
    num_looked_at=1000,
    num_bad=0,
    channels=3,
    bits=8,
    used_bits=8,
    is_grey=False,
    sides=(200, 320, 400, 500),
    one_size=False,
    low=(0.0,) * 3,
    high=(255.0,) * 3,
    blank=0.0,
    upright=0.83,
)


def decide(
    *overrides: str, machine: Machine = CPU, is_dicom: bool = False, step_s: float | None = None, **facts: Any
) -> Chosen:
    def measure(config: Config, in_parts: bool) -> StepBenchmark:
        parts = 4 if in_parts else config.accumulation_steps
        return StepBenchmark(config.batch_size, parts, step_s or 0.0, 3 * 10**9, 4 * 10**9)

    return choose(
        load_partial(None, overrides, preset="default"),
        replace(PHOTOS, **facts),
        machine=machine,
        is_dicom=is_dicom,
        measure=None if step_s is None else measure,
    )


def lines(chosen: Chosen) -> list[str]:
    return [str(choice) for choice in chosen.choices]


# ---- Views


@pytest.mark.parametrize(
    ("facts", "domain", "line"),
    [
        ({}, "photo", "random changes (views) as for photos (the images have 8 bits and 3 channels)"),
        (
            {"is_grey": True, "channels": 1},
            "grey",
            "random changes (views) as for grey photos (the images have 8 bits and 1 channel)",
        ),
        (
            {"is_grey": True},
            "grey",
            "random changes (views) as for grey photos (the images have 8 bits and 3 equal channels)",
        ),
        (
            {"bits": 16},
            "microscopy",
            "random changes (views) as for microscopy (the images have 16 bits and 3 channels)",
        ),
        (
            {"bits": 32, "channels": 1},
            "microscopy",
            "random changes (views) as for microscopy (the images have 32 bits and 1 channel)",
        ),
        (
            {"channels": 2},
            "microscopy",
            "random changes (views) as for microscopy (the images have 8 bits and 2 channels)",
        ),
        (
            {"bits": 16, "channels": 13},
            "satellite",
            "random changes (views) as for satellite images (the images have 16 bits and 13 channels, more "
            "than microscopes have)",
        ),
        (
            {"bits": 16, "channels": 1, "is_dicom": True},
            "medical",
            "random changes (views) as for medical images (the images are DICOM files)",
        ),
    ],
)
def test_domain(facts: dict[str, Any], domain: str, line: str) -> None:
    chosen = decide(**facts)
    assert chosen.config.data_transforms.domain == domain
    assert lines(chosen)[0] == line
    table = load_partial(None, [f"data_transforms.domain={domain}"], preset="default").config.data_transforms
    assert chosen.config.data_transforms.view1 == table.view1
    assert chosen.config.data_transforms.view2 == table.view2


@pytest.mark.parametrize(
    ("facts", "turned", "line"),
    [
        (
            {"upright": 0.83},
            False,
            "no up-down flips (orientation matters: a test recognised turned images in 83 % of cases)",
        ),
        (
            {"upright": 0.51},
            True,
            "flips and rotation (orientation hardly matters: a test recognised turned images in 51 % "
            "of cases; chance is 50 %)",
        ),
        (
            {"upright": 0.7},
            False,
            "no up-down flips (orientation matters: a test recognised turned images in 70 % of cases)",
        ),
        (
            {"upright": 0.7, "bits": 16},
            True,
            "flips and rotation (orientation matters: a test recognised turned images in 70 % of "
            "cases; byol still turns microscopy images)",
        ),
    ],
)
def test_turns(facts: dict[str, Any], turned: bool, line: str) -> None:
    chosen = decide(**facts)
    for view in (chosen.config.data_transforms.view1, chosen.config.data_transforms.view2):
        assert (view.vertical_flip, view.rotation) == ((0.5, 180.0) if turned else (0.0, 0.0))
    assert lines(chosen)[1] == line


def test_given_numbers_of_views_stay() -> None:
    chosen = decide("data_transforms.view.rotation=0", "data_transforms.view2.blur=0.9", upright=0.5, bits=16)
    transforms = chosen.config.data_transforms
    assert (transforms.view1.rotation, transforms.view1.vertical_flip, transforms.view2.blur) == (
        0.0,
        0.5,
        0.9,
    )
    assert any(line.startswith("flips (orientation hardly matters: a test ") for line in lines(chosen))
    chosen = decide("data_transforms.view={rotation: 0, vertical_flip: 0.1}", upright=0.5)
    assert not any("orientation" in line for line in lines(chosen))
    chosen = decide("data_transforms.domain=medical", upright=0.5)  # a person's word on all numbers
    assert chosen.config.data_transforms.view1.rotation == 10.0
    assert not any("orientation" in line or "(views)" in line for line in lines(chosen))


def test_grey_saved_as_rgb_is_read_as_grey() -> None:
    chosen = decide(is_grey=True)
    assert chosen.config.data.channels == "grey"
    assert "1 channel (the 3 channels of every image are equal)" in lines(chosen)
    assert decide(is_grey=True, channels=1).config.data.channels is None
    assert decide("data.channels=null", is_grey=True).config.data.channels is None
    assert decide("data.channels=rgb", is_grey=True).config.data.channels == "rgb"
    assert decide("data_transforms.input_shape=[32,32,3]", is_grey=True).config.data.channels is None


@pytest.mark.parametrize(
    ("median", "machine", "overrides", "side", "reason"),
    [
        (56, CPU, (), 48, "longest side of a typical image 56 px"),
        (60, CPU, (), 64, "longest side of a typical image 60 px"),
        (64, CPU, (), 64, "longest side of a typical image 64 px"),
        (320, CPU, (), 64, "longest side of a typical image 320 px; at most 64 on a CPU"),
        (320, GPU, (), 128, "longest side of a typical image 320 px; at most 128 on a GPU"),
        (100, GPU, (), 96, "longest side of a typical image 100 px"),
        (20, CPU, (), 32, "longest side of a typical image 20 px; at least 32"),
        (320, CPU, ("data.stored_px=50",), 48, "longest side of a typical image 320 px; stored at 50 px"),
    ],
)
def test_view_size(median: int, machine: Machine, overrides: tuple[str, ...], side: int, reason: str) -> None:
    chosen = decide(*overrides, machine=machine, sides=(10, median, 400, 500))
    assert chosen.config.data_transforms.input_shape == (side, side, None)
    assert f"view size {side} px ({reason})" in lines(chosen)


# ---- What is trained


def test_network_by_device() -> None:
    small, large, gpu = decide(sides=(40, 50, 60, 70)), decide(), decide(machine=GPU)
    assert (small.config.network.name, small.config.network.stem) == ("resnet10t", "strided")
    assert (large.config.network.name, large.config.network.stem) == ("resnet10t", "standard")
    assert (gpu.config.network.name, gpu.config.network.stem) == ("resnet18", "auto")
    assert "network resnet10t (on a CPU)" in lines(small)
    assert (
        "first layers (stem) for small images, network.stem=strided (for views of 48 px on a CPU)"
        in lines(small)
    )
    assert (small.config.trainer.precision, gpu.config.trainer.precision) == ("fp32", "bf16")
    given = decide("network.name=resnet50", "trainer.precision=bf16")
    assert (given.config.network.name, given.config.network.stem) == ("resnet50", "auto")
    assert given.config.trainer.precision == "bf16"


@pytest.mark.parametrize(
    ("num_images", "machine", "overrides", "batch", "reason"),
    [
        (20_000, CPU, (), 64, "on a CPU"),
        (20_000, GPU, (), 256, "on a GPU"),
        (100, CPU, (), 32, "at most half of the 100 images"),
        (16, CPU, (), 8, "at most half of the 16 images"),
        (20_000, Machine("cuda", "bf16", 3), (), 255, "on a GPU; a multiple of 3"),
        (20_000, CPU, ("trainer.accumulation_steps=4",), 64, "on a CPU"),
    ],
)
def test_batch(
    num_images: int, machine: Machine, overrides: tuple[str, ...], batch: int, reason: str
) -> None:
    chosen = decide(*overrides, machine=machine, num_images=num_images)
    assert chosen.config.trainer.batch_size == batch
    assert f"batch size {batch} ({reason})" in lines(chosen)


def test_additions_are_chosen_where_they_were_measured_to_help() -> None:
    def additions(chosen: Chosen) -> tuple[float | None, str]:
        return chosen.config.trainer.vicreg_weight, chosen.config.data_transforms.target_view

    chosen = decide()
    assert additions(chosen) == (1.0, "weak")
    assert (
        "an extra training goal, from VICReg, trainer.vicreg_weight=1 (keeps different images apart in "
        "the first half of the run; for photos on a CPU)" in lines(chosen)
    )
    assert (
        "one more view for the target network, data_transforms.target_view=weak (of a large crop in its own "
        "colours, which both other views predict; for photos on a CPU)" in lines(chosen)
    )
    assert additions(decide(is_grey=True, channels=1)) == (1.0, "weak")
    assert additions(decide(bits=16)) == (1.0, "auto")  # microscopy
    nothing_else_is_open = decide("trainer.accumulation_steps=1", "trainer.max_hours=1")
    assert additions(nothing_else_is_open) == (1.0, "weak")
    for other in (
        decide("network.fine_tune_from=runs/a"),
        decide(machine=GPU),
        decide(bits=16, channels=1, is_dicom=True),
        decide("data_transforms.domain=medical"),
    ):
        assert additions(other) == (None, "auto")
    off = decide("trainer.vicreg_weight=0")
    assert additions(off) == (0.0, "weak") and not any("VICReg" in line for line in lines(off))
    off = decide("data_transforms.target_view=other")
    assert additions(off) == (1.0, "other") and not any("target network" in line for line in lines(off))


def test_too_few_images() -> None:
    with pytest.raises(DataError, match=r"^images: 15 images are too few .* at least 16"):
        decide(num_images=15)
    with pytest.raises(DataError, match=r"^images: 12 images"):  # a quarter cannot be read
        decide(num_images=16, num_looked_at=16, num_bad=4)
    with pytest.raises(ConfigError, match=r"^trainer\.batch_size: 20 images are too few for 8 ranks"):
        decide(num_images=20, machine=Machine("cpu", "fp32", 8))


def test_parts_and_length_by_the_measured_step() -> None:
    chosen = decide(step_s=0.9)
    trainer = chosen.config.trainer
    assert trainer.accumulation_steps == 4 and chosen.benchmark is not None
    assert "4 micro-batches per step, each fits into memory (3.0 of 4.0 GB)" in lines(chosen)
    # 0.85 h of 0.9 s are 3,400 steps, of 312 an epoch.
    assert trainer.max_epochs == 10
    assert lines(chosen)[-1] == (
        "10 epochs, 3,120 steps (as many as fit into 51 min at the speed measured now, 0.9 s per step)"
    )
    assert decide(step_s=1000.0).config.trainer.max_epochs == 1
    fast = decide(step_s=0.001)
    assert lines(fast)[-1] == "40 epochs, 12,480 steps (training then sees 800,000 images, repeats included)"
    assert decide(num_images=1000).config.trainer.max_epochs == round(400_000 / 960)
    given = decide("trainer.accumulation_steps=2", "trainer.max_epochs=3", step_s=0.9)
    assert (given.config.accumulation_steps, given.config.trainer.max_epochs, given.benchmark) == (2, 3, None)


def test_every_choice_can_be_given_and_leaves_nothing_open() -> None:
    chosen = decide(step_s=0.5)
    keys = {choice.key for choice in chosen.choices}
    assert keys == {
        "data_transforms.domain",
        "data_transforms.view",
        "data_transforms.input_shape",
        "network.name",
        "network.stem",
        "trainer.precision",
        "trainer.vicreg_weight",
        "data_transforms.target_view",
        "trainer.batch_size",
        "trainer.accumulation_steps",
        "trainer.max_epochs",
    }
    assert all("\n" not in str(choice) for choice in chosen.choices)
    demo = choose(load_partial(None, [], preset="demo"), PHOTOS, machine=CPU, is_dicom=False, measure=None)
    assert demo.choices == () and demo.config == load_partial(None, [], preset="demo").config


def test_a_chosen_value_that_goes_against_a_given_one_is_told() -> None:
    with pytest.raises(
        ConfigError, match=r"^override 'optimizer\.warmup_epochs=900': .* longer than the run"
    ):
        decide("optimizer.warmup_epochs=900", step_s=0.5)


def test_the_rules_are_numbers_at_the_top(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(choices.BATCHES, "cpu", 16)
    monkeypatch.setitem(choices.MOST_VIEW_PX, "cpu", 96)
    monkeypatch.setattr(choices, "UPRIGHT_FROM", 0.9)
    chosen = decide()
    assert (chosen.config.batch_size, chosen.config.view_px) == (16, 96)
    assert chosen.config.data_transforms.view1.rotation == 180.0


# ---- Threads


def test_fewer_threads_are_a_choice_where_they_are_faster() -> None:
    measured = StepBenchmark(64, 1, 0.4, 10**9, 4 * 10**9, num_threads=1, all_threads_s=2.9)

    chosen = choose(
        load_partial(None, [], preset="default"),
        PHOTOS,
        machine=CPU,
        is_dicom=False,
        measure=lambda config, accumulates: measured,
    )
    assert chosen.config.trainer.num_threads == 1
    assert any(
        line.startswith("1 thread of the CPU (0.4 s per step, but 2.9 s with") for line in lines(chosen)
    )
    assert decide(step_s=0.4).config.trainer.num_threads is None
