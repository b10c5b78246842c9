"""Whether the values of an image are of the kind, and in the range, that an encoder was trained on.

Values beyond low and high are clipped to black and white. Three things are called outside, for 16-bit and
floating-point images (8-bit ones have one range):

    a value beyond the smallest or largest of the training by more than MARGIN of (high - low)
    more than MOST_CLIPPED of a channel's values above high, or below low
    fractions close to 0 in all channels of a floating-point image, as if somebody had scaled it to 0 .. 1 or
    normalised it: |v| is at most NEAR_ZERO and 1 / WIDER of (high - low)

Of the training images themselves none is the first, and for each channel at most 1 in 250 is the second,
since 0.1 % of a channel's values lie beyond either end. The third they can be only where they are black.
"""

import numpy as np
from jaxtyping import Float32

from byol.base.errors import DataError
from byol.data.decode.formats import Bits, ImageArray, Missing
from byol.method.views import Pixels

MARGIN = 0.25  # of high - low
MOST_CLIPPED = 0.5  # of the values of a channel of one image
NEAR_ZERO = 10.0  # normalised values are hardly ever larger
WIDER = 16.0

_IN_WORDS: dict[Bits, str] = {8: "8-bit values", 16: "16-bit values", 32: "floating-point values"}


def check_bits(found: Bits, trained: Bits) -> None:
    """Values of another depth have another scale: 8-bit ones would all be black to a 16-bit encoder.

    Raises:
        DataError: the depths differ; the caller knows the name.
    """
    if found != trained:
        raise DataError(
            f"holds {_IN_WORDS[found]}, but the encoder was trained on {_IN_WORDS[trained]}; give values as "
            "the training files hold them, because the encoder scales them itself"
        )


def count_clipped(square: ImageArray, pixels: Pixels, filled: Missing | None = None) -> tuple[int, int]:
    """How many values of an image lie beyond low or high of their channel, and how many values it has.

    Values that are `filled` do not count.
    """
    if square.dtype == np.uint8:
        return 0, square.size
    low, high = (np.array(ends, np.float32) for ends in (pixels.low, pixels.high))
    clipped = (square < low) | (square > high)
    if filled is None:
        return int(clipped.sum()), square.size
    measured = ~np.broadcast_to(filled, square.shape)
    return int((clipped & measured).sum()), int(measured.sum())


def describe_outside(square: ImageArray, pixels: Pixels, filled: Missing | None = None) -> str | None:
    """What lies outside of the range of the training, for the first such channel; None: nothing does.

    Values that are `filled` do not count.
    """
    if square.dtype == np.uint8:
        return None
    planes = list(square.reshape(-1, square.shape[2]).T)
    if filled is not None:
        gaps = np.broadcast_to(filled, square.shape).reshape(-1, square.shape[2]).T
        planes = [plane[~is_filled] for plane, is_filled in zip(planes, gaps, strict=True)]
    smallest, largest = ([float(end(plane)) for plane in planes] for end in (np.min, np.max))
    is_scaled = square.dtype == np.float32 and all(map(_looks_scaled, planes, pixels.low, pixels.high))
    for channel, (low, high) in enumerate(zip(pixels.low, pixels.high, strict=True)):
        values = planes[channel]
        reach = MARGIN * (high - low)
        known = (pixels.smallest[channel], pixels.largest[channel]) if pixels.smallest else (low, high)
        if pixels.smallest and (smallest[channel] < known[0] - reach or largest[channel] > known[1] + reach):
            what = "the values"
        elif max((values < low).mean(), (values > high).mean()) > MOST_CLIPPED:
            what = "most values are clipped; they"
        elif is_scaled:
            what = "the values seem to be scaled already; they"
        else:
            continue
        return (
            f"channel {channel}: {what} lie in {smallest[channel]:g} .. {largest[channel]:g}, but those of "
            f"the training in {known[0]:g} .. {known[1]:g}; check how the image was recorded and scaled"
        )
    return None


def _looks_scaled(values: Float32[np.ndarray, " value"], low: float, high: float) -> bool:
    """Whether a channel's values are fractions close to 0, unlike those of the training."""
    limit = min(NEAR_ZERO, (high - low) / WIDER)
    is_varied = bool((values != values[0]).any())
    return is_varied and bool((np.abs(values) <= limit).all()) and bool((values != np.rint(values)).any())
