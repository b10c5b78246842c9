"""Resolve open settings: choose them, or read them from the run in the folder."""

from dataclasses import dataclass
from pathlib import Path

import torch

from byol.auto.choices import Choice, Chosen, Machine, choose, count_usable
from byol.base.console import Say, silent
from byol.base.errors import DataError
from byol.base.files import is_address
from byol.base.text_table import describe_duration
from byol.config import Config, PartialConfig, load_config
from byol.data.decode.content import HEAD_BYTES, image_kind
from byol.data.decode.formats import Member, path_of
from byol.data.decode.index import Source
from byol.data.pack.images import packs_of
from byol.data.pack.packed_source import open_any_source
from byol.data.pack.packing import find_limit_px
from byol.data.sources.opening import open_source
from byol.data.sources.survey import Survey, describe_missing, survey
from byol.device.devices import choose_device, choose_dtype, kind_of
from byol.device.ranks import Ranks
from byol.method.networks import check_name
from byol.method.schedule import Plan
from byol.runfolder import checkpoint, environment
from byol.training import initial_weights
from byol.training.runlog import format_time
from byol.training.setup import check_settings
from byol.training.step_benchmark import StepBenchmark, benchmark_step, choose_batch
from byol.training.summary import explain_finished
from byol.training.time_budget import TimeBudget

_LOOK_AT = 2000  # images that byol looks at
_TIMING = "timing a few training steps"


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
        look = look_at_some(partial_config, run_dir, say=say)
        chosen = _choose(partial_config, look, world_size=ranks.world_size, say=say)
        initial_weights.rehearse(chosen.config, channels=count_channels(chosen.config, look))
        for choice in chosen.choices:
            say(str(choice))
        _say_missing(look, say)
        checkpoint.claim_run_folder(run_dir, chosen.config)
        step_s = None if chosen.benchmark is None else chosen.benchmark.step_s
    ranks.wait()
    return _ask_run(partial_config, run_dir).config, step_s


def resolve_for_packing(partial_config: PartialConfig, run_dir: Path, *, say: Say) -> Config:
    """Return the complete configuration, with the views and channels of a new run on this machine.

    It times no step, so the settings on which packing does not depend may be others than those of the run.

    Raises:
        ConfigError, DataError: see `choose`.
    """
    if not partial_config.unset:
        return partial_config.config
    look = look_at_some(partial_config, run_dir, say=say)
    chosen = _choose(partial_config, look, world_size=1, say=say, times_steps=False)
    for choice in chosen.choices:
        if choice.key in ("data.channels", "data_transforms.input_shape"):
            say(str(choice))
    return chosen.config


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
        channels = _look_at(config, run_dir).channels
    initial_weights.rehearse(config, channels=channels)


def preview(partial_config: PartialConfig, run_dir: Path, *, say: Say) -> None:
    """Say what `resolve` would choose, the schedule and the training time. Write nothing.

    Raises:
        ConfigError, DataError, CheckpointError: as training would.
    """
    check_settings(partial_config.config, run_dir)
    checkpoint.check_run_folder(run_dir)
    if checkpoint.has_begun(run_dir):
        _preview_begun(partial_config, run_dir, say=say)
        return
    look = look_at_some(partial_config, run_dir, say=say)
    found = forecast(partial_config, look, say=say)
    for choice in found.choices:
        say(str(choice))
    _say_missing(look, say)
    origin = initial_weights.rehearse(found.config, channels=count_channels(found.config, look))
    for line in (*origin, *found.plan.explain(), found.describe_time()):
        say(line)
    say("byol wrote nothing; to train, run the same command without -n")


def _preview_begun(partial_config: PartialConfig, run_dir: Path, *, say: Say) -> None:
    """Say what is left to do of the run in the folder. Its settings replace the open ones."""
    if partial_config.unset:
        partial_config = _ask_run(partial_config, run_dir)
    config = partial_config.config
    checkpoint.claim_run_folder(run_dir, config)  # only compares, because the run has begun
    state, notes = checkpoint.read_latest(run_dir)
    assert state is not None
    expected = None if state["pace"] is None else state["pace"]["total_steps"]
    record = environment.read(run_dir)  # None in early versions
    num_images = count_usable(look_at_some(partial_config, run_dir)) if record is None else record.num_images
    plan = Plan.of(config, num_images=num_images, expected_steps=expected)
    budget, done = TimeBudget(plan, saved=state["pace"]), int(state["done"])
    for line in notes:
        say(line)
    if budget.is_last(done):
        say(f"{run_dir}: {explain_finished(done, run_dir)}")
        say("byol wrote nothing, and nothing is left to train")
        return
    about = "" if plan.budget_s is None else "about "
    say(
        f"{run_dir} holds a run: byol would continue it after step {done:,} of {about}{budget.end:,}, with "
        "its settings"
    )
    for line in plan.explain():
        say(line)
    if plan.budget_s is not None:
        left_s = budget.left_s(done, step_s=0.0)
        say(f"training takes {format_time(left_s)} (min:s) more: what is left of its time budget")
    else:
        look = look_at_some(partial_config, run_dir, say=say)
        say(_TIMING)
        left, step_s = budget.end - done, _measure(config, False, look=look).step_s
        say(f"training takes about {describe_duration(left * step_s)} more: {left:,} steps of {step_s:.3g} s")
    say("byol wrote nothing; to continue training, run the same command without -n")


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
        duration = describe_duration(plan.total_steps * step_s)
        return (
            f"training takes about {duration}: {plan.total_steps:,} steps of {step_s:.3g} s "
            f"({plan.batch_size / step_s:.3g} images/s)"
        )


