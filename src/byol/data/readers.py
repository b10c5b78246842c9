"""From a file's first bytes to the reader of its format, from whatever that raises to one plain reason."""

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TypeVar

from PIL import Image, UnidentifiedImageError

from byol.data import codecs, foreign
from byol.data.arrays import read_npy, read_npz
from byol.data.dicom import is_dicom, read_dicom
from byol.data.formats import MAX_PIXELS, Decoded, File, LaidFile, Layout, Stream
from byol.data.tiff import MAGIC, read_tiff
from byol.errors import DataError

_HEAD_BYTES = 2**13  # a portable map's header may hold comments
_SMALL_BYTES = 2**20
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_PNG = b"\x89PNG\r\n\x1a\n"
_Result = TypeVar("_Result")


def layout_of(file: File) -> Layout:
    """What `data.layout` says of this file."""
    return file.layout if isinstance(file, LaidFile) else "auto"


def find_reader(stream: Stream, layout: Layout) -> Callable[[Stream], Decoded] | None:
    """By the first bytes; None: Pillow's formats."""
    head = stream.read(_HEAD_BYTES)
    stream.seek(0)
    if not head:
        raise DataError("the file is empty")
    if head[:2] == b"\xff\xd8" or (head[:8] == _PNG and not _is_deep_png(head)):
        return None
    if head[:4] in MAGIC:
        return lambda stream: read_tiff(stream, layout=layout)
    if head[:6] == b"\x93NUMPY":
        return lambda stream: read_npy(stream, layout=layout)
    if head[:4] == b"PK\3\4" and b".npy" in head[:2048]:
        return lambda stream: read_npz(stream, layout=layout)
    if head[:8] == _PNG:
        return codecs.read_png_16_bit
    if (reader := _find_codec(head)) is not None:
        return reader
    return read_dicom if is_dicom(head) else None


def _is_deep_png(head: bytes) -> bool:
    """Byte 24 is the bit depth, byte 25 is 0 for grey without alpha. Pillow cuts others to 8 bit."""
    return head[24:25] == b"\x10" and head[25:26] != b"\0"


def _find_codec(head: bytes) -> Callable[[Stream], Decoded] | None:
    if head[:12] == b"\0\0\0\x0cjP  \r\n\x87\n" or head[:4] == b"\xff\x4f\xff\x51":
        return codecs.read_jpeg_2000
    if head[:12] == b"\0\0\0\x0cJXL \r\n\x87\n" or head[:2] == b"\xff\x0a":
        return codecs.read_jpeg_xl
    if head[:3] == b"II\xbc":
        return codecs.read_jpeg_xr
    if head[4:8] == b"ftyp":
        brands = {head[at : at + 4] for at in range(8, int.from_bytes(head[:4], "big"), 4)}
        if brands & {b"avif", b"avis"}:
            return codecs.read_avif
        return codecs.read_heic if brands & _HEIC_BRANDS else None  # else a film
    return codecs.read_deep_pnm if codecs.is_deep_pnm(head) else None


def by_pillow(
    stream: Stream, read: Callable[[Image.Image], _Result], otherwise: Callable[[Decoded], _Result]
) -> _Result:
    """`read` of the opened image; `otherwise` of one that Pillow does not open, and another reader does."""
    try:
        image = Image.open(stream, formats=codecs.FORMATS)
        return read(image)
    except UnidentifiedImageError:
        stream.seek(0)
        if stream.read(3) == b"\xff\xd8\xff":
            stream.seek(0)
            if codecs.is_deep_jpeg(stream.read()):
                return otherwise(codecs.read_deep_jpeg(stream))
        if (reason := foreign.describe(stream)) is not None:
            raise DataError(reason) from None
        raise
    except ValueError as error:  # a text or a colour profile above 1 MB, which says nothing of the pixels
        if "MAX_TEXT" not in str(error):
            raise
        return read(Image.open(codecs.strip_png(stream), formats=("PNG",)))


@contextmanager
def opened(file: File) -> Iterator[Stream]:
    """A file by its path or its bytes, open.

    Raises:
        DataError: it is missing, or cannot be opened.
    """
    file = file.path if isinstance(file, LaidFile) else file
    if isinstance(file, str | Path):
        try:
            stream = _open(file)
        except FileNotFoundError:
            raise DataError("no such file") from None
        except OSError as error:
            raise DataError(f"cannot be opened ({error.strerror})") from None
        with stream:
            yield stream
    else:
        yield BytesIO(file) if isinstance(file, bytes | bytearray | memoryview) else file


def _open(path: str | Path) -> Stream:
    """Small files are read at once: readers ask for a few bytes many times, 15 us in all from a file."""
    if os.stat(path).st_size >= _SMALL_BYTES:
        return open(path, "rb")
    with open(path, "rb", buffering=0) as file:
        return BytesIO(file.read())


@contextmanager
def reasons() -> Iterator[None]:
    """Turn whatever a format's reader raises into one plain reason, and keep its warnings quiet."""
    try:
        with quiet:
            yield
    except (DataError, AssertionError):
        raise
    except UnidentifiedImageError:
        raise DataError("is not an image of a known format") from None
    except Image.DecompressionBombError:
        raise DataError(f"has more than the {MAX_PIXELS:,} pixels that are read") from None
    except MemoryError:
        raise DataError("needs more memory than there is") from None
    except (
        Exception
    ) as error:  # readers raise nearly anything on damaged files: struct.error, IndexError, ...
        detail = " ".join(str(error).split())
        raise DataError(f"is damaged or cut short ({detail or type(error).__name__})") from None


class _Quiet:
    """No warnings from Pillow, tifffile, pydicom and imagecodecs while any thread is inside.

    `warnings.catch_warnings` alone restores the wrong filters when threads overlap, so the first thread in
    sets the filter and the last one out takes it away.
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
for _name in ("tifffile", "pydicom"):  # their complaints else go to stderr
    logging.getLogger(_name).addHandler(logging.NullHandler())
