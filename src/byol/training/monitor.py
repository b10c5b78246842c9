"""Monitor a run during training: health checks, the best encoder so far, alarms, and the log."""

from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any

from torch import Tensor

from byol.config import keys
from byol.metrics import health
from byol.runfolder import checkpoint, environment
from byol.training import alarms, initial_weights
from byol.training.best import Marker
from byol.training.fixed_images import FixedImages
from byol.training.loggers import Logger, Run, open_loggers
from byol.training.runlog import Metrics, RunLog
from byol.training.saving import Saver
from byol.training.setup import Setup
from byol.training.step import Computed
from byol.training.summary import describe_setup
from byol.training.time_budget import ThroughputMeter


@dataclass(frozen=True)
class Due:
    """The periodic work that is due after a step."""

    log: bool
    check: bool  # health check on the fixed images
    save: bool
    stop: bool  # after a signal

    @property
    def host_waits(self) -> bool:
        """Whether the host waits for the device anyway, so that reading values costs nothing more."""
        return self.log or self.check or self.save


class Monitor:
    """Checks and logs a run at its start, periodically, and at its end. Use it in a `with` block."""

    def __init__(self, setup: Setup, saver: Saver) -> None:
        self._setup, self._saver = setup, saver
        self._stack = ExitStack()
        self._blank: list[str] = []  # warnings about blank views

    def __enter__(self) -> "Monitor":
        with ExitStack() as stack:
            self._open(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def _open(self, stack: ExitStack) -> None:
        setup, ranks = self._setup, self._setup.ranks
        config, plan, budget, done = setup.config, setup.plan, setup.budget, setup.done
        self._fixed = FixedImages.of(setup.images, plan, transforms=config.data_transforms, ranks=ranks)
        if done == 0:
            alarms.check_images(self._fixed, source=config.data.source)
            self._blank = alarms.check_views(self._fixed)
        self._has_steps = not budget.is_last(done)
        writes = self._has_steps and ranks.is_main
        self._log = RunLog(
            setup.run_dir,
            self._setup.console,
            first_step=done,
            end=budget.end,
            steps_per_epoch=plan.steps_per_epoch,
            active=ranks.is_main,
            open_loggers=self._open_loggers if writes else tuple,
        )
        stack.enter_context(self._log)  # here loggers that do not start say so, in the log
        self._print_setup()
        before = budget.now()
        self._health, self._measures = self._fixed.look(setup.byol, ranks=ranks)
        # Reserve time for the last health check and for saving, which takes about as long.
        budget.reserve(2.0 * (budget.now() - before))
        self._begun = setup.begun
        if done == 0:
            self._begun = replace(setup.begun, measures=self._measures)
            if ranks.is_main:
                initial_weights.write(setup.run_dir, self._begun)
        if writes:
            self._saver.save_record(done)
        self._watch = alarms.Watch(config, plan, start=self._begun)
        if setup.watch is not None:  # continue as if the run had not been stopped
            self._health = health.Health(**setup.watch["health"])
            self._measures = health.Measures(**setup.watch["measures"])
            self._watch.restore(setup.watch["alarms"])
        self._marker = Marker(
            setup.run_dir,
            plan,
            saved=setup.best,
            warm_steps=setup.begun.warm_steps,
            save=self._saver.save_online if ranks.is_main else None,
        )
        for line in self._marker.mend() if self._has_steps else ():
            self._log.say(line)
        self._throughput = ThroughputMeter(done)

    def _print_setup(self) -> None:
        setup = self._setup
        for note in (
            *setup.notes,
            *describe_setup(
                setup.config,
                setup.images,
                plan=setup.plan,
                budget=setup.budget,
                step_s=setup.step_s,
                ranks=setup.ranks,
                done=setup.done,
                run_dir=setup.run_dir,
            ),
            *environment.explain_change(self._saver.record),
            *setup.origin,
            *setup.begun.explain(),
            *self._blank,
            *alarms.describe_rate(setup.config, setup.plan),
        ):
            self._log.say(note)

    def _open_loggers(self) -> list[Logger]:
        setup = self._setup
        settings = dict(keys.flatten(setup.config.model_dump()))
        run = Run(setup.run_dir, self._saver.record.run, setup.done, settings)
        return open_loggers(setup.config.trainer.loggers, run, say=self.say)

    def say(self, text: str) -> None:
        """Print one line, on the first rank."""
        self._log.say(text)

    def show_views(self, *views: Tensor) -> None:
        """Send the views of the first images to the loggers; shape of each (batch, channel, side, side)."""
        self._log.add_views(*views)

    def check(self, done: int) -> None:
        """Check health after `done` steps, save the encoder if it is the best so far, and print warnings."""
        setup, budget = self._setup, self._setup.budget
        self._health, self._measures = self._fixed.look(setup.byol, ranks=setup.ranks)
        position, last = budget.position(done), budget.is_last(done)
        warning = self._watch.note(self._health, self._measures, done=done)
        flat = self._marker.note(self._health, self._measures, done=done, position=position, last=last)
        for line in filter(None, (warning, flat)):
            self._log.say(line)

    def log(self, done: int, computed: Computed, *, wait_s: float) -> None:
        """Write the metrics after `done` steps. `wait_s`: total seconds spent waiting for images."""
        plan, budget, ranks = self._setup.plan, self._setup.budget, self._setup.ranks
        position = budget.position(done - 1)
        images_per_s, data_wait = self._throughput.lap(done, plan.batch_size, wait_s=wait_s)
        self._log.write(
            Metrics(
                done=done,
                epoch=done / plan.steps_per_epoch,
                loss=ranks.mean(computed.loss),
                lr=self._setup.lr(done - 1),
                tau=plan.tau(position),
                feature_std=ranks.mean(health.measure_feature_std(computed.projection)),
                images_per_s=images_per_s,
                data_wait=data_wait,
                verdict=self._health.verdict,
                rank=self._health.rank,
                **asdict(self._measures),
            ),
            end=budget.end,
            left_s=budget.left_s(done, step_s=plan.batch_size / images_per_s),
        )

    def refuse_collapse(self, done: int) -> None:
        """Stop a run that has collapsed.

        Raises:
            CollapsedError: the message names the likeliest cause and one setting to change.
        """
        if self._watch.is_over:
            saved = checkpoint.list_checkpoints(self._setup.run_dir)
            raise alarms.explain_collapse(
                self._setup.config,
                self._setup.plan,
                health=self._health,
                done=done,
                saved=f"the last checkpoint is {saved[0].name}" if saved else "no checkpoint was written",
                views=self._blank,
            )

    @property
    def state(self) -> dict[str, Any]:
        """The state of the health checks for a checkpoint."""
        return {
            "health": asdict(self._health),
            "measures": asdict(self._measures),
            "alarms": self._watch.state(),
        }

    @property
    def best(self) -> dict[str, Any]:
        """The state of the best encoder for a checkpoint."""
        return self._marker.best.state()

    def finish(self, done: int) -> None:
        """After the last step, compare the measures with step 0 and send the embedding to the loggers."""
        setup = self._setup
        if not setup.budget.is_last(done):
            return
        if self._begun.measures is not None:
            for line in health.compare(self._measures, self._begun.measures):
                self._log.say(line)
        # On every rank, because synchronised BatchNorm waits for all ranks.
        if self._has_steps and setup.config.trainer.loggers:
            self._log.keep_embedding(self._fixed.embed(setup.byol, done=done, ranks=setup.ranks))
