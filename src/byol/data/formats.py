"""The readers of single formats, each from an open file to an array. They raise whatever the libraries raise.

`decode.py` says by which rules they choose channels and depth, and turns what they raise into a reason.
"""

from dataclasses import dataclass
from io import IOBase
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float32, Shaped, UInt
from PIL import Image, ImageSequence

from byol.data.reading import settle_alpha, settle_pillow_alpha
from byol.errors import DataError

if TYPE_CHECKING:
    Stream = IO[bytes]  # what the libraries ask for
else:
    Stream = IOBase  # what BytesIO and opened files are

MAX_PIXELS = 178_956_970  # height x width; more is taken for a mistake or an attack, as Pillow does
DEEP_MODES = ("F", "I", "I;16", "I;16B", "I;16L", "I;16N")
CHANNELS_OF_MODE = dict.fromkeys(("1", "L", "LA", "La", *DEEP_MODES), 1) | dict.fromkeys(
    ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"), 3
)

# uint8, uint16 or float32, of any size: not compared with each other
ImageArray = UInt[np.ndarray, "_height _width _channels"] | Float32[np.ndarray, "_height _width _channels"]
_RawArray = Shaped[np.ndarray, "_height _width *_channels"]
Channels = Literal["grey", "rgb"] | list[int] | None  # as data.channels
Geometry = Literal["square", "scale"]  # as data.geometry
Bits = Literal[8, 16, 32]  # of a stored value; 32: floating point
File = str | Path | bytes | bytearray | memoryview | Stream  # the first two are paths

_EXACT = 2**24  # whole numbers up to this are exact as float32
_ORIENTATION = 0x0112  # the number of this tag in EXIF and in TIFF
_NOT_EXACT = f"holds whole numbers beyond {_EXACT:,}, which float32 cannot keep; save it as float or 16 bit"
_WHITE_IS_ZERO, _PALETTE, _CMYK, _YCBCR = 0, 3, 5, 6  # of TIFF's tag "photometric"


@dataclass(frozen=True)
class Kind:
    """What an image is, short of its pixels."""

    longest_side: int  # px
    channels: int
    bits: Bits


def read_pillow(image: Image.Image) -> ImageArray:
    """Also of an image that is already in memory. Pillow turns a TIFF itself, and its tag, on loading."""
    if image.mode in DEEP_MODES:
        array = np.asarray(image)
        if bits_of(image) == 16:
            array = array.astype(np.uint16)
    else:
        array = np.asarray(as_grey_or_rgb(image))
    return as_image(turned(array, orientation_of(image)))


def bits_of(image: Image.Image) -> Bits:
    """Of a value, by the mode; "I" holds 32 bits, except that Pillow reads 16-bit PGM into it."""
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        return 32
    return 16 if image.mode in DEEP_MODES else 8


def bits_of_dtype(dtype: np.dtype[Any]) -> Bits:
    """Of a value in an array of images."""
    return 8 if dtype == np.uint8 else 16 if dtype == np.uint16 else 32


def has_alpha(image: Image.Image) -> bool:
    """Whether something in it may be transparent: a channel, entries of its palette, or one colour."""
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or (
        "transparency" in image.info and image.mode in ("1", "L", "P", "RGB")
    )


def is_animation(image: Image.Image) -> bool:
    """Whether it has more frames than the one that is read; other pictures of a camera's file are none."""
    if image.format not in ("GIF", "PNG", "WEBP", "AVIF"):
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # the second frame is damaged; it is not read
        return True


def as_grey_or_rgb(image: Image.Image) -> Image.Image:
    """An image of 8 bits or less in Pillow's mode L or RGB (or LA and RGBA, see `reading`), pixels loaded."""
    if has_alpha(image):
        return settle_pillow_alpha(image.convert("LA" if image.mode in ("1", "L", "LA", "La") else "RGBA"))
    match image.mode:
        case "L" | "RGB":
            image.load()
            return image
        case "1":
            return image.convert("L")
        case "P" | "RGBX":
            return image.convert("RGBA").convert("RGB")
        case "CMYK" | "YCbCr":
            return image.convert("RGB")
        case mode:
            raise DataError(f"Pillow's mode {mode} is not read; save it as grey or RGB")


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
    check_header(shape[0], shape[1], dtype)
    stream.seek(0)
    return as_image(np.load(stream, allow_pickle=False))


def read_png_16_bit_colour(stream: Stream) -> ImageArray:
    """Pillow keeps the high byte of each value alone; told a wrong byte order, it keeps the low one."""
    image = Image.open(stream)
    if image.tile[0].args not in ("RGB;16B", "RGBA;16B"):
        raise DataError("is a 16-bit PNG of grey with alpha; save it without the alpha")
    high = np.asarray(image)
    stream.seek(0)
    again = Image.open(stream)
    again.tile = [tile._replace(args=str(tile.args).replace("16B", "16L")) for tile in again.tile]
    values = high.astype(np.uint16) << 8 | np.asarray(again)
    if values.shape[2] == 4:
        values = settle_alpha(values[..., :3], values[..., 3])
    return as_image(turned(values, orientation_of(image)))


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
        check_header(page.imagelength, page.imagewidth, page.dtype)
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
            return _read_tiff_by_pillow(stream, is_unsigned=str(page.dtype).startswith("u"))
        if channel_axes:
            values = np.moveaxis(values, channel_axes[0], -1)
        values = values.reshape(page.imagelength, page.imagewidth, -1)
        if page.photometric == _WHITE_IS_ZERO:
            values = -values if values.dtype.kind == "f" else ~values
        if series.ndim == page.ndim and (alphas := sum(extra in (1, 2) for extra in page.extrasamples)):
            num = values.shape[2] - alphas
            values = settle_alpha(values[..., :num], values[..., num])
        return as_image(turned(values, int(page.tags.valueof(_ORIENTATION, default=1))))


