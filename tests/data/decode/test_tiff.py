"""TIFF: every sample as it was written, whatever the compression; one image, or a reason."""

import io
import itertools
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from byol.base.errors import DataError
from byol.data.decode.formats import LaidFile
from byol.data.decode.image import decode, decode_all
from byol.data.decode.reading import SMALLER, noting

RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 33, 47


def values(dtype: str, channels: int, *, bits: int = 0) -> np.ndarray:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return RNG.normal(0, 1000, (HEIGHT, WIDTH, channels)).astype(kind)
    reach = 2 ** min(bits or 8 * kind.itemsize, 24)
    low = -reach // 2 if kind.kind == "i" else 0
    return RNG.integers(low, low + reach, (HEIGHT, WIDTH, channels)).astype(kind)


def pages(*written: tuple[np.ndarray, dict[str, object]], **options: object) -> bytes:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream, **options) as writer:
        for array, how in written:
            writer.write(array, **({"metadata": None, "photometric": "minisblack"} | how))
    return stream.getvalue()


def tiff(array: np.ndarray, **options: object) -> bytes:
    return pages((array, options))


def as_read(array: np.ndarray) -> np.ndarray:
    return array if array.dtype in (np.uint8, np.uint16) else array.astype(np.float32)


CODECS = ("lzw", "deflate", "zstd", "packbits", "lzma", "lerc", "jpegxl", "png", "webp")
TAKES = {"png": "u1 u2", "webp": "u1", "jpegxl": "u1 u2 f4", "lerc": "u1 u2 f4"}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "f4", "f8"])
def test_every_compression_keeps_every_bit_and_every_channel(codec: str, kind: str) -> None:
    """With and without predictor, in strips and tiles, by pixels and by planes, in both byte orders."""
    if kind not in TAKES.get(codec, kind):
        pytest.skip(f"{codec} does not hold {kind}")
    for channels, tile, order in itertools.product((1, 3, 13), (None, (16, 32)), "<>"):
        if codec in TAKES and order == ">":
            continue  # imagecodecs does not write it
        if (codec in TAKES and codec != "lerc" and channels == 13) or (codec == "webp" and channels == 1):
            continue
        array = values(kind, channels)
        is_planar = channels == 13 and tile is None
        stored = np.moveaxis(array, 2, 0) if is_planar else array if channels > 1 else array[..., 0]
        stream = io.BytesIO()
        tifffile.imwrite(
            stream,
            stored,
            compression=codec,
            compressionargs={"lossless": True} if codec in ("jpegxl", "webp") else {},
            predictor=codec in ("lzw", "deflate", "zstd") and order == "<",
            photometric="rgb" if channels == 3 and kind in ("u1", "u2") else "minisblack",
            planarconfig=("separate" if is_planar else "contig") if channels > 1 else None,
            tile=tile,
            byteorder=order,
            bigtiff=tile is None,
            metadata=None,
        )
        np.testing.assert_array_equal(decode(stream.getvalue()), as_read(array), strict=True)


@pytest.mark.parametrize("bits", [2, 4, 6, 10, 12, 14])
@pytest.mark.parametrize("is_white_zero", [False, True])
def test_packed_bits_are_the_stored_numbers(bits: int, is_white_zero: bool) -> None:
    array = values("u1" if bits < 8 else "u2", 1, bits=bits)
    photometric = "miniswhite" if is_white_zero else "minisblack"
    image = decode(tiff(array[..., 0], bitspersample=bits, photometric=photometric))
    np.testing.assert_array_equal(image, 2**bits - 1 - array if is_white_zero else array, strict=True)


# ---- Pages

