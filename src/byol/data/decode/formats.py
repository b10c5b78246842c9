"""What all readers share: kinds of arrays and files, limits, the step from stored values to an image."""

from dataclasses import dataclass, replace
from io import IOBase
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Float32, Shaped, UInt

from byol.base.errors import DataError

if TYPE_CHECKING:
    Stream = IO[bytes]  # what the libraries ask for
else:
    Stream = IOBase  # what BytesIO and opened files are

MAX_PIXELS = 178_956_970  # height x width; more is taken for a mistake or an attack, as Pillow does

# uint8, uint16 or float32, of any size: not compared with each other
ImageArray = UInt[np.ndarray, "_height _width _channels"] | Float32[np.ndarray, "_height _width _channels"]
RawArray = Shaped[np.ndarray, "_height _width *_channels"]
Missing = Bool[np.ndarray, "_height _width _channels_or_1"]
Channels = Literal["grey", "rgb"] | list[int] | None  # as data.channels
Geometry = Literal["square", "scale"]  # as data.geometry
Layout = Literal["auto", "hwc", "chw"]  # as data.layout
Alpha = Literal["none", "straight", "premultiplied", "unspecified"]
Bits = Literal[8, 16, 32]  # of a stored value; 32: floating point

_EXACT = 2**24  # whole numbers up to this are exact as float32
_INT32_MIN = -(2**31)  # a common mark of missing values; as float32 it is exact
UNKNOWN = "is not an image of a known format; save it as TIFF, PNG or .npy"
DAMAGED = (
    "begins like {}, but is damaged or of a variant that byol does not read; copy or download it again, or "
    "save it as TIFF, PNG or .npy"
)
NOT_EXACT = f"holds integers beyond {_EXACT:,}, which float32 cannot represent; save it as float or 16 bit"


@dataclass(frozen=True)
class LaidFile:
    """The path of an image, and which axis is the channels if it is an array; other formats ignore it."""

    path: str
    layout: Layout  # of .npy and .npz
    pages: Layout | None = None  # of an array that was written as the pages of a TIFF; None: the same


File = str | Path | LaidFile | bytes | bytearray | memoryview | Stream  # the first three are paths


def path_of(item: str | LaidFile | ImageArray) -> str | None:
    """Of an image that is a file; None of one in an array."""
    if isinstance(item, LaidFile):
        return item.path
    return item if isinstance(item, str) else None


@dataclass(frozen=True)
class Kind:
    """What an image is, short of its pixels."""

    longest_side: int  # px
    channels: int
    bits: Bits


@dataclass(frozen=True, eq=False)
class Decoded:
    """What a file says of its pixels: every sample as it is stored, and which of them are not measured."""

    pixels: ImageArray
    missing: Missing | None = None  # where nothing was measured: masked, padding, the declared fill value
    alpha: Alpha = "none"  # straight: colours are not multiplied by it; unspecified: an extra sample
    alpha_channel: int | None = None  # its number, where there is one

    def turned(self, orientation: int) -> "Decoded":
        """Upright, from EXIF's orientation 1..8 (other values mean nothing)."""
        if orientation == 1:
            return self
        missing = self.missing if self.missing is None else turned(self.missing, orientation)
        return replace(self, pixels=np.ascontiguousarray(turned(self.pixels, orientation)), missing=missing)


def bits_of_dtype(dtype: np.dtype[Any]) -> Bits:
    """Of a value in an array of images."""
    return 8 if dtype == np.uint8 else 16 if dtype == np.uint16 else 32


def check_header(height: int, width: int, dtype: np.dtype[Any] | None) -> None:
    """Refuse by the header, before memory is asked for."""
    if height * width == 0:
        raise DataError(f"has no pixels ({height} x {width})")
    if height * width > MAX_PIXELS:
        raise DataError(f"has {height} x {width} pixels, more than the {MAX_PIXELS:,} that byol reads")
    if dtype is None or dtype.kind not in "buif":
        raise DataError(f"holds {dtype or 'unknown'} values; byol reads integers and floating-point numbers")


def as_image(values: RawArray, missing: Missing | None = None) -> ImageArray:
    """uint8, uint16 or float32 in this machine's byte order, contiguous, with a channel axis.

    What is neither 8 nor 16 bit without sign becomes float32, whatever its values are: the images of a set
    have one kind. A number beyond float32 becomes infinite: `missing.find_missing` counts it as not measured.

    Raises:
        DataError: there are no values, or whole ones that float32 cannot hold exactly, other than `missing`.
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
                _check_exact(values, missing)
            values = values.astype(np.float32)
        case "f", _:
            with np.errstate(over="ignore"):
                values = values.astype(np.float32, copy=False)
        case _:
            raise DataError(f"holds {values.dtype} values; byol reads integers and floating-point numbers")
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))


def _check_exact(values: RawArray, missing: Missing | None) -> None:
    beyond = (values > _EXACT) | (values < -_EXACT)
    beyond &= values != _INT32_MIN if values.dtype.kind == "i" else True
    if missing is not None:
        beyond &= ~missing
    if beyond.any():
        raise DataError(NOT_EXACT)


def turned(image: RawArray, orientation: int) -> RawArray:
    """Upright, from EXIF's orientation 1..8 (other values mean nothing)."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image
