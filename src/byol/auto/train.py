"""Resolve the open settings of a configuration, then train."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from byol.auto.resolve import resolve
from byol.base.console import make_say
from byol.base.signals import interrupting
from byol.config import PartialConfig
from byol.device.devices import choose_dtype
from byol.device.ranks import connect
from byol.device.threads import limited_threads
from byol.runfolder import checkpoint
from byol.runfolder.lock import only_writer
from byol.training import loop
from byol.training.setup import check_settings


def train(
    partial_config: PartialConfig,
    run_dir: Path,
    *,
    console: Console | None = None,
    step_s: float | None = None,
) -> loop.TrainingOutcome:
    """Choose the open settings, or read them from the run in `run_dir`, and call the training loop.

    `console`: None prints nothing. `step_s`: expected seconds per step, if known.

    Raises:
        ConfigError, DataError, CheckpointError, RunMismatchError, DivergedError, CollapsedError: as the loop.
        RunInUseError: another process is training in the folder.
        Interrupted: a signal came before the first step; packed images are kept.
    """
    check_settings(partial_config.config, run_dir)
    with connect(partial_config.config.trainer) as ranks:
        say = make_say(console)
        # Only the first rank handles signals here: the others wait inside libraries that do not see them.
        with ExitStack() as stack:
            if ranks.is_main:
                stack.enter_context(interrupting())
                checkpoint.check_run_folder(run_dir)  # before the lock adds a file to it
                stack.enter_context(only_writer(run_dir, say=say))
                checkpoint.remove_temporaries(run_dir)
            config, measured_s = resolve(partial_config, run_dir, ranks=ranks, say=say)
            ranks = replace(ranks, dtype=choose_dtype(config.trainer.precision, device=ranks.device))
            with limited_threads(config.trainer.num_threads):
                return loop.train(config, run_dir, console=console, step_s=step_s or measured_s, ranks=ranks)