RGB, GREY = values("u1", 3), values("u2", 1)[..., 0]
STACK = values("u2", 5)
PLANES = np.moveaxis(STACK, 2, 0)
AS_RGB = {"photometric": "rgb"}
REDUCED = AS_RGB | {"subfiletype": 1}
OME = {"metadata": {"axes": "CYX"}}
MASK = {"photometric": "mask", "subfiletype": 4}
CFA = {"photometric": 32803, "extratags": [(33421, 3, 2, (2, 2), True), (33422, 1, 4, b"\0\1\1\2", True)]}


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (pages((RGB, AS_RGB), (RGB[::2, ::2], REDUCED), (RGB[::4, ::4], REDUCED)), RGB),
        (pages((RGB[::4, ::4], REDUCED), (RGB, AS_RGB)), RGB),
        (pages((RGB, AS_RGB | {"subifds": 1}), (RGB[::2, ::2], REDUCED)), RGB),
        (pages((RGB, AS_RGB), (np.ones((HEIGHT, WIDTH), bool), MASK)), RGB),
        (pages(*((plane, {"compression": "lzw"}) for plane in PLANES)), STACK),
        (pages((PLANES, OME | {"subifds": 1}), (PLANES[:, ::2, ::2], {"subfiletype": 1}), ome=True), STACK),
    ],
    ids=["overviews", "thumbnail first", "SubIFDs", "mask", "pages", "OME pyramid"],
)  # fmt: skip
def test_the_image_among_its_pages(file: bytes, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(decode(file), expected, strict=True)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (
            pages((RGB, AS_RGB), (RGB[:20], AS_RGB)),
            r"different sizes .*33 x 47 x 3.*20 x 47 x 3.*separate file",
        ),
        (pages((GREY, {}), (GREY.astype("u1"), {})), "different sizes or kinds .*uint16.*uint8"),
        (pages(*((GREY[: 20 if at == 3 else None], {}) for at in range(9))), "different sizes or kinds"),
        (pages((RGB[::4, ::4], REDUCED | {"subifds": 1}), (GREY, CFA)), "camera raw|CFA"),
        (tiff(GREY, **CFA), "CFA.*develop it and save it as TIFF"),
        (tiff(RGB, photometric="cielab"), "CIELAB.*save it as grey or RGB"),
        (
            pages((np.stack([PLANES] * 2), {"metadata": {"axes": "TCYX"}}), ome=True),
            "T 2 x C 5.*separate file",
        ),
        (pages((RGB, AS_RGB), (np.ones((5, 5), bool), MASK)), "mask of another size than the image"),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(100), "camera raw"),
    ],
)
def test_what_is_not_one_image_is_refused(file: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        decode(file)


def test_an_ome_description_of_planes_that_are_not_there_is_refused() -> None:
    file = pages((PLANES[:2], {"metadata": {"axes": "CYX"}}), ome=True)
    with pytest.raises(DataError, match="fewer pages than its description"):
        decode(file.replace(b'SizeC="2"', b'SizeC="6"'))


def test_rows_that_were_written_as_pages_are_not_channels(tmp_path) -> None:
    """`imwrite` of (height, width, 13) makes a page of each row."""
    image = values("u2", 13)[:, :HEIGHT]
    tifffile.imwrite(tmp_path / "a.tif", image)
    with pytest.raises(DataError, match=r"33 pages of 33 x 13.*data\.layout=hwc.*data\.layout=chw"):
        decode(tmp_path / "a.tif")
    np.testing.assert_array_equal(decode(LaidFile(str(tmp_path / "a.tif"), "hwc")), image)
    rows = decode(LaidFile(str(tmp_path / "a.tif"), "chw"))
    np.testing.assert_array_equal(rows, np.moveaxis(image, 0, 2))
    for channels in (2, 13):
        tifffile.imwrite(tmp_path / "b.tif", values("u2", channels))
        with pytest.raises(DataError, match=f"33 pages of 47 x {channels}"):
            decode(tmp_path / "b.tif")


# ---- Colours


def test_cmyk_is_rgb_at_its_own_depth() -> None:
    for kind, largest in (("u1", 255), ("u2", 65535)):
        inks = values(kind, 4)
        light = largest - inks.astype("f8")
        image = decode(tiff(inks, photometric="separated", compression="lzw"))
        assert image.dtype == kind
        assert np.abs(image - light[..., :3] * light[..., 3:] / largest).max() <= 1


def test_a_palette_is_its_colours() -> None:
    indices, colours = values("u1", 1)[..., 0], RNG.integers(0, 256, (3, 256), dtype=np.uint16)
    for scale in (1, 257):  # 16 bits, or 8 bits that were not scaled
        file = tiff(indices, photometric="palette", colormap=colours * scale, compression="lzw")
        np.testing.assert_array_equal(decode(file), colours.T[indices].astype("u1"), strict=True)


@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
@pytest.mark.parametrize(
    ("extras", "alpha"),
    [(["unassalpha"], "straight"), (["assocalpha"], "premultiplied"), (["unspecified"], "unspecified")],
)
def test_extra_samples_are_told_apart(kind: str, extras: list[str], alpha: str) -> None:
    rgba = values(kind, 4)
    file = tiff(rgba, photometric="rgb", extrasamples=extras, compression="deflate")
    found = decode_all(file)
    np.testing.assert_array_equal(found.pixels, as_read(rgba))
    assert (found.alpha, found.alpha_channel) == (alpha, 3)
    assert decode(file).shape[2] == (4 if alpha == "unspecified" else 3)


def test_an_alpha_that_is_called_one_among_measured_channels_stays() -> None:
    array = values("f4", 5)
    found = decode_all(tiff(array, planarconfig="contig", extrasamples=["assocalpha"] + ["unspecified"] * 3))
    assert found.alpha == "none" and found.pixels.shape[2] == 5


def test_ycbcr_is_rgb_or_refused() -> None:
    luma = values("u1", 3)
    expected = np.asarray(Image.frombytes("YCbCr", (WIDTH, HEIGHT), luma.tobytes()).convert("RGB"))
    np.testing.assert_array_equal(decode(tiff(luma, photometric="ycbcr", compression="lzw")), expected)
    file = tiff(luma, photometric="ycbcr")
    with tifffile.TiffFile(io.BytesIO(file)) as opened:
        at = opened.pages[0].tags["YCbCrSubSampling"].valueoffset
    with pytest.raises(DataError, match=r"chroma of a lower resolution.*save it as RGB"):
        decode(file[:at] + struct.pack("<HH", 2, 2) + file[at + 4 :])


# ---- Damage


def test_an_assertion_of_tifffile_is_damage() -> None:
    """Three pages, of which the first has 77 bits per value."""
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.zeros((3, 3, 4), np.uint8), photometric="minisblack")
    stream.seek(0)
    with tifffile.TiffFile(stream) as tiff:
        offset = tiff.pages[0].tags["BitsPerSample"].valueoffset
        file = bytearray(stream.getvalue())
    file[offset : offset + 2] = (77).to_bytes(2, "little")
    with tifffile.TiffFile(io.BytesIO(file)) as tiff, pytest.raises(AssertionError):
        _ = tiff.series
    with pytest.raises(DataError, match="damaged or cut short"):
        decode(bytes(file))


