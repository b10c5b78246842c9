"""The folder that a pack lies in: who may write, what if writing fails, how one replaces another."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EACCES, EROFS
from pathlib import Path
from types import TracebackType

from byol.base.errors import CheckpointError, DataError
from byol.base.files import reason_of

POLL_S = 0.2
_ELSEWHERE = "free space or choose another place with data.packs=FOLDER"


def _try_lock(handle: int) -> None:
    """Raises PermissionError or BlockingIOError if another process holds the lock."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def locked(folder: Path, *, while_waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of `folder`, which need not exist. Waits for another holder, calling `while_waiting`.

    The lock is an empty file `.NAME.lock` beside the folder, which stays; it is let go when the process ends,
    also if that is killed.

    Raises:
        DataError: the file cannot be written, or the file system has no locks.
    """
    path = folder.with_name(f".{folder.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _open_lock(path)
    except OSError as error:
        raise _unwritable(folder, error) from None
    try:
        while True:
            try:
                _try_lock(handle)
                break
            except (BlockingIOError, PermissionError):  # held by another process
                while_waiting()
                time.sleep(POLL_S)
            except OSError as error:
                raise _unwritable(folder, error) from None
        yield
    finally:
        os.close(handle)


def _open_lock(path: Path) -> int:
    """One that is there will do where nothing can be written: what the folder holds can still be read."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        if error.errno not in (EACCES, EROFS) or not path.exists():
            raise
        return os.open(path, os.O_RDONLY)


class writing:  # not by @contextmanager: it is entered for every image, and that takes 2 us
    """Failures to write become one line.

    Raises:
        DataError: the folder cannot be written, or the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            raise _unwritable(self._folder, error) from None
        if isinstance(error, CheckpointError):
            raise DataError(str(error)) from None


def check_space(folder: Path, num_bytes: int) -> None:
    """Refuse before hours of work that there is no room for.

    Raises:
        DataError: the disk has less than `num_bytes` free.
    """
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise DataError(
            f"{folder}: the packed images need {num_bytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
            f"{_ELSEWHERE}"
        )


def move_into_place(partial: Path, folder: Path, *, files: tuple[str, ...]) -> None:
    """`partial` takes the place of `folder`, whose `files` are deleted; a process that maps them keeps them.

    Whatever else somebody has put into the folder stays, under the name `NAME.old`.

    Raises:
        DataError: it cannot be written; on Windows also: another process maps the files.
    """
    old = folder.with_name(f"{folder.name}.old")
    with writing(folder):
        _remove(old, files)
        if folder.exists():
            _rename_used(folder, old)
        os.replace(partial, folder)
        _remove(old, files)


def _rename_used(folder: Path, old: Path) -> None:
    try:
        os.replace(folder, old)
    except PermissionError:
        if os.name != "nt":
            raise
        raise DataError(
            f"{folder}: cannot be packed again while another program reads it; end that one (a training run, "
            "byol explore), or choose another place with data.packs=FOLDER"
        ) from None


def remove_files(folder: Path, names: tuple[str, ...]) -> None:
    """Delete those of these names that are there, and nothing else."""
    for name in names:
        with suppress(FileNotFoundError):
            (folder / name).unlink()


def _remove(folder: Path, files: tuple[str, ...]) -> None:
    if folder.exists():
        remove_files(folder, files)
        with suppress(OSError):  # not empty: something of the user's
            folder.rmdir()


def _unwritable(folder: Path, error: OSError) -> DataError:
    return DataError(f"{folder}: cannot be written ({reason_of(error)}); {_ELSEWHERE}")
