"""Decoding: exact values for every kind of file, one plain reason for every kind of damage."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import tifffile
from PIL import Image, ImageOps

from byol.base.errors import DataError
from byol.data.decode.fitting import fit, select_channels
from byol.data.decode.image import decode, kind_of, peek, read_square
from byol.data.decode.reading import noting

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (7, 5, 1), dtype=np.uint8)
RGB = RNG.integers(0, 256, (7, 5, 3), dtype=np.uint8)
FLOAT = RNG.normal(300.0, 20.0, (7, 5, 3)).astype(np.float32)
SIGNED = RNG.integers(-2000, 3000, (7, 5, 3), dtype=np.int16)
RGBA = RNG.integers(0, 256, (7, 5, 4), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (7, 5, 3), dtype=np.uint16)


def encode(image: Image.Image, format: str = "png", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def tiff(array: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def png16(array: np.ndarray, *, claimed: tuple[int, int] | None = None) -> bytes:
    """A 16-bit PNG of 1 to 4 channels, which Pillow cannot write; `claimed` is a size it does not have."""
    (height, width), channels = claimed or array.shape[:2], array.shape[2]

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def palette() -> Image.Image:
    return Image.fromarray(RGB).quantize(8)


def with_transparency() -> bytes:
    """A palette PNG with an alpha for each colour: Pillow warns where it is converted carelessly."""
    return encode(palette(), transparency=bytes(range(0, 240, 30)))


FILES: dict[str, tuple[bytes, np.ndarray]] = {
    "grey": (encode(Image.fromarray(GREY[..., 0])), GREY),
    "rgb": (encode(Image.fromarray(RGB)), RGB),
    "rgb bmp": (encode(Image.fromarray(RGB), "bmp"), RGB),
    "rgb webp": (encode(Image.fromarray(RGB), "webp", lossless=True), RGB),
    "rgba drops alpha": (encode(Image.fromarray(RGBA)), RGBA[..., :3]),
    "grey and alpha": (encode(Image.fromarray(RGBA[..., :2])), RGBA[..., :1]),
    "palette": (encode(palette()), np.asarray(palette().convert("RGB"))),
    "palette gif": (encode(palette(), "gif"), np.asarray(palette().convert("RGB"))),
    "palette with alpha": (with_transparency(), np.asarray(palette().convert("RGB"))),
    "1 bit": (encode(Image.fromarray(GREY[..., 0] > 99)), np.where(GREY > 99, 255, 0).astype(np.uint8)),
    "grey 16 bit png": (png16(DEEP[..., :1]), DEEP[..., :1]),
    "rgb 16 bit png": (png16(DEEP), DEEP),
    "grey and alpha 16 bit png": (png16(DEEP[..., :2]), DEEP[..., :1]),
    "rgba 16 bit png": (png16(DEEP[..., [0, 1, 2, 0]]), DEEP),
    "16 bit pgm": (b"P5 5 7 65535\n" + DEEP[..., 0].astype(">u2").tobytes(), DEEP[..., :1]),
    "npy": (npy(GREY[..., 0]), GREY),
    "npy 16 bit, big-endian": (npy(DEEP.astype(">u2")), DEEP),
    "npy half": (npy(FLOAT.astype("f2")), FLOAT.astype("f2").astype("f4")),
    "npy float": (npy(FLOAT), FLOAT),
    "npy double, big-endian": (npy(FLOAT.astype(">f8")), FLOAT),
    "npy signed": (npy(SIGNED), SIGNED.astype("f4")),
    "npy 64 bit": (npy(SIGNED.astype("i8") * 5000), SIGNED.astype("f4") * 5000),
    "npy 32 bit of small values": (npy(GREY.astype("u4")), GREY.astype("f4")),
    "tiff float": (tiff(FLOAT[..., 0], photometric="minisblack"), FLOAT[..., :1]),
    "tiff float pages": (tiff(np.moveaxis(FLOAT, 2, 0), photometric="minisblack"), FLOAT),
    "tiff double": (tiff(FLOAT[..., 0].astype("f8"), photometric="minisblack"), FLOAT[..., :1]),
    "tiff float white is zero": (tiff(FLOAT[..., 0], photometric="miniswhite"), -FLOAT[..., :1]),
    "tiff signed": (tiff(SIGNED[..., 0], photometric="minisblack"), SIGNED[..., :1].astype("f4")),
    "tiff 32 bit": (tiff(DEEP.astype("u4")[..., 0], photometric="minisblack"), DEEP[..., :1].astype("f4")),
    "tiff lzw float": (
        encode(Image.fromarray(FLOAT[..., 0]), "tiff", compression="tiff_lzw"),
        FLOAT[..., :1],
    ),
    "tiff lzw 32 bit": (
        encode(Image.fromarray(SIGNED[..., 0].astype("i4")), "tiff", compression="tiff_lzw"),
        SIGNED[..., :1].astype("f4"),
    ),
    "npy bool": (npy(GREY > 99), np.where(GREY > 99, 255, 0).astype(np.uint8)),
    "tiff grey": (tiff(GREY[..., 0], photometric="minisblack"), GREY),
    "tiff 16 bit, big-endian": (tiff(DEEP[..., 0], photometric="minisblack", byteorder=">"), DEEP[..., :1]),
    "tiff white is zero": (tiff(DEEP[..., 0], photometric="miniswhite"), 65535 - DEEP[..., :1]),
    "tiff rgb": (tiff(RGB, photometric="rgb"), RGB),
    "tiff rgb planes": (tiff(np.moveaxis(RGB, 2, 0), photometric="rgb", planarconfig="separate"), RGB),
    "tiff rgba": (tiff(RGBA, photometric="rgb"), RGBA[..., :3]),
    "tiff pages": (tiff(np.moveaxis(DEEP, 2, 0), photometric="minisblack"), DEEP),
    "tiff imagej": (tiff(np.moveaxis(DEEP, 2, 0), imagej=True, metadata={"axes": "CYX"}), DEEP),
    "tiff ome": (tiff(np.moveaxis(DEEP, 2, 0), ome=True, metadata={"axes": "CYX"}), DEEP),
    "tiff 13 samples": (
        tiff(np.repeat(DEEP, 5, axis=2)[..., :13], photometric="minisblack", planarconfig="contig"),
        np.repeat(DEEP, 5, axis=2)[..., :13],
    ),
    "tiff palette": (encode(palette(), "tiff"), np.asarray(palette().convert("RGB"))),
    "tiff 1 bit": (
        encode(Image.fromarray(GREY[..., 0] > 99), "tiff"),
        np.where(GREY > 99, 255, 0).astype("u1"),
    ),
    "tiff lzw": (encode(Image.fromarray(RGB), "tiff", compression="tiff_lzw"), RGB),
    "tiff lzw 16 bit pages": (
        encode(
            Image.fromarray(DEEP[..., 0]),
            "tiff",
            compression="tiff_lzw",
            save_all=True,
            append_images=[Image.fromarray(DEEP[..., 1]), Image.fromarray(DEEP[..., 2])],
        ),
        DEEP,
    ),
    "tiff deflate": (tiff(DEEP[..., 0], compression="zlib", photometric="minisblack"), DEEP[..., :1]),
}


@pytest.mark.parametrize("name", FILES)
def test_exact_values_and_the_same_kind_by_the_header(name: str) -> None:
    file, expected = FILES[name]
    with noting("drop"):
        image = decode(file)
    assert image.dtype == expected.dtype and image.dtype.isnative and image.flags.c_contiguous
    np.testing.assert_array_equal(image, expected)
    assert peek(file) == kind_of(image)


def test_a_path_bytes_and_a_stream_are_the_same_and_the_suffix_is_not_believed(tmp_path: Path) -> None:
    file, expected = FILES["tiff pages"]
    (tmp_path / "really a tiff.png").write_bytes(file)
    for given in (tmp_path / "really a tiff.png", file, memoryview(file), io.BytesIO(file)):
        np.testing.assert_array_equal(decode(given), expected)


def test_cmyk_jpeg_becomes_rgb() -> None:
    flat = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, full magenta and yellow: red
    image = decode(encode(flat, "jpeg", quality=95))
    assert image.shape == (16, 16, 3)
    assert image[..., 0].min() > 200 and image[..., 1:].max() < 60


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("format", ["jpeg", "png", "tiff"])
def test_orientation_as_pillow_applies_it(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encode(Image.fromarray(RGB), format, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(file))))
    np.testing.assert_array_equal(decode(file), expected)
    assert peek(file) == kind_of(expected)


@pytest.mark.parametrize("image", [Image.fromarray(RGB), palette()], ids=["lzw", "palette"])
def test_orientation_of_tiffs_that_pillow_reads(image: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = encode(image, "tiff", exif=exif, compression="tiff_lzw")
    np.testing.assert_array_equal(decode(file), np.rot90(np.asarray(image.convert("RGB")), -1))


def test_orientation_of_16_bit_colour_png() -> None:
    file = png16(DEEP)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = exif.tobytes()[6:]
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
    turned = file[:33] + chunk + file[33:]
    np.testing.assert_array_equal(decode(turned), np.rot90(DEEP, -1))


def test_damaged_exif_does_not_cost_the_image() -> None:
    file = encode(Image.fromarray(RGB), "jpeg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f" + b"\x07" * 40)
    assert decode(file).shape == RGB.shape


def test_only_the_first_frame_of_an_animation() -> None:
    frames = [Image.fromarray(RGB).quantize(4), Image.fromarray(255 - RGB).quantize(4)]
    file = encode(frames[0], "gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(file), np.asarray(frames[0].convert("RGB")))


def wrapped_tiff() -> bytes:
    """Unsigned values of 32 bits in a compression that Pillow alone reads, as signed ones."""
    file = encode(Image.fromarray(np.full((7, 5), -5, dtype=np.int32)), "tiff", compression="tiff_lzw")
    with tifffile.TiffFile(io.BytesIO(file)) as opened:
        tag = opened.pages[0].tags["SampleFormat"]
        return file[: tag.valueoffset] + struct.pack("<H", 1) + file[tag.valueoffset + 2 :]


JPEG = encode(Image.fromarray(RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8)), "jpeg")
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "text": (b"not an image at all, but a few words of text", "not an image of a known format"),
    "jpeg cut": (JPEG[: len(JPEG) // 2], "damaged or cut short"),
    "jpeg header cut": (JPEG[:30], "damaged or cut short|known format"),
    "png cut": (FILES["rgb"][0][:60], "damaged or cut short"),
    "png checksum": (FILES["rgb"][0][:50] + b"\xff" + FILES["rgb"][0][51:], "damaged or cut short"),
    "png 16 cut": (FILES["rgb 16 bit png"][0][:80], "damaged or cut short"),
    "tiff cut": (FILES["tiff pages"][0][:-50], "damaged or cut short"),
    "tiff page lost": (FILES["tiff lzw 16 bit pages"][0][:-100], "damaged or cut short"),
    "tiff header alone": (b"II*\0", "damaged or cut short"),
    "tiff offset": (b"II*\0" + b"\xff" * 50, "damaged or cut short"),
    "tiff two stacks": (
        tiff(np.zeros((2, 3, 7, 5), "u1"), imagej=True),
        "has the axes Z 2 x C 3 x Y 7 x X 5",
    ),
    "tiff beyond 2^24": (tiff(np.full((7, 5), 2**24 + 1, "i4")), "integers beyond 16,777,216"),
    "tiff lzw beyond 2^31": (wrapped_tiff(), "integers beyond 16,777,216"),
    "tiff complex": (tiff(np.zeros((7, 5), "c8")), "holds complex64 values"),
    "tiff page sizes": (
        encode(Image.new("L", (5, 7)), "tiff", save_all=True, append_images=[Image.new("L", (6, 7))]),
        "pages of different sizes",
    ),
    "npy cut": (FILES["npy"][0][:-3], "damaged or cut short"),
    "npy complex": (npy(np.zeros((7, 5), "c16")), "holds complex128 values"),
    "npy 4 axes": (npy(np.zeros((2, 7, 5, 3), "u1")), r"has the shape \(2, 7, 5, 3\)"),
    "npy pickle": (npy(np.array([[None]])), "holds object values"),
    "npy no pixels": (npy(np.zeros((0, 5), "u1")), "has no pixels"),
    "npy no channels": (npy(np.zeros((7, 5, 0), "u1")), "has no pixels"),
    "npy bomb": (
        npy(np.zeros((1, 1), "u1")).replace(b"(1, 1), }", b"(99999, 9999), }")[:128],
        "more than the 178,956,970",
    ),
    "png bomb": (png16(DEEP, claimed=(20_000, 10_000)), "more than the 178,956,970"),
}


@pytest.mark.parametrize("name", BAD)
def test_damage_is_one_plain_reason(name: str, tmp_path: Path) -> None:
    file, reason = BAD[name]
    with pytest.raises(DataError, match=reason) as caught:
        decode(file)
    assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_a_path_that_cannot_be_opened(tmp_path: Path) -> None:
    for read in (decode, peek):
        with pytest.raises(DataError, match="no such file"):
            read(tmp_path / "absent.png")
        with pytest.raises(DataError, match=r"cannot be opened \(Is a directory\)"):
            read(tmp_path)


def test_pillow_images_of_other_modes_are_refused() -> None:
    with pytest.raises(DataError, match="Pillow's mode LAB, which byol does not read"):
        read_square(Image.new("LAB", (2, 2)), px=2, channels=None)


@pytest.mark.parametrize(("mode", "value"), [("I", 70_000), ("I", 7), ("I", -7), ("F", 0.5)])
def test_pillow_images_of_32_bits_are_floats_whatever_their_values(mode: str, value: float) -> None:
    square = read_square(Image.new(mode, (2, 2), value), px=2, channels=None).pixels
    np.testing.assert_array_equal(square, np.full((2, 2, 1), value, dtype=np.float32), strict=True)


FILTERS = """
import sys, threading, warnings
from pathlib import Path
from PIL import Image
from byol.data.decode.image import decode

