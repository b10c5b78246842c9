"""Pictures of a set: tiles for any number of channels, views as they are made."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from byol.config import DataTransforms, load_config
from byol.pictures.sheets import (
    MOST_CHANNELS,
    Sample,
    describe_mapping,
    draw_contact,
    draw_histograms,
    draw_views,
)


def make_sample(num: int, channels: int, *, px: int = 32, dtype: str = "uint8") -> Sample:
    values = np.random.default_rng(0).integers(0, 200, (num, px, px, channels)).astype(dtype)
    return Sample.of([str(row) for row in range(num)], values, np.full((num, 2), px, np.int32))


def make_transforms(*settings: str) -> DataTransforms:
    overrides = [f"data_transforms.{setting}" for setting in ("input_shape=[32,32,null]", *settings)]
    return load_config(None, overrides, preset="demo").data_transforms


def opened(png: bytes) -> Image.Image:
    image = Image.open(BytesIO(png))
    assert image.format == "PNG"
    return image


def test_the_contact_sheet_shows_the_stored_values() -> None:
    sample = make_sample(3, 3)
    sheet = np.asarray(opened(draw_contact(sample)))
    assert sheet.shape == (64, 3 * 66 - 2, 3)  # 32 px are shown at twice their size
    assert np.array_equal(sheet[::2, 66:130:2], sample.squares[1])


@pytest.mark.parametrize(
    ("channels", "size", "words"),
    [
        (1, (64, 64), "channel 0 as grey"),
        (2, (2 * 65 - 1, 64), "channels 0 to 1 of 2 as grey pictures, side by side in reading order"),
        (13, (4 * 65 - 1,) * 2, "channels 0 to 12 of 13 as grey pictures, side by side in reading order"),
        (20, (4 * 65 - 1,) * 2, "channels 0 to 15 of 20 as grey pictures, side by side in reading order"),
    ],
)
def test_any_number_of_channels(channels: int, size: tuple[int, int], words: str) -> None:
    sample = make_sample(1, channels, dtype="float32")
    sheet = opened(draw_contact(sample))
    assert (sheet.size, describe_mapping(channels)) == (size, words)
    if channels == 2:
        shown = np.asarray(sheet)[::2, 65::2, 0]
        assert np.array_equal(shown, np.rint(sample.scaled[0, ..., 1] * 255))
    assert opened(draw_histograms(sample)).height > 100 * min(channels, MOST_CHANNELS)


def test_views_are_eight_of_each_image() -> None:
    sample = make_sample(5, 3)
    still = make_transforms(*(f"view.{key}=0" for key in ("flip", "rotation", "jitter", "grey", "invert")))
    still = still.model_copy(
        update={
            name: getattr(still, name).model_copy(update={"crop_area": (1.0, 1.0), "crop_aspect": (1.0, 1.0)})
            for name in ("view1", "view2")
        }
    )
    sheet = np.asarray(opened(draw_views(sample, still, seed=0))).astype(int)
    assert sheet.shape == (5 * 66 - 2, 8 * 66 - 2, 3)
    for column in range(8):  # nothing is random: every view is the image
        shown = sheet[66:130:2, 66 * column : 66 * column + 64 : 2]
        assert np.abs(shown - sample.squares[1]).max() <= 1
    assert draw_views(sample, make_transforms(), seed=0) == draw_views(sample, make_transforms(), seed=0)
    assert draw_views(sample, make_transforms(), seed=0) != draw_views(sample, make_transforms(), seed=1)
