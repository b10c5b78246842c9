"""A look at some images: what is said of kinds, ranges and content."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from byol.base.errors import DataError
from byol.config import load_partial
from byol.data.sources.opening import open_source
from byol.data.sources.survey import Survey, survey


def look(source: Path, *overrides: str, most: int = 1000) -> Survey:
    data = load_partial(None, [f"data.source={source}", *overrides], preset="default").config.data
    return survey(open_source(data), most=most, channels=data.channels, num_workers=1)


def noise(seed: int, *shape: int, most: int = 256, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(seed).integers(0, most, shape).astype(dtype)


def save(folder: Path, *images: np.ndarray, first: int = 0) -> Path:
    for number, image in enumerate(images, start=first):
        if image.dtype == np.uint8:
            Image.fromarray(image).save(folder / f"{number:03d}.png")
        else:
            tifffile.imwrite(folder / f"{number:03d}.tif", image)
    return folder


def test_sizes_ranges_and_numbers(tmp_path: Path) -> None:
    found = look(save(tmp_path, *(noise(seed, 20, 20 + seed, 3) for seed in range(21))))
    assert (found.num_images, found.num_looked_at, found.num_bad) == (21, 21, 0)
    assert (found.channels, found.bits, found.used_bits, found.is_grey) == (3, 8, 8, False)
    assert found.sides == (20, 30, 39, 40) and not found.one_size
    assert max(found.low) < 5 and min(found.high) > 250
    assert (found.blank, found.upright) == (0.0, 0.5)


def test_at_most_so_many_are_looked_at_in_even_steps(tmp_path: Path) -> None:
    images = [noise(seed, 8, 8) for seed in range(10)]
    images[1::2] = [noise(seed, 8, 16) for seed in range(5)]
    found = look(save(tmp_path, *images), most=5)
    assert (found.num_images, found.num_looked_at, found.one_size) == (10, 5, True)


@pytest.mark.parametrize(("most", "used"), [(4096, 12), (2**16, 16), (100, 8)])
def test_used_bits(tmp_path: Path, most: int, used: int) -> None:
    images = [noise(seed, 30, 30, most=most, dtype="uint16") for seed in range(4)]
    found = look(save(tmp_path, *images))
    assert (found.bits, found.used_bits) == (16, used)
    assert 0.97 * most < found.high[0] < most


def test_grey_saved_as_rgb(tmp_path: Path) -> None:
    greys = [noise(seed, 9, 9, 1).repeat(3, axis=2) for seed in range(4)]
    assert look(save(tmp_path, *greys)).is_grey
    assert look(tmp_path, "data.channels=grey").channels == 1
    save(tmp_path, noise(9, 9, 9, 3), first=4)
    assert not look(tmp_path).is_grey


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_blank_images(tmp_path: Path, dtype: str) -> None:
    images = [noise(seed, 20, 20, dtype=dtype) for seed in range(10)]
    for image in images[:3]:
        image[:] = 100
    assert look(save(tmp_path, *images)).blank == pytest.approx(0.3)


def test_the_most_common_kind_counts(tmp_path: Path) -> None:
    save(tmp_path, *(noise(seed, 9, 9, 3) for seed in range(5)))
    alone = look(tmp_path)
    save(tmp_path, noise(0, 50, 50), noise(1, 50, 50), first=5)
    (tmp_path / "999.png").write_text("not an image")
    mixed = look(tmp_path)
    assert mixed == replace(alone, num_images=8, num_looked_at=8, num_bad=1)


def test_nothing_readable(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_text("not an image")
    with pytest.raises(
        DataError, match=r"none of the 2 images .* 'a.png': is text, not an image of a known format"
    ):
        look(tmp_path)


def test_channels_that_are_not_there(tmp_path: Path) -> None:
    save(tmp_path, noise(0, 9, 9))
    with pytest.raises(
        DataError, match=r"has 1 channels, numbered from 0; data.channels=\[0, 3\] does not fit"
    ):
        look(tmp_path, "data.channels=[0,3]")
