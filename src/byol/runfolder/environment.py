"""Where and when a run was made, in `environment.json`: a record for people, on which nothing depends."""

import platform
import uuid
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from byol.base.files import read_fields, write_fields
from byol.base.version import __version__
from byol.device.devices import name_gpu
from byol.device.host import count_cores, name_cpu
from byol.device.ranks import Ranks
from byol.kernels.cpu import instruction_set

FORMAT = 1
FILE_NAME = "environment.json"


@dataclass(frozen=True)
class Session:
    """One start of a run. Times are UTC, ISO 8601 to the second."""

    started: str
    ended: str  # of the training; of its last checkpoint, if it was killed
    first_step: int  # finished before
    done: int  # finished at `ended`
    byol: str  # version, as the next two
    torch: str
    python: str
    system: str
    cpu: str
    gpu: str | None  # its name, of a run on one
    num_threads: int  # of a process, as torch uses them
    num_ranks: int
    precision: str
    instructions: str | None = None  # of the CPU, as `instruction_set` names them; None in older records


@dataclass(frozen=True)
class Environment:
    """What a run was made of and with; all its starts, oldest first."""

    run: str  # 32 hex digits, drawn at the first start: names the run for trackers
    num_images: int  # trained on
    num_bad: int  # left out, since they cannot be read
    starts: tuple[Session, ...]

    @property
    def seconds(self) -> float:
        """Time of all starts together; of one that was killed until its last checkpoint."""
        return sum(
            (datetime.fromisoformat(start.ended) - datetime.fromisoformat(start.started)).total_seconds()
            for start in self.starts
        )


def begin(run_dir: Path, *, num_images: int, num_bad: int, first_step: int, ranks: Ranks) -> Environment:
    """What is known of the run, with this start added. Nothing is written yet."""
    known = read(run_dir) if first_step else None
    now = _now()
    start = Session(
        started=now,
        ended=now,
        first_step=first_step,
        done=first_step,
        byol=__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        system=platform.platform(terse=True),
        cpu=_name_cpu(),
        gpu=name_gpu(ranks.device),
        num_threads=torch.get_num_threads(),
        num_ranks=ranks.world_size,
        precision="bf16" if ranks.dtype == torch.bfloat16 else "fp32",
        instructions=instruction_set(),
    )
    run, starts = (uuid.uuid4().hex, ()) if known is None else (known.run, known.starts)
    return Environment(run, num_images, num_bad, (*starts, start))


def explain_change(environment: Environment) -> list[str]:
    """A line if this start computes otherwise than the one before, as another kind of CPU does."""
    if len(environment.starts) < 2:
        return []
    before, now = environment.starts[-2:]
    changes = [
        f"{what} {old}, now {new}"
        for what, old, new in (
            ("instructions", before.instructions, now.instructions),
            ("precision", before.precision, now.precision),
        )
        if old is not None and old != new
    ]
    if not changes:
        return []
    keep = f"; trainer.precision={before.precision} keeps it" if before.precision != now.precision else ""
    return [
        f"another kind of CPU or device than before ({', '.join(changes)}): the run continues, not to the "
        f"same bits{keep}"
    ]


def write(run_dir: Path, environment: Environment, *, done: int) -> None:
    """Write the file, the latest start having come to `done` steps by now.

    Raises:
        CheckpointError: it cannot be written.
    """
    *earlier, latest = environment.starts
    starts = (*earlier, replace(latest, ended=_now(), done=done))
    content = {"format": FORMAT, **asdict(replace(environment, starts=starts))}
    write_fields(run_dir / FILE_NAME, content)


def read(run_dir: Path) -> Environment | None:
    """The record of a run; None if there is none, as in runs of earlier versions.

    Raises:
        CheckpointError: the file is damaged or of another format.
    """
    return read_fields(
        run_dir / FILE_NAME,
        versions=(FORMAT,),
        make=_make_environment,
        advice="remove it, it is only a record",
    )


def _make_environment(fields: dict[str, Any]) -> Environment:
    return Environment(**fields | {"starts": tuple(Session(**start) for start in fields["starts"])})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _name_cpu() -> str:
    """The model of the CPU, and on how many of its cores this process may run."""
    cores = count_cores()
    return f"{name_cpu()}, {cores} {'core' if cores == 1 else 'cores'}"
