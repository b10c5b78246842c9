"""The samples of a TIFF page: which is an alpha, and colours as grey or RGB at their own depth."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from byol.base.errors import DataError
from byol.data.decode.formats import Alpha, RawArray

OLD_JPEG, _JPEGS = 6, (6, 7, 33007)  # of the tag "compression": they come as RGB
WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, PALETTE, MASK, _CMYK, _YCBCR = range(7)  # of the tag "photometric"

_PREMULTIPLIED, _STRAIGHT = 1, 2  # of the tag "ExtraSamples"
_REFERENCE, _FULL_RANGE = 532, (0, 255, 128, 255, 128, 255)  # of the tag "ReferenceBlackWhite" for YCbCr
_INK_SET, _CMYK_INKS = 332, 1  # a tag, and its usual value
_AS_RGB = "save it as RGB"


@dataclass(frozen=True)
class Samples:
    """How many samples a pixel has, and which of them is an alpha."""

    count: int
    alpha: Alpha = "none"
    alpha_channel: int | None = None

    @classmethod
    def of(cls, page: Any) -> "Samples":
        """By the tags of a page."""
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

    def after(self, count: int) -> "Samples":
        """The same after colours became `count` - (extra samples) others."""
        if self.alpha_channel is None:
            return Samples(count)
        return Samples(count, self.alpha, self.alpha_channel + count - self.count)


def check_colours(page: Any) -> None:
    """Refuse what is no picture of grey, RGB or measured channels."""
    photometric = int(page.photometric)
    name = getattr(page.photometric, "name", str(photometric))
    if photometric > _YCBCR:
        advice = (
            "develop it and save it as TIFF" if photometric in (32803, 34892) else "save it as grey or RGB"
        )
        raise DataError(f"has the colour space {name}, which byol does not read; {advice}")
    if photometric == _CMYK and page.tags.valueof(_INK_SET, default=_CMYK_INKS) != _CMYK_INKS:
        raise DataError(f"holds inks other than CMYK; {_AS_RGB}")
    if photometric == _YCBCR and page.compression not in _JPEGS:
        reference = page.tags.valueof(_REFERENCE)
        found = None if reference is None else tuple(float(a) / float(b) for a, b in _pairs(reference))
        if (
            tuple(page.subsampling or (1, 1)) != (1, 1)
            or found not in (None, _FULL_RANGE)
            or page.bitspersample != 8
        ):
            raise DataError(f"holds YCbCr with chroma of a lower resolution or another range; {_AS_RGB}")


def _pairs(values: Any) -> Iterator[tuple[float, float]]:
    return zip(values[::2], values[1::2], strict=True)


def as_colours(values: RawArray, page: Any) -> RawArray:
    """Grey with white high, or RGB; then the extra samples as they are."""
    first = values.shape[2] - len(page.extrasamples)
    colours, extras = values[..., :first], values[..., first:]
    match int(page.photometric):
        case 0:  # white is zero
            colours = invert(colours, page.bitspersample)
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


def invert(values: RawArray, bits: int) -> RawArray:
    """Values of `bits` bits, of which 0 is white, with white high."""
    if values.dtype.kind == "f":
        return -values
    if values.dtype.kind == "u" and bits < 8 * values.itemsize:
        return np.asarray(2**bits - 1 - values, dtype=values.dtype)
    return ~values


def _by_palette(values: RawArray, page: Any) -> RawArray:
    """The colours of the palette, 8 bits each: its 16 bits repeat them, or hold them as they are."""
    if page.colormap is None or values.shape[2] != 1:
        raise DataError(f"has no palette, or several palette indices per pixel; {_AS_RGB}")
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
