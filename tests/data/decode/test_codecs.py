"""Still images at their full depth: PNG, JPEG and its successors, portable maps; refusals by name."""

import io
import itertools
import struct
import subprocess
import sys
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from byol.base.errors import DataError
from byol.data.decode import formats, jpeg_xr
from byol.data.decode.image import decode, decode_all, kind_of, peek, read_square
from byol.data.decode.reading import FIRST_FRAME, noting

RNG = np.random.default_rng(0)


def values(dtype: str, channels: int, *, bits: int = 0) -> np.ndarray:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return RNG.random((33, 47, channels)).astype(kind)
    return RNG.integers(0, 2 ** (bits or 8 * kind.itemsize), (33, 47, channels)).astype(kind)


def flat(array: np.ndarray) -> np.ndarray:
    return array[..., 0] if array.shape[2] == 1 else array


def colours(array: np.ndarray) -> np.ndarray:
    return array[..., :-1] if array.shape[2] in (2, 4) else array


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_chunk(file: bytes, added: bytes) -> bytes:
    return file[:33] + added + file[33:]


def png(array: np.ndarray) -> bytes:
    return bytes(imagecodecs.png_encode(flat(array)))


LARGE = {
    "profile": chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(range(256)) * 6000)),
    "text": chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"node " * 500_000)),
    "many texts": b"".join(chunk(b"zTXt", b"n\0\0" + zlib.compress(b"x" * 900_000)) for _ in range(80)),
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize(("dtype", "channels"), [("u1", 3), ("u1", 1), ("u2", 1), ("u2", 3), ("u2", 4)])
def test_large_texts_and_profiles_do_not_cost_a_png(name: str, dtype: str, channels: int) -> None:
    array = values(dtype, channels)
    file = with_chunk(png(array), LARGE[name])
    np.testing.assert_array_equal(decode(file), colours(array), strict=True)
    assert peek(file) == kind_of(decode(file))
    square = read_square(file, px=47, channels=None)
    np.testing.assert_array_equal(square.pixels, read_square(colours(array), px=47, channels=None).pixels)


def test_the_orientation_of_a_png_with_a_large_text_is_kept() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for dtype in ("u1", "u2"):
        array = values(dtype, 3)
        file = with_chunk(png(array), chunk(b"eXIf", exif.tobytes()[6:]) + LARGE["text"])
        np.testing.assert_array_equal(decode(file), np.rot90(array, -1))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["u1", "u2"])
def test_png_of_every_colour_type(channels: int, kind: str) -> None:
    array = values(kind, channels)
    found = decode_all(png(array))
    np.testing.assert_array_equal(found.pixels, array, strict=True)
    assert found.alpha == ("straight" if channels in (2, 4) else "none")


def test_a_transparent_colour_is_an_alpha() -> None:
    array = values("u1", 3)
    file = with_chunk(png(array), chunk(b"tRNS", struct.pack(">HHH", *array[0, 0].tolist())))
    found = decode_all(file)
    assert found.alpha == "straight" and found.pixels[0, 0, 3] == 0 and found.pixels[..., 3].mean() > 250
    expected = np.where((array == array[0, 0]).all(axis=2, keepdims=True), np.uint8(255), array)
    np.testing.assert_array_equal(decode(file), expected)
    with noting("drop"):
        np.testing.assert_array_equal(decode(file), array)


@pytest.mark.parametrize("container", ["jp2", "j2k"])
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_jpeg_2000_at_its_depth(container: str, bits: int, channels: int) -> None:
    array = values("u1" if bits == 8 else "u2", channels, bits=bits)
    file = imagecodecs.jpeg2k_encode(
        flat(array), level=0, reversible=True, codecformat=container, bitspersample=bits
    )
    np.testing.assert_array_equal(decode_all(bytes(file)).pixels, array, strict=True)
    has_alpha = channels == 4 and b"cdef" in file
    np.testing.assert_array_equal(decode(bytes(file)), colours(array) if has_alpha else array, strict=True)


def test_a_fourth_channel_of_jpeg_2000_is_an_alpha_only_where_it_is_called_one() -> None:
    """Aerial images hold red, green, blue and infrared."""
    array = values("u2", 4)
    file = bytes(imagecodecs.jpeg2k_encode(array, level=0, reversible=True, codecformat="jp2"))
    bare = file[: file.index(b"jp2h") - 4]
    header = file[file.index(b"jp2h") - 4 : file.index(b"jp2c") - 4]
    rest, inner = file[file.index(b"jp2c") - 4 :], header[8:]
    at = inner.find(b"cdef")
    if at >= 0:
        size = int.from_bytes(inner[at - 4 : at], "big")
        inner = inner[: at - 4] + inner[at - 4 + size :]
    opacity = struct.pack(">I4sH" + "HHH" * 4, 34, b"cdef", 4, 0, 0, 1, 1, 0, 2, 2, 0, 3, 3, 1, 0)
    for boxes, count in ((inner, 4), (inner + opacity, 3)):
        image = decode(bare + struct.pack(">I4s", len(boxes) + 8, b"jp2h") + boxes + rest)
        np.testing.assert_array_equal(image, array[..., :count])