Image.MAX_IMAGE_PIXELS = 30
data = Path(sys.argv[1]).read_bytes()
decode(data)  # imports what it needs
failures = []

def read():
    try:
        for _ in range(30):
            decode(data)
    except BaseException as error:
        failures.append(error)

warnings.simplefilter("error")
before = list(warnings.filters)
threads = [threading.Thread(target=read) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failures, failures
assert list(warnings.filters) == before, warnings.filters
"""


def test_large_but_allowed_images_do_not_warn_and_threads_leave_the_filters_as_they_were(
    tmp_path: Path,
) -> None:
    """Pillow warns at half the size that it refuses; threads that overlap must not leave the filter on.

    In a process of its own, because threads that other tests have left behind may be in the filter.
    """
    (tmp_path / "image").write_bytes(FILES["rgb"][0])
    subprocess.run([sys.executable, "-c", FILTERS, str(tmp_path / "image")], check=True, timeout=60)


# ---- From a file to a square

PHOTOS = sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))


def with_orientation(image: Image.Image, orientation: int, format: str = "jpeg", **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image, format, exif=exif, **options)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("px", [3, 5, 16])
def test_a_square_is_the_decoded_image_fitted(name: str, px: int) -> None:
    file, expected = FILES[name]
    square = read_square(file, px=px, channels=None, alpha="drop")
    assert square.pixels.flags.c_contiguous and (square.height, square.width) == expected.shape[:2]
    np.testing.assert_array_equal(square.pixels, fit(expected, px))


@pytest.mark.parametrize("channels", [None, "grey", "rgb", [1, 0]])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_square_with_chosen_channels(channels: object, orientation: int) -> None:
    file = with_orientation(Image.fromarray(RGB), orientation, "png")
    upright = decode(file)
    square = read_square(file, px=4, channels=channels)
    np.testing.assert_array_equal(square.pixels, fit(select_channels(upright, channels), 4))
    assert (square.height, square.width) == upright.shape[:2]


def test_arrays_and_pillow_images_become_the_same_square_as_their_file() -> None:
    file, expected = FILES["rgb"]
    of_file = read_square(file, px=4, channels=None).pixels
    np.testing.assert_array_equal(read_square(expected, px=4, channels=None).pixels, of_file)
    np.testing.assert_array_equal(read_square(Image.fromarray(RGB), px=4, channels=None).pixels, of_file)


@pytest.mark.parametrize("photo", PHOTOS, ids=lambda path: path.stem)
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
@pytest.mark.parametrize("px", [26, 52, 53, 106])
def test_a_photograph_decoded_at_a_fraction_is_close_to_the_whole(
    photo: Path, subsampling: str, px: int
) -> None:
    """427 x 640 px: 1/8 and 1/4 are allowed up to 26 and 53 px, 1/2 up to 106; rows end in half a pixel."""
    whole = Image.open(photo)
    file = encode(whole, "jpeg", quality=90, subsampling=subsampling)
    square = read_square(file, px=px, channels=None)
    difference = np.abs(square.pixels.astype(int) - fit(decode(file), px))
    assert 0 < difference.mean() < 1.0 and difference.max() <= 13
    assert (square.height, square.width) == (whole.height, whole.width)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_fraction_keeps_its_place_and_its_size_however_it_is_turned(orientation: int, mode: str) -> None:
    """At an eighth, 427 rows become 53.4: the last is only partly in the image."""
    file = with_orientation(Image.open(PHOTOS[0]).convert(mode), orientation, quality=95)
    upright = decode(file)
    square = read_square(file, px=26, channels=None)
    assert np.abs(square.pixels.astype(int) - fit(upright, 26)).mean() < 1.0
    assert (square.height, square.width) == upright.shape[:2]


@pytest.mark.parametrize("px", [107, 320])
def test_a_jpeg_of_less_than_4_times_the_side_is_decoded_whole(px: int) -> None:
    np.testing.assert_array_equal(
        read_square(PHOTOS[0], px=px, channels=None).pixels, fit(decode(PHOTOS[0]), px)
    )


def test_the_callers_pillow_image_stays_as_it_is() -> None:
    image = Image.open(PHOTOS[0])
    square = read_square(image, px=26, channels=None)
    assert image.size == (640, 427)
    np.testing.assert_array_equal(square.pixels, fit(np.asarray(image), 26))


def test_a_jpeg_that_is_cut_is_refused_at_a_fraction_too(monkeypatch: pytest.MonkeyPatch) -> None:
    file = PHOTOS[0].read_bytes()
    with pytest.raises(DataError, match="damaged or cut short"):
        read_square(file[: len(file) // 2], px=26, channels=None)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 427 * 640 // 2 - 1)  # Pillow refuses twice as many
    with pytest.raises(DataError, match="more than the 178,956,970"):
        read_square(file, px=26, channels=None)


def test_files_of_a_megabyte_are_read_as_well(tmp_path: Path) -> None:
    image = RNG.integers(0, 256, (700, 600, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size > 2**20
    np.testing.assert_array_equal(decode(tmp_path / "large.png"), image)


# ---- fit


def test_an_image_of_the_size_is_returned_as_it_is() -> None:
    image = RNG.integers(0, 65536, (6, 6, 4), dtype=np.uint16)
    assert fit(image, 6) is image


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (40, 30), (3, 4), (8, 20)])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_fit_keeps_range_channels_and_mean(dtype: type, shape: tuple[int, int], channels: int) -> None:
    image = RNG.integers(50, np.iinfo(dtype).max, (*shape, channels)).astype(dtype)
    fitted = fit(image, 8)
    assert fitted.shape == (8, 8, channels) and fitted.dtype == dtype
    for channel in range(channels):
        before, after = image[..., channel], fitted[..., channel]
        assert before.min() <= after.min() and after.max() <= before.max()
        assert abs(float(after.mean()) - float(before.mean())) < 0.25 * float(np.ptp(before)) + 1
        np.testing.assert_array_equal(after, fit(before[..., None].copy(), 8)[..., 0])  # channels are alone


def test_fit_is_antialiased() -> None:
    """A chessboard of single pixels becomes its mean; a method that picks pixels gives black or white."""
    board = ((np.indices((64, 64)).sum(0) % 2) * 255).astype(np.uint8)[..., None]
    assert np.abs(fit(board, 16).astype(int) - 127).max() <= 6
    assert np.abs(fit(board.astype(np.uint16) * 257, 16).astype(int) - 32767).max() <= 6 * 257


def test_8_and_16_bit_are_fitted_alike() -> None:
    image = RNG.integers(0, 256, (31, 45, 2), dtype=np.uint8)
    shallow, deep = fit(image, 16), fit(image.astype(np.uint16) * 257, 16)
    assert np.abs(shallow - deep / 257.0).max() < 1.0


# ---- channels


@pytest.mark.parametrize(
    ("image", "channels", "expected"),
    [
        (DEEP, None, DEEP),
        (GREY, "rgb", np.repeat(GREY, 3, axis=2)),
        (RGB, "rgb", RGB),
        (GREY, "grey", GREY),
        (DEEP, [2, 0], DEEP[..., [2, 0]]),
        (GREY, [0, 0], np.repeat(GREY, 2, axis=2)),
    ],
)
def test_channels_are_selected(image: np.ndarray, channels: object, expected: np.ndarray) -> None:
    selected = select_channels(image, channels)
    np.testing.assert_array_equal(selected, expected)
    assert selected.dtype == image.dtype


def test_grey_of_rgb_is_luma_at_8_and_16_bit() -> None:
    by_pillow = np.asarray(Image.fromarray(RGB).convert("L")).astype(int)
    assert np.abs(select_channels(RGB, "grey")[..., 0] - by_pillow).max() <= 1
    white = np.full((2, 2, 3), 65535, dtype=np.uint16)
    assert (select_channels(white, "grey") == 65535).all()


@pytest.mark.parametrize(("channels", "image"), [("rgb", RGBA), ("grey", RGBA), ([3], RGB), ([-1], RGB)])
def test_channels_that_are_not_there_are_refused(channels: object, image: np.ndarray) -> None:
    with pytest.raises(DataError, match=f"has {image.shape[2]} channels"):
        select_channels(image, channels)


def test_grey_of_floats_is_luma_and_keeps_its_fractions() -> None:
    grey = select_channels(FLOAT, "grey")
    assert grey.dtype == np.float32
    np.testing.assert_allclose(grey[..., 0], FLOAT @ np.array([0.299, 0.587, 0.114]), rtol=1e-6)


# ---- At their own scale


def disc(height: int, width: int, radius: float, *, channels: int = 1, dtype: type = np.uint8) -> np.ndarray:
    """White, in the middle, on grey."""
    rows, columns = np.indices((height, width))
    inside = (rows - (height - 1) / 2) ** 2 + (columns - (width - 1) / 2) ** 2 < radius**2
    return np.repeat(np.where(inside, 200, 50)[..., None], channels, axis=2).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("shape", [(1, 1), (20, 11), (7, 32), (32, 32)])
def test_on_a_canvas_pixels_stay_as_they_are(shape: tuple[int, int], channels: int, dtype: type) -> None:
    image = RNG.integers(0, 200, (*shape, channels)).astype(dtype)
    image[[0, -1]] = image[:, [0, -1]] = np.arange(channels) + 7
    square = read_square(image, px=32, channels=None, geometry="scale")
    assert (square.height, square.width) == shape and square.pixels.dtype == dtype
    top, left = ((32 - side) // 2 for side in shape)
    middle = (slice(top, top + shape[0]), slice(left, left + shape[1]))
    np.testing.assert_array_equal(square.pixels[middle], image)
    around = np.ones((32, 32), dtype=bool)
    around[middle] = False
    assert (square.pixels[around] == np.arange(channels) + 7).all()  # the border's median


@pytest.mark.parametrize("shape", [(60, 180), (180, 60), (500, 1), (1, 500)])
def test_what_is_larger_than_the_canvas_is_shrunk_and_keeps_its_aspect(shape: tuple[int, int]) -> None:
    square = read_square(disc(*shape, radius=27.0), px=60, channels=None, geometry="scale")
    assert square.pixels.shape == (60, 60, 1) and (square.height, square.width) == shape
    if min(shape) == 60:
        inside = square.pixels[..., 0] > 125
        assert abs(int(inside.any(0).sum()) - 18) <= 1 and abs(int(inside.any(1).sum()) - 18) <= 1


@pytest.mark.parametrize("name", ["rgb", "rgba drops alpha", "palette", "tiff pages", "tiff float", "npy"])
def test_a_canvas_is_the_same_from_file_array_and_pillow_image(name: str) -> None:
    file, expected = FILES[name]
    canvas = read_square(expected, px=6, channels=None, geometry="scale").pixels
    how = {"px": 6, "channels": None, "geometry": "scale", "alpha": "drop"}
    np.testing.assert_array_equal(read_square(file, **how).pixels, canvas)
    if name in ("rgb", "rgba drops alpha", "palette"):
        image = Image.open(io.BytesIO(file))
        np.testing.assert_array_equal(read_square(image, **how).pixels, canvas)


def test_reading_imports_little() -> None:
    """Processes that read images are many: numpy.random is 2 MB, and codecs are loaded for their formats."""
    large = ("numpy.random", "xml.etree", "tifffile", "imagecodecs", "pydicom", "torch")
    program = f"import sys, byol.data.decode.image; print([name for name in {large} if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert said == "[]\n"
