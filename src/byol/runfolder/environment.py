"""Record when and where a run was trained, in `environment.json`. Training does not depend on the file."""

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
    ended: str  # end of the training or, if it was killed, time of its last checkpoint
    first_step: int  # finished steps at the start
    done: int  # finished steps at `ended`
    byol: str  # version, as in the next two fields
    torch: str
    python: str
    system: str
    cpu: str
    gpu: str | None  # name of the GPU; None on a CPU
    num_threads: int  # threads of PyTorch in each process
    num_ranks: int
    precision: str
    instructions: str | None = None  # CPU instruction set (see `instruction_set`); None in old records


@dataclass(frozen=True)
class Environment:
    """The images of a run and all its starts."""

    run: str  # 32 random hex digits that identify the run for loggers
    num_images: int  # training images
    num_bad: int  # images left out because they cannot be read
    starts: tuple[Session, ...]  # oldest first

    @property
    def seconds(self) -> float:
        """Total time of all starts. A killed start counts until its last checkpoint."""
        return sum(
            (datetime.fromisoformat(start.ended) - datetime.fromisoformat(start.started)).total_seconds()
            for start in self.starts
        )


def begin(run_dir: Path, *, num_images: int, num_bad: int, first_step: int, ranks: Ranks) -> Environment:
    """Return the record of the run with this start added. Write nothing."""
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
    """Return a line if this start has another instruction set or precision than the previous one."""
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
        f"the kind of CPU or device has changed ({', '.join(changes)}): the run continues, but its result is "
        f"not equal bit for bit{keep}"
    ]


def write(run_dir: Path, environment: Environment, *, done: int) -> None:
    """Write the file; the latest start now has `done` finished steps.

    Raises:
        CheckpointError: it cannot be written.
    """
    *earlier, latest = environment.starts
    starts = (*earlier, replace(latest, ended=_now(), done=done))
    content = {"format": FORMAT, **asdict(replace(environment, starts=starts))}
    write_fields(run_dir / FILE_NAME, content)


def read(run_dir: Path) -> Environment | None:
    """Read the record of a run; None if there is none, as in runs of early versions.

    Raises:
        CheckpointError: the file is damaged or has another format.
    """
    return read_fields(
        run_dir / FILE_NAME,
        versions=(FORMAT,),
        make=_make_environment,
        advice="delete it, byol can do without it",
    )


def _make_environment(fields: dict[str, Any]) -> Environment:
    return Environment(**fields | {"starts": tuple(Session(**start) for start in fields["starts"])})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _name_cpu() -> str:
    """Return the model of the CPU and the number of cores that this process may use."""
    cores = count_cores()
    return f"{name_cpu()}, {cores} {'core' if cores == 1 else 'cores'}"
