"""Choose the reader of a file by its first bytes."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TypeVar

from PIL import Image, UnidentifiedImageError

from byol.base.errors import DataError
from byol.data.decode import codecs, foreign, png
from byol.data.decode.arrays import read_npy, read_npz
from byol.data.decode.content import HEAD_BYTES, find_refusal, image_kind
from byol.data.decode.dicom import is_dicom, read_dicom
from byol.data.decode.formats import DAMAGED, Decoded, File, LaidFile, Layout, Member, Stream
from byol.data.decode.jpeg import has_all_rows
from byol.data.decode.reading import FIRST_FRAME, NO_END, note
from byol.data.decode.tiff import MAGIC, read_tiff

_LONG_HEAD_BYTES = 2**13  # the header of a portable map may contain comments
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_PILLOW_OF: dict[str | None, tuple[str, ...]] = {"JPEG": ("JPEG",), "PNG": ("PNG",)}  # only these are tried
_Result = TypeVar("_Result")


def find_reader(stream: Stream, file: File) -> Callable[[Stream], Decoded] | None:
    """Return the reader for a stream by its first bytes; None: Pillow reads it. `file` may state a layout."""
    layout: Layout = file.layout if isinstance(file, LaidFile) else "auto"
    pages = (file.pages or layout) if isinstance(file, LaidFile) else layout
    head = stream.read(_LONG_HEAD_BYTES)
    stream.seek(0)
    if not head:
        raise DataError("the file is empty")
    if head[:2] == b"\xff\xd8" or (head[:8] == png.SIGNATURE and not _is_deep_png(head)):
        return None
    if head[:4] in MAGIC:
        return lambda stream: read_tiff(stream, layout=pages, path=_path_of(file))
    if head[:6] == b"\x93NUMPY":
        return lambda stream: read_npy(stream, layout=layout)
    if head[:4] == b"PK\3\4" and b".npy" in head[:2048]:
        return lambda stream: read_npz(stream, layout=layout)
    if head[:8] == png.SIGNATURE:
        return png.read_16_bit
    if (reader := _find_codec(head)) is not None:
        return reader
    return read_dicom if is_dicom(head) else None


def _open_stripped(stream: Stream) -> Image.Image | None:
    """Open a PNG without its texts and profiles, which may be damaged; None: the rest is damaged too."""
    try:
        return Image.open(png.strip(stream), formats=("PNG",))
    except UnidentifiedImageError:
        return None


def _path_of(file: File) -> Path | None:
    if isinstance(file, Member):
        return None
    file = file.path if isinstance(file, LaidFile) else file
    return Path(file) if isinstance(file, str | Path) else None


def _is_deep_png(head: bytes) -> bool:
    """Return whether a PNG has 16 bits (byte 24) and is not plain grey (byte 25); Pillow makes it 8 bit."""
    return head[24:25] == b"\x10" and head[25:26] != b"\0"


def _find_codec(head: bytes) -> Callable[[Stream], Decoded] | None:
    if head[:12] == b"\0\0\0\x0cjP  \r\n\x87\n" or head[:4] == b"\xff\x4f\xff\x51":
        return codecs.read_jpeg_2000
    if head[:12] == b"\0\0\0\x0cJXL \r\n\x87\n" or head[:2] == b"\xff\x0a":
        return codecs.read_jpeg_xl
    if head[:3] == b"II\xbc":
        return codecs.read_jpeg_xr
    if head[4:8] == b"ftyp":
        end = min(int.from_bytes(head[:4], "big"), len(head))
        brands = {head[at : at + 4] for at in range(8, end, 4)}
        if brands & {b"avif", b"avis"}:
            return codecs.read_avif
        return codecs.read_heic if brands & _HEIC_BRANDS else None  # otherwise a video
    return codecs.read_deep_pnm if codecs.is_deep_pnm(head) else None


def by_pillow(
    stream: Stream, read: Callable[[Image.Image], _Result], otherwise: Callable[[Decoded], _Result]
) -> _Result:
    """Return `read` of the image that Pillow opened, or `otherwise` of what another reader decoded.

    A JPEG that lacks only its end mark is read too.

    Raises:
        DataError: the first bytes show a format that byol does not read.
    """
    head = stream.read(foreign.HEAD_BYTES)
    stream.seek(0)
    kind = image_kind(head)
    if kind is None and (reason := foreign.refuse(head) or find_refusal(head[:HEAD_BYTES])) is not None:
        raise DataError(reason)
    codecs.check_webp_header(head)
    try:
        image = Image.open(stream, formats=_PILLOW_OF.get(kind, codecs.FORMATS))
        if codecs.is_animation(image):
            note(FIRST_FRAME)
        return read(image)
    except UnidentifiedImageError as error:
        if kind == "JPEG":
            stream.seek(0)
            file = stream.read()
            if codecs.is_deep_jpeg(file):
                return otherwise(codecs.read_deep_jpeg(stream))
            if codecs.is_jpeg_ls(file):
                raise DataError(foreign.REFUSED.format("a JPEG-LS file")) from None
        if kind == "PNG" and (stripped := _open_stripped(stream)) is not None:
            return read(stripped)
        if (reason := foreign.refuse(head)) is not None:
            raise DataError(reason) from None
        if kind is not None:
            raise DataError(DAMAGED.format(kind)) from error
        if (reason := foreign.describe(stream)) is not None:
            raise DataError(reason) from None
        raise
    except OSError:
        stream.seek(0)
        file = stream.read() if kind == "JPEG" else b""
        if not file or not has_all_rows(file):
            raise
        note(NO_END)
        return read(Image.open(BytesIO(file + b"\xff\xd9"), formats=("JPEG",)))
    except ValueError as error:  # a text or colour profile above 1 MB, which does not affect the pixels
        if "MAX_TEXT" not in str(error):
            raise
        return read(Image.open(png.strip(stream), formats=("PNG",)))
