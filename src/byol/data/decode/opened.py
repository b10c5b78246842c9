"""Open files, and convert any exception of a reader to one plain reason."""

import logging
import os
import threading
import traceback
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import NoReturn, TypeVar

from PIL import Image, UnidentifiedImageError

from byol.base.disk import is_of_the_disk, try_again
from byol.base.errors import DataError
from byol.data.decode.content import HEAD_BYTES, find_false_suffix, image_kind
from byol.data.decode.formats import MAX_PIXELS, UNKNOWN, File, LaidFile, Member, Stream
from byol.data.decode.reading import note

SMALL_BYTES, _CHUNK_BYTES, LARGE_BYTES = 2**20, 2**22, 2**28

T = TypeVar("T")


def read_file(file: File, read: Callable[[Stream], T]) -> T:
    """Return `read` of a file. If it is on disk, retry after disk errors."""
    if isinstance(file, Member):
        member = file
        return try_again(lambda: _read_member(member, read))
    file = file.path if isinstance(file, LaidFile) else file
    if isinstance(file, str | Path):
        return try_again(lambda: _read_path(file, read))
    with reasons():
        return read(BytesIO(file) if isinstance(file, bytes | bytearray | memoryview) else file)


def _read_path(path: str | Path, read: Callable[[Stream], T]) -> T:
    try:
        stream = _open(path)
    except FileNotFoundError:
        raise DataError("no such file") from None
    except OSError as error:
        if is_of_the_disk(error):
            raise
        raise DataError(f"cannot be opened ({error.strerror})") from None
    with stream:
        _note_false_suffix(stream.read(HEAD_BYTES), str(path))
        stream.seek(0)
        try:
            with reasons():
                return read(stream)
        except DataError as error:
            if isinstance(stream, BytesIO):
                raise
            failure = error
    return _read_again(path, read, failure)


def _read_member(member: Member, read: Callable[[Stream], T]) -> T:
    try:
        content = member.read()
    except FileNotFoundError:
        raise DataError("no such file: its tar file is gone") from None
    _note_false_suffix(content[:HEAD_BYTES], member.name)
    with reasons():
        return read(BytesIO(content))


def _note_false_suffix(head: bytes, name: str) -> None:
    kind = image_kind(head)
    if kind is not None and (suffix := find_false_suffix(kind, name)) is not None:
        note(f"named {suffix}, but read as {kind}, which their content is")


def _read_again(path: str | Path, read: Callable[[Stream], T], failure: DataError) -> T:
    """Read a large file again, because its reader may have mistaken a disk error for damage.

    Raises:
        OSError: the disk fails.
    """
    with open(path, "rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size > LARGE_BYTES:  # too large to hold in memory
            while file.read(_CHUNK_BYTES):
                pass
            raise failure
        content = file.read()
    with reasons():
        return read(BytesIO(content))


def _open(path: str | Path) -> Stream:
    """Open a file; read small ones at once, because many small reads would take 15 us per file."""
    with open(path, "rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size < SMALL_BYTES:
            return BytesIO(file.read())
    return open(path, "rb")


class reasons:
    """A context that converts exceptions of readers to a DataError with one reason, and hides warnings.

    It is a class, because a generator would take 2 us more per image.
    """

    def __enter__(self) -> None:
        quiet.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        quiet.__exit__()
        if isinstance(error, Exception) and not isinstance(error, DataError) and not _is_ours(error):
            _raise_plainly(error)


def _is_ours(error: Exception) -> bool:
    """Return whether an assertion of byol failed, which is a bug; those of libraries show damage."""
    if not isinstance(error, AssertionError) or error.__traceback__ is None:
        return isinstance(error, AssertionError)
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] not in ("tifffile", "PIL", "pydicom")


def _raise_plainly(error: Exception) -> NoReturn:
    """Raise a DataError for any exception: damaged files cause struct.error, IndexError, ..."""
    match error:
        case UnidentifiedImageError():
            reason = UNKNOWN
        case Image.DecompressionBombError():
            reason = f"has more than the {MAX_PIXELS:,} pixels that byol reads"
        case MemoryError():
            reason = "needs more memory than is available"
        case _:
            detail = " ".join(str(error).split())
            reason = f"is damaged or cut short ({detail or type(error).__name__})"
    raise DataError(reason) from None


class _Quiet:
    """Hides warnings of Pillow, tifffile, pydicom and imagecodecs while any thread is in the context.

    `warnings.catch_warnings` restores wrong filters if threads overlap. So the first thread that enters sets
    the filter, and the last one that leaves removes it.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._catch = warnings.catch_warnings()
                self._catch.__enter__()
                warnings.filterwarnings("ignore", module=r"(PIL|tifffile|pydicom|imagecodecs)\.")
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._catch.__exit__(None, None, None)


quiet = _Quiet()
for _name in ("tifffile", "pydicom"):  # otherwise their warnings go to stderr
    logging.getLogger(_name).addHandler(logging.NullHandler())
