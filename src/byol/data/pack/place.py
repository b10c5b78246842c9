"""The folder of a pack: its lock, errors when writing to it, and how a new pack replaces an old one."""

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
    """Hold the lock of `folder`, which need not exist; call `while_waiting` while another process holds it.

    The lock is an empty file `.NAME.lock` beside the folder; it is not deleted. If the folder above is
    read-only, there is no lock: a pack in it can still be read. `say` reports file systems without locks.

    Raises:
        DataError: the folder above cannot be created.
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


class writing:  # not made with @contextmanager, which would take 2 us per image
    """Turn errors of writing into a `DataError` with a one-line message.

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
    """Check the free disk space before hours of work.

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
    """Replace `folder` by `partial` and delete the old `files`, also those of its shards.

    A process that has opened the old files keeps them.

    Other files in the old folder are kept, under the name `NAME.old`.

    Raises:
        DataError: the folder cannot be written; on Windows also: another process has mapped the files.
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
    """Delete the files with these names, if they exist."""
    for name in names:
        with suppress(FileNotFoundError):
            (folder / name).unlink()


def _remove(folder: Path, files: tuple[str, ...]) -> None:
    if folder.exists():
        for shard in folder.glob("shard-*"):
            _remove(shard, files)
        remove_files(folder, files)
        with suppress(OSError):  # not empty: it holds files of the user
            folder.rmdir()


def _unwritable(folder: Path, error: OSError) -> DataError:
    return DataError(f"{folder}: cannot be written ({reason_of(error)}); {_ELSEWHERE}")
