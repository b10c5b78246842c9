"""Decode one image file to its stored values: an array (height, width, channels), uint8, uint16 or float32.

Channels and depth depend on the content of the file, never on its suffix. docs/formats.md lists what byol
reads and refuses.

    grey, RGB                      1 and 3 channels, as they are
    palette                        3 channels, the colours of the palette
    with alpha                     as `data.alpha` says (see `reading.py`), by default laid on white
    CMYK, YCbCr                    3 channels, converted to RGB
    1 bit a pixel                  1 channel of 0 and 255
    8 and 16 bit without sign      uint8 and uint16, every bit kept
    float 16, 32, 64               float32
    with sign, or 32 and 64 bit    float32; refused with a value beyond 2^24, which would not be exact
    TIFF with several pages or samples    one channel each; overviews are left out
    .npy, .npz                     (height, width), (height, width, channels) or the channels first: `arrays`
    animation                      the first frame
    DICOM (needs pydicom)              rescaled by slope and intercept to float32, where there are any;
                                       MONOCHROME1 inverted; colours as RGB; frames of a grey image: channels
    HEIC (needs pillow-heif)           upright

The depth depends on the type of the values, never on the values, so that all images of a set have the same.
The EXIF orientation is applied. `decode` returns the values of the file. `load` and `read_square` replace
missing values (see `missing.py`: NaN, nodata, masks, padding) by the median of the other values of that
channel and image.

All images for the networks go through `read_square`, so a file always gives the same values.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from byol.data.decode import codecs
from byol.data.decode.codecs import CHANNELS_OF_MODE
from byol.data.decode.fitting import (
    fit,
    fit_missing,
    place_on_canvas,
    resampling_of,
    select_channels,
    select_missing,
)
from byol.data.decode.formats import (
    Channels,
    Decoded,
    File,
    Geometry,
    ImageArray,
    Kind,
    Missing,
    Stream,
    bits_of_dtype,
    turned,
)
from byol.data.decode.missing import fill, find_missing
from byol.data.decode.opened import read_file, reasons
from byol.data.decode.readers import by_pillow, find_reader
from byol.data.decode.reading import Alpha, alpha_choice, noting, resolve_alpha, resolve_pillow_alpha

DECODER = 6  # increased when a file gives other values; packs with another number are packed again

_TRANSPOSE = Image.Transpose.TRANSPOSE
_SPARE = 2  # JPEGs are decoded at this many times the final side or more


@dataclass(frozen=True)
class Square:
    """A square image, its original size (upright, px), and notes about changes."""

    pixels: ImageArray
    height: int
    width: int
    missing: float = 0.0  # fraction of missing values, which were filled
    filled: Missing | None = None  # pixels of the square that come from more filled values than measured ones
    notes: tuple[str, ...] = ()  # from `reading.py`


@dataclass(frozen=True, eq=False)
class Loaded:
    """A decoded image whose missing values are filled."""

    pixels: ImageArray
    missing: float = 0.0  # fraction of missing values, which were filled
    filled: Missing | None = None  # where values were filled, including transparent pixels


T = TypeVar("T")


def read_square(
    item: File | ImageArray | Image.Image,
    *,
    px: int,
    channels: Channels,
    geometry: Geometry = "square",
    alpha: Alpha = "auto",
) -> Square:
    """Read an image from a file, an array or Pillow, with the chosen channels, as a `px` x `px` square.

    `geometry` "square" squashes it with `fit`; "scale" keeps its pixels, see `place_on_canvas`. Missing
    values are filled first.

    With "square", a JPEG file with at least 4 times `px` along both sides is decoded at 1/2, 1/4 or 1/8 of
    its size: the smallest that is at least 2 times `px` (libjpeg then omits the high frequencies of each
    block). On four photographs, at 26 to 111 px, the result differed from full decoding by 0.1 to 1.6 of 255
    on average and by 13 at most, which is less than half of the effect of another resampling window.

    Raises:
        DataError: only the reason; the caller adds the name.
        DiskError: the disk failed several times.
    """
    with noting(alpha) as reading:
        square = _read_square(item, px=px, channels=channels, geometry=geometry)
    return replace(square, notes=tuple(reading.notes)) if reading.notes else square


def _read_square(
    item: File | ImageArray | Image.Image, *, px: int, channels: Channels, geometry: Geometry
) -> Square:
    if geometry == "scale":
        return _make_square(load(item), px=px, channels=channels, geometry=geometry)
    if isinstance(item, np.ndarray):
        return _squash(Decoded(item), px=px, channels=channels)
    if isinstance(item, Image.Image):
        with reasons():
            return _squash_pillow(item, px=px, channels=channels, may_draft=False)  # do not change it
    return _read_file(
        item,
        lambda image: _squash_pillow(image, px=px, channels=channels, may_draft=True),
        lambda decoded: _squash(decoded, px=px, channels=channels),
    )


def load(item: File | ImageArray | Image.Image) -> Loaded:
    """Read an image from a file, an array or Pillow at its own size, and fill missing values.

    The surrounding `reading.noting` decides how transparency is handled.

    Raises:
        DataError: as in `decode`, or a channel has no measured value.
        DiskError: as `decode`.
    """
    if isinstance(item, np.ndarray):
        return _load(Decoded(item))
    if isinstance(item, Image.Image):
        with reasons():
            return _load(codecs.read_pillow(item))
    return _read_file(item, lambda image: _load(codecs.read_pillow(image)), _load)


def decode(file: File) -> ImageArray:
    """Decode a file, or the bytes of one, by the rules above, without filling missing values.

    The surrounding `reading.noting` decides how transparency is handled.

    Raises:
        DataError: only the reason; the caller adds the name of the file.
        DiskError: the disk failed several times.
    """
    return _resolve_alpha(*_split_alpha(decode_all(file)))


def decode_all(file: File) -> Decoded:
    """Decode all samples of a file, including alpha, and what the file declares as missing.

    Raises:
        DataError: as `decode`.
        DiskError: as `decode`.
    """
    return _read_file(file, codecs.read_pillow, lambda decoded: decoded)


def peek(item: File | ImageArray, *, alpha: Alpha = "auto") -> Kind:
    """Return size, channels and depth of an image. Its pixels are read only if the header is not enough.

    Raises:
        DataError: as in `decode`, but damage after the header is not detected.
    """
    if isinstance(item, np.ndarray):
        return kind_of(item)
    with noting(alpha):
        return _read_file(item, _peek_pillow, _kind_of_decoded)


def _peek_pillow(image: Image.Image) -> Kind:
    if image.mode in CHANNELS_OF_MODE:
        also = alpha_choice() == "keep" and codecs.alpha_of(image) != "none"
        return Kind(max(image.size), CHANNELS_OF_MODE[image.mode] + also, codecs.bits_of(image))
    return _kind_of_decoded(codecs.read_pillow(image))


def _kind_of_decoded(decoded: Decoded) -> Kind:
    return kind_of(_resolve_alpha(*_split_alpha(decoded)))


def kind_of(image: ImageArray) -> Kind:
    """Return size, channels and depth of a decoded image."""
    return Kind(max(image.shape[:2]), image.shape[2], bits_of_dtype(image.dtype))


def _read_file(file: File, of_pillow: Callable[[Image.Image], T], of_decoded: Callable[[Decoded], T]) -> T:
    """Return `of_pillow` of the image that Pillow opened, or `of_decoded` of what another reader decoded."""

    def read(stream: Stream) -> T:
        if (reader := find_reader(stream, file)) is not None:
            return of_decoded(reader(stream))
        return by_pillow(stream, of_pillow, of_decoded)

    return read_file(file, read)


# ---- Transparency and missing values


def _split_alpha(decoded: Decoded) -> tuple[Decoded, Shaped[np.ndarray, "height width"] | None]:
    """Return the colours and their alpha. An extra sample of unspecified meaning stays a channel."""
    at = decoded.alpha_channel
    if at is None or decoded.alpha not in ("straight", "premultiplied"):
        return decoded, None
    missing = decoded.missing
    if missing is not None and missing.shape[2] == decoded.pixels.shape[2] > 1:
        missing = np.delete(missing, at, axis=2)
    pixels, alpha = np.delete(decoded.pixels, at, axis=2), decoded.pixels[..., at]
    if decoded.alpha == "premultiplied" and pixels.dtype == np.uint8 and alpha_choice() in ("auto", "mask"):
        straight = np.rint(pixels * (255 / np.maximum(alpha, 1)[..., None]))
        pixels = np.minimum(straight, 255).astype(np.uint8)
    return replace(decoded, pixels=pixels, missing=missing, alpha="none", alpha_channel=None), alpha


def _resolve_alpha(decoded: Decoded, alpha: Shaped[np.ndarray, "height width"] | None) -> ImageArray:
    return decoded.pixels if alpha is None else resolve_alpha(decoded.pixels, alpha)


def _load(decoded: Decoded) -> Loaded:
    colours, alpha = _split_alpha(decoded)
    if (missing := find_missing(colours)) is None:
        return Loaded(
            _resolve_alpha(colours, alpha), filled=None if alpha is None else _find_unseen(colours, alpha)
        )
    share, colours = float(missing.mean()), replace(colours, pixels=fill(colours.pixels, missing))
    if alpha is not None and (unseen := _find_unseen(colours, alpha)) is not None:
        missing = missing | unseen
    image = _resolve_alpha(colours, alpha)
    if missing.shape[2] > 1 and (missing == missing[..., :1]).all():
        missing = missing[..., :1]
    elif image.shape[2] > missing.shape[2]:  # the alpha is a channel
        missing = np.concatenate([missing, np.zeros_like(missing[..., :1])], axis=2)
    return Loaded(image, share, missing)


def _find_unseen(decoded: Decoded, alpha: Shaped[np.ndarray, "height width"]) -> Missing | None:
    """Return the transparent pixels that `resolve_alpha` replaces by the median; None: it replaces none."""
    if decoded.pixels.dtype == np.uint8 or alpha_choice() not in ("auto", "mask"):
        return None
    unseen: Missing = (alpha <= 0)[..., None]
    return unseen if unseen.any() and not unseen.all() else None


# ---- The square


def _squash(decoded: Decoded, *, px: int, channels: Channels) -> Square:
    return _make_square(_load(decoded), px=px, channels=channels, geometry="square")


def _make_square(loaded: Loaded, *, px: int, channels: Channels, geometry: Geometry) -> Square:
    image, filled = select_channels(loaded.pixels, channels), loaded.filled
    height, width = image.shape[:2]
    pixels = fit(image, px) if geometry == "square" else place_on_canvas(image, px)
    if filled is not None:
        filled = fit_missing(select_missing(filled, channels), px, geometry=geometry)
    return Square(pixels, height, width, loaded.missing, filled)


def _squash_pillow(image: Image.Image, *, px: int, channels: Channels, may_draft: bool) -> Square:
    """Do the same as `_squash` without an array of the whole image, which would double the time."""
    # With `keep`, Pillow would weight colours by their transparency, but `fit` resizes channels separately.
    has_alpha = codecs.alpha_of(image) != "none"
    if image.mode in codecs.DEEP_MODES or (has_alpha and alpha_choice() == "keep"):
        return _squash(codecs.read_pillow(image), px=px, channels=channels)
    whole = image.size
    drafted = image.draft(None, (_SPARE * px, _SPARE * px)) if may_draft else None  # only for JPEG
    loaded = codecs.as_samples(image)
    loaded = resolve_pillow_alpha(loaded) if has_alpha else loaded
    orientation = codecs.orientation_of(image)
    if channels == "grey" and loaded.mode == "RGB":  # before resizing, as for arrays, to round equally
        loaded = Image.fromarray(select_channels(np.asarray(loaded), channels)[..., 0])
    if drafted is None:
        whole = loaded.size  # a TIFF is turned while it is loaded
        box = (0.0, 0.0, float(whole[0]), float(whole[1]))
    else:  # the last row and column of a draft may be partly outside: at half the size, 5 px become 2.5
        box = drafted[1]
    if orientation >= 5:  # swap rows and columns, so that only mirroring remains
        loaded, box, orientation = loaded.transpose(_TRANSPOSE), (0.0, 0.0, box[3], box[2]), orientation - 4
        whole = (whole[1], whole[0])
    if loaded.size != (px, px):
        loaded = loaded.resize((px, px), resampling_of(min(box[2:]), px), box=box)
    pixels = np.ascontiguousarray(turned(np.asarray(loaded), orientation)).reshape(px, px, -1)
    return Square(select_channels(pixels, channels), height=whole[1], width=whole[0])
