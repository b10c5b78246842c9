"""Read still images with Pillow, or with imagecodecs where Pillow would reduce them to 8 bit."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from byol.base.errors import DataError
from byol.data.decode import content
from byol.data.decode.formats import Alpha, Bits, Decoded, RawArray, Stream, as_image, check_header
from byol.data.decode.jpeg_xr import decode_jpeg_xr
from byol.data.decode.reading import FIRST_FRAME, note

FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "PPM", "WEBP")  # formats that Pillow reads without loss
DEEP_MODES = ("F", "I", "I;16", "I;16B", "I;16L", "I;16N")
CHANNELS_OF_MODE = dict.fromkeys(("1", "L", "LA", "La", *DEEP_MODES), 1) | dict.fromkeys(
    ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"), 3
)

_ORIENTATION = 0x0112  # number of this tag in EXIF and TIFF


# ---- With Pillow


def read_pillow(image: Image.Image) -> Decoded:
    """Decode an image that Pillow has opened, or that is in memory."""
    if image.mode in DEEP_MODES:
        array = np.asarray(image)
        if bits_of(image) == 16:
            array = array.astype(np.uint16)
        if isinstance(transparent := image.info.get("transparency"), int):  # of a PNG: one grey
            alpha = np.where(array == transparent, 0, 65535).astype(np.uint16)
            both = Decoded(as_image(np.dstack([array, alpha])), None, "straight", 1)
            return both.turned(orientation_of(image))
        return Decoded(as_image(array)).turned(orientation_of(image))
    has_alpha = alpha_of(image) != "none"
    array = np.asarray(as_samples(image))
    if not has_alpha:
        return Decoded(as_image(array)).turned(orientation_of(image))
    return Decoded(as_image(array), None, "straight", array.shape[2] - 1).turned(orientation_of(image))


def bits_of(image: Image.Image) -> Bits:
    """Return the bits per value, from the mode. "I" has 32 bits, but Pillow also reads 16-bit PGM as "I"."""
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        return 32
    return 16 if image.mode in DEEP_MODES else 8


def alpha_of(image: Image.Image) -> Alpha:
    """Return the kind of alpha of an image. A transparent colour or palette entry counts as alpha."""
    if image.mode in ("La", "RGBa"):
        return "premultiplied"
    return "straight" if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info else "none"


def is_animation(image: Image.Image) -> bool:
    """Return whether the image is an animation. Additional pictures in a camera's file are not frames."""
    if image.format not in ("GIF", "PNG", "WEBP", "AVIF"):
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # the second frame is damaged, but only the first is read
        return True


def as_samples(image: Image.Image) -> Image.Image:
    """Convert an image of at most 8 bits to Pillow's mode L, LA, RGB or RGBA, and load its pixels."""
    has_alpha = alpha_of(image) != "none"
    match image.mode:
        case "L" | "1":
            image.load()
            return image.convert("LA" if has_alpha else "L") if has_alpha or image.mode == "1" else image
        case "LA" | "La":
            return image.convert("LA")
        case "RGB" if not has_alpha:
            image.load()
            return image
        case "P" | "PA" | "RGB" | "RGBA" | "RGBa" | "RGBX":
            image = image.convert("RGBA")
            return image if has_alpha else image.convert("RGB")
        case "CMYK" | "YCbCr":
            return image.convert("RGB")
        case mode:
            raise DataError(f"has Pillow's mode {mode}, which byol does not read; save it as grey or RGB")


