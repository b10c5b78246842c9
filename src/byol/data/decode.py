"""One image file -> array (height, width, channels), uint8, uint16 or float32, as it was stored.

What a file holds decides the channels and the depth; its suffix decides nothing.

    grey, RGB                      1 and 3 channels, as they are
    palette                        3 channels, the colours of the palette
    with alpha                     as `data.alpha` says, see `reading.py`: laid on white
    CMYK, YCbCr                    3 channels, converted to RGB
    1 bit a pixel                  1 channel of 0 and 255
    8 and 16 bit without sign      uint8 and uint16, every bit kept
    float 16, 32, 64               float32; refused with a value that is NaN, infinite or beyond float32
    with sign, or 32 and 64 bit    float32; refused with a value beyond 2^24, which would not be exact
    TIFF with several pages or samples    one channel each
    .npy                           (height, width) or (height, width, channels)
    animation                      the first frame
    DICOM (pip install byol[dicom])    rescaled by slope and intercept to float32, where there are any;
                                       MONOCHROME1 inverted; colours as RGB; frames of a grey image: channels

The depth is decided by the type of the values, never by the values, so that the images of a set have one. The
orientation that a camera recorded (EXIF) is applied.

Everything that the networks see goes through `read_square`, in packing and afterwards: the same file gives
the same values.
"""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Real
from PIL import Image, UnidentifiedImageError

from byol.data import formats
from byol.data.content import HEAD_BYTES, find_refusal, image_kind
from byol.data.formats import CHANNELS_OF_MODE, Channels, File, Geometry, ImageArray, Kind, Stream
from byol.data.jpeg import has_all_rows
from byol.data.opened import read_file, reasons
from byol.data.reading import FIRST_FRAME, NO_END, Alpha, alpha_choice, note, noting
from byol.errors import DataError

DECODER = 4  # goes up when the same file gives other values: packs of other numbers are made again

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TRANSPOSE = Image.Transpose.TRANSPOSE
_SPARE = 2  # a JPEG is not decoded at fewer pixels than this many times the wanted ones, along each side


@dataclass(frozen=True)
class Square:
    """An image made a square, its size before, upright, in px, and what was changed on the way."""

    pixels: ImageArray
    height: int
    width: int
    notes: tuple[str, ...] = ()  # of `reading.py`


T = TypeVar("T")


def read_square(
    item: File | ImageArray | Image.Image,
    *,
    px: int,
    channels: Channels,
    geometry: Geometry = "square",
    alpha: Alpha = "auto",
) -> Square:
    """An image, wherever it is, with its chosen channels at `px` x `px`: by the rules above, and `fit`.

    `geometry` "square" squashes it, "scale" leaves its pixels as they are: see `place_on_canvas`.

    To be squashed, a JPEG file of at least 4 times `px` along both sides is decoded at 1/2, 1/4 or 1/8 of its
    size, the least that is still at least 2 times `px` (libjpeg leaves out the high frequencies of each
    block), and fitted from there. On four photographs, at 26 to 111 px, the result differs from full decoding
    by 0.1 to 1.6 of 255 in the mean and by 13 at most, less than half of what another resampling window does.

    Raises:
        DataError: the reason alone, in plain words; the caller knows the name.
        DiskError: the disk has failed several times.
    """
    with noting(alpha) as reading:
        square = _read_square(item, px=px, channels=channels, geometry=geometry)
    return (
        Square(square.pixels, square.height, square.width, tuple(reading.notes)) if reading.notes else square
    )


def _read_square(
    item: File | ImageArray | Image.Image, *, px: int, channels: Channels, geometry: Geometry
) -> Square:
    if geometry == "scale":
        image = select_channels(_whole(item), channels)
        return Square(place_on_canvas(image, px), *image.shape[:2])
    if isinstance(item, np.ndarray):
        return _squash(item, px=px, channels=channels)
    if isinstance(item, Image.Image):
        with reasons():
            return _squash_pillow(item, px=px, channels=channels, may_draft=False)  # it is the caller's

    def squash(image: Image.Image) -> Square:
        return _squash_pillow(image, px=px, channels=channels, may_draft=True)

    def read(stream: Stream) -> Square:
        if _format_of(stream) == "other":
            return _with_pillow(stream, squash)
        return _squash(_decode(stream), px=px, channels=channels)

    return read_file(item, read)


def _whole(item: File | ImageArray | Image.Image) -> ImageArray:
    if isinstance(item, np.ndarray):
        return item
    if isinstance(item, Image.Image):
        with reasons():
            return formats.read_pillow(item)
    return decode(item)


def decode(file: File) -> ImageArray:
    """The image in a file, or in the bytes of one, by the rules above.

    Transparency is treated as the `reading.noting` around it says.

    Raises:
        DataError: the reason alone, in plain words; the caller knows the file's name.
        DiskError: the disk has failed several times.
    """
    return read_file(file, _decode)


