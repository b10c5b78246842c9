"""Save the best encoder by a label-free measure (`best/`, `best.json`), and notice when it stops improving.

Labels are not used, because choosing by labels would make later accuracies on them too high.
docs/decisions.md says how the measure was chosen.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from byol.base.errors import CheckpointError, DiskReadError
from byol.base.files import read_fields, write_fields
from byol.base.text_table import whole_percent
from byol.encoder.encoder import WEIGHTS_NAME, load
from byol.encoder.spec import SPEC_NAME
from byol.method.schedule import Plan
from byol.metrics.health import Health, Measures

FORMAT = 1
FILE_NAME = "best.json"
FOLDER = "best"
MEASURE = "-(alignment + uniformity)"
_GAIN = 0.02  # an improvement by less than this does not count as progress
_LONG = 0.3  # fraction of the run without progress after which byol says so
_NOT_BEFORE = 0.5  # of the run, with cosine decay: before, the learning rate is high and progress may pause
_NOT_AFTER = 0.9  # of the run: the rest is short


@dataclass(frozen=True)
class Best:
    """The best check so far and the last progress. A checkpoint holds it, as plain values."""

    done: int  # finished steps of the best encoder; 0: there is none yet
    value: float  # its measure
    gain_value: float  # measure at the last progress
    gain_share: float  # fraction of the run at the last progress, 0..1
    told: bool = False  # the user was told that there is no progress

    @classmethod
    def of(cls, saved: dict[str, Any] | None) -> "Best":
        """Make it from `state()` in a checkpoint. None: a new run, or a checkpoint of an early version."""
        return cls(0, -float("inf"), -float("inf"), 0.0) if saved is None else cls(**saved)

    def state(self) -> dict[str, Any]:
        """Return the plain values for a checkpoint."""
        return asdict(self)

    def note(self, measures: Measures, *, done: int, share: float) -> "Best":
        """Include a check at the fraction `share` of the run. If two are equal, the later is better."""
        value, best = score(measures), self
        if value >= best.value:
            best = replace(best, done=done, value=value)
        if value >= best.gain_value + _GAIN:
            best = replace(best, gain_value=value, gain_share=share)
        return best

    def is_flat(self, plan: Plan, *, share: float) -> bool:
        """Return whether to say now, and only once, that there has been no progress for long."""
        earliest = _NOT_BEFORE if plan.lr_schedule == "cosine" else 0.0
        return not self.told and earliest <= share <= _NOT_AFTER and share - self.gain_share >= _LONG

    def explain(self, run_dir: Path, *, plan: Plan) -> str:
        """Return the line that says so."""
        advice = {
            "constant": "You may stop and use it",
            "cosine": "Let the run end and use its last encoder: its learning rate falls, which often helps",
        }[plan.lr_schedule]
        return (
            f"hardly any progress for {whole_percent(_LONG)} of the run: alignment + uniformity (lower is "
            f"better) has fallen by less than {_GAIN:g}; its lowest value is {-self.value:.2f}, after step "
            f"{self.done}. The encoder of that step is in {run_dir / FOLDER}. {advice}"
        )


class Marker:
    """Saves the best encoder of a run during training."""

    def __init__(
        self,
        run_dir: Path,
        plan: Plan,
        *,
        saved: dict[str, Any] | None,
        warm_steps: int,
        save: Callable[[Path, int], None] | None,
    ) -> None:
        """`saved`: state of a checkpoint; None: a new run.

        `save` writes the encoder into a folder, with its number of finished steps; None: another rank saves.
        """
        self.best = Best.of(saved)
        self._run_dir, self._plan, self._warm_steps, self._save = run_dir, plan, warm_steps, save
        if saved is None and save is not None:  # of a start that was killed before its first checkpoint
            (run_dir / FILE_NAME).unlink(missing_ok=True)

    def mend(self) -> list[str]:
        """Put in order what a continued run finds of `best/` and `best.json`; a line if the encoder is lost.

        A lost encoder cannot be made again: the next check of a well run then keeps another.

        Raises:
            CheckpointError: `best.json` cannot be written.
            DiskReadError: the system could not read a file.
        """
        if self._save is None or self.best.done == 0:
            return []
        folder = self._run_dir / FOLDER
        try:
            load(folder, device="cpu")
        except DiskReadError as error:
            raise DiskReadError(f"{error}, or delete {folder} to go on without this encoder") from None
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
        except DiskReadError:
            raise
        except CheckpointError:
            is_there = False
        if not is_there:
            write(self._run_dir, self.best)
        return []

    def note(
        self, health: Health, measures: Measures, *, done: int, position: float, last: bool
    ) -> str | None:
        """Include a check at `position` on the schedules. Return a line, once, if progress has stopped.

        Checks during warm-up do not count, because random weights measure well.

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
    """Return the measure; higher is better."""
    assert measures.alignment is not None and measures.uniformity is not None
    return -(measures.alignment + measures.uniformity)


def forget(run_dir: Path, *, after: int) -> None:
    """Delete the best encoder if it is of a later step, because the run goes back to step `after`."""
    try:
        marked = read(run_dir)
    except DiskReadError:
        raise
    except CheckpointError:
        marked = None
    if marked is not None and marked.done > after:
        (run_dir / FILE_NAME).unlink(missing_ok=True)
        for name in (SPEC_NAME, WEIGHTS_NAME):
            (run_dir / FOLDER / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class Marked:
    """The content of `best.json`, about the encoder in `best/`."""

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
    """Read `best.json`; None: there is none.

    Raises:
        CheckpointError: the file is damaged or has another format.
    """
    advice = "delete it, it only names the best step"
    return read_fields(
        run_dir / FILE_NAME, versions=(FORMAT,), make=lambda fields: Marked(**fields), advice=advice
    )
