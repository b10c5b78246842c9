"""One image file -> array (height, width, channels), uint8, uint16 or float32, as it was stored.

What a file holds decides the channels and the depth; its suffix decides nothing. docs/formats.md lists what
is read and what is refused.

    grey, RGB                      1 and 3 channels, as they are
    palette                        3 channels, the colours of the palette
    with alpha                     the alpha is dropped, the colours under it kept (no blending)
    CMYK, YCbCr                    3 channels, converted to RGB
    1 bit a pixel                  1 channel of 0 and 255
    8 and 16 bit without sign      uint8 and uint16, every bit kept
    float 16, 32, 64               float32
    with sign, or 32 and 64 bit    float32; refused with a value beyond 2^24, which would not be exact
    TIFF with several pages or samples    one channel each; overviews are left out
    .npy, .npz                     (height, width), (height, width, channels) or the channels first: `arrays`
    animation                      the first frame
    DICOM (pip install byol[dicom])    rescaled by slope and intercept to float32, where there are any;
                                       MONOCHROME1 inverted; colours as RGB; frames of a grey image: channels
    HEIC (pip install byol[heic])  upright

The depth is decided by the type of the values, never by the values, so that the images of a set have one. The
orientation that a camera recorded (EXIF) is applied. `decode` gives the values of the file; `load` and
`read_square` fill those that are no measurement (see `missing`: NaN, nodata, masks, padding) with the median
of the channel's others in that image.

Everything that the networks see goes through `read_square`, in packing and afterwards: the same file gives
the same values.
"""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from byol.data import codecs
from byol.data.codecs import CHANNELS_OF_MODE
from byol.data.fitting import fit, place_on_canvas, resampling_of, select_channels
from byol.data.formats import Channels, Decoded, File, Geometry, ImageArray, Kind, bits_of_dtype, turned
from byol.data.missing import fill, find_missing
from byol.data.readers import by_pillow, find_reader, layout_of, opened, reasons

DECODER = 4  # goes up when the same file gives other values: packs of other numbers are made again

IMAGE_SUFFIXES: tuple[str, ...] = (
    ".avif", ".bmp", ".dcm", ".dib", ".dicom", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpeg",
    ".jpg", ".jxl", ".jxr", ".lsm", ".npy", ".npz", ".pgm", ".png", ".pnm", ".ppm", ".stk", ".tif",
    ".tiff", ".webp"
)  # fmt: skip

_TRANSPOSE = Image.Transpose.TRANSPOSE
_SPARE = 2  # a JPEG is not decoded at fewer pixels than this many times the wanted ones, along each side


@dataclass(frozen=True)
class Square:
    """An image made a square, and its size before, upright, in px."""

    pixels: ImageArray
    height: int
    width: int
    missing: float = 0.0  # share of its values that were not measured, and are filled


@dataclass(frozen=True, eq=False)
class Loaded:
    """A decoded image without values that were not measured."""

    pixels: ImageArray
    missing: float  # share of its values that were not measured, and are filled


def read_square(
    item: File | ImageArray | Image.Image, *, px: int, channels: Channels, geometry: Geometry = "square"
) -> Square:
    """An image, wherever it is, with its chosen channels at `px` x `px`: by the rules above, and `fit`.

    `geometry` "square" squashes it, "scale" leaves its pixels as they are: see `place_on_canvas`. Values that
    were not measured are filled before.

    To be squashed, a JPEG file of at least 4 times `px` along both sides is decoded at 1/2, 1/4 or 1/8 of its
    size, the least that is still at least 2 times `px` (libjpeg leaves out the high frequencies of each
    block), and fitted from there. On four photographs, at 26 to 111 px, the result differs from full decoding
    by 0.1 to 1.6 of 255 in the mean and by 13 at most, less than half of what another resampling window does.

    Raises:
        DataError: the reason alone, in plain words; the caller knows the name.
    """
    if geometry == "scale":
        loaded = load(item)
        image = select_channels(loaded.pixels, channels)
        height, width = image.shape[:2]
        return Square(place_on_canvas(image, px), height, width, loaded.missing)
    if isinstance(item, np.ndarray):
        return _squash(Decoded(item), px=px, channels=channels)
    if isinstance(item, Image.Image):
        with reasons():
            return _squash_pillow(item, px=px, channels=channels, may_draft=False)  # it is the caller's
    with opened(item) as stream, reasons():
        if (read := find_reader(stream, layout_of(item))) is not None:
            return _squash(_drop_alpha(read(stream)), px=px, channels=channels)
        return by_pillow(
            stream,
            lambda image: _squash_pillow(image, px=px, channels=channels, may_draft=True),
            lambda decoded: _squash(_drop_alpha(decoded), px=px, channels=channels),
        )