def _decode(stream: Stream) -> ImageArray:
    match _format_of(stream):
        case "tiff":
            return formats.read_tiff(stream)
        case "npy":
            return formats.read_npy(stream)
        case "png16":
            return formats.read_png_16_bit_colour(stream)
        case "dicom":
            return formats.read_dicom(stream)
        case "other":
            return _with_pillow(stream, formats.read_pillow)


def peek(item: File | ImageArray, *, alpha: Alpha = "auto") -> Kind:
    """The kind of an image; its pixels are read only where the format's header does not tell.

    Raises:
        DataError: as `decode`, but damage after the header is not noticed.
    """
    if isinstance(item, np.ndarray):
        return kind_of(item)
    with noting(alpha):
        return read_file(item, _peek)


def _peek(stream: Stream) -> Kind:
    if _format_of(stream) == "other":
        image = Image.open(stream)
        if image.mode in CHANNELS_OF_MODE:
            also = alpha_choice() == "keep" and formats.has_alpha(image)
            channels = CHANNELS_OF_MODE[image.mode] + also
            return Kind(max(image.size), channels, formats.bits_of(image))
    stream.seek(0)
    return kind_of(_decode(stream))


def kind_of(image: ImageArray) -> Kind:
    """The kind of a decoded image."""
    return Kind(max(image.shape[:2]), image.shape[2], formats.bits_of_dtype(image.dtype))


# ---- The square of the wanted size, and the wanted channels


def _squash(image: ImageArray, *, px: int, channels: Channels) -> Square:
    height, width = image.shape[:2]
    return Square(fit(select_channels(image, channels), px), height, width)


def _squash_pillow(image: Image.Image, *, px: int, channels: Channels, may_draft: bool) -> Square:
    """As `_squash` of the decoded image, but no array of the whole image is made: it takes as long again."""
    # Pillow resizes colours weighted by their transparency, `fit` each channel by itself.
    if image.mode in formats.DEEP_MODES or (alpha_choice() == "keep" and formats.has_alpha(image)):
        return _squash(formats.read_pillow(image), px=px, channels=channels)
    whole = image.size
    drafted = image.draft(None, (_SPARE * px, _SPARE * px)) if may_draft else None  # JPEG alone has drafts
    loaded = formats.as_grey_or_rgb(image)
    orientation = formats.orientation_of(image)
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
        loaded = loaded.resize((px, px), _resampling(min(box[2:]), px), box=box)
    pixels = np.ascontiguousarray(formats.turned(np.asarray(loaded), orientation)).reshape(px, px, -1)
    return Square(select_channels(pixels, channels), height=whole[1], width=whole[0])


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


def _resampling(shortest_side: float, px: int) -> Image.Resampling:
    return Image.Resampling.HAMMING if shortest_side >= px else Image.Resampling.BILINEAR


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
            raise DataError(f"has {count} channels, and data.channels={channels} counts from 0")
        return np.ascontiguousarray(image[..., channels])
    if channels == "rgb" and count == 1:
        return np.repeat(image, 3, axis=2)
    if channels == "grey" and count == 3:
        grey = image @ np.array([0.299, 0.587, 0.114])
        grey = grey if image.dtype == np.float32 else np.rint(grey)
        return np.asarray(grey[..., None], dtype=image.dtype)
    raise DataError(f"has {count} channels; data.channels={channels} takes images of 1 or 3")


# ---- From an open file to a reader, and from an exception to a reason


def _format_of(stream: Stream) -> Literal["tiff", "npy", "png16", "dicom", "other"]:
    head = stream.read(HEAD_BYTES)
    stream.seek(0)
    if not head:
        raise DataError("the file is empty")
    if (refusal := find_refusal(head)) is not None:
        raise DataError(refusal)
    if head[:4] in _TIFF_MAGIC:
        return "tiff"
    if head[:6] == b"\x93NUMPY":
        return "npy"
    if image_kind(head) == "DICOM":
        return "dicom"
    # Byte 24 of a PNG is the bit depth, byte 25 is 0 for grey without alpha. Pillow cuts others to 8 bit.
    if head[:8] == b"\x89PNG\r\n\x1a\n" and head[24:25] == b"\x10" and head[25:26] != b"\0":
        return "png16"
    return "other"


def _with_pillow(stream: Stream, read: Callable[[Image.Image], T]) -> T:
    """What `read` makes of the image; of a JPEG that lacks nothing but its end mark too."""
    head = stream.read(HEAD_BYTES)
    stream.seek(0)
    try:
        image = Image.open(stream)
        if formats.is_animation(image):
            note(FIRST_FRAME)
        return read(image)
    except UnidentifiedImageError as error:
        if (kind := image_kind(head)) is None:
            raise
        raise DataError(f"begins like {kind}, but is damaged or of a variety that is not read") from error
    except OSError:
        stream.seek(0)
        data = stream.read() if image_kind(head) == "JPEG" else b""
        if not data or not has_all_rows(data):
            raise
        note(NO_END)
        return read(Image.open(BytesIO(data + b"\xff\xd9")))