def orientation_of(image: Image.Image) -> int:
    """Return EXIF's orientation; 1 (upright): missing or unreadable. For PNG this loads the pixels."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF can raise any exception, but the pixels are intact
        return 1
    return orientation if orientation in range(1, 9) else 1


# ---- With imagecodecs


def read_jpeg_2000(stream: Stream) -> Decoded:
    """Read JP2 or a bare codestream at its own bit depth."""
    _check_by_pillow(stream, "JPEG2000")
    file = stream.read()
    pixels = by_imagecodecs("jpeg2k", file, "none").pixels
    alpha, channel = _find_jp2_alpha(file)
    if channel is None or channel >= pixels.shape[2]:
        return Decoded(pixels)
    return Decoded(pixels, None, alpha, channel)


def _find_jp2_alpha(file: bytes) -> tuple[Alpha, int | None]:
    """Return kind and number of the channel that "cdef" marks as opacity; a fourth may be infrared."""
    at = file.find(b"cdef", 0, 2**16) if file[4:8] == b"jP  " else -1
    if at >= 0:
        count = int.from_bytes(file[at + 4 : at + 6], "big")
        for entry in range(at + 6, at + 6 + 6 * count, 6):
            channel, kind = (int.from_bytes(file[entry + n : entry + n + 2], "big") for n in (0, 2))
            if kind in (1, 2):
                return "straight" if kind == 1 else "premultiplied", channel
    return "none", None


def read_jpeg_xl(stream: Stream) -> Decoded:
    """Read JPEG XL; the decoder turns it upright. For animations, read the first frame."""
    return by_imagecodecs("jpegxl", stream.read(), "straight", index=0)


def read_jpeg_xr(stream: Stream) -> Decoded:
    """Read JPEG XR, HD Photo, or the tiles of Zeiss files."""
    return _as_decoded(decode_jpeg_xr(stream.read()), "unspecified")


def read_avif(stream: Stream) -> Decoded:
    """Read AVIF of 8, 10 or 12 bits. Pillow finds the orientation, which is in the container.

    All frames of an animation are decoded, because imagecodecs 2026.3 crashes on the first one alone.
    """
    image = Image.open(stream, formats=("AVIF",))
    frames = max(1, getattr(image, "n_frames", 1))
    check_header(image.height * frames, image.width, np.dtype(np.uint8))
    orientation = orientation_of(image)
    if frames > 1:
        note(FIRST_FRAME)
    stream.seek(0)
    return by_imagecodecs("avif", stream.read(), "straight").turned(orientation)


def is_deep_jpeg(file: bytes) -> bool:
    """Return whether a JPEG has more than 8 bits. Pillow cannot open such files."""
    frame = _find_jpeg_frame(file)
    return frame is not None and frame[0] > 8


def read_deep_jpeg(stream: Stream) -> Decoded:
    """Read a 12-bit JPEG, or a lossless one of up to 16 bits."""
    stream.seek(0)
    file = stream.read()
    frame = _find_jpeg_frame(file)
    assert frame is not None
    check_header(frame[1], frame[2], np.dtype(np.uint16))
    check_jpeg_end(file)
    return by_imagecodecs("jpeg", file, "unspecified")


def check_jpeg_end(file: bytes) -> None:
    """Refuse a JPEG that is cut short, because imagecodecs fills the rest of the image with grey."""
    if file.rfind(b"\xff\xd9") < file.rfind(b"\xff\xda"):
        raise DataError("is damaged or cut short (the JPEG has no end mark)")


def is_jpeg_ls(file: bytes) -> bool:
    """Return whether a file that begins like JPEG is JPEG-LS."""
    return any(marker == 0xF7 for marker, _ in _jpeg_markers(file))


def _find_jpeg_frame(file: bytes) -> tuple[int, int, int] | None:
    """Return bits, height and width from the frame header of a JPEG."""
    for marker, at in _jpeg_markers(file):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and at + 9 < len(file):
            height, width = (int.from_bytes(file[at + n : at + n + 2], "big") for n in (5, 7))
            return file[at + 4], height, width
    return None


def _jpeg_markers(file: bytes) -> Iterator[tuple[int, int]]:
    """Yield the markers before the first scan, and their offsets."""
    at = 2
    while at + 4 < len(file) and file[at] == 0xFF and file[at + 1] != 0xDA:
        yield file[at + 1], at
        at += 2 + int.from_bytes(file[at + 2 : at + 4], "big") if file[at + 1] != 0xFF else 1


def read_heic(stream: Stream) -> Decoded:
    """Read HEIC of 8, 10 or 12 bits, turned upright."""
    if not content.open_package("pillow_heif"):
        raise DataError(content.HEIC)
    import pillow_heif

    image = pillow_heif.open_heif(stream, convert_hdr_to_8bit=False)
    check_header(image.size[1], image.size[0], np.dtype(np.uint16))
    values = np.asarray(image)
    is_alpha = "A" in image.mode or "a" in image.mode
    alpha: Alpha = ("premultiplied" if image.premultiplied_alpha else "straight") if is_alpha else "none"
    return Decoded(as_image(values), None, alpha, values.shape[2] - 1 if is_alpha else None)


def by_imagecodecs(name: str, file: bytes, alpha: Alpha, **options: Any) -> Decoded:
    """Decode with imagecodecs. With 2 or 4 channels, the last is `alpha` ("unspecified": an extra sample)."""
    import imagecodecs  # 20 ms

    return _as_decoded(getattr(imagecodecs, f"{name}_decode")(file, **options), alpha)


def _as_decoded(values: RawArray, alpha: Alpha) -> Decoded:
    if values.ndim == 4:  # an animation
        values = values[0]
    if values.ndim not in (2, 3):
        raise DataError(f"holds an array of the shape {values.shape}; save each image as a separate file")
    check_header(values.shape[0], values.shape[1], values.dtype)
    channels = values.shape[2] if values.ndim == 3 else 1
    if channels in (2, 4) and alpha != "none":
        return Decoded(as_image(values), None, alpha, channels - 1)
    return Decoded(as_image(values))


def _check_by_pillow(stream: Stream, format: str) -> None:
    """Check the header before memory is allocated."""
    with_header = Image.open(stream, formats=(format,))
    check_header(with_header.height, with_header.width, np.dtype(np.uint8))
    stream.seek(0)


def check_webp_header(head: bytes) -> None:
    """Check the size of a WebP. Pillow reserves 8 bytes per pixel for it before it looks at its own limit."""
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP" or len(head) < 30:
        return
    match head[12:16]:
        case b"VP8X":
            width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
        case b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case _:
            width, height = (int.from_bytes(head[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    check_header(height, width, np.dtype(np.uint8))


# ---- Portable maps with more than 8 bits, which Pillow scales or truncates

_PNM_HEADER = re.compile(rb"P([2356])(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)\s")


def is_deep_pnm(head: bytes) -> bool:
    """Return whether the file is a PGM or PPM with values above 255."""
    header = _PNM_HEADER.match(head) if head[:1] == b"P" else None
    return header is not None and int(header[4]) > 255


def read_deep_pnm(stream: Stream) -> Decoded:
    """Read the stored values, which are text or big-endian numbers."""
    file = stream.read()
    header = _PNM_HEADER.match(file)
    assert header is not None
    kind, width, height, largest = (int(header[number]) for number in (1, 2, 3, 4))
    check_header(height, width, np.dtype(np.uint16))
    count = height * width * (1 if kind in (2, 5) else 3)
    if kind in (5, 6):
        values = np.frombuffer(file, ">u2", count=count, offset=header.end())
    else:
        values = np.array(re.sub(rb"#[^\n]*", b"", file[header.end() :]).split()[:count], dtype=np.int64)
    if len(values) < count or values.max() > largest:
        raise DataError("is damaged or cut short (values are missing, or larger than its header allows)")
    return Decoded(as_image(values.astype(np.uint16).reshape(height, width, -1)))
