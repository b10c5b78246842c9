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
from byol.method.views import make_views
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


# Longer than 60 lines, so that the whole method can be read on one screen.
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
        DivergedError: loss or gradient is not finite; the step was not applied.
        CollapsedError: the projections of the fixed images have become nearly equal.
    """
    check_settings(config, run_dir)
    with connect(config.trainer) if ranks is None else nullcontext(ranks) as ranks:
        run = prepare(config, run_dir, ranks=ranks, step_s=step_s, console=console)
        plan, budget, saver = run.plan, run.budget, Saver(run)
        done, num_microbatches = run.done, run.num_microbatches
        with StopSignal().listen() as stop, Monitor(run, saver) as monitor, run.open_batches() as batches:
            budget.start()
            while not budget.is_last(done):
                step, batch, position = done, next(batches), budget.position(done)
                run.statistics.hold(step < run.begun.warm_steps)
                # Two views of each image, loss and gradients; in micro-batches if memory is short.
                make = partial(make_views, sizes=batch.sizes, key=plan.key("views", step), **run.view_options)
                computed = compute_within_memory(
                    run.network,
                    batch.images,
                    make=make,
                    show=monitor.show_views if step == 0 else None,
                    num_microbatches=num_microbatches,
                    ranks=ranks,
                    seed=plan.key("network", step) + ranks.rank,
                    say=monitor.say,
                )
                done, num_microbatches = step + 1, computed.num_microbatches

                # Refuse a loss that is not finite. Reading it is free on a CPU, but a GPU would have to wait.
                due = _find_due(run, stop, done)
                if due.host_waits or ranks.device.type == "cpu":
                    monitor.check_finite(computed.loss, step=step, gradients_too=due.host_waits)

                # Online network: one gradient step. Target network: moving average of the online one.
                set_lr(run.optimizer, plan.lr(position), encoder_share=run.begun.encoder_share(step))
                run.optimizer.step()
                run.optimizer.zero_grad(set_to_none=True)
                run.byol.update_target(plan.tau(position))

                # Periodic work. The host waits for the device here.
                if due.check:
                    monitor.check(done)
                if due.log:
                    monitor.log(done, computed.projection, wait_s=batches.wait_s)
                monitor.refuse_collapse(done)
                budget.follow(done)
                if due.save:
                    saver.save(
                        done, num_microbatches=num_microbatches, best=monitor.best, watch=monitor.state
                    )
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
