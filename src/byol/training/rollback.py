"""The record that a run went back to a checkpoint with a lower learning rate: `rollback.json`.

With it, a run stays a function of its configuration, this record and the step.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from byol.base.files import read_fields, write_fields

FORMAT = 1
FILE_NAME = "rollback.json"
_LR_SHARE = 0.5


@dataclass(frozen=True)
class Rollback:
    """The content of `rollback.json`."""

    failed_at: int  # the last of the successive steps that were not finite
    back_to: int  # finished steps of the checkpoint
    lr_share: float = _LR_SHARE  # learning rate from there on, as a fraction of the configured one
    abandoned_s: float = 0.0  # seconds of training between checkpoint and failure; early versions lack it

    def lr_share_at(self, step: int) -> float:
        """Return the learning rate at a step, as a fraction of the configured one."""
        return self.lr_share if step >= self.back_to else 1.0

    def abandoned_s_at(self, done: int) -> float:
        """Return the seconds that a checkpoint of `done` steps does not know of."""
        return self.abandoned_s if done <= self.back_to else 0.0

    def explain(self) -> str:
        """Return a line for the start of a run."""
        return (
            f"from step {self.back_to} on, the learning rate is {self.lr_share:g} times the configured one, "
            f"because the steps up to {self.failed_at} were not finite"
        )


def write(run_dir: Path, rollback: Rollback) -> None:
    """Write `rollback.json`.

    Raises:
        CheckpointError: it cannot be written.
    """
    write_fields(run_dir / FILE_NAME, {"format": FORMAT, **asdict(rollback)})


def read(run_dir: Path) -> Rollback | None:
    """Read `rollback.json`; None: the run has not gone back.

    Raises:
        CheckpointError: the file is damaged or has another format.
    """
    return read_fields(
        run_dir / FILE_NAME,
        versions=(FORMAT,),
        make=lambda fields: Rollback(**fields),
        advice="start again in another folder with -o",
    )
