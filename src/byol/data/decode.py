"""One image file -> array (height, width, channels), uint8 or uint16, as it was stored.

What a file holds decides the channels and the depth; its suffix decides nothing.

    grey, RGB                      1 and 3 channels, as they are
    palette                        3 channels, the colours of the palette
    with alpha                     the alpha is dropped, the colours under it kept (no blending)
    CMYK, YCbCr                    3 channels, converted to RGB
    1 bit a pixel                  1 channel of 0 and 255
    16-bit PNG and TIFF            uint16, every bit kept
    TIFF with several pages or samples    one channel each
    .npy                           (height, width) or (height, width, channels)
    animation                      the first frame

The orientation that a camera recorded (EXIF) is applied. Other depths (float, 32 bit) are refused.
"""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from jaxtyping import Shaped, UInt
from PIL import Image, ImageSequence, UnidentifiedImageError

from byol.errors import DataError

IMAGE_SUFFIXES: tuple[str, ...] = (
    ".bmp", ".gif", ".jpeg", ".jpg", ".npy", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"
)  # fmt: skip
MAX_PIXELS = 178_956_970  # height x width; more is taken for a mistake or an attack, as Pillow does

File = Path | bytes | bytearray | memoryview | BinaryIO
ImageArray = UInt[np.ndarray, "height width channels"]

_TIFF_WHITE_IS_ZERO, _TIFF_PALETTE, _TIFF_CMYK, _TIFF_YCBCR = 0, 3, 5, 6  # its tag "photometric"
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ORIENTATION = 0x0112
_CHANNELS = {"1": 1, "L": 1, "LA": 1, "La": 1, "I": 1, "I;16": 1, "I;16B": 1, "I;16L": 1, "I;16N": 1}
_CHANNELS |= dict.fromkeys(("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"), 3)


@dataclass(frozen=True)
class Kind:
    """What an image is, short of its pixels."""

    height: int
    width: int
    channels: int
    bits: int  # 8 or 16


def decode(file: File) -> ImageArray:
    """The image in a file, or in the bytes of one, by the rules above.

    Raises:
        DataError: the reason alone, in plain words; the caller knows the file's name.
    """
    with _opened(file) as stream, _reasons():
        match _format_of(stream):
            case "tiff":
                image = _read_tiff(stream)
            case "npy":
                image = _read_npy(stream)
            case "png16":
                image = _read_png_16_bit_colour(stream)
            case "other":
                image = from_pillow(Image.open(stream))
    return image


def peek(file: File) -> Kind:
    """What `decode` would return; the pixels are read only where the format's header does not tell.

    Raises:
        DataError: as `decode`, but damage after the header is not noticed.
    """
    with _opened(file) as stream, _reasons():
        if _format_of(stream) == "other":
            image = Image.open(stream)
            if image.mode in _CHANNELS:
                turned = _orientation(image) >= 5
                height, width = (image.width, image.height) if turned else (image.height, image.width)
                return Kind(height, width, _CHANNELS[image.mode], 16 if image.mode.startswith("I") else 8)
        stream.seek(0)
        return kind_of(decode(stream))


def kind_of(image: ImageArray) -> Kind:
    """The kind of a decoded image."""
    height, width, channels = image.shape
    return Kind(height, width, channels, 8 * image.dtype.itemsize)


def from_pillow(image: Image.Image) -> ImageArray:
    """A Pillow image by the same rules, its pixels loaded if they were not.

    Raises:
        DataError: its mode is not one of those above.
    """
    with _reasons():
        match image.mode:
            case "L" | "RGB":
                array = np.asarray(image)
            case "1":
                array = np.asarray(image.convert("L"))
            case "LA" | "La":
                array = np.asarray(image.convert("LA"))[..., 0]
            case "P" | "PA" | "RGBA" | "RGBa" | "RGBX":
                array = np.asarray(image.convert("RGBA"))[..., :3]
            case "CMYK" | "YCbCr":
                array = np.asarray(image.convert("RGB"))
            case "I" | "I;16" | "I;16B" | "I;16L" | "I;16N":
                array = np.asarray(image)
                if array.size and not 0 <= array.min() <= array.max() <= 65535:
                    raise DataError("holds 32-bit values; 8 and 16 bit are read")
                array = array.astype(np.uint16)
            case mode:
                raise DataError(f"Pillow's mode {mode} is not read; save it as grey or RGB, 8 or 16 bit")
        return _as_image(_turned(array, _orientation(image)))


