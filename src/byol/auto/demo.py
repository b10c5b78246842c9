"""How long `byol demo` trains: as its preset says, or as long as four minutes for the whole command leave.

The machine's speed is measured first. What the preset's length does not fit into, `trainer.max_hours` does:
then the schedules end in time at whatever speed. A length that the person gives is kept to.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from byol.auto import resolve
from byol.auto.choices import count_usable
from byol.base.console import print_line
from byol.config import Config, PartialConfig, load_config
from byol.data.pack.images import open_images
from byol.method.schedule import Plan
from byol.runfolder import checkpoint
from byol.training.runlog import format_time
from byol.training.setup import check_settings
from byol.training.step_benchmark import benchmark_step

TOTAL_S = 210.0  # of the whole command: half a minute less than four, for a machine that gets slower
LEAST_S = 60.0  # of training, on a machine where the rest takes too long
_LEAST_EPOCHS = 2  # that a time budget's rates are planned for, so that their warm-up fits

_OPENING_S = 5.0  # from the measurement to the first step, and from the last step to the evaluation
_BESIDE_STEPS = 1.1  # a run takes so much longer than its steps: checks, checkpoints, logs
# Evaluation takes as long as so many steps, and what does not grow with a slower CPU (docs/performance.md).
_EVALUATION_STEPS, _EVALUATION_S = 120, 8.0


@dataclass(frozen=True)
class Length:
    """How long the demo's training is to be, and what the rest takes."""

    config: Config
    steps: int  # with a time budget as expected
    step_s: float  # that the schedules begin with, seconds
    training_s: float
    evaluation_s: float
    elapsed_s: float  # of the command, when this was chosen

    def describe(self) -> str:
        """What the command is going to take, a line."""
        total_s = self.elapsed_s + _OPENING_S + self.training_s + self.evaluation_s
        return (
            f"this takes about {format_time(total_s)} (minutes:seconds): {self.steps:,} training steps in "
            f"{format_time(self.training_s)}, evaluation {format_time(self.evaluation_s)}; "
            "trainer.max_epochs=N or trainer.max_hours=H sets another length"
        )


def choose_length(config: Config, *, num_images: int, step_s: float, elapsed_s: float) -> Length:
    """The preset's epochs if they fit into what is left of TOTAL_S, else what fits, as `trainer.max_hours`.

    `config` has `trainer.max_epochs`; `step_s` is what a step takes here, `elapsed_s` what the command has
    taken so far, seconds.
    """
    trainer, steps_per_epoch = config.trainer, max(1, num_images // config.batch_size)
    assert trainer.max_epochs is not None
    whole_step_s = _BESIDE_STEPS * step_s
    evaluation_s = _EVALUATION_S + _EVALUATION_STEPS * step_s
    left_s = max(LEAST_S, TOTAL_S - elapsed_s - _OPENING_S - evaluation_s)
    steps = steps_per_epoch * trainer.max_epochs
    training_s = steps * whole_step_s
    if training_s > left_s:
        hours = round(left_s / 3600.0, 5)
        config = config.model_copy(
            update={"trainer": trainer.model_copy(update={"max_epochs": None, "max_hours": hours})}
        )
        steps, training_s = max(1, int(left_s / whole_step_s)), left_s
    planned_step_s = min(step_s, training_s / (_LEAST_EPOCHS * steps_per_epoch))
    return Length(config, steps, planned_step_s, training_s, evaluation_s, elapsed_s)


def fit_to_time(
    draft: PartialConfig, run_dir: Path, *, elapsed: Callable[[], float], console: Console
) -> tuple[PartialConfig, float | None]:
    """The demo's configuration with its length, and what a step takes, seconds, if that was measured.

    A run that has begun keeps its length. Given lengths, open settings and several ranks leave nothing to
    fit. `elapsed` says how many seconds the command has taken so far.

    Raises:
        ConfigError, DataError, CheckpointError: as training would.
    """
    if not _is_free(draft):
        return draft, None
    if checkpoint.has_begun(run_dir):
        return PartialConfig(_keep_length(draft.config, run_dir), draft.layers), None
    config = draft.config
    check_settings(config, run_dir)
    checkpoint.check_run_folder(run_dir)
    images = open_images(config, run_dir, console=console)
    print_line(console, "measuring how long a step takes")
    step_s = benchmark_step(
        config, channels=images.channels, stored_px=images.stored_px, bits=images.bits
    ).step_s
    length = choose_length(config, num_images=len(images), step_s=step_s, elapsed_s=elapsed())
    print_line(console, length.describe())
    return PartialConfig(length.config, draft.layers), length.step_s


def preview(
    draft: PartialConfig, run_dir: Path, *, elapsed: Callable[[], float], say: Callable[[str], None]
) -> None:
    """Say what `fit_to_time` would choose, and the schedule; nothing is written.

    Raises:
        ConfigError, DataError, CheckpointError: as training would.
    """
    if not _is_free(draft) or checkpoint.has_begun(run_dir):
        kept = _keep_length(draft.config, run_dir) if _is_free(draft) else draft.config
        resolve.preview(PartialConfig(kept, draft.layers), run_dir, say=say)
        return
    checkpoint.check_run_folder(run_dir)
    look = resolve.look_at_some(draft)
    found, num_images = resolve.forecast(draft, look), count_usable(look)
    length = choose_length(
        found.config, num_images=num_images, step_s=found.probe.step_s, elapsed_s=elapsed()
    )
    expected = max(1, round(length.training_s / length.step_s))
    plan = Plan.of(length.config, num_images=num_images, expected_steps=expected)
    for line in (length.describe(), *plan.explain()):
        say(line)
    say("nothing was written; the same command without -n trains")


def _keep_length(config: Config, run_dir: Path) -> Config:
    """With the length of the run that has begun."""
    begun = load_config(run_dir / "config.yaml", [], preset=None).trainer
    kept = {"max_epochs": begun.max_epochs, "max_hours": begun.max_hours}
    return config.model_copy(update={"trainer": config.trainer.model_copy(update=kept)})


def _is_free(draft: PartialConfig) -> bool:
    """Whether the length is for this module to choose."""
    given = any(draft.is_given(f"trainer.{key}") for key in ("max_epochs", "max_hours"))
    return not given and not draft.open and os.environ.get("WORLD_SIZE", "1") == "1"
