"""Read TIFF with tifffile and imagecodecs: find the pages of the image and the meaning of its samples.

Overviews (subfile type 1, SubIFDs) are left out; a mask (subfile type 4) marks missing values. The other
pages are channels if they have equal size and type; otherwise the file is refused. Content without one clear
meaning as an image is refused too: CIELab, camera raw data, chroma of a lower resolution outside JPEG.
"""

import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from byol.base.errors import DataError
from byol.data.decode.arrays import find_layout
from byol.data.decode.codecs import read_pillow
from byol.data.decode.formats import Decoded, Layout, Missing, RawArray, Stream, as_image, check_header
from byol.data.decode.jpeg_xr import isolate_in_tiff
from byol.data.decode.missing import declared
from byol.data.decode.reading import SMALLER, note
from byol.data.decode.tiff_ome import find_own_pages
from byol.data.decode.tiff_samples import (
    MASK,
    OLD_JPEG,
    PALETTE,
    WHITE_IS_ZERO,
    Samples,
    as_colours,
    check_colours,
    invert,
)

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_ORIENTATION, _DNG_VERSION, _GDAL_NODATA = 274, 50706, 42113
_KIND = (256, 257, 259, 262, 274, 277, 339)  # sides, compression, photometric, orientation, samples, type
_PLAIN_TAGS = frozenset((*range(256, 260), *range(269, 285), *range(320, 326)))  # the usual tags of
_PLAIN_TAGS |= {262, 266, 296, 305, 306, 315, 317, 338, 339, 347, 530, 531, 532}  # a single image
_OWN_LAYOUTS = ("SI.", "PerkinElmer-QPI", "Philips DP")  # programs with their own kinds of series
_NOT_ONE = "save each as a separate file"


def read_tiff(stream: Stream, *, layout: Layout, path: Path | None = None) -> Decoded:
    """Read the image of a TIFF file. `path`, if known, finds the description of the set it belongs to.

    Raises:
        DataError: it has several images, or axes, colours or a compression that byol does not read.
    """
    from tifffile import TiffFile  # 75 ms

    isolate_in_tiff()
    if stream.read(10)[8:] == b"CR":
        raise DataError("is a camera raw file; develop it and save it as TIFF")
    stream.seek(0)
    with TiffFile(stream) as tiff:
        if _is_plain(tiff):
            return _read(tiff, _OnePage(tiff.pages.first), None, stream, layout)
        own = find_own_pages(tiff, path)
        if own is None:
            return _read(tiff, *_choose(tiff), stream, layout)
    stream.seek(0)
    with TiffFile(stream, is_ome=False) as tiff:
        return _read_own(tiff, own, stream)


def _read_own(tiff: Any, own: list[int], stream: Stream) -> Decoded:
    """Read a file of an OME-TIFF set. Its pages are planes, also if their sizes suggest otherwise."""
    if len(own) == 1 and len(tiff.pages) > 1:
        return _read(tiff, _OnePage(tiff.pages[own[0]]), None, stream, "chw")
    series, mask = _choose(tiff)
    if len(own) > 1 and len(series.pages) != len(tiff.pages):
        raise DataError(f"has pages that its description (OME-XML) does not name; {_NOT_ONE}")
    return _read(tiff, series, mask, stream, "chw", order=own)


@dataclass(frozen=True)
class _OnePage:
    """Replaces tifffile's series for a file with one plain page, in a sixth of the time."""

    keyframe: Any  # the page
    kind = "page"

    @cached_property
    def pages(self) -> list[Any]:
        return [self.keyframe]

    def __getattr__(self, name: str) -> Any:  # axes, shape, ndim, asarray
        return getattr(self.keyframe, name)


def _is_plain(tiff: Any) -> bool:
    """Return whether the file has only one page, and nothing that tifffile reads as several images."""
    page = tiff.pages.first
    if not _PLAIN_TAGS.issuperset(page.tags.keys()) or len(page.tags) > len(page.tags.keys()):
        return False
    is_said = page.description and page.description != f'{{"shape": {list(page.shape)}}}'  # by tifffile
    if is_said or not page.shape or page.software.startswith(_OWN_LAYOUTS):
        return False
    return len(tiff.pages) == 1


