"""Locks for one process at a time, which the system releases when the process ends, even by `kill -9`.

A lock is an empty file, which is not deleted. `NAME.json` beside it says which process holds it. This file is
only used in messages; one that a killed process has left has no effect.
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
        """Describe this process, with the current time."""
        return cls(os.getpid(), socket.gethostname(), datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def is_gone(self) -> bool:
        """Whether the process has ended for certain: it was on this host, and no longer exists."""
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
    """Hold the lock `path` while the block runs.

    While another process or thread holds it, `while_busy` is called every 0.2 s with this holder (None: not
    known yet); it may raise an error to stop waiting. Yields None, or the reason why the file system has no
    locks: then a second process is not stopped.
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
    """Return the holder of the lock `path`, or the last one if it was killed; None: not known."""
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
