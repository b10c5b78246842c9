"""The folder that a pack lies in: who may write, what if writing fails, how one replaces another."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EACCES, EROFS
from pathlib import Path
from types import TracebackType

from byol.base.console import Say
from byol.base.errors import CheckpointError, DataError
from byol.base.files import reason_of
from byol.base.locks import Holder, hold

_ELSEWHERE = "free space or choose another place with data.packs=FOLDER"


@contextmanager
def locked(folder: Path, *, while_waiting: Callable[[Holder | None], None], say: Say) -> Iterator[None]:
    """Hold the lock of `folder`, which need not exist. Waits for another holder, calling `while_waiting`.

    The lock is an empty file `.NAME.lock` beside the folder, which stays. Where nothing can be written there
    is none: what the folder holds can still be read. `say` is told where there are no locks.

    Raises:
        DataError: the folder above cannot be made.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from None
    with hold(folder.with_name(f".{folder.name}.lock"), while_busy=while_waiting) as refusal:
        if refusal is not None and refusal.errno not in (EACCES, EROFS):
            say(
                f"{folder}: cannot be locked ({reason_of(refusal)}): make sure that no second process packs "
                "the same images at the same time"
            )
        yield


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
            f"{folder}: the packed images need {num_bytes / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free; "
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
            f"{folder}: cannot be packed again while another program reads it; end that program (a training "
            "run, byol explore), or choose another place with data.packs=FOLDER"
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