@pytest.mark.parametrize(("kind", "channels"), list(itertools.product(("u1", "u2", "f4"), (1, 3, 4))))
def test_jpeg_xl_at_its_depth(kind: str, channels: int) -> None:
    array = values(kind, channels)
    file = bytes(imagecodecs.jpegxl_encode(flat(array), lossless=True))
    with noting("drop"):
        np.testing.assert_array_equal(decode(file), colours(array), strict=True)
    with noting("keep"):
        np.testing.assert_array_equal(decode(file), array, strict=True)


@pytest.mark.parametrize(("bits", "channels"), list(itertools.product((8, 10, 12), (1, 3))))
def test_avif_at_its_depth(bits: int, channels: int) -> None:
    array = values("u1" if bits == 8 else "u2", channels, bits=bits)
    file = bytes(imagecodecs.avif_encode(flat(array), level=100, bitspersample=bits))
    image = decode(file)
    np.testing.assert_array_equal(image.squeeze(), imagecodecs.avif_decode(file).squeeze())
    assert image.dtype == array.dtype and image.max() > 2 ** (bits - 1)


def test_jpeg_of_12_bits_and_lossless_ones() -> None:
    smooth = np.linspace(0, 4095, 33 * 47).reshape(33, 47).astype("u2")
    lossy = bytes(imagecodecs.jpeg_encode(smooth, bitspersample=12, level=98))
    assert np.abs(decode(lossy)[..., 0].astype(int) - smooth).max() < 60 and decode(lossy).max() > 4000
    for bits in (12, 16):
        array = values("u2", 1, bits=bits)
        file = bytes(imagecodecs.jpeg_encode(array[..., 0], bitspersample=bits, lossless=True))
        np.testing.assert_array_equal(decode(file), array, strict=True)
        assert peek(file) == kind_of(array)
        with pytest.raises(DataError, match="damaged or cut short"):
            decode(file[: len(file) // 2])


def test_jpeg_xr_is_read_and_not_when_it_is_cut() -> None:
    array = values("u2", 3)
    file = bytes(imagecodecs.jpegxr_encode(array, level=1.0))
    np.testing.assert_array_equal(decode(file), imagecodecs.jpegxr_decode(file), strict=True)
    with pytest.raises(DataError, match="damaged or cut short"):
        decode(file[:-50])


def test_jpeg_xr_of_another_size_than_its_container_is_refused() -> None:
    """jxrlib reserves memory for the container, and writes beyond it."""
    file = bytearray(imagecodecs.jpegxr_encode(values("u1", 1)[..., 0], level=1.0))
    start = file.index(b"WMPHOTO\0")
    for size in (0x20, 0x5000):
        file[start + 12 : start + 14] = size.to_bytes(2, "big")
        with pytest.raises(DataError, match="not that of its container"):
            decode(bytes(file))


def test_jpeg_xr_that_ends_its_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is decoded in another process; the next image gets a new one. Also in TIFF files."""
    array = values("u1", 3)
    file = bytes(imagecodecs.jpegxr_encode(array, level=1.0))
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, photometric="rgb", compression="jpegxr", compressionargs={"level": 1.0})
    monkeypatch.setattr(
        imagecodecs, "jpegxr_decode", lambda *arguments, **options: pytest.fail("in this process")
    )
    for content in (file, stream.getvalue()):
        with monkeypatch.context() as patched:
            if jpeg_xr.workers:
                jpeg_xr.workers[0].end()
            patched.setattr(jpeg_xr, "SERVE", "import os; os.read(0, 8); os.kill(os.getpid(), 11)")
            jpeg_xr.workers.clear()
            with pytest.raises(DataError, match="its decoder, jxrlib, failed"):
                decode(content)
        assert decode(content).shape == array.shape


@pytest.mark.parametrize(("mode", "lossless"), [("RGB", False), ("RGB", True), ("RGBA", False)])
def test_webp_is_refused_before_memory_is_reserved(
    mode: str, lossless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The three kinds of headers: lossy, lossless, extended."""
    stream = io.BytesIO()
    image = Image.new("RGBA", (47, 33), (1, 2, 3, 100)).convert(mode)
    image.save(stream, "WEBP", lossless=lossless)
    assert decode(stream.getvalue()).shape == (33, 47, 3)
    monkeypatch.setattr(formats, "MAX_PIXELS", 33 * 47 - 1)
    monkeypatch.setattr(Image, "open", lambda *arguments, **options: pytest.fail("Pillow was asked"))
    with pytest.raises(DataError, match="has 33 x 47 pixels"):
        decode(stream.getvalue())


def test_a_box_that_says_it_is_huge_takes_no_time() -> None:
    """An `ftyp` box of 486 MB: its brands were looked for beyond the file, for 12 s."""
    with pytest.raises(DataError, match="not an image of a known format"):
        decode(b"\x1d\0\0\x20ftypavif" + b"\0" * 100)


@pytest.mark.parametrize("largest", [255, 1023, 4095, 65535])
@pytest.mark.parametrize(("channels", "is_text"), list(itertools.product((1, 3), (False, True))))
def test_portable_maps_hold_the_stored_numbers(largest: int, channels: int, is_text: bool) -> None:
    array = values("u2", channels, bits=largest.bit_length())
    stored = array.astype("u1" if largest == 255 else ">u2")
    kind = {(1, True): 2, (3, True): 3, (1, False): 5, (3, False): 6}[channels, is_text]
    head = f"P{kind}\n# a comment\n47 33\n{largest}\n".encode()
    body = " ".join(map(str, array.ravel().tolist())).encode() if is_text else stored.tobytes()
    expected = array.astype("u1") if largest == 255 else array
    np.testing.assert_array_equal(decode(head + body), expected, strict=True)
    with pytest.raises(DataError, match="damaged or cut short"):
        decode(head + body[: len(body) // 2])


def test_heic_at_its_depth() -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="pip install pillow-heif")
    file = pillow_heif.from_bytes(mode="RGB;16", size=(48, 32), data=RNG.bytes(48 * 32 * 6))
    stream = io.BytesIO()
    file.save(stream, quality=-1, chroma=444)
    image = decode(stream.getvalue())
    assert image.shape == (32, 48, 3) and image.dtype == np.uint16 and len(np.unique(image)) > 500


def test_without_pillow_heif_one_line_says_how_to_install_it() -> None:
    program = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "from byol.data.decode.image import decode\n"
        "try:\n    decode(b'\\0\\0\\0\\x18ftypheic\\0\\0\\0\\0mif1heic' + bytes(200))\n"
        "except Exception as error:\n    print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert said == "is a HEIC photo; pip install pillow-heif to read it, or convert it to JPEG\n"


@pytest.mark.parametrize(
    ("file", "name"),
    [
        (b"SIMPLE  =                    T" + bytes(3000), "FITS"),
        (b"\x89HDF\r\n\x1a\n" + bytes(500), "HDF5"),
        (b"NRRD0004\n" + bytes(500), "NRRD"),
        (bytes(344) + b"n+1\0" + bytes(500), "NIfTI"),
        (b"ZISRAWFILE" + bytes(500), "CZI"),
        (b"\xda\xce\xbe\x0a" + bytes(500), "ND2"),
        (b"8BPS\0\1" + bytes(500), "Photoshop"),
        (b"#?RGBE\n" + bytes(500), "Radiance"),
        (b"qoif" + bytes(500), "QOI"),
        (bytes(imagecodecs.jpegls_encode(RNG.integers(0, 9, (9, 9)).astype("u2"))), "JPEG-LS"),
        (b"P7\nWIDTH 2\nHEIGHT 2\nDEPTH 4\nMAXVAL 255\nENDHDR\n" + bytes(16), "PAM"),
        (b"PF\n2 2\n-1.0\n" + bytes(48), "PFM"),
    ],
)
def test_formats_that_are_known_are_refused_by_their_name(file: bytes, name: str) -> None:
    for read in (decode, peek, lambda file: read_square(file, px=8, channels=None)):
        with pytest.raises(DataError, match=rf"{name}.*not read; save its images as TIFF, PNG or \.npy"):
            read(file)


@pytest.mark.parametrize("format", ["TGA", "SGI", "PCX"])
def test_formats_that_pillow_would_cut_to_8_bit_are_refused(format: str) -> None:
    stream = io.BytesIO()
    Image.fromarray(values("u1", 3)).save(stream, format)
    with pytest.raises(DataError, match=f"format {format}, which byol does not read"):
        decode(stream.getvalue())


def test_an_animated_avif_does_not_end_the_process() -> None:
    """imagecodecs writes beyond its memory if it is asked for one frame of several."""
    program = (
        "import io, numpy as np\nfrom PIL import Image\nfrom byol.data.decode.image import decode\n"
        "rng = np.random.default_rng(0)\n"
        "frames = rng.integers(0, 256, (3, 33, 47, 3), dtype='u1')\n"
        "first, *others = map(Image.fromarray, frames)\n"
        "stream = io.BytesIO()\n"
        "first.save(stream, 'avif', save_all=True, append_images=others, quality=100, subsampling='4:4:4')\n"
        "for _ in range(30):\n    image = decode(stream.getvalue())\n"
        "print(image.shape, np.abs(image.astype(int) - np.asarray(first)).mean() < 5)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert said == "(33, 47, 3) True\n"


def test_an_animated_avif_is_said_to_be_one() -> None:
    stream = io.BytesIO()
    frames = [Image.fromarray(values("u1", 3)) for _ in range(2)]
    frames[0].save(stream, "avif", save_all=True, append_images=frames[1:])
    with noting("auto") as reading:
        decode(stream.getvalue())
    assert reading.notes == [FIRST_FRAME]
