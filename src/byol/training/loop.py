"""The training loop: a run is a function of (configuration, step)."""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from byol.base.signals import StopSignal
from byol.config import Config
from byol.device.ranks import Ranks, connect
from byol.method.optimizers import set_lr
from byol.method.views import make_training_views
from byol.training.guard import Guard, roll_back
from byol.training.monitor import Due, Monitor
from byol.training.saving import Saver
from byol.training.setup import Setup, check_settings, prepare
from byol.training.step import compute_within_memory


@dataclass(frozen=True)
class TrainingOutcome:
    """The progress of a run, and the signal that stopped it, if any."""

    done: int  # finished steps
    total_steps: int  # of the whole run; for a stopped run with a time budget, the expected number
    stopped_by: str | None  # name of the signal


def train(
    config: Config,
    run_dir: Path,
    *,
    console: Console | None = None,
    step_s: float | None = None,
    ranks: Ranks | None = None,
) -> TrainingOutcome:
    """Train, or resume the run in `run_dir`, until all steps are done or a signal stops it.

    `console`: None prints nothing. `step_s`: expected seconds per step; if it is None, a run with a time
    budget measures it. `ranks`: None connects to the ranks that torchrun started.

    Raises:
        ConfigError, DataError, CheckpointError, RunMismatchError: see `prepare`.
        DivergedError: loss or gradient is not finite in several steps in a row, also after the run went back
            to its last checkpoint with half the learning rate. These steps were not applied.
        CollapsedError: the projections of the fixed images have become nearly equal.
    """
    check_settings(config, run_dir)
    with connect(config.trainer) if ranks is None else nullcontext(ranks) as ranks:
        outcome: TrainingOutcome | None = None
        while outcome is None:
            outcome = _train(prepare(config, run_dir, ranks=ranks, step_s=step_s, console=console))
        return outcome


# Longer than 60 lines, so that the whole method can be read on one screen.
def _train(run: Setup) -> TrainingOutcome | None:
    """Train until all steps are done or a signal stops the run. None: it goes on from its last checkpoint."""
    plan, budget, ranks, saver = run.plan, run.budget, run.ranks, Saver(run)
    done, num_microbatches = run.done, run.num_microbatches
    with StopSignal().listen() as stop, Monitor(run, saver) as monitor, run.open_batches() as batches:
        guard = Guard(run, say=monitor.say)
        budget.start()
        while not budget.is_last(done):
            step, batch = done, next(batches)
            run.statistics.hold(step < run.begun.warm_steps)
            # Two or three views of each image, loss and gradients; in micro-batches if memory is short.
            make = partial(
                make_training_views, sizes=batch.sizes, key=plan.key("views", step), **run.view_options
            )
            computed = compute_within_memory(
                run.network,
                batch.images,
                make=make,
                show=monitor.show_views if step == 0 else None,
                num_microbatches=num_microbatches,
                ranks=ranks,
                seed=plan.key("network", step) + ranks.rank,
                vicreg_weight=plan.vicreg_weight(budget.position(step)),
                say=monitor.say,
            )
            done, num_microbatches = step + 1, computed.num_microbatches

            # Online network: one gradient step. Target network: moving average of the online one.
            # Neither changes if loss or gradient is not finite.
            set_lr(run.optimizer, run.lr(step), encoder_share=run.begun.encoder_share(step))
            guard.apply(computed, step=step, tau=plan.tau(budget.position(step)))

            # Periodic work. The host waits for the device here.
            due = _find_due(run, stop, done)
            if due.host_waits:
                guard.look()
            if guard.failed_at is not None:
                back_to = roll_back(run, failed_at=guard.failed_at, say=monitor.say)
                if not ranks.any(stop.name is not None):
                    return None
                return TrainingOutcome(back_to, budget.end, stop.name or "SIGTERM")
            if due.check:
                monitor.check(done)
            if due.log and not guard.in_a_row:
                monitor.log(done, computed, wait_s=batches.wait_s)
            monitor.refuse_collapse(done)
            budget.follow(done)
            # A run must not go back to a state from which steps are not finite.
            if due.save and (not guard.in_a_row or due.stop or budget.is_last(done)):
                watch = {**monitor.state, **guard.state}
                saver.save(done, num_microbatches=num_microbatches, best=monitor.best, watch=watch)
            if due.stop:
                break
        monitor.finish(done)
    ranks.wait()
    # The signal may have reached another rank only.
    return TrainingOutcome(done, budget.end, None if budget.is_last(done) else stop.name or "SIGTERM")


def _find_due(run: Setup, stop: StopSignal, done: int) -> Due:
    """Return what is due after `done` finished steps. All ranks return the same."""
    last = run.budget.is_last(done)
    # Several GPUs exchange signals only every 10 steps, because all of them wait for it.
    asks = run.ranks.device.type == "cpu" or run.ranks.world_size == 1 or done % 10 == 0
    stopping = asks and run.ranks.any(stop.name is not None)
    return Due(
        log=run.plan.log_at(done, last=last),
        check=run.plan.health_at(done, last=last),
        save=stopping or run.plan.save_at(done, last=last),
        stop=stopping,
    )
