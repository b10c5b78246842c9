"""An error of the disk is not a broken image: which are which, and how often reading is tried again.

A network file system that stalls, a cable, a full table of open files: the image is as good as it was. So the
system's own errors are tried again after a pause, and then stop the work; they are never booked as damage.
"""

import errno
import os
import re
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from byol.base.errors import DataError

PAUSES_S = (0.2, 1.0, 3.0)  # before the second, third and fourth try
SKIP_KEY = "data.skip_unreadable"

_SYSTEM = "the system cannot read it"

# What the system says of a name, or of what a damaged file made a reader ask for: not of the disk.
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
    """The system could not read a file or a folder; the caller knows its name."""

    def __init__(self, reason: str, *, for_good: bool = False) -> None:
        super().__init__(reason)
        self.for_good = for_good

    def __reduce__(self) -> tuple[Callable[..., "DiskError"], tuple[str, bool]]:
        return _remake, (str(self), self.for_good)

    @classmethod
    def of(cls, error: OSError) -> "DiskError":
        """Of what the system said."""
        return cls(f"{_SYSTEM} ({describe(error)})", for_good=error.errno in _FOR_GOOD)

    def locate(self, name: str) -> DataError:
        """What stops the work: the name, what the system said, and the way on."""
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
    """What the system said, with the number by which it can be looked up."""
    words = error.strerror or str(error)
    return f"{words}, errno {error.errno}" if error.errno is not None else words


def is_of_the_disk(error: OSError) -> bool:
    """Whether the system's disk, network or permissions are at fault, not the name and not the content.

    What libraries raise on damaged files has no number.
    """
    return error.errno is not None and error.errno not in _OF_THE_FILE


def is_of_the_system(reason: str) -> bool:
    """Whether a file was left out because the disk failed."""
    return reason.startswith(_SYSTEM)


def is_worth_a_try(reason: str) -> bool:
    """Whether a file was left out for a reason that may have passed; also as earlier versions wrote it."""
    if reason == "no such file":
        return True
    numbers = re.findall(r"(?:errno |\[Errno )(\d+)", reason)
    if numbers:
        return any(int(number) in _WORTH_A_TRY for number in numbers)
    said = re.match(r"cannot be opened \((.*)\)$", reason)
    return said is not None and said[1] in {os.strerror(number) for number in _WORTH_A_TRY}


def try_again(read: Callable[[], T], *, pauses_s: Iterable[float] | None = None) -> T:
    """What `read` returns, called again after each pause while the disk fails.

    Raises:
        DiskError: it failed every time, or for good.
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
        raise DiskError.of(error) from None
