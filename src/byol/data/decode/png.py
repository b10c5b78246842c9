"""Read PNGs that Pillow reads with loss or refuses: 16-bit colours, and damaged or large extra chunks."""

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from byol.base.errors import DataError
from byol.data.decode.codecs import by_imagecodecs, orientation_of
from byol.data.decode.formats import DAMAGED, Decoded, RawArray, Stream, as_image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_OF_THE_IMAGE = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf")
_SAMPLES = {2: 3, 4: 2, 6: 4}  # samples per pixel, by colour type
_PASSES = (  # passes of an interlaced image: first row, first column, and the steps
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)


def strip(stream: Stream) -> BytesIO:
    """Return a PNG with only the chunks that affect its pixels.

    Pillow refuses texts and profiles above 1 MB, and any chunk with a wrong checksum.
    """
    stream.seek(0)
    file = stream.read()
    return BytesIO(file[:8] + b"".join(file[begin:end] for name, begin, end in _chunks(file)))


def read_16_bit(stream: Stream) -> Decoded:
    """Read a 16-bit PNG with colours, or grey with alpha. A transparent colour counts as alpha."""
    stripped = strip(stream)
    try:
        image = Image.open(stripped, formats=("PNG",))  # checks the number of pixels
    except UnidentifiedImageError:
        raise DataError(DAMAGED.format("PNG")) from None
    file = stripped.getvalue()
    # This loads the pixels a second time, so do it only if there is an EXIF chunk before or after them.
    orientation = orientation_of(image) if b"eXIf" in file[: 2**16] + file[-(2**16) :] else 1
    if file[28] == 0:
        return by_imagecodecs("png", file, "straight").turned(orientation)
    values = _decode_interlaced(file)
    channels = values.shape[2]
    if channels in (2, 4):
        return Decoded(as_image(values), None, "straight", channels - 1).turned(orientation)
    return Decoded(as_image(values)).turned(orientation)


def _chunks(file: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and end of the chunks that affect the image. The last one may be incomplete."""
    at = 8
    while at + 12 <= len(file):
        end = at + 12 + int.from_bytes(file[at : at + 4], "big")
        if (name := file[at + 4 : at + 8]) in _OF_THE_IMAGE:
            yield name, at, end
        at = end


def _decode_interlaced(file: bytes) -> RawArray:
    """Decode an interlaced 16-bit image, each pass as a separate image.

    imagecodecs can decode interlaced images, but libpng prints a warning for each.
    """
    import imagecodecs

    width, height, colour = *struct.unpack(">II", file[16:24]), file[25]
    chunks = list(_chunks(file))
    rows = _decompress(
        b"".join(file[begin + 8 : end - 4] for name, begin, end in chunks if name == b"IDAT"),
        most=(2 * _SAMPLES[colour] * width + 7) * height + 7 * height,
    )
    transparent = b"".join(file[begin:end] for name, begin, end in chunks if name == b"tRNS")
    values: Any = None
    for top, left, down, right in _PASSES:
        shape = -(-(height - top) // down), -(-(width - left) // right)
        if min(shape) < 1:
            continue
        size = shape[0] * (1 + 2 * _SAMPLES[colour] * shape[1])  # each row begins with a filter byte
        if len(rows) < size:
            raise DataError("is damaged or cut short (rows are missing)")
        header = struct.pack(">IIBBBBB", shape[1], shape[0], 16, colour, 0, 0, 0)
        part = SIGNATURE + _chunk(b"IHDR", header) + transparent
        part += _chunk(b"IDAT", zlib.compress(rows[:size], 0)) + _chunk(b"IEND", b"")
        decoded = imagecodecs.png_decode(part)
        if values is None:
            values = np.empty((height, width, decoded.shape[2]), np.uint16)
        values[top::down, left::right] = decoded
        rows = rows[size:]
    return np.asarray(values)


def _decompress(data: bytes, *, most: int) -> bytes:
    """Decompress at most `most` bytes, because more would not belong to the image."""
    reader = zlib.decompressobj()
    try:
        return reader.decompress(data, most)
    except zlib.error as error:
        raise DataError(f"is damaged or cut short ({error})") from None


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
