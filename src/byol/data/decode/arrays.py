"""Read images from `.npy` and `.npz` files and from arrays in memory; find their channel axis.

An array with two axes is (height, width). For three axes, `layout` "hwc" or "chw" sets the channel axis;
"auto" finds it from the shape, and refuses ambiguous shapes:

    hwc    the last axis is 1, 3 or 4 and the first is not; or it is shorter than both others, and these are
           equal or 2 times as long
    chw    the first axis is shorter than both others, and these are equal or 4 times as long

For a set, `sources.array_layout` considers all shapes together before any array is read.
"""

import io
import os
import zipfile
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped

from byol.base.errors import DataError
from byol.data.decode.formats import (
    Decoded,
    ImageArray,
    Layout,
    Member,
    RawArray,
    Stream,
    as_image,
    check_header,
)

COLOURS = (1, 3, 4)  # grey, RGB, RGBA
_CLEARLY_LAST, _CLEARLY_FIRST = 2, 4  # smallest ratio of rows and columns to channels
_NPY, _NPZ = b"\x93NUMPY", b"PK\3\4"  # first bytes of the files
_HEAD_BYTES = 256  # enough for the header of an array of numbers


def look_of(shape: tuple[int, ...]) -> Literal["hwc", "chw"] | None:
    """Return the layout that a shape with three axes suggests by the rule above; None: it is ambiguous."""
    first, middle, last = shape
    if last in COLOURS and first not in COLOURS:
        return "hwc"
    if last < min(first, middle) and (first == middle or _CLEARLY_LAST * last <= min(first, middle)):
        return "hwc"
    if first < min(middle, last) and (middle == last or _CLEARLY_FIRST * first <= min(middle, last)):
        return "chw"
    return None


def find_layout(shape: tuple[int, ...], layout: Layout = "auto") -> Layout:
    """Return the layout of an array with three axes: `layout`, or for "auto" by the rule above.

    Raises:
        DataError: the shape is ambiguous; the message names the setting to use.
    """
    if layout != "auto":
        return layout
    if (found := look_of(shape)) is not None:
        return found
    raise DataError(
        f"has the shape {shape}, whose channel axis is ambiguous; set data.layout=hwc "
        "(channels last) or data.layout=chw (channels first)"
    )


def find_shape(path: str | os.PathLike[str] | Member) -> tuple[int, ...] | None:
    """Read the shape of the one numeric array in an `.npy` or `.npz` file from its header.

    None: the file cannot be read, or holds something else.
    """
    try:
        with _open_shortly(path) as file:
            head = file.read(_HEAD_BYTES)
            if head.startswith(_NPY):
                first = 10 if head[6:7] == b"\x01" else 12  # after the length of the header
                return _shape_in(head[: first + int.from_bytes(head[8:first], "little")])
            if head.startswith(_NPZ):
                with zipfile.ZipFile(file) as archive:
                    names = [name for name in archive.namelist() if name.endswith(".npy")]
                    with archive.open(names[0]) as member:
                        shape, dtype = _read_header(member)
                        return shape if len(names) == 1 and dtype.kind in "buif" else None
    except Exception:  # NumPy and zipfile raise anything for a damaged header
        pass
    return None


def _open_shortly(path: str | os.PathLike[str] | Member) -> Stream:
    """Open a file to read its first bytes; of a file in a tar file, only the header of an .npy is read."""
    if not isinstance(path, Member):
        return open(path, "rb", buffering=0)
    head = path.read(_HEAD_BYTES)
    return io.BytesIO(head if head.startswith(_NPY) else path.read())


@lru_cache(maxsize=256)  # parsing takes as long as opening the file, and a set has few different headers
def _shape_in(head: bytes) -> tuple[int, ...] | None:
    shape, dtype = _read_header(io.BytesIO(head))
    return shape if dtype.kind in "buif" else None


def channels_last(values: Shaped[np.ndarray, "..."], layout: Layout) -> RawArray:
    """Move the channels of an array to the last axis. An array (height, width) is returned as it is.

    Raises:
        DataError: there are not two or three axes, or the layout is ambiguous.
    """
    if values.ndim not in (2, 3):
        raise DataError(
            f"has the shape {values.shape}, but byol reads (height, width), (height, width, channels) and "
            "(channels, height, width); save each image as a separate file"
        )
    if values.ndim == 3 and find_layout(values.shape, layout) == "chw":
        return np.moveaxis(values, 0, -1)
    return values


def as_given(values: Shaped[np.ndarray, "..."], layout: Layout) -> ImageArray:
    """Convert an array in memory to an image."""
    return as_image(channels_last(values, layout))


def read_npy(stream: Stream, *, layout: Layout) -> Decoded:
    """Read the image in an `.npy` file."""
    shape, dtype = _read_header(stream)
    _check(shape, dtype, layout)
    stream.seek(0)
    return Decoded(as_given(np.load(stream, allow_pickle=False), layout))


def read_npz(stream: Stream, *, layout: Layout) -> Decoded:
    """Read the only array of an `.npz` file."""
    with zipfile.ZipFile(stream) as file:
        names = [name for name in file.namelist() if name.endswith(".npy")]
        if len(names) != 1:
            found = ", ".join(name.removesuffix(".npy") for name in names[:5]) or "none"
            raise DataError(f"holds {len(names)} arrays ({found}); byol reads one: save the image as .npy")
        with file.open(names[0]) as member:
            _check(*_read_header(member), layout)
        with file.open(names[0]) as member:
            return Decoded(as_given(np.lib.format.read_array(member, allow_pickle=False), layout))


def _read_header(stream: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read_header = np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    return shape, dtype


def _check(shape: tuple[int, ...], dtype: np.dtype[Any], layout: Layout) -> None:
    """Check the header before memory is allocated."""
    if dtype.kind not in "buif":
        check_header(1, 1, dtype)
    if 0 in shape:
        raise DataError(f"has no pixels {shape}")
    if len(shape) == 3:
        height, width = sorted(shape)[1:]
        check_header(height, width, dtype)
    elif len(shape) == 2:
        check_header(shape[0], shape[1], dtype)
