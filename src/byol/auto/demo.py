"""Choose how long `byol demo` trains: the epochs of its preset, or less so that the command takes 4 minutes.

byol times a few training steps first. If the epochs of the preset take too long, it sets `trainer.max_hours`
instead, so that the schedules end in time at any speed. A length that the user sets is not changed.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from byol.auto import resolve
from byol.auto.choices import choose_threads, count_usable
from byol.base.console import Say, print_line
from byol.config import Config, PartialConfig, load_config
from byol.data.pack.images import open_images
from byol.method.schedule import Plan
from byol.runfolder import checkpoint
from byol.training.runlog import format_time
from byol.training.setup import check_settings
from byol.training.step_benchmark import benchmark_step

TOTAL_S = 210.0  # the whole command: half a minute less than four, in case the machine becomes slower
LEAST_S = 60.0  # shortest training, if the rest takes too long
_LEAST_EPOCHS = 2  # fewest planned epochs with a time budget, so that the warm-up fits

SETUP_S = 5.0  # from the timing to the first step, plus from the last step to the evaluation
_BESIDE_STEPS = 1.1  # time of a run divided by the time of its steps: checks, checkpoints, logs
# Time of the evaluation, as a number of training steps plus a fixed time (docs/performance.md).
_EVALUATION_STEPS, EVALUATION_S = 120, 8.0


@dataclass(frozen=True)
class Length:
    """The length of the demo's training, and the time of its other parts."""

    config: Config
    steps: int  # expected number, if there is a time budget
    step_s: float  # seconds per step that the schedules assume at the start
    training_s: float
    evaluation_s: float
    elapsed_s: float  # time of the command so far

    def describe(self) -> str:
        """Return a line that says how long the command will take."""
        rest_s = self.elapsed_s + SETUP_S
        total_s = rest_s + self.training_s + self.evaluation_s
        return (
            f"the demo takes about {format_time(total_s)} (min:s): {format_time(rest_s)} for the "
            f"preparation, {format_time(self.training_s)} for {self.steps:,} training steps and "
            f"{format_time(self.evaluation_s)} for the evaluation; set trainer.max_epochs=N or "
            "trainer.max_hours=H to change the length"
        )


def choose_length(config: Config, *, num_images: int, step_s: float, elapsed_s: float) -> Length:
    """Keep the epochs of the preset if they fit into TOTAL_S, otherwise set `trainer.max_hours` to what fits.

    `config` has `trainer.max_epochs`; `step_s` is the measured time of a step and `elapsed_s` the time of the
    command so far, in seconds.
    """
    trainer, steps_per_epoch = config.trainer, max(1, num_images // config.batch_size)
    assert trainer.max_epochs is not None
    whole_step_s = _BESIDE_STEPS * step_s
    evaluation_s = EVALUATION_S + _EVALUATION_STEPS * step_s
    left_s = max(LEAST_S, TOTAL_S - elapsed_s - SETUP_S - evaluation_s)
    steps = steps_per_epoch * trainer.max_epochs
    training_s = steps * whole_step_s
    if training_s > left_s:
        hours = round(left_s / 3600.0, 5)
        config = _with_trainer(config, {"max_epochs": None, "max_hours": hours})
        steps, training_s = max(1, int(left_s / whole_step_s)), left_s
    planned_step_s = min(step_s, training_s / (_LEAST_EPOCHS * steps_per_epoch))
    return Length(config, steps, planned_step_s, training_s, evaluation_s, elapsed_s)


def fit_to_time(
    partial_config: PartialConfig, run_dir: Path, *, elapsed: Callable[[], float], console: Console
) -> tuple[PartialConfig, float | None]:
    """Return the demo's configuration with its length, and the seconds per step if they were measured.

    A run with a checkpoint keeps its length. Nothing changes if the user sets a length or opens a setting, or
    if there are several ranks. `elapsed` returns the seconds that the command has taken so far.

    Raises:
        ConfigError, DataError, CheckpointError: as training would.
    """
    if not _is_free(partial_config):
        return partial_config, None
    if checkpoint.has_begun(run_dir):
        return PartialConfig(_as_begun(partial_config.config, run_dir), partial_config.layers), None
    config = partial_config.config
    check_settings(config, run_dir)
    checkpoint.check_run_folder(run_dir)
    images = open_images(config, run_dir, console=console)
    print_line(console, "timing a few training steps")
    benchmark = benchmark_step(
        config,
        channels=images.channels,
        stored_px=images.stored_px,
        bits=images.bits,
        may_use_fewer_threads=True,
    )
    for choice in choose_threads(benchmark):
        config = _with_trainer(config, {"num_threads": choice.value})
        print_line(console, str(choice))
    length = choose_length(config, num_images=len(images), step_s=benchmark.step_s, elapsed_s=elapsed())
    print_line(console, length.describe())
    return PartialConfig(length.config, partial_config.layers), length.step_s


def preview(partial_config: PartialConfig, run_dir: Path, *, elapsed: Callable[[], float], say: Say) -> None:
    """Say what `fit_to_time` would choose, and the schedule. Write nothing.

    Raises:
        ConfigError, DataError, CheckpointError: as training would.
    """
    if not _is_free(partial_config) or checkpoint.has_begun(run_dir):
        kept = (
            _as_begun(partial_config.config, run_dir) if _is_free(partial_config) else partial_config.config
        )
        resolve.preview(PartialConfig(kept, partial_config.layers), run_dir, say=say)
        return
    checkpoint.check_run_folder(run_dir)
    look = resolve.look_at_some(partial_config, run_dir)
    found, num_images = resolve.forecast(partial_config, look, chooses_threads=True), count_usable(look)
    length = choose_length(
        found.config, num_images=num_images, step_s=found.benchmark.step_s, elapsed_s=elapsed()
    )
    expected = max(1, round(length.training_s / length.step_s))
    plan = Plan.of(length.config, num_images=num_images, expected_steps=expected)
    threads = map(str, choose_threads(found.benchmark))
    for line in (*threads, length.describe(), *plan.explain()):
        say(line)
    say("byol wrote nothing; to train, run the same command without -n")


def _as_begun(config: Config, run_dir: Path) -> Config:
    """Return the configuration with the length and the threads of the run in the folder."""
    begun = load_config(run_dir / "config.yaml", [], preset=None).trainer
    num_threads = config.trainer.num_threads or begun.num_threads
    kept = {"max_epochs": begun.max_epochs, "max_hours": begun.max_hours, "num_threads": num_threads}
    return _with_trainer(config, kept)


def _with_trainer(config: Config, values: Mapping[str, object]) -> Config:
    return config.model_copy(update={"trainer": config.trainer.model_copy(update=values)})


def _is_free(partial_config: PartialConfig) -> bool:
    """Return whether this module may choose the length."""
    is_explicit = any(partial_config.is_explicit(f"trainer.{key}") for key in ("max_epochs", "max_hours"))
    return not is_explicit and not partial_config.unset and os.environ.get("WORLD_SIZE", "1") == "1"