def _read_tiff_by_pillow(stream: Stream, *, is_unsigned: bool) -> ImageArray:
    """Compressions that tifffile leaves to an optional package, LZW above all; the pages are the channels."""
    stream.seek(0)
    image = Image.open(stream)
    if image.mode not in CHANNELS_OF_MODE:
        raise DataError(
            "is compressed in a way that is not read; save it without compression, or pip install imagecodecs"
        )
    values = np.concatenate([read_pillow(page) for page in ImageSequence.Iterator(image)], axis=2)
    if is_unsigned and values.min() < 0:  # Pillow's 32 bits have a sign: large values have wrapped
        raise DataError(_NOT_EXACT)
    return values


# ---- DICOM


def read_dicom(stream: Stream) -> ImageArray:
    """The pixels as the file means them: rescaled, colours as RGB, MONOCHROME1 inverted; frames are channels.

    Inverted is a stored v to (largest storable) - v, so that in every image of a set high is bright. Rescaled
    values (CT: Hounsfield units) are float32; without slope and intercept the stored ones are kept.
    """
    try:
        from pydicom import dcmread  # 0.4 s
        from pydicom.pixels.processing import apply_color_lut
        from pydicom.pixels.utils import pixel_array
    except ImportError:
        raise DataError("is a DICOM file; to read it: pip install 'byol[dicom]'") from None
    data = dcmread(stream)
    if "Rows" not in data or "Columns" not in data:
        raise DataError("is a DICOM file without an image")
    check_header(int(data.Rows), int(data.Columns), np.dtype(np.uint16))
    photometric, frames = str(data.PhotometricInterpretation), int(data.get("NumberOfFrames") or 1)
    try:
        values = pixel_array(data)
    except RuntimeError as error:  # a compression whose decoder is another package: its message is long
        syntax = data.file_meta.TransferSyntaxUID
        raise DataError(
            f"is compressed in a way that pydicom cannot read here ({syntax.name}); "
            "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
        ) from error
    if photometric == "PALETTE COLOR":
        values = apply_color_lut(values, data)
    is_colour = not photometric.startswith("MONOCHROME")
    if is_colour and frames > 1:
        raise DataError(f"has {frames} frames in colour; save each as a file of its own")
    if frames > 1:
        values = np.moveaxis(values, 0, -1)
    if data.get("BitsAllocated") == 1:
        values = values.astype(np.bool_)
    if photometric == "MONOCHROME1":
        values = _inverted(values, bits=int(data.get("BitsStored", 0)))
    slope, intercept = float(data.get("RescaleSlope", 1) or 1), float(data.get("RescaleIntercept", 0) or 0)
    if (slope, intercept) != (1.0, 0.0) and not is_colour:
        values = (values * slope + intercept).astype(np.float32)
    return as_image(values)


def _inverted(values: _RawArray, *, bits: int) -> _RawArray:
    if values.dtype.kind == "f":
        return -values
    if values.dtype.kind in "bi":
        return ~values
    return np.asarray(2**bits - 1 - values, dtype=values.dtype)


# ---- What the readers share


def check_header(height: int, width: int, dtype: np.dtype[Any] | None) -> None:
    """Refuse by the header, before memory is asked for."""
    if height * width == 0:
        raise DataError(f"has no pixels ({height} x {width})")
    if height * width > MAX_PIXELS:
        raise DataError(f"has {height} x {width} pixels, more than the {MAX_PIXELS:,} that are read")
    if dtype is None or dtype.kind not in "buif":
        raise DataError(f"holds {dtype or 'unknown'} values; whole and floating-point numbers are read")


def as_image(values: _RawArray) -> ImageArray:
    """uint8, uint16 or float32 in this machine's byte order, contiguous, with a channel axis.

    What is neither 8 nor 16 bit without sign becomes float32, whatever its values are: the images of a set
    have one kind.

    Raises:
        DataError: there are no values, or some that are not finite or that float32 cannot hold exactly.
    """
    if values.ndim == 2:
        values = values[..., None]
    if 0 in values.shape:
        raise DataError(f"has no pixels {values.shape}")
    match values.dtype.kind, values.dtype.itemsize:
        case "b", _:
            values = values * np.uint8(255)
        case "u", 1 | 2:
            pass
        case (("u" | "i"), _):
            if max(-int(values.min()), int(values.max())) > _EXACT:
                raise DataError(_NOT_EXACT)
            values = values.astype(np.float32)
        case "f", _:
            with np.errstate(over="ignore"):  # beyond float32 becomes infinite, and is refused with the rest
                values = values.astype(np.float32, copy=False)
            if num_bad := values.size - int(np.isfinite(values).sum()):
                raise DataError(f"holds {num_bad} values that are NaN, infinite or beyond float32; fill them")
        case _:
            raise DataError(f"holds {values.dtype} values; whole and floating-point numbers are read")
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
