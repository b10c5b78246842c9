"""Shared by all readers: types of arrays and files, limits, conversion of stored values to an image."""

from dataclasses import dataclass, replace
from io import IOBase
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Float32, Shaped, UInt

from byol.base.errors import DataError

if TYPE_CHECKING:
    Stream = IO[bytes]  # the type that libraries expect
else:
    Stream = IOBase  # the base class of BytesIO and open files

MAX_PIXELS = 178_956_970  # height x width; a larger image is probably a mistake or an attack (as in Pillow)

MAX_MEMBER_BYTES = 2**30  # of a file in a tar file, which byol reads into memory

# uint8, uint16 or float32; the leading _ makes jaxtyping accept any size
ImageArray = UInt[np.ndarray, "_height _width _channels"] | Float32[np.ndarray, "_height _width _channels"]
RawArray = Shaped[np.ndarray, "_height _width *_channels"]
Missing = Bool[np.ndarray, "_height _width _channels_or_1"]
Channels = Literal["grey", "rgb"] | list[int] | None  # as data.channels
Geometry = Literal["square", "scale"]  # as data.geometry
Layout = Literal["auto", "hwc", "chw"]  # as data.layout
Alpha = Literal["none", "straight", "premultiplied", "unspecified"]
Bits = Literal[8, 16, 32]  # of a stored value; 32: floating point

_EXACT = 2**24  # float32 represents integers up to this exactly
_INT32_MIN = -(2**31)  # a common marker of missing values, which float32 represents exactly
UNKNOWN = "is not an image of a known format; save it as TIFF, PNG or .npy"
DAMAGED = (
    "begins like {}, but is damaged or of a variant that byol does not read; copy or download it again, or "
    "save it as TIFF, PNG or .npy"
)
NOT_EXACT = f"holds integers beyond {_EXACT:,}, which float32 cannot represent; save it as float or 16 bit"


@dataclass(frozen=True)
class LaidFile:
    """The path of an image, with the channel axis of arrays. Other formats ignore the axis."""

    path: str
    layout: Layout  # of .npy and .npz
    pages: Layout | None = None  # of arrays that were written as TIFF pages; None: equal to `layout`


@dataclass(frozen=True)
class Member(LaidFile):
    """A file inside a tar file, whose path is `path`."""

    name: str = ""  # in the tar file
    start: int = 0  # of its bytes in the tar file
    size: int = 0  # bytes

    def __str__(self) -> str:
        return f"{self.path}/{self.name}"

    def read(self, most: int | None = None) -> bytes:
        """Return its bytes, or the first `most` of them.

        Raises:
            DataError: the tar file has become shorter, or this file is very large.
            OSError: the disk fails, or the tar file is gone.
        """
        wanted = self.size if most is None else min(most, self.size)
        if wanted > MAX_MEMBER_BYTES:
            raise DataError(
                f"has {wanted / 1e9:.1f} GB, which byol reads only outside of a tar file; unpack it"
            )
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.start)
            content = bytearray()
            while len(content) < wanted and (part := file.read(wanted - len(content))):
                content += part
        if len(content) < wanted:
            raise DataError("is cut short, because the tar file has become shorter")
        return bytes(content)


File = str | Path | LaidFile | bytes | bytearray | memoryview | Stream  # the first three are paths


def path_of(item: str | LaidFile | ImageArray) -> str | None:
    """Return the path of an image; None: it is in an array or in a tar file."""
    if isinstance(item, Member):
        return None
    if isinstance(item, LaidFile):
        return item.path
    return item if isinstance(item, str) else None


@dataclass(frozen=True)
class Kind:
    """Size, channels and depth of an image."""

    longest_side: int  # px
    channels: int
    bits: Bits


@dataclass(frozen=True, eq=False)
class Decoded:
    """The stored samples of a file, and which of them are not measured."""

    pixels: ImageArray
    missing: Missing | None = None  # where nothing was measured: masked, padding, the declared fill value
    alpha: Alpha = "none"  # straight: colours are not multiplied by it; unspecified: an extra sample
    alpha_channel: int | None = None  # number of the alpha channel, if there is one

    def turned(self, orientation: int) -> "Decoded":
        """Return the image turned upright, for EXIF orientation 1..8 (other values are ignored)."""
        if orientation == 1:
            return self
        missing = self.missing if self.missing is None else turned(self.missing, orientation)
        return replace(self, pixels=np.ascontiguousarray(turned(self.pixels, orientation)), missing=missing)


def bits_of_dtype(dtype: np.dtype[Any]) -> Bits:
    """Return the bits per value of an array of images."""
    return 8 if dtype == np.uint8 else 16 if dtype == np.uint16 else 32


def check_header(height: int, width: int, dtype: np.dtype[Any] | None) -> None:
    """Check size and type from the header, before memory is allocated."""
    if height * width == 0:
        raise DataError(f"has no pixels ({height} x {width})")
    if height * width > MAX_PIXELS:
        raise DataError(f"has {height} x {width} pixels, more than the {MAX_PIXELS:,} that byol reads")
    if dtype is None or dtype.kind not in "buif":
        raise DataError(f"holds {dtype or 'unknown'} values; byol reads integers and floating-point numbers")


def as_image(values: RawArray, missing: Missing | None = None) -> ImageArray:
    """Convert to a contiguous array with a channel axis: uint8, uint16 or float32 in native byte order.

    All types except uint8, uint16 and bool become float32, independent of the values, so that a set has one
    type. Numbers beyond float32 become infinite, and `missing.find_missing` counts them as missing.

    Raises:
        DataError: there are no values, or integers (outside `missing`) that float32 cannot represent exactly.
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
    """Turn an image upright, for EXIF orientation 1..8 (other values are ignored)."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image