def _read(
    tiff: Any,
    series: Any,
    mask: Any | None,
    stream: Stream,
    layout: Layout,
    *,
    order: list[int] | None = None,
) -> Decoded:
    """Read the pages of a series as one image. `order`: order of the pages; None: as they are in the file."""
    _check_pages(tiff)
    page = series.keyframe
    check_header(page.imagelength, page.imagewidth, page.dtype)
    check_colours(page)
    if page.compression == OLD_JPEG and series.ndim == page.ndim:  # only Pillow's libtiff reads all variants
        stream.seek(0)
        return read_pillow(Image.open(stream, formats=("TIFF",)))
    _check_segments(tiff, series)
    values = _load(series, page)
    if order is not None and len(order) > 1:
        values = values[order]
    if not _is_channels_last(series, layout):
        axis = _find_channel_axis(series)
        values = values if axis is None else np.moveaxis(values, axis, -1)
        values = values.reshape(page.imagelength, page.imagewidth, -1)
    missing: Missing | None = _find_declared(page, values)
    if mask is not None:
        masked: Any = mask.asarray(maxworkers=1).reshape(*values.shape[:2], 1) == 0
        missing = masked if missing is None else masked | missing
    is_plain = series.ndim == page.ndim  # not a stack of pages
    samples = Samples.of(page) if is_plain else Samples(values.shape[2])
    if is_plain:
        values = as_colours(values, page)
        samples = samples.after(values.shape[2])
        if missing is not None and missing.shape[2] not in (1, values.shape[2]):
            missing = np.asarray(missing.all(axis=2, keepdims=True))
    elif page.photometric == WHITE_IS_ZERO:
        values = invert(values, page.bitspersample)
    decoded = Decoded(as_image(values, missing), missing, samples.alpha, samples.alpha_channel)
    return decoded.turned(int(page.tags.valueof(_ORIENTATION, default=1)))


# ---- Pages


def _check_pages(tiff: Any) -> None:
    """Refuse a file with missing pages, which tifffile ignores: the link after the last page must be 0."""
    tiff.filehandle.seek(tiff.pages.next_page_offset or 0)
    if tiff.filehandle.read(tiff.tiff.offsetsize) != bytes(tiff.tiff.offsetsize):
        raise DataError("is damaged or cut short (pages are missing)")


def _choose(tiff: Any) -> tuple[Any, Any | None]:
    """Return the pages of the image, and those of its mask."""
    tiff.pages.cache = True  # pages are used more than once
    series = [one for one in tiff.series if not one.keyframe.is_reduced]
    masks = [one for one in series if _is_mask(one.keyframe)]
    images = [one for one in series if not _is_mask(one.keyframe)]
    if not images and len(tiff.series) == 1 and not tiff.pages.first.subifds:
        return tiff.series[0], None  # the only content, even if it is marked as reduced or as a mask
    if not images or _DNG_VERSION in tiff.pages.first.tags:
        raise DataError(
            "has no full image among its pages (a camera raw file?); develop it and save it as TIFF"
        )
    if len(images) > 1:
        kinds = list(dict.fromkeys(f"{' x '.join(map(str, one.shape))} {one.dtype}" for one in images))
        if len(kinds) == 1:
            raise DataError(f"holds {len(images)} images ({kinds[0]} each); {_NOT_ONE}")
        raise DataError(f"has pages of different sizes or kinds ({', '.join(kinds[:4])}); {_NOT_ONE}")
    chosen = images[0]
    if any(not (level.keyframe.is_reduced or level.keyframe.is_subifd) for level in chosen.levels[1:]):
        note(SMALLER)
    _check_complete(tiff, chosen)
    sizes = [(one.keyframe.imagelength, one.keyframe.imagewidth) for one in masks]
    if sizes and (len(sizes) > 1 or sizes[0] != (chosen.keyframe.imagelength, chosen.keyframe.imagewidth)):
        raise DataError(
            "has a mask of another size than the image; save it without the mask, or with an alpha channel"
        )
    return chosen, masks[0] if masks else None


def _is_mask(page: Any) -> bool:
    return bool(page.is_mask or page.photometric == MASK)


