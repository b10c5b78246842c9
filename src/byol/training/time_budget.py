"""When a run ends, and how far along its schedules a step is: by steps, or by a clock (`trainer.max_hours`).

Rates are functions of a position from 0 to `plan.total_steps`. Without a budget the position is the step.
With one it goes in a straight line from where it is to the end, at the step that will have been reached, at
the measured speed, when time is up. The line is fitted again now and then; positions never jump or go back.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from byol.method.schedule import Plan

_FIRST_FIT = 4  # steps; then after twice as many each time, until those are _FIT_SHARE of the budget
_FIT_SHARE = 0.02
_MEMORY = 0.75  # at most, of the speed before: one check or checkpoint in a short stretch is no new speed


@dataclass(frozen=True)
class Fit:
    """A straight line of positions, and what it was fitted to. Plain numbers: a checkpoint holds it."""

    step: int  # finished steps, where the line begins
    position: float  # there, 0..plan.total_steps
    end: int  # steps of the whole run: the position is plan.total_steps there
    step_s: float  # smoothed
    elapsed_s: float  # of the budget, when it was fitted
    due: int  # finished steps after which it is fitted again


class TimeBudget:
    """The way of one run from its first to its last step, over as many starts as it takes."""

    def __init__(
        self,
        plan: Plan,
        *,
        saved: dict[str, Any] | None,
        agree: Callable[[float], float] = lambda seconds: seconds,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`saved` is `state()` at a checkpoint; None begins a run.

        `agree` is given a rank's seconds and returns the first rank's; all ranks call it at the same steps.
        """
        self._plan, self._agree, self.now = plan, agree, now
        self._ending_s = 0.0
        self._elapsed_s = 0.0 if saved is None else float(saved["elapsed_s"])
        self._start_s: float | None = None
        self._fit: Fit | None = None
        if saved is not None:
            self._fit = Fit(**saved["fit"])
        elif plan.budget_s is not None:
            step_s = plan.budget_s / plan.total_steps
            due = self._next_fit(0, step_s=step_s, end=plan.total_steps)
            self._fit = Fit(0, 0.0, plan.total_steps, step_s, 0.0, due)

    def reserve(self, seconds: float) -> None:
        """What comes after the last step takes about so long, and is to lie within the budget."""
        self._ending_s = seconds

    def start(self) -> None:
        """From now on the time is the budget's."""
        self._start_s = self.now()

    @property
    def end(self) -> int:
        """Steps of the whole run; with a budget as expected now."""
        return self._plan.total_steps if self._fit is None else self._fit.end

    def is_last(self, done: int) -> bool:
        """Whether the run ends after `done` steps."""
        return done == self.end

    def position(self, step: int) -> float:
        """Of the step about to be made, on the plan's schedules: 0 at the first, `total_steps` at the end."""
        fit, total = self._fit, self._plan.total_steps
        if fit is None:
            return float(step)
        return fit.position + (total - fit.position) * (step - fit.step) / (fit.end - fit.step)

    def follow(self, done: int) -> None:
        """After `done` steps: fit the line again if it is time for that. The last step stays the last."""
        fit, budget_s = self._fit, self._plan.budget_s
        if fit is None or budget_s is None or done < fit.due or done == fit.end:
            return
        elapsed_s, ending_s = self._agree(self.elapsed_s), self._agree(self._ending_s)
        measured_s = max(elapsed_s - fit.elapsed_s, 1e-9) / (done - fit.step)
        memory = min(_MEMORY, fit.step / done)
        step_s = memory * fit.step_s + (1.0 - memory) * measured_s
        end = done + max(1, round((budget_s - ending_s - elapsed_s) / step_s))
        due = self._next_fit(done, step_s=step_s, end=end)
        self._fit = Fit(done, self.position(done), end, step_s, elapsed_s, due)

    @property
    def elapsed_s(self) -> float:
        """Seconds of training so far, those of earlier starts included."""
        return self._elapsed_s + (0.0 if self._start_s is None else self.now() - self._start_s)

    def left_s(self, done: int, *, step_s: float) -> float:
        """Seconds that are left after `done` steps: of the budget, else at `step_s` a step."""
        if self._plan.budget_s is None:
            return (self.end - done) * step_s
        return 0.0 if self.is_last(done) else max(0.0, self._plan.budget_s - self.elapsed_s)

    def state(self) -> dict[str, Any] | None:
        """For a checkpoint: with it a run goes on as if it had not been stopped. None without a budget."""
        if self._fit is None:
            return None
        total_steps = self._plan.total_steps
        return {"total_steps": total_steps, "elapsed_s": self.elapsed_s, "fit": asdict(self._fit)}

    def _next_fit(self, done: int, *, step_s: float, end: int) -> int:
        """Always once more before the end: there may be time for more steps than were expected."""
        assert self._plan.budget_s is not None
        steps = min(max(done, _FIRST_FIT), round(_FIT_SHARE * self._plan.budget_s / step_s), end - 1 - done)
        return done + max(1, steps)


class ThroughputMeter:
    """Images a second and share of waiting since the last lap."""

    def __init__(self, done: int) -> None:
        self._done, self._time_s, self._wait_s = done, time.perf_counter(), 0.0

    def lap(self, done: int, batch_size: int, *, wait_s: float) -> tuple[float, float]:
        now = time.perf_counter()
        elapsed = max(now - self._time_s, 1e-9)
        rates = (done - self._done) * batch_size / elapsed, min((wait_s - self._wait_s) / elapsed, 1.0)
        self._done, self._time_s, self._wait_s = done, now, wait_s
        return rates