@pytest.mark.parametrize("codec", [None, "lzw", "deflate", "zstd", "jpeg", "jpegxr", "packbits"])
def test_a_file_that_is_cut_is_refused(codec: str | None) -> None:
    file = tiff(RGB, photometric="rgb", compression=codec, rowsperstrip=8)
    for share in (0.4, 0.7, 0.95):
        with pytest.raises(DataError, match="damaged or cut short"):
            decode(file[: int(len(file) * share)])


def test_a_compression_that_is_not_read_is_named() -> None:
    file = tiff(GREY)
    with tifffile.TiffFile(io.BytesIO(file)) as opened:
        at = opened.pages[0].tags["Compression"].valueoffset
    with pytest.raises(DataError, match=r"\(NEXT\); pip install -U imagecodecs"):
        decode(file[:at] + struct.pack("<H", 32766) + file[at + 2 :])


def test_smaller_pages_that_are_not_marked_are_said_to_be_left_out() -> None:
    """A half-size second page may be an overview, or an image."""
    second = RGB[: HEIGHT // 2, : WIDTH // 2]
    for marked in (True, False):
        how = AS_RGB | ({"subfiletype": 1} if marked else {})
        with noting("auto") as reading:
            np.testing.assert_array_equal(decode(pages((RGB, AS_RGB), (second, how))), RGB)
        assert reading.notes == ([] if marked else [SMALLER])


def test_several_images_of_one_size_are_counted() -> None:
    file = pages(
        (PLANES[0], {"metadata": {"axes": "YX"}}), (PLANES[1], {"metadata": {"axes": "YX"}}), ome=True
    )
    with pytest.raises(
        DataError, match=r"holds 2 images \(33 x 47 uint16 each\); save each as a separate file"
    ):
        decode(file)


def test_inks_that_are_not_cmyk_are_refused() -> None:
    inks = values("u1", 4)
    for ink_set in (1, 2):
        file = tiff(inks, photometric="separated", extratags=[(332, 3, 1, ink_set, True)])
        if ink_set == 1:
            assert decode(file).shape == (HEIGHT, WIDTH, 3)
        else:
            with pytest.raises(DataError, match="inks other than CMYK; save it as RGB"):
                decode(file)


def test_pages_with_palettes_or_turned_otherwise_are_no_channels() -> None:
    indices, colours = values("u1", 1)[..., 0], RNG.integers(0, 65_536, (3, 256)).astype(np.uint16)
    palette = {"photometric": "palette", "colormap": colours}
    with pytest.raises(DataError, match="2 pages with colour palettes; save each as a separate file"):
        decode(pages((indices, palette), (indices[::-1], palette)))
    turned = [{"extratags": [(274, 3, 1, orientation, True)]} for orientation in (1, 3)]
    with pytest.raises(DataError, match="pages of different sizes or kinds"):
        decode(pages((indices, turned[0]), (indices, turned[1])))
    image = decode(pages((indices, turned[1]), (indices // 2, turned[1])))
    np.testing.assert_array_equal(image, np.dstack([indices, indices // 2])[::-1, ::-1])
