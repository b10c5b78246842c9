"""Transparency by each choice, of every kind of image that has it, and what is noted."""

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from byol.data.decode import reading
from byol.data.decode.image import decode, peek, read_square
from byol.data.decode.reading import Alpha, noting

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (8, 6, 3), dtype=np.uint8)
SEEN = np.indices((8, 6)).sum(0) % 3 > 0
WHITE = np.where(SEEN[..., None], COLOURS, np.uint8(255))


def encode(image: Image.Image, format: str = "png", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def rgba(colours: np.ndarray, alpha: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([colours, alpha]).astype(np.uint8))


def look(file: bytes, alpha: Alpha) -> tuple[np.ndarray, list[str]]:
    with noting(alpha) as found:
        return decode(file), found.notes


CUT_OUT = encode(rgba(COLOURS, SEEN * 255))


def test_colours_that_cannot_be_seen_do_not_count() -> None:
    rubbish = np.where(SEEN[..., None], COLOURS, RNG.integers(0, 256, COLOURS.shape, dtype=np.uint8))
    for file in (CUT_OUT, encode(rgba(rubbish, SEEN * 255)), encode(rgba(rubbish, SEEN * 255), "tiff")):
        for choice in ("auto", "mask"):
            image, notes = look(file, choice)
            np.testing.assert_array_equal(image, WHITE)
            assert notes == [reading.ON_WHITE]
        np.testing.assert_array_equal(
            read_square(file, px=5, channels=None).pixels, read_square(WHITE, px=5, channels=None).pixels
        )
    np.testing.assert_array_equal(decode(CUT_OUT), WHITE)  # auto, where nobody has said


def test_dropped_and_kept() -> None:
    image, notes = look(CUT_OUT, "drop")
    np.testing.assert_array_equal(image, COLOURS)
    assert notes == [reading.DROPPED]
    image, notes = look(CUT_OUT, "keep")
    np.testing.assert_array_equal(image, np.dstack([COLOURS, SEEN * np.uint8(255)]))
    assert notes == [reading.KEPT] and peek(CUT_OUT, alpha="keep").channels == 4
    assert peek(CUT_OUT, alpha="drop").channels == 3
    square = read_square(CUT_OUT, px=4, channels=None, alpha="keep").pixels
    np.testing.assert_array_equal(square, read_square(image, px=4, channels=None).pixels)


def test_half_transparent_values_are_laid_on_white() -> None:
    image, _ = look(encode(rgba(np.full((2, 2, 3), 100), np.full((2, 2), 51))), "mask")
    assert (image == round(100 * 0.2 + 255 * 0.8)).all()


@pytest.mark.parametrize(("colour", "ground"), [(0, 255), (40, 255), (255, 0)])
def test_a_shape_in_the_transparency_alone_is_seen(colour: int, ground: int) -> None:
    file = encode(rgba(np.full((8, 6, 3), colour), SEEN * 255))
    image, notes = look(file, "auto")
    np.testing.assert_array_equal(image[..., 0], np.where(SEEN, colour, ground))
    assert notes == [reading.ALONE]
    grey, notes = look(
        encode(Image.fromarray(np.dstack([np.full((8, 6), colour), SEEN * 255]).astype("u1"))), "auto"
    )
    np.testing.assert_array_equal(grey[..., 0], np.where(SEEN, colour, ground))
    assert look(file, "drop")[0].std() == 0


def test_without_anything_transparent_nothing_changes_and_nothing_is_said() -> None:
    file = encode(rgba(COLOURS, np.full((8, 6), 255)))
    for choice in ("auto", "mask", "drop"):
        image, notes = look(file, choice)
        np.testing.assert_array_equal(image, COLOURS)
        assert notes == []


def test_an_image_that_is_transparent_everywhere() -> None:
    file = encode(rgba(COLOURS, np.zeros((8, 6))))
    image, notes = look(file, "auto")
    np.testing.assert_array_equal(image, COLOURS)
    assert notes == [reading.VOID]
    assert (look(file, "mask")[0] == 255).all()


def test_palettes_and_a_colour_that_stands_for_nothing() -> None:
    palette = rgba(COLOURS, SEEN * 255).quantize(16)
    expected = np.asarray(palette.convert("RGBA"))
    expected = np.where(expected[..., 3:] == 255, expected[..., :3], np.uint8(255))
    np.testing.assert_array_equal(look(encode(palette), "auto")[0], expected)
    keyed = COLOURS.copy()
    keyed[~SEEN] = (1, 2, 3)
    file = encode(Image.fromarray(keyed), transparency=(1, 2, 3))
    np.testing.assert_array_equal(look(file, "auto")[0], WHITE)
    np.testing.assert_array_equal(look(file, "drop")[0], keyed)
    grey = encode(Image.fromarray(keyed[..., 0]), transparency=1)
    np.testing.assert_array_equal(
        look(grey, "auto")[0][..., 0], np.where(keyed[..., 0] == 1, 255, keyed[..., 0])
    )


def test_deep_values_become_the_median_of_the_others(tmp_path: Path) -> None:
    deep = RNG.integers(1000, 4000, (8, 6, 3), dtype=np.uint16)
    alpha = (SEEN * 65535).astype(np.uint16)
    tifffile.imwrite(
        tmp_path / "a.tif", np.dstack([deep, alpha]), photometric="rgb", extrasamples=["unassalpha"]
    )
    file = (tmp_path / "a.tif").read_bytes()
    image, notes = look(file, "auto")
    expected = np.where(SEEN[..., None], deep, np.rint(np.median(deep[SEEN], axis=0)).astype(np.uint16))
    np.testing.assert_array_equal(image, expected)
    assert notes == [reading.FILLED]
    np.testing.assert_array_equal(look(file, "drop")[0], deep)


def test_notes_are_of_what_is_read_inside_alone() -> None:
    with noting("drop") as outer:
        decode(CUT_OUT)
        with noting("auto") as inner:
            decode(CUT_OUT)
        decode(CUT_OUT)
    assert outer.notes == [reading.DROPPED] and inner.notes == [reading.ON_WHITE]
    assert read_square(CUT_OUT, px=4, channels=None, alpha="mask").notes == (reading.ON_WHITE,)


def test_animations_and_names_that_lie_are_noted(tmp_path: Path) -> None:
    frames = [Image.fromarray(COLOURS), Image.fromarray(255 - COLOURS)]
    for format in ("gif", "png", "webp"):
        file = encode(frames[0], format, save_all=True, append_images=frames[1:], lossless=True)
        assert look(file, "drop")[1] == [reading.FIRST_FRAME]
    (tmp_path / "a.jpg").write_bytes(encode(frames[0]))
    square = read_square(str(tmp_path / "a.jpg"), px=4, channels=None)
    assert square.notes == ("named .jpg, but read as PNG, which their content is",)
