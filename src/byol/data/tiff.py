"""TIFF, as tifffile with imagecodecs reads it: which page is the image, and what its samples are.

Overviews (subfile type 1, SubIFDs) are left out; a mask (subfile type 4) says where nothing was measured. Of
the other pages, equal ones are the channels; pages of several kinds are refused. So is what has no one
meaning as an image: CIELab, a camera's raw data, chroma at a lower resolution outside of JPEG.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from byol.data.codecs import read_pillow
from byol.data.formats import Alpha, Decoded, Layout, Missing, RawArray, Stream, as_image, check_header
from byol.data.missing import declared
from byol.errors import DataError

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _MASK, _CMYK, _YCBCR = range(7)  # of the tag "photometric"
_OLD_JPEG, _JPEGS = 6, (6, 7, 33007)  # of the tag "compression": they come as RGB
_PREMULTIPLIED, _STRAIGHT = 1, 2  # of the tag "ExtraSamples"
_ORIENTATION, _DNG_VERSION, _GDAL_NODATA, _REFERENCE = 274, 50706, 42113, 532
_FULL_RANGE = (0, 255, 128, 255, 128, 255)  # of the tag "ReferenceBlackWhite" for YCbCr
_NOT_ONE = "save each as a file of its own"
_AS_RGB = "save it as RGB"


def read_tiff(stream: Stream, *, layout: Layout) -> Decoded:
    """The image of a TIFF file.

    Raises:
        DataError: it has several images, axes that are not one image's, colours or a compression not read.
    """
    from tifffile import TiffFile  # 75 ms

    if stream.read(10)[8:] == b"CR":
        raise DataError("is a camera raw file; develop it and save it as TIFF")
    stream.seek(0)
    with TiffFile(stream) as tiff:
        own_axes = _find_own_axes(tiff)
        if own_axes is None:
            return _read(tiff, stream, layout)
    stream.seek(0)
    with TiffFile(stream, is_ome=False) as tiff:
        if len(own_axes) > 1:
            raise DataError(
                f"is one file of an OME-TIFF set, with pages along {' and '.join(own_axes)}; {_NOT_ONE}"
            )
        return _read(tiff, stream, layout)


def _find_own_axes(tiff: Any) -> str | None:
    """Of a file that shares its OME-XML with others: the axes along which its own pages differ; else None.

    tifffile opens the other files, or puts zeros in their place.
    """
    if not tiff.is_ome:
        return None
    try:
        root = ElementTree.fromstring(tiff.ome_metadata)
    except ElementTree.ParseError:
        return None
    if root.find("{*}BinaryOnly") is not None:
        return ""
    own = root.get("UUID")
    blocks = [block for block in root.iter() if block.tag.endswith("}TiffData")]
    owners = {block: owner.text for block in blocks for owner in block if owner.tag.endswith("}UUID")}
    if not owners or set(owners.values()) == {own}:
        return None
    if len(set(owners.values())) == 1:  # one file that was named otherwise
        pixels = next(element for element in root.iter() if element.tag.endswith("}Pixels"))
        samples = max((int(channel.get("SamplesPerPixel", 1)) for channel in pixels), default=1)
        sizes = {axis: int(pixels.get(f"Size{axis}", 1)) for axis in "CZT"}
        sizes["C"] //= samples
        return "".join(axis for axis, size in sizes.items() if size > 1)
    mine = [block for block in blocks if owners.get(block) == own]
    return "".join(axis for axis in "CZT" if len({block.get(f"First{axis}", "0") for block in mine}) > 1)


def _read(tiff: Any, stream: Stream, layout: Layout) -> Decoded:
    _check_pages(tiff)
    series, mask = _choose(tiff)
    page = series.keyframe
    check_header(page.imagelength, page.imagewidth, page.dtype)
    _check_colours(page)
    if page.compression == _OLD_JPEG and series.ndim == page.ndim:  # Pillow's libtiff alone reads all kinds
        stream.seek(0)
        return read_pillow(Image.open(stream, formats=("TIFF",)))
    _check_segments(tiff, series)
    values = _load(series, page)
    if not _is_channels_last(series, layout):
        axis = _find_channel_axis(series)
        values = values if axis is None else np.moveaxis(values, axis, -1)
        values = values.reshape(page.imagelength, page.imagewidth, -1)
    missing: Missing | None = _find_declared(page, values)
    if mask is not None:
        masked: Any = mask.asarray(maxworkers=1).reshape(*values.shape[:2], 1) == 0
        missing = masked if missing is None else masked | missing
    is_plain = series.ndim == page.ndim  # not a stack of pages
    samples = _Samples.of(page) if is_plain else _Samples(values.shape[2])
    if is_plain:
        values = _as_colours(values, page)
        samples = samples.after(values.shape[2])
        if missing is not None and missing.shape[2] not in (1, values.shape[2]):
            missing = np.asarray(missing.all(axis=2, keepdims=True))
    elif page.photometric == _WHITE_IS_ZERO:
        values = _inverted(values, page.bitspersample)
    decoded = Decoded(as_image(values, missing), missing, samples.alpha, samples.alpha_channel)
    return decoded.turned(int(page.tags.valueof(_ORIENTATION, default=1)))


# ---- Pages


def _check_pages(tiff: Any) -> None:
    """tifffile leaves out pages beyond the end of the file; the link after the last page must be 0."""
    tiff.filehandle.seek(tiff.pages.next_page_offset or 0)
    if tiff.filehandle.read(tiff.tiff.offsetsize) != bytes(tiff.tiff.offsetsize):
        raise DataError("is damaged or cut short (pages are missing)")


def _choose(tiff: Any) -> tuple[Any, Any | None]:
    """The pages that are the image, and those that are its mask."""
    series = [one for one in tiff.series if not one.keyframe.is_reduced]
    masks = [one for one in series if _is_mask(one.keyframe)]
    images = [one for one in series if not _is_mask(one.keyframe)]
    if not images and len(tiff.series) == 1 and not tiff.pages.first.subifds:
        return tiff.series[0], None  # all that there is, whatever it is called
    if not images or _DNG_VERSION in tiff.pages.first.tags:
        raise DataError(
            "has no full image among its pages (a camera raw file?); develop it and save it as TIFF"
        )
    if len(images) > 1:
        kinds = dict.fromkeys(f"{' x '.join(map(str, one.shape))} {one.dtype}" for one in images)
        raise DataError(f"has pages of different sizes or kinds ({', '.join(list(kinds)[:4])}); {_NOT_ONE}")
    chosen = images[0]
    _check_complete(chosen)
    sizes = [(one.keyframe.imagelength, one.keyframe.imagewidth) for one in masks]
    if sizes and (len(sizes) > 1 or sizes[0] != (chosen.keyframe.imagelength, chosen.keyframe.imagewidth)):
        raise DataError(
            "has a mask that is not of the image's size; save it without the mask, or with an alpha"
        )
    return chosen, masks[0] if masks else None


def _is_mask(page: Any) -> bool:
    return bool(page.is_mask or page.photometric == _MASK)


def _check_complete(series: Any) -> None:
    """All pages are there and of one kind: tifffile makes missing ones zero, and looks at a few of many."""
    if any(page is None for page in series.pages):
        raise DataError(
            "has fewer pages than its description (OME-XML) names; export it again, or save each image as a "
            "file of its own"
        )
    if series.kind != "uniform":
        return
    for page in series.pages:
        if page.aspage().hash != series.keyframe.hash:
            raise DataError(f"has pages of different sizes or kinds; {_NOT_ONE}")


def _check_segments(tiff: Any, series: Any) -> None:
    """Decoders make grey of the JPEG that is cut off by the end of the file."""
    size = tiff.filehandle.size
    for page in series.pages:
        if page is None or page.keyframe.compression == 1:
            continue
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
            if offset + count > size:
                raise DataError("is damaged or cut short (the image ends beyond the file)")


def _find_channel_axis(series: Any) -> int | None:
    """The one axis besides height and width, if there is one of more than one place."""
    axes = [at for at, axis in enumerate(series.axes) if axis not in "YX" and series.shape[at] > 1]
    if len(axes) > 1 or series.axes.find("Y") > series.axes.find("X"):
        words = " x ".join(f"{axis} {size}" for axis, size in zip(series.axes, series.shape, strict=True))
        raise DataError(
            f"has the axes {words}; only one besides height and width can be the channels; save each "
            "image as a file of its own"
        )
    return axes[0] if axes else None


def _is_channels_last(series: Any, layout: Layout) -> bool:
    """Whether an array of (height, width, channels) was written as if its rows were pages.

    tifffile's `imwrite` does that to arrays of more than 4 channels, if it is not told otherwise.

    Raises:
        DataError: it may be, by its shape, and `layout` does not say.
    """
    if series.kind != "shaped" or series.axes != "QYX" or series.ndim == series.keyframe.ndim:
        return False
    pages, height, width = series.shape
    if layout != "auto" or pages != height or width >= height:
        return layout == "hwc"
    raise DataError(
        f"has {pages} pages of {height} x {width}: an array whose channels were last? Set data.layout=hwc if "
        "it was, data.layout=chw if the pages are the channels"
    )


def _load(series: Any, page: Any) -> RawArray:
    try:
        values: RawArray = series.asarray(maxworkers=1)
    except Exception as error:
        name, text = getattr(page.compression, "name", str(page.compression)), str(error)
        if "imagecodecs" in text or "not supported" in text or "COMPRESSION" in text:
            raise DataError(
                f"is compressed in a way that is not read here ({name}); pip install -U imagecodecs, or save "
                "it with LZW, Deflate, or without compression"
            ) from None
        raise
    return values


# ---- Samples


@dataclass(frozen=True)
class _Samples:
    """How many samples a pixel has, and which of them is an alpha."""

    count: int
    alpha: Alpha = "none"
    alpha_channel: int | None = None

    @classmethod
    def of(cls, page: Any) -> "_Samples":
        count, extras = int(page.samplesperpixel), tuple(map(int, page.extrasamples))
        first = count - len(extras)
        for place, extra in enumerate(extras):
            # libvips calls the second of many measured channels an alpha.
            is_place = page.photometric != _BLACK_IS_ZERO or first + place == count - 1
            if extra in (_PREMULTIPLIED, _STRAIGHT) and is_place:
                kind: Alpha = "premultiplied" if extra == _PREMULTIPLIED else "straight"
                return cls(count, kind, first + place)
        if (page.photometric, count) in ((_RGB, 4), (_BLACK_IS_ZERO, 2)):
            return cls(count, "unspecified", count - 1)
        return cls(count)

    def after(self, count: int) -> "_Samples":
        """The same after colours became `count` - (extra samples) others."""
        if self.alpha_channel is None:
            return _Samples(count)
        return _Samples(count, self.alpha, self.alpha_channel + count - self.count)


def _check_colours(page: Any) -> None:
    """Refuse what is no picture of grey, RGB or measured channels."""
    photometric = int(page.photometric)
    name = getattr(page.photometric, "name", str(photometric))
    if photometric > _YCBCR:
        advice = (
            "develop it and save it as TIFF" if photometric in (32803, 34892) else "save it as grey or RGB"
        )
        raise DataError(f"holds values of the kind {name}, which are not read; {advice}")
    if photometric == _YCBCR and page.compression not in _JPEGS:
        reference = page.tags.valueof(_REFERENCE)
        found = None if reference is None else tuple(float(a) / float(b) for a, b in _pairs(reference))
        if (
            tuple(page.subsampling or (1, 1)) != (1, 1)
            or found not in (None, _FULL_RANGE)
            or page.bitspersample != 8
        ):
            raise DataError(f"holds YCbCr with chroma at a lower resolution or another range; {_AS_RGB}")


def _pairs(values: Any) -> Iterator[tuple[float, float]]:
    return zip(values[::2], values[1::2], strict=True)


def _as_colours(values: RawArray, page: Any) -> RawArray:
    """Grey with white high, or RGB; then the extra samples as they are."""
    first = values.shape[2] - len(page.extrasamples)
    colours, extras = values[..., :first], values[..., first:]
    match int(page.photometric):
        case 0:  # white is zero
            colours = _inverted(colours, page.bitspersample)
        case 3:
            colours = _by_palette(colours, page)
        case 5:
            colours = _from_cmyk(colours)
        case 6 if page.compression not in _JPEGS:
            image = Image.frombytes("YCbCr", (values.shape[1], values.shape[0]), colours.tobytes())
            colours = np.asarray(image.convert("RGB"))
        case _:
            return values
    return np.concatenate([colours, extras], axis=2) if extras.shape[2] else colours


def _inverted(values: RawArray, bits: int) -> RawArray:
    if values.dtype.kind == "f":
        return -values
    if values.dtype.kind == "u" and bits < 8 * values.itemsize:
        return np.asarray(2**bits - 1 - values, dtype=values.dtype)
    return ~values


def _by_palette(values: RawArray, page: Any) -> RawArray:
    """The colours of the palette, 8 bits each: its 16 bits repeat them, or hold them as they are."""
    if page.colormap is None or values.shape[2] != 1:
        raise DataError(f"has a palette that is missing or has several indices a pixel; {_AS_RGB}")
    palette = np.asarray(page.colormap).T
    palette = palette >> 8 if palette.max() > 255 else palette
    colours: RawArray = palette.astype(np.uint8)[values[..., 0]]
    return colours


def _from_cmyk(values: RawArray) -> RawArray:
    """(largest - ink) (largest - black) / largest, at the depth of the inks."""
    if values.shape[2] != 4 or values.dtype.kind != "u" or values.itemsize > 2:
        raise DataError(f"holds inks other than CMYK of 8 or 16 bits; {_AS_RGB}")
    if values.dtype == np.uint8:
        image = Image.frombytes("CMYK", (values.shape[1], values.shape[0]), values.tobytes())
        return np.asarray(image.convert("RGB"))
    largest = 65535
    light = largest - values.astype(np.uint32)
    product = light[..., :3].astype(np.uint64) * light[..., 3:]
    return np.asarray((product + largest // 2) // largest, dtype=np.uint16)


def _find_declared(page: Any, values: RawArray) -> Missing | None:
    """Where the value stands that GDAL's tag declares to be none."""
    text = page.tags.valueof(_GDAL_NODATA)
    try:
        nodata = float(str(text).strip("\0 "))
    except ValueError:  # no such tag
        return None
    return declared(values, nodata)
