"""Check that the values of an image have the bit depth and the range that an encoder was trained on.

Values below low and above high are clipped to black and white. A 16-bit or floating-point image is outside
the range (8-bit images have only one range) in three cases:
    1. a value is below the smallest or above the largest of the training by more than MARGIN x (high - low)
    2. more than MOST_CLIPPED of the values of a channel are above high, or below low
    3. all channels of a floating-point image hold fractions close to 0, as if it had been scaled to 0 .. 1 or
       normalised: |v| is at most NEAR_ZERO and at most (high - low) / WIDER
Case 1 is never true for a training image, and case 2 for at most 1 image in 250 per channel, because 0.1 % of
the values of a channel are beyond each end. Case 3 is true for a training image only if it is black.
"""

import numpy as np
from jaxtyping import Float32

from byol.base.errors import DataError
from byol.data.decode.formats import Bits, ImageArray, Missing
from byol.method.views import Pixels

MARGIN = 0.25  # fraction of high - low
MOST_CLIPPED = 0.5  # fraction of the values of a channel of one image
NEAR_ZERO = 10.0  # normalised values are hardly ever larger
WIDER = 16.0

_IN_WORDS: dict[Bits, str] = {8: "8-bit values", 16: "16-bit values", 32: "floating-point values"}


def check_bits(found: Bits, trained: Bits) -> None:
    """Check the bit depth: 8-bit values, for example, would all be black for a 16-bit encoder.

    Raises:
        DataError: the bit depths differ; the message does not name the image.
    """
    if found != trained:
        raise DataError(
            f"holds {_IN_WORDS[found]}, but the encoder was trained on {_IN_WORDS[trained]}; give values as "
            "the training files hold them, because the encoder scales them itself"
        )


def count_clipped(square: ImageArray, pixels: Pixels, filled: Missing | None = None) -> tuple[int, int]:
    """Return how many values of an image are below low or above high, and how many values it has.

    `filled` values are not counted.
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
    """Describe the first channel that is outside the range of the training; None: no channel is.

    `filled` values are ignored.
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
    """Return whether the values of a channel are fractions close to 0, unlike those of the training."""
    limit = min(NEAR_ZERO, (high - low) / WIDER)
    is_varied = bool((values != values[0]).any())
    return is_varied and bool((np.abs(values) <= limit).all()) and bool((values != np.rint(values)).any())
