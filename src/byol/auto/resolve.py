"""Resolve open settings: choose them, or read them from the run in the folder."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from byol.auto.choices import Choice, Chosen, Machine, choose, count_usable
from byol.base.console import Say
from byol.config import Config, PartialConfig, load_config
from byol.data.decode.content import HEAD_BYTES, image_kind
from byol.data.decode.formats import path_of
from byol.data.decode.index import Source
from byol.data.pack.packing import find_limit_px
from byol.data.sources.opening import open_source
from byol.data.sources.survey import Survey, describe_missing, survey
from byol.device.devices import choose_device, choose_dtype, kind_of
from byol.device.ranks import Ranks
from byol.method.networks import check_name
from byol.method.schedule import Plan
from byol.runfolder import checkpoint
from byol.training import initial_weights
from byol.training.setup import check_settings
from byol.training.step_benchmark import StepBenchmark, benchmark_step, choose_batch

_LOOK_AT = 2000  # images that byol looks at


def resolve(
    partial_config: PartialConfig, run_dir: Path, *, ranks: Ranks, say: Say
) -> tuple[Config, float | None]:
    """Return the complete configuration of the run in `run_dir`, and the seconds per step if measured.

    If the folder holds a run with a checkpoint, open settings come from it. Otherwise the first rank chooses
    them, says why, and writes `config.yaml`, which the other ranks read.

    Raises:
        ConfigError, DataError, CheckpointError: see `choose`; nothing is written.
    """
    if not partial_config.unset:
        if ranks.is_main:
            check_weights(partial_config.config, run_dir)
        return partial_config.config, None
    step_s = None
    if ranks.is_main and not checkpoint.has_begun(run_dir):
        checkpoint.check_run_folder(run_dir)
        look = look_at_some(partial_config)
        chosen = _choose(partial_config, look, world_size=ranks.world_size)
        initial_weights.rehearse(chosen.config, channels=count_channels(chosen.config, look))
        for choice in chosen.choices:
            say(str(choice))
        _say_missing(look, say)
        checkpoint.claim_run_folder(run_dir, chosen.config)
        step_s = None if chosen.benchmark is None else chosen.benchmark.step_s
    ranks.wait()
    return _ask_run(partial_config, run_dir).config, step_s


def check_weights(config: Config, run_dir: Path) -> None:
    """Refuse weights that do not fit the networks of a new run, before it packs its images.

    If the configuration does not set the number of channels, byol looks at some images.

    Raises:
        ConfigError, DataError, CheckpointError: as training would; nothing is written.
    """
    if config.network.fine_tune_from is None or checkpoint.has_begun(run_dir):
        return
    channels = _stated_channels(config)
    if channels is None:
        channels = _look_at(config).channels
    initial_weights.rehearse(config, channels=channels)


def preview(partial_config: PartialConfig, run_dir: Path, *, say: Say) -> None:
    """Say what `resolve` would choose, the schedule and the training time. Write nothing.

    Raises:
        ConfigError, DataError, CheckpointError: as training would.
    """
    check_settings(partial_config.config, run_dir)
    checkpoint.check_run_folder(run_dir)
    begins = not checkpoint.has_begun(run_dir)
    look = look_at_some(partial_config)
    if partial_config.unset and not begins:
        say(f"{run_dir} holds a run: byol would resume it with the settings it has")
        partial_config = _ask_run(partial_config, run_dir)
    found = forecast(partial_config, look)
    for choice in found.choices:
        say(str(choice))
    _say_missing(look, say)
    origin = (
        initial_weights.rehearse(found.config, channels=count_channels(found.config, look)) if begins else []
    )
    for line in (*origin, *found.plan.explain(), found.describe_time()):
        say(line)
    say("byol wrote nothing; to train, run the same command without -n")


def _say_missing(look: Survey, say: Say) -> None:
    if (line := describe_missing(look.missing, look.with_missing)) is not None:
        say(line)


@dataclass(frozen=True)
class Forecast:
    """The configuration, choices, speed and schedule that a run would have."""

    config: Config
    choices: tuple[Choice, ...]
    benchmark: StepBenchmark
    plan: Plan
    stored_px: int

    def describe_time(self) -> str:
        """Return a line with the training time."""
        plan, step_s = self.plan, self.benchmark.step_s
        return (
            f"training takes about {_in_words(plan.total_steps * step_s)}: {plan.total_steps:,} steps of "
            f"{step_s:.3g} s ({plan.batch_size / step_s:.3g} images/s)"
        )


def forecast(partial_config: PartialConfig, look: Survey) -> Forecast:
    """Choose what `resolve` would choose on one device, and time a step.

    Raises:
        ConfigError, DataError: as training would.
    """
    check_name(partial_config.config.network.name)
    chosen = _choose(partial_config, look, world_size=1)
    config = chosen.config
    benchmark = chosen.benchmark or _measure(config, False, look=look)
    hours = config.trainer.max_hours
    expected = None if hours is None else max(1, round(3600.0 * hours / benchmark.step_s))
    plan = Plan.of(config, num_images=count_usable(look), expected_steps=expected)
    return Forecast(config, chosen.choices, benchmark, plan, _find_stored_px(config, look))


def _ask_run(partial_config: PartialConfig, run_dir: Path) -> PartialConfig:
    return partial_config.resolve(
        partial_config.values_of(load_config(run_dir / "config.yaml", [], preset=None))
    )


# ---- Survey of the images and benchmark of the step


def look_at_some(partial_config: PartialConfig) -> Survey:
    """Survey 2,000 images of the source, on which the choices depend.

    Raises:
        DataError: as `survey`.
    """
    return _look_at(partial_config.config)


def _look_at(config: Config) -> Survey:
    data, workers = config.data, config.trainer.num_workers
    return survey(
        open_source(data), most=_LOOK_AT, channels=data.channels, num_workers=workers, alpha=data.alpha
    )


def _choose(partial_config: PartialConfig, look: Survey, *, world_size: int) -> Chosen:
    trainer, source = partial_config.config.trainer, open_source(partial_config.config.data)
    device = choose_device(trainer.device)
    is_bf16 = choose_dtype("auto", device=device) == torch.bfloat16
    return choose(
        partial_config,
        look,
        machine=Machine(kind_of(device), "bf16" if is_bf16 else "fp32", world_size),
        is_dicom=_is_dicom(source),
        measure=partial(_measure, look=look),
    )


def _is_dicom(source: Source) -> bool:
    """Return whether the first file is DICOM, by its content."""
    if (path := path_of(source.item(0))) is None:
        return False
    try:
        with open(path, "rb") as file:
            return image_kind(file.read(HEAD_BYTES)) == "DICOM"
    except OSError:
        return False


def _measure(config: Config, accumulates: bool, *, look: Survey) -> StepBenchmark:
    """Time a step of a run; if `accumulates`, in as many micro-batches as memory requires."""
    channels = count_channels(config, look)
    stored_px = _find_stored_px(config, look)
    if accumulates:
        return choose_batch(
            config, wanted=config.batch_size, channels=channels, stored_px=stored_px, bits=look.bits
        )
    return benchmark_step(config, channels=channels, stored_px=stored_px, bits=look.bits)


def count_channels(config: Config, look: Survey) -> int:
    """Return the number of channels that the networks receive."""
    stated = _stated_channels(config)
    return look.channels if stated is None else stated


def _stated_channels(config: Config) -> int | None:
    """Return the number of channels that `data.channels` selects; None: all channels of the images."""
    select = config.data.channels
    if isinstance(select, list):
        return len(select)
    return {"grey": 1, "rgb": 3}.get(select or "")


def _find_stored_px(config: Config, look: Survey) -> int:
    """Estimate the size that packing would choose, from the images that the survey looked at."""
    return config.data.stored_px or min(find_limit_px(config.view_px), look.sides[3])


def _in_words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
