"""The readers of single formats, each from an open file to an array. They raise whatever the libraries raise.

`decode.py` says by which rules they choose channels and depth, and turns what they raise into a reason.
"""

from dataclasses import dataclass
from io import IOBase
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Shaped, UInt
from PIL import Image, ImageSequence

from byol.errors import DataError

if TYPE_CHECKING:
    Stream = IO[bytes]  # what the libraries ask for
else:
    Stream = IOBase  # what BytesIO and opened files are

MAX_PIXELS = 178_956_970  # height x width; more is taken for a mistake or an attack, as Pillow does
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
CHANNELS_OF_MODE = dict.fromkeys(("1", "L", "LA", "La", *DEEP_MODES), 1) | dict.fromkeys(
    ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"), 3
)

ImageArray = UInt[np.ndarray, "_height _width _channels"]  # of any size: not compared with each other
_RawArray = Shaped[np.ndarray, "_height _width *_channels"]
Channels = Literal["grey", "rgb"] | list[int] | None  # as data.channels
File = str | Path | bytes | bytearray | memoryview | Stream  # the first two are paths

_ORIENTATION = 0x0112  # the number of this tag in EXIF and in TIFF
_WHITE_IS_ZERO, _PALETTE, _CMYK, _YCBCR = 0, 3, 5, 6  # of TIFF's tag "photometric"


@dataclass(frozen=True)
class Kind:
    """What an image is, short of its pixels."""

    longest_side: int  # px
    channels: int
    bits: int  # 8 or 16


def read_pillow(image: Image.Image) -> ImageArray:
    """Also of an image that is already in memory. Pillow turns a TIFF itself, and its tag, on loading."""
    if image.mode in DEEP_MODES:
        array = np.asarray(image)
        if array.size and not 0 <= array.min() <= array.max() <= 65535:
            raise DataError("holds 32-bit values; 8 and 16 bit are read")
        array = array.astype(np.uint16)
    else:
        array = np.asarray(as_grey_or_rgb(image))
    return _as_image(turned(array, orientation_of(image)))


def as_grey_or_rgb(image: Image.Image) -> Image.Image:
    """An image of 8 bits or less in Pillow's mode L or RGB, its pixels loaded."""
    match image.mode:
        case "L" | "RGB":
            image.load()
            return image
        case "1":
            return image.convert("L")
        case "LA" | "La":
            return image.convert("LA").getchannel("L")
        case "P" | "PA" | "RGBA" | "RGBa" | "RGBX":
            return image.convert("RGBA").convert("RGB")
        case "CMYK" | "YCbCr":
            return image.convert("RGB")
        case mode:
            raise DataError(f"Pillow's mode {mode} is not read; save it as grey or RGB, 8 or 16 bit")


def orientation_of(image: Image.Image) -> int:
    """EXIF's orientation, 1 (upright) where there is none or it cannot be read; loads a PNG's pixels."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF raises nearly anything; the pixels are unharmed
        return 1
    return orientation if orientation in range(1, 9) else 1


def read_npy(stream: Stream) -> ImageArray:
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read_header = np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    if len(shape) not in (2, 3):
        raise DataError(f"has the shape {shape}; (height, width) and (height, width, channels) are read")
    _check(shape[0], shape[1], dtype)
    stream.seek(0)
    return _as_image(np.load(stream, allow_pickle=False))


def read_png_16_bit_colour(stream: Stream) -> ImageArray:
    """Pillow keeps the high byte of each value alone; told a wrong byte order, it keeps the low one."""
    image = Image.open(stream)
    if image.tile[0].args not in ("RGB;16B", "RGBA;16B"):
        raise DataError("is a 16-bit PNG of grey with alpha; save it without the alpha")
    high = np.asarray(image)[..., :3]
    stream.seek(0)
    again = Image.open(stream)
    again.tile = [tile._replace(args=str(tile.args).replace("16B", "16L")) for tile in again.tile]
    low = np.asarray(again)[..., :3]
    return _as_image(turned(high.astype(np.uint16) << 8 | low, orientation_of(image)))


def read_tiff(stream: Stream) -> ImageArray:
    from tifffile import TiffFile  # 75 ms

    with TiffFile(stream) as tiff:
        series, page = tiff.series[0], tiff.series[0].keyframe
        # tifffile leaves out pages beyond the end of the file; the link after the last page must be 0.
        tiff.filehandle.seek(tiff.pages.next_page_offset or 0)
        if tiff.filehandle.read(tiff.tiff.offsetsize) != bytes(tiff.tiff.offsetsize):
            raise DataError("is damaged or cut short (pages are missing)")
        if any(not other.keyframe.is_reduced for other in tiff.series[1:]):
            raise DataError("has pages of different sizes or kinds; save each as a file of its own")
        _check(page.imagelength, page.imagewidth, page.dtype)
        if page.photometric in (_PALETTE, _CMYK, _YCBCR) and series.ndim == page.ndim:
            return read_pillow(Image.open(stream))
        channel_axes = [
            at for at, axis in enumerate(series.axes) if axis not in "YX" and series.shape[at] > 1
        ]
        if len(channel_axes) > 1:
            axes = " x ".join(f"{axis} {size}" for axis, size in zip(series.axes, series.shape, strict=True))
            raise DataError(f"has the axes {axes}; only one besides height and width can be the channels")
        try:
            values = series.asarray(maxworkers=1)
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            return _read_tiff_by_pillow(stream)
        if channel_axes:
            values = np.moveaxis(values, channel_axes[0], -1)
        values = values.reshape(page.imagelength, page.imagewidth, -1)
        if page.photometric == _WHITE_IS_ZERO:
            values = ~values
        if series.ndim == page.ndim and (alphas := sum(extra in (1, 2) for extra in page.extrasamples)):
            values = values[..., : values.shape[2] - alphas]
        return _as_image(turned(values, int(page.tags.valueof(_ORIENTATION, default=1))))


def _read_tiff_by_pillow(stream: Stream) -> ImageArray:
    """Compressions that tifffile leaves to an optional package, LZW above all; the pages are the channels."""
    stream.seek(0)
    image = Image.open(stream)
    if image.mode not in CHANNELS_OF_MODE:
        raise DataError(
            "is compressed in a way that is not read; save it without compression, or pip install imagecodecs"
        )
    return np.concatenate([read_pillow(page) for page in ImageSequence.Iterator(image)], axis=2)


# ---- What the readers share


def _check(height: int, width: int, dtype: np.dtype[Any] | None) -> None:
    """Refuse by the header, before memory is asked for."""
    if height * width == 0:
        raise DataError(f"has no pixels ({height} x {width})")
    if height * width > MAX_PIXELS:
        raise DataError(f"has {height} x {width} pixels, more than the {MAX_PIXELS:,} that are read")
    if dtype is None or dtype.kind not in "bu" or dtype.itemsize > 2:
        raise DataError(f"holds {dtype or 'unknown'} values; 8 and 16 bit without sign are read")


def _as_image(values: _RawArray) -> ImageArray:
    """uint8 or uint16 in this machine's byte order, contiguous, with a channel axis."""
    if values.dtype == np.bool_:
        values = values * np.uint8(255)
    if values.ndim == 2:
        values = values[..., None]
    if 0 in values.shape:
        raise DataError(f"has no pixels {values.shape}")
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))


def turned(image: _RawArray, orientation: int) -> _RawArray:
    """Upright, from EXIF's orientation 1..8 (other values mean nothing)."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image
