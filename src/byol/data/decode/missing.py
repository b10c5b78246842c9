"""Values that are no measurement: found in every image, and filled before anything looks at the image.

What counts as missing, channel by channel unless said otherwise:

    NaN, infinite, beyond float32      always
    declared by the file               GDAL's nodata, a GeoTIFF's internal mask, DICOM's PixelPaddingValue
    a marker that nobody declared      in 16-bit and floating-point images: one of MARKERS, or a number beyond
                                       1e30, that is the smallest or largest value of the channel, at least
                                       twice there, and further from all others than these are apart, or
                                       negative where no other value is

A missing value is filled with the median of the channel's other values in the same image, so that neither the
range of the set nor its statistics know of it. An image with a channel of missing values alone is refused.
"""

import numpy as np
from jaxtyping import Bool, Real

from byol.base.errors import DataError
from byol.data.decode.formats import Decoded, ImageArray, Missing

MARKERS = (-99999.0, -32768.0, -32767.0, -9999.0, -999.0, 65535.0, 99999.0, float(-(2**31)))
_HUGE = 1e30  # float markers: -3.4e38 of GDAL and ESRI, 9.97e36 of netCDF, 1e20 is a possible measurement
_LARGEST_BELOW = max(marker for marker in MARKERS if marker < 0)
_LEAST_ABOVE = min(marker for marker in MARKERS if marker > 0)
_FEWEST = 2  # times that a marker is there
_ALL_MISSING = (
    "has no measured value in channel {} (all are NaN, fill values, padding or masked); leave it out"
)


def find_missing(decoded: Decoded) -> Bool[np.ndarray, "height width channels"] | None:
    """Where the image has no measured value, by the rules above; None: nowhere."""
    image = decoded.pixels
    is_deep = image.dtype != np.uint8
    if decoded.missing is None and not (is_deep and _may_hold_some(image)):
        return None
    missing = np.zeros(image.shape, dtype=bool)
    if decoded.missing is not None:
        missing |= decoded.missing
    if image.dtype == np.float32:
        missing |= ~np.isfinite(image)
    if is_deep:
        for channel in range(image.shape[2]):
            _add_markers(image[..., channel], missing[..., channel])
    return missing if missing.any() else None


def _may_hold_some(image: ImageArray) -> bool:
    """By the ends of the values, which are NaN if one value is; of all channels first, which is faster."""
    if image.max() < _LEAST_ABOVE and (image.dtype == np.uint16 or image.min() > _LARGEST_BELOW):
        return False
    planes = [image[..., channel] for channel in range(image.shape[2])]
    ends = [float(end) for plane in planes for end in (plane.min(), plane.max())]
    return any(not abs(end) < _HUGE or end in MARKERS for end in ends)


def declared(values: Real[np.ndarray, "height width channels"], nodata: float) -> Missing | None:
    """Where the value that the file declares stands; None: the type of the values does not hold it.

    0 in any image, and any value in 8-bit ones, is also a colour: of a pixel all channels must have it.
    """
    if np.isnan(nodata):
        return np.isnan(values) if values.dtype.kind == "f" else None
    if values.dtype.kind == "b":
        return None
    if values.dtype.kind != "f":
        info = np.iinfo(values.dtype)
        if not info.min <= nodata <= info.max or nodata != int(nodata):
            return None
    with np.errstate(over="ignore"):
        found: Missing = values == np.asarray(nodata).astype(values.dtype)
    if nodata == 0 or values.dtype == np.uint8:
        found = np.asarray(found.all(axis=2, keepdims=True))
    return found


def fill(image: ImageArray, missing: Bool[np.ndarray, "height width channels"]) -> ImageArray:
    """A copy with the median of the measured values, for each channel, where one is missing.

    Raises:
        DataError: a channel has none.
    """
    filled = image.copy()
    for channel in range(image.shape[2]):
        where = missing[..., channel]
        if not where.any():
            continue
        measured = image[..., channel][~where]
        if measured.size == 0:
            raise DataError(_ALL_MISSING.format(channel))
        middle = measured.size // 2
        filled[..., channel][where] = np.partition(measured, middle)[middle]
    return filled


def _add_markers(plane: Real[np.ndarray, "height width"], missing: Bool[np.ndarray, "height width"]) -> None:
    """Mark the smallest and the largest value in `missing`, where they are markers by the rule above."""
    measured = plane[~missing] if missing.any() else plane
    for _ in range(2):  # one at either end
        if measured.size == 0:
            return
        for extreme in (float(measured.min()), float(measured.max())):
            if extreme not in MARKERS and abs(extreme) < _HUGE:
                continue
            is_marker = measured == extreme
            others = measured[~is_marker]
            if others.size == 0:
                if extreme < 0 or extreme >= _HUGE:  # 65535 alone is an image that is white
                    missing |= plane == extreme
                return
            gap = min(abs(float(others.min()) - extreme), abs(float(others.max()) - extreme))
            is_far = gap > float(others.max()) - float(others.min()) or extreme < 0 <= float(others.min())
            if is_marker.sum() >= _FEWEST and is_far:
                missing |= plane == extreme
                measured = others
                break
        else:
            return
