"""Map steps to positions on the schedules, and end a run, by steps or a time budget (`trainer.max_hours`).

Learning rate and tau are functions of a position from 0 to `plan.total_steps`. Without a budget the position
is the step. With a budget it is a linear function of the step, which reaches the end at the step where time
runs out at the measured speed. byol fits the line again from time to time; positions never jump or go back.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from byol.method.schedule import Plan

_FIRST_FIT = 4  # steps before the first fit; then they double, up to the fraction _FIT_SHARE of the budget
_FIT_SHARE = 0.02
_MEMORY = 0.75  # largest weight of the earlier speed, so that one check or checkpoint changes it little


@dataclass(frozen=True)
class Fit:
    """A line of positions over steps. A checkpoint holds it, as plain numbers."""

    step: int  # finished steps at the start of the line
    position: float  # position at the start of the line, 0..plan.total_steps
    end: int  # steps of the whole run, where the position is plan.total_steps
    step_s: float  # smoothed seconds per step
    elapsed_s: float  # seconds of the budget that were used when the line was fitted
    due: int  # finished steps at the next fit


class TimeBudget:
    """The time and the schedule position of one run, over all its starts."""

    def __init__(
        self,
        plan: Plan,
        *,
        saved: dict[str, Any] | None,
        abandoned_s: float = 0.0,
        agree: Callable[[float], float] = lambda seconds: seconds,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`saved`: `state()` in a checkpoint; None: a new run.

        `abandoned_s`: seconds that the run trained after this state and then gave up, which count as used.
        `agree` receives a rank's seconds and returns the first rank's; all ranks call it at the same steps.
        """
        self._plan, self._agree, self.now = plan, agree, now
        self._ending_s = 0.0
        self._elapsed_s = 0.0 if saved is None else float(saved["elapsed_s"])
        self._start_s: float | None = None
        self._fit: Fit | None = None
        if saved is not None:
            self._fit = fit = Fit(**saved["fit"])
            if abandoned_s > 0.0:  # they tell nothing about the speed, but less time is left: fit soon
                self._elapsed_s += abandoned_s
                self._fit = replace(fit, elapsed_s=fit.elapsed_s + abandoned_s, due=fit.step + 1)
        elif plan.budget_s is not None:
            step_s = plan.budget_s / plan.total_steps
            due = self._next_fit(0, step_s=step_s, end=plan.total_steps)
            self._fit = Fit(0, 0.0, plan.total_steps, step_s, 0.0, due)

    def reserve(self, seconds: float) -> None:
        """Reserve these seconds of the budget for the work after the last step."""
        self._ending_s = seconds

    def start(self) -> None:
        """Start to count the time."""
        self._start_s = self.now()

    @property
    def end(self) -> int:
        """Steps of the whole run; with a budget, the current estimate."""
        return self._plan.total_steps if self._fit is None else self._fit.end

    def is_last(self, done: int) -> bool:
        """Return whether the run ends after `done` steps."""
        return done == self.end

    def position(self, step: int) -> float:
        """Return the position of the next step on the schedules: 0 at first, `total_steps` at the end."""
        fit, total = self._fit, self._plan.total_steps
        if fit is None:
            return float(step)
        return fit.position + (total - fit.position) * (step - fit.step) / (fit.end - fit.step)

    def follow(self, done: int) -> None:
        """Fit the line again if that is due after `done` steps. The last step remains the last."""
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
        """Seconds of training so far, including earlier starts."""
        return self._elapsed_s + (0.0 if self._start_s is None else self.now() - self._start_s)

    def left_s(self, done: int, *, step_s: float) -> float:
        """Return the seconds left after `done` steps: of the budget or, without one, at `step_s` per step."""
        if self._plan.budget_s is None:
            return (self.end - done) * step_s
        return 0.0 if self.is_last(done) else max(0.0, self._plan.budget_s - self.elapsed_s)

    def state(self) -> dict[str, Any] | None:
        """Return the state for a checkpoint, from which a run continues exactly; None: there is no budget."""
        if self._fit is None:
            return None
        total_steps = self._plan.total_steps
        return {"total_steps": total_steps, "elapsed_s": self.elapsed_s, "fit": asdict(self._fit)}

    def _next_fit(self, done: int, *, step_s: float, end: int) -> int:
        """Return when to fit next. There is always one more fit before the end, because time may be left."""
        assert self._plan.budget_s is not None
        steps = min(max(done, _FIRST_FIT), round(_FIT_SHARE * self._plan.budget_s / step_s), end - 1 - done)
        return done + max(1, steps)


class ThroughputMeter:
    """Measures images per second, and the fraction of time spent waiting, since the last lap."""

    def __init__(self, done: int) -> None:
        self._done, self._time_s, self._wait_s = done, time.perf_counter(), 0.0

    def lap(self, done: int, batch_size: int, *, wait_s: float) -> tuple[float, float]:
        now = time.perf_counter()
        elapsed = max(now - self._time_s, 1e-9)
        rates = (done - self._done) * batch_size / elapsed, min((wait_s - self._wait_s) / elapsed, 1.0)
        self._done, self._time_s, self._wait_s = done, now, wait_s
        return rates
