"""Convert an image array to a square of a given side, squashed or on a canvas, with the chosen channels."""

import numpy as np
from jaxtyping import Real
from PIL import Image

from byol.base.errors import DataError
from byol.data.decode.formats import Channels, Geometry, ImageArray, Missing


def fit(image: Real[np.ndarray, "height width channels"], px: int) -> Real[np.ndarray, "{px} {px} channels"]:
    """Squash each channel to `px` x `px`. An image of that size is returned as it is.

    The filter is antialiased and never negative (a Hamming window if both sides shrink, otherwise a
    triangle), so no value leaves the range of the image. The result is exact up to rounding for 8 and 16 bit.
    """
    return _resize(image, px, px)


def place_on_canvas(
    image: Real[np.ndarray, "height width channels"], px: int
) -> Real[np.ndarray, "{px} {px} channels"]:
    """Place an image in the middle of a `px` x `px` canvas without resizing; shrink it if it is larger.

    Shrinking keeps the aspect ratio. The rest of a channel is filled with the median of the image's border.
    """
    height, width, channels = image.shape
    longest = max(height, width)
    if longest > px:
        height, width = (max(1, round(side * px / longest)) for side in (height, width))
        image = _resize(image, height, width)
    border = np.concatenate([image[[0, -1]].reshape(-1, channels), image[:, [0, -1]].reshape(-1, channels)])
    fill = np.median(border, axis=0)
    canvas = np.empty((px, px, channels), dtype=image.dtype)
    canvas[:] = fill if image.dtype == np.float32 else np.rint(fill)
    top, left = (px - height) // 2, (px - width) // 2
    canvas[top : top + height, left : left + width] = image
    return canvas


def select_channels(image: ImageArray, channels: Channels) -> ImageArray:
    """Return the channels that `data.channels` selects.

    None: all channels. "rgb": RGB, or grey three times. "grey": grey, or 0.299 R + 0.587 G + 0.114 B. A list:
    the channels with these numbers, from 0, in this order.

    Raises:
        DataError: the image does not have these channels.
    """
    count = image.shape[2]
    if channels is None or (channels == "rgb" and count == 3) or (channels == "grey" and count == 1):
        return image
    if isinstance(channels, list):
        if not all(0 <= channel < count for channel in channels):
            raise DataError(f"has {count} channels, numbered from 0; data.channels={channels} does not fit")
        return np.ascontiguousarray(image[..., channels])
    if channels == "rgb" and count == 1:
        return np.repeat(image, 3, axis=2)
    if channels == "grey" and count == 3:
        grey = image @ np.array([0.299, 0.587, 0.114])
        grey = grey if image.dtype == np.float32 else np.rint(grey)
        return np.asarray(grey[..., None], dtype=image.dtype)
    raise DataError(f"has {count} channels; data.channels={channels} needs images with 1 or 3")


def select_missing(missing: Missing, channels: Channels) -> Missing:
    """Return where the channels that `data.channels` selects have no measured value."""
    if missing.shape[2] > 1 and isinstance(channels, list):
        return np.ascontiguousarray(missing[..., channels])
    if missing.shape[2] > 1 and channels == "grey":
        return np.asarray(missing.any(axis=2, keepdims=True))
    return missing


def fit_missing(missing: Missing, px: int, *, geometry: Geometry) -> Missing | None:
    """Return the pixels of the square that come from more missing than measured values; None: no pixel.

    A channel in which that is true for all pixels counts as measured, because some of its values were.
    """
    weights = missing.astype(np.uint8) * np.uint8(255)
    square = fit(weights, px) if geometry == "square" else place_on_canvas(weights, px)
    found = square > 127
    found &= ~found.all(axis=(0, 1))
    return found if found.any() else None


def resampling_of(shortest_side: float, px: int) -> Image.Resampling:
    """Return a filter with non-negative weights, by the shortest side before resizing."""
    return Image.Resampling.HAMMING if shortest_side >= px else Image.Resampling.BILINEAR


def _resize(image: ImageArray, height: int, width: int) -> ImageArray:
    if image.shape[:2] == (height, width):
        return image
    size, shrinks = (width, height), image.shape[0] >= height and image.shape[1] >= width
    resample = Image.Resampling.HAMMING if shrinks else Image.Resampling.BILINEAR
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).resize(size, resample))  # one call for three channels
    resized = np.empty((height, width, image.shape[2]), dtype=image.dtype)
    for channel in range(image.shape[2]):
        plane = image[..., channel]
        if image.dtype == np.uint8:
            resized[..., channel] = Image.fromarray(plane).resize(size, resample)
        else:
            values = np.asarray(Image.fromarray(plane.astype(np.float32)).resize(size, resample))
            values = values if image.dtype == np.float32 else np.rint(values)
            resized[..., channel] = values.clip(plane.min(), plane.max())
    return resized
