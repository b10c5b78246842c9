"""An array of an image -> a square of a wanted side, squashed or on a canvas, with the wanted channels."""

import numpy as np
from jaxtyping import Real
from PIL import Image

from byol.base.errors import DataError
from byol.data.decode.formats import Channels, Geometry, ImageArray, Missing


def fit(image: Real[np.ndarray, "height width channels"], px: int) -> Real[np.ndarray, "{px} {px} channels"]:
    """Squash to a square of `px` x `px`, each channel by itself; an image of that size is returned as it is.

    Antialiased with weights that are never negative (a Hamming window where both sides shrink, a triangle
    otherwise), so that no value leaves the image's own range. Exact to rounding for 8 and 16 bit.
    """
    return _resize(image, px, px)


def place_on_canvas(
    image: Real[np.ndarray, "height width channels"], px: int
) -> Real[np.ndarray, "{px} {px} channels"]:
    """In the middle of a canvas of `px` x `px`, not resized; a larger one is shrunk to fit, aspect kept.

    The rest is filled with the median of the image's border, for each channel.
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
    """Where an image with the channels that `data.channels` asks for has no measured value."""
    if missing.shape[2] > 1 and isinstance(channels, list):
        return np.ascontiguousarray(missing[..., channels])
    if missing.shape[2] > 1 and channels == "grey":
        return np.asarray(missing.any(axis=2, keepdims=True))
    return missing


def fit_missing(missing: Missing, px: int, *, geometry: Geometry) -> Missing | None:
    """Which pixels of the square are made from more missing values than measured ones; None: no pixel.

    A channel in which all of them are counts as measured: something in it was.
    """
    weights = missing.astype(np.uint8) * np.uint8(255)
    square = fit(weights, px) if geometry == "square" else place_on_canvas(weights, px)
    found = square > 127
    found &= ~found.all(axis=(0, 1))
    return found if found.any() else None


def resampling_of(shortest_side: float, px: int) -> Image.Resampling:
    """Weights that are never negative, by the shortest side before."""
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