def fit(image: ImageArray, px: int) -> ImageArray:
    """Squash to a square of `px` x `px`, each channel by itself; an image of that size is returned as it is.

    Antialiased with weights that are never negative (a Hamming window where both sides shrink, a triangle
    otherwise), so that no value leaves the image's own range. Exact to rounding for 8 and 16 bit.
    """
    if image.shape[:2] == (px, px):
        return image
    shrinks = min(image.shape[:2]) >= px
    resample = Image.Resampling.HAMMING if shrinks else Image.Resampling.BILINEAR
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).resize((px, px), resample))  # one call for three channels
    fitted = np.empty((px, px, image.shape[2]), dtype=image.dtype)
    for channel in range(image.shape[2]):
        plane = image[..., channel]
        if image.dtype == np.uint8:
            fitted[..., channel] = Image.fromarray(plane).resize((px, px), resample)
        else:
            values = np.asarray(Image.fromarray(plane.astype(np.float32)).resize((px, px), resample))
            fitted[..., channel] = np.rint(values).clip(0, 65535)
    return fitted


def select_channels(image: ImageArray, channels: Literal["grey", "rgb"] | list[int] | None) -> ImageArray:
    """The channels that `data.channels` asks for.

    None: as they are. "rgb": grey three times, RGB as it is. "grey": RGB to 0.299 R + 0.587 G + 0.114 B,
    grey as it is. A list: the channels of these numbers, from 0, in this order.

    Raises:
        DataError: the image does not have them.
    """
    count = image.shape[2]
    if channels is None or (channels == "rgb" and count == 3) or (channels == "grey" and count == 1):
        return image
    if isinstance(channels, list):
        if not all(0 <= channel < count for channel in channels):
            raise DataError(f"has {count} channels, and data.channels={channels} counts from 0")
        return np.ascontiguousarray(image[..., channels])
    if channels == "rgb" and count == 1:
        return np.repeat(image, 3, axis=2)
    if channels == "grey" and count == 3:
        grey: ImageArray = np.rint(image @ np.array([0.299, 0.587, 0.114])).astype(image.dtype)
        return grey[..., None]
    raise DataError(f"has {count} channels; data.channels={channels} takes images of 1 or 3")


# ---- The formats


def _format_of(stream: BinaryIO) -> Literal["tiff", "npy", "png16", "other"]:
    head = stream.read(26)
    stream.seek(0)
    if not head:
        raise DataError("the file is empty")
    if head[:4] in _TIFF_MAGIC:
        return "tiff"
    if head[:6] == b"\x93NUMPY":
        return "npy"
    # Byte 24 of a PNG is the bit depth, byte 25 is 0 for grey without alpha. Pillow cuts others to 8 bit.
    if head[:8] == b"\x89PNG\r\n\x1a\n" and head[24:25] == b"\x10" and head[25:26] != b"\0":
        return "png16"
    return "other"


def _read_npy(stream: BinaryIO) -> ImageArray:
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


def _read_png_16_bit_colour(stream: BinaryIO) -> ImageArray:
    import torch  # some hundred MB: loaded only for this rare kind of file
    from torchvision.io import decode_png

    with Image.open(stream) as header:
        _check(header.height, header.width, np.dtype(np.uint16))
        has_alpha = header.mode in ("LA", "RGBA")
        orientation = _orientation(header)
    stream.seek(0)
    planes = decode_png(torch.frombuffer(bytearray(stream.read()), dtype=torch.uint8)).numpy()
    colours = planes[: len(planes) - 1] if has_alpha else planes
    return _as_image(_turned(np.moveaxis(colours, 0, 2), orientation))