def load(item: File | ImageArray | Image.Image) -> Loaded:
    """An image, wherever it is, at its own size, with what was not measured filled.

    Raises:
        DataError: as `decode`, or a channel has no measured value.
    """
    if isinstance(item, np.ndarray):
        return _load(Decoded(item))
    if isinstance(item, Image.Image):
        with reasons():
            return _load(_drop_alpha(codecs.read_pillow(item)))
    return _load(_drop_alpha(decode_all(item)))


def decode(file: File) -> ImageArray:
    """The image in a file, or in the bytes of one, by the rules above; nothing is filled.

    Raises:
        DataError: the reason alone, in plain words; the caller knows the file's name.
    """
    return _drop_alpha(decode_all(file)).pixels


def decode_all(file: File) -> Decoded:
    """Every sample of a file, the alpha too, and where nothing was measured by what the file declares.

    Raises:
        DataError: as `decode`.
    """
    with opened(file) as stream, reasons():
        if (read := find_reader(stream, layout_of(file))) is not None:
            return read(stream)
        return by_pillow(stream, codecs.read_pillow, lambda decoded: decoded)


def peek(item: File | ImageArray) -> Kind:
    """The kind of an image; its pixels are read only where the format's header does not tell.

    Raises:
        DataError: as `decode`, but damage after the header is not noticed.
    """
    if isinstance(item, np.ndarray):
        return kind_of(item)
    with opened(item) as stream, reasons():
        if (read := find_reader(stream, layout_of(item))) is not None:
            return kind_of(_drop_alpha(read(stream)).pixels)
        return by_pillow(stream, _peek_pillow, lambda decoded: kind_of(decoded.pixels))


def _peek_pillow(image: Image.Image) -> Kind:
    if image.mode in CHANNELS_OF_MODE:
        return Kind(max(image.size), CHANNELS_OF_MODE[image.mode], codecs.bits_of(image))
    return kind_of(codecs.read_pillow(image).pixels)


def kind_of(image: ImageArray) -> Kind:
    """The kind of a decoded image."""
    return Kind(max(image.shape[:2]), image.shape[2], bits_of_dtype(image.dtype))


def _drop_alpha(decoded: Decoded) -> Decoded:
    """Colours as they are under the alpha. An extra sample of which nothing is said stays a channel."""
    if decoded.alpha_channel is None or decoded.alpha not in ("straight", "premultiplied"):
        return decoded
    pixels = np.delete(decoded.pixels, decoded.alpha_channel, axis=2)
    missing = decoded.missing
    if missing is not None and missing.shape[2] == decoded.pixels.shape[2] > 1:
        missing = np.delete(missing, decoded.alpha_channel, axis=2)
    return replace(decoded, pixels=pixels, missing=missing, alpha="none", alpha_channel=None)


def _load(decoded: Decoded) -> Loaded:
    missing = find_missing(decoded)
    if missing is None:
        return Loaded(decoded.pixels, 0.0)
    return Loaded(fill(decoded.pixels, missing), float(missing.mean()))


# ---- The square of the wanted size


def _squash(decoded: Decoded, *, px: int, channels: Channels) -> Square:
    loaded = _load(decoded)
    height, width = loaded.pixels.shape[:2]
    return Square(fit(select_channels(loaded.pixels, channels), px), height, width, loaded.missing)


def _squash_pillow(image: Image.Image, *, px: int, channels: Channels, may_draft: bool) -> Square:
    """As `_squash` of the decoded image, but no array of the whole image is made: it takes as long again."""
    if image.mode in codecs.DEEP_MODES:
        return _squash(codecs.read_pillow(image), px=px, channels=channels)
    whole = image.size
    drafted = image.draft(None, (_SPARE * px, _SPARE * px)) if may_draft else None  # JPEG alone has drafts
    loaded = _without_alpha(codecs.as_samples(image))
    orientation = codecs.orientation_of(image)
    if channels == "grey" and loaded.mode == "RGB":  # before it is fitted, as with arrays: rounding differs
        loaded = Image.fromarray(select_channels(np.asarray(loaded), channels)[..., 0])
    if drafted is None:
        whole = loaded.size  # a TIFF is turned while it is loaded
        box = (0.0, 0.0, float(whole[0]), float(whole[1]))
    else:  # the draft's last row and column may reach beyond the image: at half the size 5 px become 2.5
        box = drafted[1]
    if orientation >= 5:  # rows are columns; then only mirroring is left to do
        loaded, box, orientation = loaded.transpose(_TRANSPOSE), (0.0, 0.0, box[3], box[2]), orientation - 4
        whole = (whole[1], whole[0])
    if loaded.size != (px, px):
        loaded = loaded.resize((px, px), resampling_of(min(box[2:]), px), box=box)
    pixels = np.ascontiguousarray(turned(np.asarray(loaded), orientation)).reshape(px, px, -1)
    return Square(select_channels(pixels, channels), height=whole[1], width=whole[0])


def _without_alpha(image: Image.Image) -> Image.Image:
    """As `_drop_alpha`."""
    match image.mode:
        case "LA":
            return image.getchannel("L")
        case "RGBA":
            return image.convert("RGB")
    return image
