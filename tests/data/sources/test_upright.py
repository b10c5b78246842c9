"""Whether images have an up: gravity and letters show it, what a camera does to every image does not."""

import numpy as np
import pytest
from jaxtyping import Float32

from byol.data.sources.upright import THUMBNAIL_PX, measure_upright

PX = THUMBNAIL_PX
ROWS, COLUMNS = np.mgrid[0:PX, 0:PX] / (PX - 1.0)
Images = Float32[np.ndarray, "image side side"]


def make_blobs(num: int, *, seed: int = 0) -> Images:
    """A round thing somewhere near the middle, of any size and brightness, and noise."""
    rng = np.random.default_rng(seed)
    row, column = rng.normal(0.5, 0.08, (2, num, 1, 1))
    size, brightness = rng.uniform(0.1, 0.3, (num, 1, 1)), rng.uniform(0.3, 1.0, (num, 1, 1))
    blobs = brightness * np.exp(-((ROWS - row) ** 2 + (COLUMNS - column) ** 2) / (2.0 * size**2))
    return (blobs + rng.normal(0.0, 0.05, blobs.shape)).astype(np.float32)


def make_skies(num: int) -> Images:
    """Bright above a horizon that lies high or low."""
    horizon = np.random.default_rng(1).uniform(0.2, 0.8, (num, 1, 1))
    return make_blobs(num) + np.float32(0.5) * (horizon > ROWS).astype(np.float32)


def make_letters(num: int) -> Images:
    """An F of any place and brightness."""
    rng = np.random.default_rng(2)
    images = np.zeros((num, PX, PX), dtype=np.float32)
    for image, (top, left) in zip(images, rng.integers(1, 6, (num, 2)), strict=True):
        image[top : top + 9, left] = image[top, left : left + 6] = image[top + 4, left : left + 5] = 1.0
    return (images * rng.uniform(0.3, 1.0, (num, 1, 1)) + rng.normal(0.0, 0.05, images.shape)).astype("f4")


def make_lit_from_a_corner(num: int) -> Images:
    return make_blobs(num) + (0.4 * ROWS + 0.3 * COLUMNS).astype(np.float32)


def make_slanted(num: int) -> Images:
    """Edges that run from the upper left to the lower right: a line scan of things that pass askew."""
    rng = np.random.default_rng(3)
    place, width = rng.normal(0.0, 0.3, (num, 1, 1)), rng.uniform(0.05, 0.3, (num, 1, 1))
    sign = rng.choice([-1.0, 1.0], (num, 1, 1))
    return make_blobs(num) + (sign * np.exp(-(((ROWS - COLUMNS - place) / width) ** 2))).astype(np.float32)


@pytest.mark.parametrize("make", [make_skies, make_letters])
def test_gravity_and_letters_have_an_up(make: object) -> None:
    assert callable(make)
    assert measure_upright(make(400)) > 0.7


@pytest.mark.parametrize("make", [make_blobs, make_lit_from_a_corner, make_slanted])
def test_marks_of_the_camera_are_no_up(make: object) -> None:
    assert callable(make)
    assert measure_upright(make(400)) < 0.58


def test_unit_and_brightness_do_not_matter() -> None:
    images = make_skies(200)
    assert measure_upright(images * 3000.0 + 100.0) == pytest.approx(measure_upright(images), abs=0.02)


@pytest.mark.parametrize("images", [make_skies(49), np.ones((100, PX, PX), dtype=np.float32)])
def test_of_few_or_equal_images_nothing_is_said(images: Images) -> None:
    assert measure_upright(images) == 0.5