def forecast(
    partial_config: PartialConfig, look: Survey, *, chooses_threads: bool = False, say: Say = silent
) -> Forecast:
    """Choose what `resolve` would choose on one device, and time a step; `say` is told before that.

    `chooses_threads`: whether the run would take the number of threads that is fastest even if no setting is
    open.

    Raises:
        ConfigError, DataError: as training would.
    """
    check_name(partial_config.config.network.name)
    chosen = _choose(partial_config, look, world_size=1, say=say)
    config = chosen.config
    if (benchmark := chosen.benchmark) is None:
        say(_TIMING)
        benchmark = _measure(config, False, look=look, chooses_threads=chooses_threads)
    hours = config.trainer.max_hours
    expected = None if hours is None else max(1, round(3600.0 * hours / benchmark.step_s))
    plan = Plan.of(config, num_images=count_usable(look), expected_steps=expected)
    return Forecast(config, chosen.choices, benchmark, plan, _find_stored_px(config, look))


def _ask_run(partial_config: PartialConfig, run_dir: Path) -> PartialConfig:
    return partial_config.resolve(
        partial_config.values_of(load_config(run_dir / "config.yaml", [], preset=None))
    )


# ---- Survey of the images and benchmark of the step


def look_at_some(partial_config: PartialConfig, run_dir: Path, *, say: Say = silent) -> Survey:
    """Survey 2,000 images of the source, on which the choices depend; `say` is told before that.

    Raises:
        DataError: as `survey`.
    """
    say(f"looking at the images (at most {_LOOK_AT:,} of them)")
    return _look_at(partial_config.config, run_dir)


def _look_at(config: Config, run_dir: Path) -> Survey:
    data, workers = config.data, config.trainer.num_workers
    source = open_any_source(data, packs_of(config, run_dir))
    channels = None if is_address(data.source) else data.channels  # packed images have only these
    return survey(source, most=_LOOK_AT, channels=channels, num_workers=workers, alpha=data.alpha)


def _choose(
    partial_config: PartialConfig, look: Survey, *, world_size: int, say: Say, times_steps: bool = True
) -> Chosen:
    def measure(config: Config, accumulates: bool) -> StepBenchmark:
        say(_TIMING)
        return _measure(config, accumulates, look=look, chooses_threads=True)

    config = partial_config.config
    device = choose_device(config.trainer.device)
    is_bf16 = choose_dtype("auto", device=device) == torch.bfloat16
    return choose(
        partial_config,
        look,
        machine=Machine(kind_of(device), "bf16" if is_bf16 else "fp32", world_size),
        is_dicom=not is_address(config.data.source) and _is_dicom(open_source(config.data)),
        measure=measure if times_steps else None,
    )


def _is_dicom(source: Source) -> bool:
    """Return whether the first file is DICOM, by its content."""
    item = source.item(0)
    try:
        if isinstance(item, Member):
            return image_kind(item.read(HEAD_BYTES)) == "DICOM"
        if (path := path_of(item)) is None:
            return False
        with open(path, "rb") as file:
            return image_kind(file.read(HEAD_BYTES)) == "DICOM"
    except (DataError, OSError):
        return False


def _measure(
    config: Config, accumulates: bool, *, look: Survey, chooses_threads: bool = False
) -> StepBenchmark:
    """Time a step of a run; if `accumulates`, in as many micro-batches as memory requires.

    `chooses_threads`: whether the run will take the number of threads that was fastest.
    """
    channels = count_channels(config, look)
    stored_px = _find_stored_px(config, look)
    if accumulates:
        return choose_batch(
            config, wanted=config.batch_size, channels=channels, stored_px=stored_px, bits=look.bits
        )
    return benchmark_step(
        config, channels=channels, stored_px=stored_px, bits=look.bits, may_use_fewer_threads=chooses_threads
    )


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