def _check_complete(tiff: Any, series: Any) -> None:
    """Check that all pages exist and have one kind; tifffile fills missing pages with 0 and checks few.

    Palette indices are not channels, except in ImageJ's stacks, where they are values shown in colours.
    """
    if series.kind == "ome" and any(page is None for page in series.pages):
        raise DataError(
            "has fewer pages than its description (OME-XML) names; export it again, or save each image as a "
            "separate file"
        )
    if series.kind not in ("uniform", "generic") or len(series.pages) < 2:
        return
    if series.keyframe.photometric == PALETTE:
        raise DataError(f"has {len(series.pages)} pages with colour palettes; {_NOT_ONE}")
    if len({_describe_page(tiff, page.offset) for page in series.pages}) > 1:
        raise DataError(f"has pages of different sizes or kinds; {_NOT_ONE}")


def _describe_page(tiff: Any, offset: int) -> bytes:
    """Return the stored tags that define the kind of a page. This is faster than parsing the page."""
    form, file = tiff.tiff, tiff.filehandle
    file.seek(offset)
    (number,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
    tags = file.read(number * form.tagsize)
    entries = [tags[at : at + form.tagsize] for at in range(0, len(tags), form.tagsize)]
    codes = [int(struct.unpack(form.byteorder + "H", entry[:2])[0]) for entry in entries]
    return b"".join(entry for entry, code in zip(entries, codes, strict=True) if code in _KIND)


def _check_segments(tiff: Any, series: Any) -> None:
    """Refuse a truncated file: decoders fill the missing part of a JPEG with grey."""
    if series.keyframe.compression == 1:  # tifffile itself refuses it then
        return
    size = tiff.filehandle.size
    for page in series.pages:
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
            if offset + count > size:
                raise DataError("is damaged or cut short (the image ends beyond the file)")


def _find_channel_axis(series: Any) -> int | None:
    """Return the one axis besides height and width that has more than one element; None: there is none."""
    axes = [at for at, axis in enumerate(series.axes) if axis not in "YX" and series.shape[at] > 1]
    if len(axes) > 1 or series.axes.find("Y") > series.axes.find("X"):
        words = " x ".join(f"{axis} {size}" for axis, size in zip(series.axes, series.shape, strict=True))
        raise DataError(
            f"has the axes {words}, but byol reads only one axis besides height and width, as channels; save "
            "each image as a separate file"
        )
    return axes[0] if axes else None


def _is_channels_last(series: Any, layout: Layout) -> bool:
    """Return whether an array (height, width, channels) was written with its rows as pages.

    By default tifffile's `imwrite` does that for arrays with two, or more than four, channels.

    Raises:
        DataError: the shape allows both, and `layout` is "auto".
    """
    if series.kind not in ("shaped", "uniform") or series.axes not in ("QYX", "IYX"):
        return False
    if series.ndim == series.keyframe.ndim or layout != "auto":
        return layout == "hwc" and series.ndim != series.keyframe.ndim
    try:
        if find_layout(series.shape) == "chw":
            return False
    except DataError:  # pages are the channels by default
        return False
    pages, height, width = series.shape
    raise DataError(
        f"has {pages} pages of {height} x {width}, which may be an array with channels last; set "
        "data.layout=hwc if it is, data.layout=chw if the pages are the channels"
    )


def _load(series: Any, page: Any) -> RawArray:
    try:
        values: RawArray = series.asarray(maxworkers=1)
    except Exception as error:
        name, text = getattr(page.compression, "name", str(page.compression)), str(error)
        if "imagecodecs" in text or "not supported" in text or "COMPRESSION" in text:
            raise DataError(
                f"has a compression that cannot be read here ({name}); pip install -U imagecodecs, or save "
                "it with LZW, Deflate, or without compression"
            ) from None
        raise
    return values


def _find_declared(page: Any, values: RawArray) -> Missing | None:
    """Return where values equal the nodata value of GDAL's tag."""
    text = page.tags.valueof(_GDAL_NODATA)
    try:
        nodata = float(str(text).strip("\0 "))
    except ValueError:  # no such tag
        return None
    return declared(values, nodata)
