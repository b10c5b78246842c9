"""The best encoder so far by a measure without labels (`best/`, `best.json`), and whether it gets better.

Labels have no part in it: a choice by labels would make every later figure on them too good.
docs/decisions.md has what the measure was chosen by.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from byol.base.errors import CheckpointError
from byol.base.files import read_fields, write_fields
from byol.encoder.encoder import load
from byol.method.schedule import Plan
from byol.metrics.health import Health, Measures

FORMAT = 1
FILE_NAME = "best.json"
FOLDER = "best"
MEASURE = "-(alignment + uniformity)"
_GAIN = 0.02  # of the measure, below which a new best is no gain to wait for
_LONG = 0.3  # share of the run without a gain, after which it is said
_NOT_BEFORE = (
    0.5  # of the run where the learning rate falls by a cosine: until then it is high, and gains rest
)
_NOT_AFTER = 0.9  # of the run: what is left is short


@dataclass(frozen=True)
class Best:
    """What the checks have found so far. Plain values: a checkpoint holds it."""

    done: int  # steps after which it was best; 0: none yet
    value: float
    gain_value: float  # at the last gain
    gain_share: float  # of the run that was over then, 0..1
    told: bool = False

    @classmethod
    def of(cls, saved: dict[str, Any] | None) -> "Best":
        """From `state()` at a checkpoint; None, or a checkpoint of an earlier version: nothing yet."""
        return cls(0, -float("inf"), -float("inf"), 0.0) if saved is None else cls(**saved)

    def state(self) -> dict[str, Any]:
        """For a checkpoint: with it a run goes on as if it had not been stopped."""
        return asdict(self)

    def note(self, measures: Measures, *, done: int, share: float) -> "Best":
        """After a check when `share` of the run was over. Of equal ones the later is better."""
        value, best = score(measures), self
        if value >= best.value:
            best = replace(best, done=done, value=value)
        if value >= best.gain_value + _GAIN:
            best = replace(best, gain_value=value, gain_share=share)
        return best

    def is_flat(self, plan: Plan, *, share: float) -> bool:
        """Whether it is time to say that there has been no gain for long; never twice."""
        earliest = _NOT_BEFORE if plan.lr_schedule == "cosine" else 0.0
        return not self.told and earliest <= share <= _NOT_AFTER and share - self.gain_share >= _LONG

    def explain(self, run_dir: Path, *, plan: Plan) -> str:
        """The line for that."""
        falling = plan.lr_schedule == "cosine"
        rest = ". The encoder may still improve while the learning rate falls to 0" if falling else ""
        return (
            f"no progress for {_LONG:.0%} of the run: {MEASURE}, a measure without labels, was best "
            f"({self.value:.2f}) after step {self.done}. You can stop; the encoder of that step is in "
            f"{run_dir / FOLDER}{rest}"
        )


class Marker:
    """Keeps the best encoder of a run as it goes."""

    def __init__(
        self,
        run_dir: Path,
        plan: Plan,
        *,
        saved: dict[str, Any] | None,
        warm_steps: int,
        save: Callable[[Path, int], None] | None,
    ) -> None:
        """`saved` is of a checkpoint, None begins a run.

        `save` writes the encoder into a folder after so many steps; None: another rank does it.
        """
        self.best = Best.of(saved)
        self._run_dir, self._plan, self._warm_steps, self._save = run_dir, plan, warm_steps, save
        if saved is None and save is not None:  # of a start that had not come to its first checkpoint
            (run_dir / FILE_NAME).unlink(missing_ok=True)

    def mend(self) -> list[str]:
        """Put in order what a continued run finds of `best/` and `best.json`; a line if the encoder is lost.

        A lost encoder cannot be made again: the next check of a well run then keeps another.

        Raises:
            CheckpointError: `best.json` cannot be written.
        """
        if self._save is None or self.best.done == 0:
            return []
        folder = self._run_dir / FOLDER
        try:
            load(folder, device="cpu")
        except CheckpointError:
            step = self.best.done
            self.best = replace(self.best, done=0, value=-float("inf"))
            (self._run_dir / FILE_NAME).unlink(missing_ok=True)
            return [
                f"warning: the encoder of step {step} in {folder} is damaged, so the best of the steps from "
                "now on takes its place"
            ]
        try:
            is_there = read(self._run_dir) is not None
        except CheckpointError:
            is_there = False
        if not is_there:
            write(self._run_dir, self.best)
        return []

    def note(
        self, health: Health, measures: Measures, *, done: int, position: float, last: bool
    ) -> str | None:
        """To be called after each check, `position` on the schedules; a line the one time that it is flat.

        Not before warm-up is over: there random weights still measure well.

        Raises:
            CheckpointError: the encoder cannot be written.
        """
        early = position < max(self._plan.warmup_steps, 2 * self._warm_steps) and not last
        if early or health.verdict not in ("healthy", "weak"):
            return None
        share = position / self._plan.total_steps
        self.best = self.best.note(measures, done=done, share=share)
        if self.best.done == done and self._save is not None:
            self._save(self._run_dir / FOLDER, done)
            write(self._run_dir, self.best)
        if not self.best.is_flat(self._plan, share=share):
            return None
        self.best = replace(self.best, told=True)
        return self.best.explain(self._run_dir, plan=self._plan)


def score(measures: Measures) -> float:
    """The measure, higher is better."""
    assert measures.alignment is not None and measures.uniformity is not None
    return -(measures.alignment + measures.uniformity)


@dataclass(frozen=True)
class Marked:
    """What `best.json` says of the encoder in `best/`."""

    done: int  # training steps
    measure: str
    value: float


def write(run_dir: Path, best: Best) -> None:
    """Write `best.json`.

    Raises:
        CheckpointError: it cannot be written.
    """
    content = {"format": FORMAT, **asdict(Marked(best.done, MEASURE, best.value))}
    write_fields(run_dir / FILE_NAME, content)


def read(run_dir: Path) -> Marked | None:
    """What `best.json` says; None if there is none.

    Raises:
        CheckpointError: the file is damaged or of another format.
    """
    advice = "remove it, it only marks a step"
    return read_fields(
        run_dir / FILE_NAME, versions=(FORMAT,), make=lambda fields: Marked(**fields), advice=advice
    )
