"""Range, mean and standard deviation of each channel of a set of images, from histograms of its values.

The histograms of 8- and 16-bit values have one bin per value: their statistics are exact. float32 values are
counted by the first 18 of their 32 bits (sign, exponent and 9 bits of the mantissa), sorted by value, so
percentiles, mean and std are those of values rounded to 1 part in 512. The smallest and largest are exact.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64, Real, Shaped, UInt32
from PIL import Image

from byol.method.views import Pixels

CLIP = 0.001  # default of data.clip: fraction of values below black, and above white, if not 8 bit
_LEVELS = {1: 2**8, 2: 2**16, 4: 2**18}  # bins of a histogram, by bytes per value
_DROPPED = np.uint32(32 - 18)  # bits of a float32 that the histogram ignores
_SIGN = np.uint32(2**31)


def no_counts(channels: int, dtype: np.dtype[Any]) -> Int64[np.ndarray, "channels levels"]:
    """Return empty histograms for values of this type."""
    return np.zeros((channels, _LEVELS[dtype.itemsize]), dtype=np.int64)


def count_values(
    images: Real[np.ndarray, "n height width channels"],
    *,
    out: Int64[np.ndarray, "channels levels"] | None = None,
) -> Int64[np.ndarray, "channels levels"]:
    """Return the histogram of each channel: 256 or 65,536 values, or 262,144 bins of float32 values.

    `out` holds the counts so far, to which these are added.
    """
    out = no_counts(images.shape[3], images.dtype) if out is None else out
    if images.dtype == np.uint8:
        rows = images.reshape(-1, *images.shape[2:])  # one image below the other
        # Pillow counts 5 times as fast as np.bincount, which first converts each value to 8 bytes.
        flat = (
            [rows]
            if rows.shape[2] == 3
            else [np.ascontiguousarray(plane) for plane in np.moveaxis(rows, 2, 0)]
        )
        counts = [Image.fromarray(part).histogram() for part in flat]
        out += np.array(counts, dtype=np.int64).reshape(images.shape[3], 256)
        return out
    for total, plane in zip(out, _planes(images), strict=True):
        _add(plane, total)
    return out


def count_measured(
    images: Real[np.ndarray, "n height width channels"],
    filled: Bool[np.ndarray, "n height width channels"],
    *,
    out: Int64[np.ndarray, "channels levels"],
) -> None:
    """Add the counts of the values that are not `filled`."""
    for total, plane, is_filled in zip(out, _planes(images), _planes(filled), strict=True):
        _add(plane[~is_filled], total)


def _add(values: Real[np.ndarray, " n"], total: Int64[np.ndarray, " levels"]) -> None:
    if values.size == 0:
        return
    keys = _keys(values)
    first = int(keys.min())  # most bins are empty: they need not be added
    counted = np.bincount(keys - keys.dtype.type(first))
    total[first : first + len(counted)] += counted


def find_extremes(
    images: Real[np.ndarray, "n height width channels"],
    filled: Bool[np.ndarray, "n height width channels"] | None = None,
) -> Float[np.ndarray, "2 channels"]:
    """Return the smallest and largest value of each channel without `filled` values; infinite if none."""
    planes = _planes(images)
    where = True if filled is None else ~_planes(filled)
    smallest = planes.min(axis=1, where=where, initial=np.inf)
    return np.stack([smallest, planes.max(axis=1, where=where, initial=-np.inf)]).astype(np.float64)


def _planes(images: Shaped[np.ndarray, "n height width channels"]) -> Shaped[np.ndarray, "channels values"]:
    """Return a copy in which the values of each channel are contiguous, which makes counting faster."""
    return np.ascontiguousarray(images.reshape(-1, images.shape[3]).T)


def summarise(
    counts: Int64[np.ndarray, "channels levels"],
    extremes: Float[np.ndarray, "2 channels"] | None = None,
    *,
    clip: float = CLIP,
) -> Pixels:
    """Return the statistics of the counted values.

    8 bit: low and high are 0 and 255. Otherwise they are the quantiles `clip` and 1 - `clip` of the channel,
    because cameras use only part of the 16 bits, and a few outliers should not define white. A channel with
    only one value has std 1. `extremes` are needed for float32 only; integer counts contain them.
    """
    num_levels = counts.shape[1]
    if extremes is None:
        assert num_levels < _LEVELS[4]
        used = [np.flatnonzero(channel) for channel in counts]
        extremes = np.array([[levels[0] for levels in used], [levels[-1] for levels in used]], dtype=float)
    channels = [
        _summarise(channel, *ends, clip=clip)
        for channel, ends in zip(counts, extremes.T.tolist(), strict=True)
    ]
    low, high, mean, std = zip(*channels, strict=True)
    return Pixels(low, high, mean, std, *(tuple(row) for row in extremes.tolist()))


def find_clipped(counts: Int64[np.ndarray, "channels levels"], pixels: Pixels) -> float:
    """Return the fraction of all values that are below low or above high of their channel."""
    clipped = 0
    for channel, low, high in zip(counts, pixels.low, pixels.high, strict=True):
        levels = np.flatnonzero(channel)
        first, last = _values(levels) if len(channel) == _LEVELS[4] else (levels, levels)
        clipped += int(channel[levels[(last < low) | (first > high)]].sum())
    return clipped / max(1, int(counts.sum()))


def _summarise(
    counts: Int64[np.ndarray, " levels"], smallest: float, largest: float, *, clip: float
) -> tuple[float, float, float, float]:
    """Return low, high, mean and std of one channel."""
    num_levels, levels = len(counts), np.flatnonzero(counts)
    counts = counts[levels]
    if num_levels == _LEVELS[4]:
        first, last = (values.clip(smallest, largest) for values in _values(levels))
    else:
        first = last = levels.astype(np.float64)
    low, high = (0.0, 255.0) if num_levels == _LEVELS[1] else _range(counts, first, last, clip)
    x = (((first + last) / 2 - low) / (high - low)).clip(0.0, 1.0)
    mean = float(counts @ x / counts.sum())
    std = float(np.sqrt(counts @ (x - mean) ** 2 / counts.sum()))
    return low, high, mean, std if std > 0.0 else 1.0


def _range(
    counts: Int64[np.ndarray, " levels"],
    first: Float[np.ndarray, " levels"],
    last: Float[np.ndarray, " levels"],
    clip: float,
) -> tuple[float, float]:
    shares = np.cumsum(counts) / counts.sum()  # cumulative; the last is exactly 1
    low, high = float(first[np.searchsorted(shares, clip)]), float(last[np.searchsorted(shares, 1.0 - clip)])
    return low, high if high > low else low + 1.0


# ---- float32 values in 262,144 bins


def _keys(values: Real[np.ndarray, " n"]) -> Real[np.ndarray, " n"]:
    """Return the bin numbers of float32 values, sorted like the values; integers unchanged.

    The bits of positive floats are sorted like the values, those of negative floats in the opposite order.
    """
    if values.dtype != np.float32:
        return values
    bits: UInt32[np.ndarray, " n"] = values.view(np.uint32)
    is_negative = (values.view(np.int32) >> np.int32(31)).view(np.uint32)  # all bits set, or none
    keys: UInt32[np.ndarray, " n"] = (bits ^ (is_negative | _SIGN)) >> _DROPPED
    return keys


def _values(keys: Int64[np.ndarray, " n"]) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Return the smallest and the largest value of each bin."""
    first = keys.astype(np.uint32) << _DROPPED
    both = first, first | np.uint32(2 ** int(_DROPPED) - 1)
    smallest, largest = (np.where(bits & _SIGN, bits ^ _SIGN, ~bits).view(np.float32) for bits in both)
    return smallest.astype(np.float64), largest.astype(np.float64)
