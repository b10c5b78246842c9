"""Range, mean and spread of each channel of a set of images, exact, from counts of its values."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt
from PIL import Image

_LOW, _HIGH = 0.001, 0.999  # the share of a 16-bit channel's values at or below its black, and its white


@dataclass(frozen=True)
class ChannelStatistics:
    """Per channel, of x = clip((v - low) / (high - low), 0, 1) for stored values v: the mean and std of x."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def count_values(images: UInt[np.ndarray, "n height width channels"]) -> Int64[np.ndarray, "channels levels"]:
    """How often each channel takes each of the 256 or 65,536 values."""
    if images.dtype == np.uint8:
        rows = images.reshape(-1, *images.shape[2:])  # one image below the other
        # Pillow counts 5 times as fast as np.bincount, which makes 8 bytes of each value first.
        flat = (
            [rows]
            if rows.shape[2] == 3
            else [np.ascontiguousarray(plane) for plane in np.moveaxis(rows, 2, 0)]
        )
        counts = [Image.fromarray(part).histogram() for part in flat]
        return np.array(counts, dtype=np.int64).reshape(images.shape[3], 256)
    planes = np.moveaxis(images, 3, 0)
    return np.stack([np.bincount(plane.ravel(), minlength=65536) for plane in planes])


def summarise(counts: Int64[np.ndarray, "channels levels"]) -> ChannelStatistics:
    """Statistics of the values that were counted; counts of several batches add up.

    8 bit: low and high are 0 and 255. 16 bit: the values at 0.1 % and 99.9 % of the channel, since cameras
    use a part of the 16 bits and a few stray pixels are not the white. A channel of one value has std 1.
    """
    ranges = [_range(channel) for channel in counts]
    moments = [_moments(channel, *limits) for channel, limits in zip(counts, ranges, strict=True)]
    low, high = zip(*ranges, strict=True)
    mean, std = zip(*moments, strict=True)
    return ChannelStatistics(low, high, mean, std)


def _range(counts: Int64[np.ndarray, " levels"]) -> tuple[float, float]:
    if len(counts) == 256:
        return 0.0, 255.0
    shares = np.cumsum(counts) / counts.sum()
    low, high = (int(np.searchsorted(shares, share)) for share in (_LOW, _HIGH))
    return float(low), float(max(high, low + 1))


def _moments(counts: Int64[np.ndarray, " levels"], low: float, high: float) -> tuple[float, float]:
    values = ((np.arange(len(counts)) - low) / (high - low)).clip(0.0, 1.0)
    mean = float(counts @ values / counts.sum())
    std = float(np.sqrt(counts @ (values - mean) ** 2 / counts.sum()))
    return mean, std if std > 0.0 else 1.0
