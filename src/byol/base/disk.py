"""Distinguish disk errors from damaged files, and retry after disk errors.

If a network file system stalls or there are too many open files, the file itself is intact. So byol retries
after errors of the operating system, and then stops with an error; it never counts them as damage.
"""

import errno
import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from byol.base.errors import DataError, DiskReadError

PAUSES_S = (0.2, 1.0, 3.0)  # before the second, third and fourth attempt
SKIP_KEY = "data.skip_unreadable"

_SYSTEM = "the system cannot read it"

# Errors about a name, or about a wrong request of a reader that met a damaged file; not about the disk.
_OF_THE_FILE = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EINVAL,
        errno.EOVERFLOW,
        errno.ESPIPE,
    }
)
_FOR_GOOD = frozenset({errno.EACCES, errno.EPERM})  # a pause does not change permissions
_WORTH_A_TRY = frozenset(set(errno.errorcode) - _OF_THE_FILE | {errno.ENOENT})

T = TypeVar("T")


class DiskError(DataError):
    """The operating system could not read a file or folder. The caller adds its name with `locate`."""

    def __init__(self, reason: str, *, for_good: bool = False) -> None:
        super().__init__(reason)
        self.for_good = for_good

    def __reduce__(self) -> tuple[Callable[..., "DiskError"], tuple[str, bool]]:
        return _remake, (str(self), self.for_good)

    @classmethod
    def of(cls, error: OSError) -> "DiskError":
        """Make it from an error of the operating system."""
        return cls(f"{_SYSTEM} ({describe(error)})", for_good=error.errno in _FOR_GOOD)

    def locate(self, name: str) -> DataError:
        """Return the error for the user: the name, the error of the system, and what to do."""
        if self.for_good:
            way = f"allow reading (chmod -R u+rX), or leave such files out with {SKIP_KEY}=true"
        else:
            way = (
                "the file itself may be intact: check the disk or the network, then repeat the command to "
                f"continue; or leave such files out with {SKIP_KEY}=true"
            )
        return DataError(f"{name}: {self}; {way}")


def _remake(reason: str, for_good: bool) -> DiskError:
    return DiskError(reason, for_good=for_good)


def describe(error: OSError) -> str:
    """Return the text of an error of the operating system, with its number."""
    words = error.strerror or str(error)
    return f"{words}, errno {error.errno}" if error.errno is not None else words


def is_of_the_disk(error: OSError) -> bool:
    """Return whether disk, network or permissions caused the error, not the name or the content of the file.

    Errors that libraries raise for damaged files have no number.
    """
    return error.errno is not None and error.errno not in _OF_THE_FILE


def is_of_the_system(reason: str) -> bool:
    """Return whether a file was left out because of a disk error."""
    return reason.startswith(_SYSTEM)


def is_worth_a_try(reason: str) -> bool:
    """Return whether the reason for leaving out a file, also one of an early version, may have passed."""
    if reason == "no such file":
        return True
    numbers = re.findall(r"(?:errno |\[Errno )(\d+)", reason)
    if numbers:
        return any(int(number) in _WORTH_A_TRY for number in numbers)
    said = re.match(r"cannot be opened \((.*)\)$", reason)
    return said is not None and said[1] in {os.strerror(number) for number in _WORTH_A_TRY}


def try_again(read: Callable[[], T], *, pauses_s: Iterable[float] | None = None) -> T:
    """Call `read` and return its result. After a disk error, call it again after each pause.

    Raises:
        DiskError: every attempt failed, or the permissions do not allow reading.
    """
    for pause in PAUSES_S if pauses_s is None else pauses_s:
        try:
            return _call(read)
        except DiskError as error:
            if error.for_good:
                raise
        time.sleep(pause)
    return _call(read)


def _call(read: Callable[[], T]) -> T:
    try:
        return read()
    except OSError as error:
        if not is_of_the_disk(error):
            raise
        raise DiskError.of(error) from error


def read_bytes(path: Path) -> bytes:
    """Read a file that byol wrote. After a disk error, try again as `try_again` does.

    Raises:
        OSError: there is no such file, or the permissions do not allow reading.
        DiskReadError: every attempt failed.
    """
    try:
        return try_again(path.read_bytes)
    except DiskError as error:
        if error.for_good and error.__cause__ is not None:
            raise error.__cause__ from None
        raise DiskReadError(
            f"{path}: {error}; the file itself may be intact: check the disk or the network, then repeat the "
            "command"
        ) from None