def _read_tiff(stream: BinaryIO) -> ImageArray:
    from tifffile import TiffFile  # 75 ms

    with TiffFile(stream) as tiff:
        series, page = tiff.series[0], tiff.series[0].keyframe
        if any(not other.keyframe.is_reduced for other in tiff.series[1:]):
            raise DataError("has pages of different sizes or kinds; save each as a file of its own")
        _check(page.imagelength, page.imagewidth, page.dtype)
        if page.photometric in (_TIFF_PALETTE, _TIFF_CMYK, _TIFF_YCBCR) and series.ndim == page.ndim:
            return from_pillow(Image.open(stream))
        # Axes of length 1 are left out; of what is left besides Y and X, the one other axis is the channels.
        kept = [axis for axis, size in enumerate(series.shape) if size > 1 or series.axes[axis] in "YX"]
        channel_axes = [at for at, axis in enumerate(kept) if series.axes[axis] not in "YX"]
        if len(kept) - len(channel_axes) != 2 or len(channel_axes) > 1:
            raise DataError(
                f"has {_describe(series.axes, series.shape)}; only one of them can be the channels"
            )
        try:
            values = series.asarray(maxworkers=1)
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            return _read_tiff_by_pillow(stream)
        values = values.reshape([series.shape[axis] for axis in kept])
        if channel_axes:
            values = np.moveaxis(values, channel_axes[0], 2)
        if page.photometric == _TIFF_WHITE_IS_ZERO:
            values = ~values
        if series.ndim == page.ndim and (alphas := sum(extra in (1, 2) for extra in page.extrasamples)):
            values = values[..., : values.shape[2] - alphas]
        return _as_image(_turned(values, int(page.tags.valueof(_ORIENTATION, default=1))))


def _read_tiff_by_pillow(stream: BinaryIO) -> ImageArray:
    """Compressions that tifffile leaves to an optional package, LZW above all; the pages are the channels."""
    stream.seek(0)
    image = Image.open(stream)
    if image.mode not in _CHANNELS:
        raise DataError(
            "is compressed in a way that is not read; save it without compression, or pip install imagecodecs"
        )
    pages = [from_pillow(page.copy()) for page in ImageSequence.Iterator(image)]
    return _turned(np.concatenate(pages, axis=2), _orientation(image))


def _describe(axes: str, shape: tuple[int, ...]) -> str:
    return "the axes " + " x ".join(f"{axis} {size}" for axis, size in zip(axes, shape, strict=True))


# ---- What the formats share


def _check(height: int, width: int, dtype: np.dtype[Any] | None) -> None:
    """Refuse by the header, before memory is asked for."""
    if height * width == 0:
        raise DataError(f"has no pixels ({height} x {width})")
    if height * width > MAX_PIXELS:
        raise DataError(f"has {height} x {width} pixels, more than the {MAX_PIXELS:,} that are read")
    if dtype is None or dtype.kind not in "bu" or dtype.itemsize > 2:
        raise DataError(f"holds {dtype or 'unknown'} values; 8 and 16 bit without sign are read")


def _as_image(values: Shaped[np.ndarray, "height width *channels"]) -> ImageArray:
    """uint8 or uint16 in this machine's byte order, contiguous, with a channel axis."""
    if values.dtype == np.bool_:
        values = values * np.uint8(255)
    if values.ndim == 2:
        values = values[..., None]
    if 0 in values.shape:
        raise DataError(f"has no pixels {values.shape}")
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))


def _turned(
    image: Shaped[np.ndarray, "height width *channels"], orientation: int
) -> Shaped[np.ndarray, "..."]:
    """Upright, from EXIF's orientation 1..8 (other values mean nothing)."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 (upright) where there is none or it cannot be read."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF raises nearly anything; the pixels are unharmed
        return 1
    return orientation if orientation in range(1, 9) else 1


@contextmanager
def _opened(file: File) -> Iterator[BinaryIO]:
    if isinstance(file, Path):
        try:
            stream = file.open("rb")
        except FileNotFoundError:
            raise DataError("no such file") from None
        except OSError as error:
            raise DataError(f"cannot be opened ({error.strerror})") from None
        with stream:
            yield stream
    else:
        yield BytesIO(file) if isinstance(file, bytes | bytearray | memoryview) else file


@contextmanager
def _reasons() -> Iterator[None]:
    """Turn whatever a format's reader raises into one plain reason, and keep its warnings quiet."""
    try:
        with _quiet:
            yield
    except DataError:
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
    """No warnings from Pillow and tifffile while any thread is inside.

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
                warnings.filterwarnings("ignore", module=r"(PIL|tifffile)\.")
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._catch.__exit__(None, None, None)


_quiet = _Quiet()
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # its complaints else go to stderr
