"""One process at a time: locks that the system frees when their holder ends, also by `kill -9`.

A lock is an empty file that stays. Beside it `NAME.json` says who holds it: it serves messages alone, and one
that a killed process has left means nothing.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from byol.base.errors import CheckpointError
from byol.base.files import write_atomically

POLL_S = 0.2


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock."""

    pid: int
    host: str
    since: str  # UTC, ISO 8601 to the second

    @classmethod
    def me(cls) -> "Holder":
        """This process, from now on."""
        return cls(os.getpid(), socket.gethostname(), datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def is_gone(self) -> bool:
        """Whether it is known to have ended: it was on this host, where there is no such process."""
        if os.name == "nt" or self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # of another user
            pass
        return False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.since})"


@contextmanager
def hold(path: Path, *, while_busy: Callable[[Holder | None], None]) -> Iterator[OSError | None]:
    """Hold the lock `path` for as long as the block runs.

    While another process, or another thread of this one, holds it, `while_busy` is called every 0.2 s with
    that holder (None: not known yet); it may raise to give up.

    Yields None; or why there can be no lock here. Then nothing hinders a second process.
    """
    lock, refusal = FileLock(path, fallback_to_soft=False), None
    try:
        while not _try(lock):
            while_busy(read_holder(path))
            time.sleep(POLL_S)
    except OSError as error:
        refusal = error
    if refusal is not None:
        yield refusal
        return
    record = _record_of(path)
    with suppress(CheckpointError):  # the lock holds without its record
        write_atomically(record, json.dumps(asdict(Holder.me())).encode())
    try:
        yield None
    finally:
        with suppress(OSError):
            record.unlink()
        lock.release()


def read_holder(path: Path) -> Holder | None:
    """Who holds the lock `path`, or held it last if that was killed; None: it is not known."""
    try:
        return Holder(**json.loads(_record_of(path).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _try(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True
