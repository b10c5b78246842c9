"""Write files atomically, and read JSON files with checks."""

import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from errno import EISDIR
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from byol.base.disk import read_bytes
from byol.base.errors import CheckpointError
from byol.base.records import add_checksum, take_checksum

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://.+")

_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}")  # names of the temporary files of `write_atomically`


def is_address(text: str) -> bool:
    """Return whether a source is an address, such as s3://bucket/folder, not a path or a name."""
    return _ADDRESS.fullmatch(text) is not None


def write_atomically(path: Path, content: bytes | Callable[[BinaryIO], None]) -> None:
    """Write `path` completely or not at all: write a temporary file in the same folder, sync, rename.

    `content` is bytes, or a function that writes to an open file.

    Raises:
        CheckpointError: the folder cannot be written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with _locked(handle):
                with os.fdopen(handle, "w+b") as file:  # "+": HDF5 reads its data while writing
                    if isinstance(content, bytes):
                        file.write(content)
                    else:
                        content(file)
                    file.flush()
                    os.fsync(file.fileno())
                os.chmod(temporary, 0o644)
                os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):  # the first error is the one to report
                os.unlink(temporary)
            raise
    except OSError as error:
        raise _make_refusal(path, error) from None


@contextmanager
def collecting(unsaved: list[str] | None) -> Iterator[None]:
    """Append to `unsaved` why a file cannot be written, and go on behind the block; None: that is raised."""
    try:
        yield
    except CheckpointError as error:
        if unsaved is None:
            raise
        unsaved.append(str(error))


def is_temporary(name: str, *, of: Sequence[str] | None = None) -> bool:
    """Return whether a killed `write_atomically` may have left a file of this name, for a file in `of`."""
    found = _TEMPORARY.fullmatch(name)
    return found is not None and (of is None or found[1] in of)


def remove_leftovers(folder: Path, *, of: Callable[[str], bool]) -> None:
    """Delete temporary files in `folder` that killed processes left of files whose names `of` accepts.

    A file that a living process is writing stays, because that process holds a lock on it. Where a file
    system or Windows has no such locks, nothing is deleted.
    """
    if fcntl is None:
        return
    with suppress(OSError):
        for path in list(folder.iterdir()):
            found = _TEMPORARY.fullmatch(path.name)
            if found is not None and of(found[1]):
                _remove_unlocked(path)


def _remove_unlocked(path: Path) -> None:
    with suppress(OSError), path.open("r+b") as file:
        status = os.fstat(file.fileno())
        is_new = status.st_size == 0 and abs(time.time() - status.st_mtime) < 2.0  # not locked yet
        if not is_new:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


@contextmanager
def _locked(handle: int) -> Iterator[None]:
    """Show `remove_leftovers` that this process lives, also after `handle` has been closed."""
    if fcntl is None:
        yield
        return
    held = os.dup(handle)
    try:
        with suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(held)


def check_writable(path: Path) -> None:
    """Check that `write_atomically` can write a file, before its content is computed.

    Leaves no files, and creates no missing folders.

    Raises:
        CheckpointError: same as `write_atomically`.
    """
    folder = path.parent
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    try:
        if path.is_dir():
            raise IsADirectoryError(EISDIR, os.strerror(EISDIR))
        with tempfile.TemporaryFile(prefix=f".{path.name}.", dir=folder):
            pass
    except OSError as error:
        raise _make_refusal(path, error) from None


def _make_refusal(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{path}: cannot be written ({reason_of(error)}); free space or choose another place"
    )


def reason_of(error: OSError) -> str:
    """Describe why a file cannot be written."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "a file is where a folder must be"
    return error.strerror or str(error)


def write_fields(path: Path, content: Mapping[str, Any], *, indent: int = 1) -> None:
    """Write a JSON file with its checksum, for `read_fields`.

    Raises:
        CheckpointError: it cannot be written.
    """
    write_atomically(path, json.dumps(add_checksum(content), indent=indent).encode() + b"\n")


def read_fields(
    path: Path, *, versions: Sequence[int], make: Callable[[dict[str, Any]], T], advice: str
) -> T | None:
    """Read a JSON file whose `format` is in `versions`; return the result of `make` for its other fields.

    None: there is no file.

    Raises:
        CheckpointError: the file is damaged, of another format, or refused by `make`; ends with `advice`.
        DiskReadError: the system could not read it.
    """
    if not path.exists():
        return None
    try:
        fields = json.loads(read_bytes(path))
        take_checksum(fields)
        found = fields.pop("format")
        if found not in versions:
            raise ValueError(f"format is {found}, not {' or '.join(map(str, versions))}")
        return make(fields)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"there is no {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{path}: cannot be read ({reason}); {advice}") from None
