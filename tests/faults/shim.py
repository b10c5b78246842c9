"""Faults below Python's open, write, rename, fsync, read and mmap, for this process from `arm` on.

Each operation on a file whose path matches the fault's pattern is counted. The one with the fault's number
fails with an error of the system, or a signal comes in its middle: of a write half is written before.
`Fault.lasting`: every later operation fails as well, as on a disk that is full.

It works by replacing functions of `os`, `io` and `mmap`, so it sees what Python code does. Libraries that
write files by themselves would not be seen; byol writes all of its files through Python.
"""

import builtins
import errno
import io
import mmap
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WRITES = frozenset({"open", "write", "fsync", "rename", "mkdir", "unlink", "truncate"})
READS = frozenset({"open for reading", "read", "map"})


@dataclass(frozen=True)
class Fault:
    """What goes wrong, at which operation."""

    number: int = 0  # of the operation, from 1 on; 0: never, operations are only counted
    operations: frozenset[str] = WRITES
    pattern: str = ""  # a regular expression that is searched for in the path
    error: int = errno.ENOSPC
    signal: int | None = None  # is sent to the process instead of an error
    lasting: bool = False


class Shim:
    """Counts operations and lets the fault happen."""

    def __init__(self, fault: Fault) -> None:
        self.fault, self.count = fault, 0
        self.seen: Counter[str] = Counter()
        self._pattern = re.compile(fault.pattern)

    def hits(self, operation: str, path: str) -> bool:
        """Whether the fault is to happen at this operation."""
        fault = self.fault
        if operation not in fault.operations or not self._pattern.search(path):
            return False
        self.count += 1
        self.seen[operation] += 1
        return fault.number > 0 and (
            self.count == fault.number or (fault.lasting and self.count > fault.number)
        )

    def strike(self, path: str) -> None:
        """The signal, or the error."""
        if self.fault.signal is not None:
            os.kill(os.getpid(), self.fault.signal)
            if self.fault.signal == signal.SIGKILL:
                time.sleep(60)  # it is on its way
            return
        raise OSError(self.fault.error, os.strerror(self.fault.error), path)

    def check(self, operation: str, path: Any) -> None:
        """To be called before each operation."""
        if self.hits(operation, text := name_of(path)):
            self.strike(text)


def name_of(path: Any) -> str:
    """A path as text; of a file descriptor the file behind it."""
    if isinstance(path, int):
        try:
            return os.readlink(f"/proc/self/fd/{path}")
        except OSError:
            return ""
    return os.path.abspath(os.fsdecode(path))


def arm(fault: Fault) -> Shim:
    """Let the fault happen in this process. There is no way back: arm a child."""
    shim = Shim(fault)
    _patch_os(shim)
    _patch_open(shim)
    _patch_mmap(shim)
    return shim


def _patch_os(shim: Shim) -> None:
    def before(name: str, operation: str, place: int = 0) -> None:
        real: Callable[..., Any] = getattr(os, name)

        def checked(*arguments: Any, **others: Any) -> Any:
            shim.check(operation, arguments[place])
            return real(*arguments, **others)

        setattr(os, name, checked)

    for name in ("replace", "rename"):
        before(name, "rename", 1)
    for name, operation in (
        ("fsync", "fsync"),
        ("mkdir", "mkdir"),
        ("unlink", "unlink"),
        ("remove", "unlink"),
        ("truncate", "truncate"),
        ("ftruncate", "truncate"),
        ("preadv", "read"),
        ("pread", "read"),
        ("scandir", "open for reading"),
    ):
        before(name, operation)
    real_open, real_write = os.open, os.write

    def checked_open(path: Any, flags: int, *arguments: Any, **others: Any) -> int:
        writes = flags & (os.O_WRONLY | os.O_RDWR)
        shim.check("open" if writes else "open for reading", path)
        return real_open(path, flags, *arguments, **others)

    def checked_write(number: int, content: Any) -> int:
        path = name_of(number)
        if shim.hits("write", path):
            real_write(number, memoryview(content)[: len(content) // 2])
            shim.strike(path)
            return real_write(number, memoryview(content)[len(content) // 2 :]) + len(content) // 2
        return real_write(number, content)

    os.open, os.write = checked_open, checked_write  # type: ignore[assignment]


def _patch_open(shim: Shim) -> None:
    """Python's `open` with files of our own class below its buffers."""
    real = io.open

    class Raw(io.FileIO):
        path = ""

        def write(self, content: Any) -> int:
            view = memoryview(content).cast("B")
            if shim.hits("write", self.path):
                half = super().write(view[: len(view) // 2]) or 0
                shim.strike(self.path)
                return half
            return super().write(view)

        def truncate(self, size: int | None = None) -> int:
            shim.check("truncate", self.path)
            return super().truncate(size)

        def readinto(self, place: Any) -> int | None:
            shim.check("read", self.path)
            return super().readinto(place)

        def read(self, size: int = -1) -> bytes:
            shim.check("read", self.path)
            return super().read(size)

        def readall(self) -> bytes:
            shim.check("read", self.path)
            return super().readall()

    class Writer(io.BufferedWriter):
        def fileno(self) -> int:
            # NumPy writes arrays to a file with a number behind Python's back.
            if str(sys._getframe(1).f_globals.get("__name__", "")).startswith("numpy"):
                raise io.UnsupportedOperation
            return super().fileno()

    def checked(
        file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
        newline: Any = None, closefd: bool = True, opener: Any = None,
    ) -> Any:  # fmt: skip
        path = name_of(file)
        if not re.search(shim.fault.pattern, path) or path.startswith(("/dev/", "/proc/", "/sys/")):
            return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
        if not isinstance(file, int):
            shim.check("open" if set(mode) & set("wax+") else "open for reading", path)
        raw = Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        raw.path = path
        if buffering == 0:
            return raw
        size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
        kind = io.BufferedRandom if "+" in mode else Writer if set(mode) & set("wax") else io.BufferedReader
        buffer = kind(raw, size)
        if "b" in mode:
            return buffer
        text = io.TextIOWrapper(buffer, encoding or "locale", errors, newline, buffering == 1)
        text.mode = mode  # type: ignore[misc]
        return text

    builtins.open = io.open = checked  # type: ignore[assignment]


def _patch_mmap(shim: Shim) -> None:
    real = mmap.mmap

    class Map(real):  # type: ignore[misc, valid-type]
        def __new__(cls, number: int, *arguments: Any, **others: Any) -> Any:
            if number >= 0:
                shim.check("map", number)
            return super().__new__(cls, number, *arguments, **others)

    mmap.mmap = Map  # type: ignore[misc]
