"""What is outside of the training's range and what is not, by hand and for images of the training itself."""

import numpy as np
import pytest

from byol.base.errors import DataError
from byol.data.pack.statistics import count_values, summarise
from byol.data.pack.value_range import check_bits, describe_outside
from byol.method.views import Pixels

# 12-bit data in a 16-bit file: black 104, white 2304, so that the margin is 550.
PIXELS = Pixels(
    low=(104.0, 0.0),
    high=(2304.0, 60_000.0),
    mean=(0.2, 0.2),
    std=(0.1, 0.1),
    smallest=(92.0, 0.0),
    largest=(4095.0, 65_535.0),
)


def image(*values: float, dtype: type = np.uint16) -> np.ndarray:
    """These values in the first channel, each as often; 7 in the second."""
    first = np.resize(np.array(values), (10, 10))
    return np.stack([first, np.full((10, 10), 7)], axis=2).astype(dtype)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((104, 2304), None),
        ((92, 4095), None),
        ((1000, 4095 + 550), None),
        (
            (1000, 4095 + 551),
            r"channel 0: the values lie in 1000 \.\. 4646, but those of the training in 92 \.\. 4095",
        ),
        ((1, 30, 255), "channel 0: most values are clipped; they lie in 1 .. 255"),  # 8 bits in a 16-bit file
        ((1600, 16 * 2304), "channel 0: the values lie in 1600"),  # shifted to the top of the 16 bits
        ((90,), "most values are clipped"),
        ((90, 1000), None),
        ((3000, 3000, 1000), "most values are clipped"),
        ((3000, 1000), None),
    ],
)
def test_outside(values: tuple[int, ...], message: str | None) -> None:
    found = describe_outside(image(*values), PIXELS)
    if message is None:
        assert found is None
    else:
        assert found is not None and "\n" not in found
        with pytest.raises(ValueError, match=message):
            raise ValueError(found)


def test_the_first_channel_outside_is_named_and_floats_count_as_well() -> None:
    swapped = image(500.0, 1000.0)[..., ::-1].copy()
    assert (describe_outside(swapped, PIXELS) or "").startswith("channel 0: most values are clipped")
    low = image(500.0, 1000.0, dtype=np.float32)
    low[..., 1] = -20_000.0
    assert (describe_outside(low, PIXELS) or "").startswith("channel 1: the values lie in -20000 .. -20000")
    assert describe_outside(image(0, 255, dtype=np.uint8), PIXELS) is None  # 8 bit has one range


def test_an_encoder_of_before_knows_its_black_and_white_alone() -> None:
    before = Pixels(PIXELS.low, PIXELS.high, PIXELS.mean, PIXELS.std)
    assert describe_outside(image(92, 4000), before) is None
    assert "those of the training in 104 .. 2304" in (describe_outside(image(1, 30, 255), before) or "")


def test_hardly_any_image_of_the_training_is_outside() -> None:
    """Brightness differs by factors between images, some are blank: the promise is 1 in 250."""
    rng = np.random.default_rng(0)
    brightness = np.exp(rng.normal(0.0, 1.5, (500, 1, 1, 1)))
    images = (100 + brightness * rng.gamma(1.0, 100.0, (500, 8, 8, 1))).clip(0, 65535).astype(np.uint16)
    images[:20] = 100
    statistics = vars(summarise(count_values(images)))
    outside = sum(describe_outside(image, Pixels(**statistics)) is not None for image in images)
    assert outside <= 2


def test_depths() -> None:
    check_bits(16, 16)
    with pytest.raises(
        DataError, match="holds 8-bit values, but the encoder was trained on 16-bit values; give"
    ):
        check_bits(8, 16)
    with pytest.raises(DataError, match="holds floating-point values, the encoder was trained on 8-bit"):
        check_bits(32, 8)


@pytest.mark.parametrize(
    ("values", "is_outside"),
    [
        ((0.0, 0.25, 1.0), True),  # scaled to 0..1
        ((-1.8, 0.3, 2.6), True),  # normalised
        ((0.0, 0.5, 11.0), False),
        ((0.5,), False),  # a blank image
        ((0.0, 1.0, 2.0), False),  # counts
    ],
)
def test_floats_that_were_scaled_already(values: tuple[float, ...], is_outside: bool) -> None:
    """The training's range begins at 0, so that nothing is clipped."""
    pixels = Pixels((-1.0,), (1000.0,), (0.2,), (0.1,), (-5.0,), (4095.0,))
    found = describe_outside(image(*values, dtype=np.float32)[..., :1], pixels)
    assert (found is not None and "scaled already" in found) == is_outside
    narrow = Pixels((-2.0,), (3.0,), (0.2,), (0.1,), (-2.0,), (3.0,))  # trained on such values
    assert describe_outside(image(*values[:1], 0.7, dtype=np.float32)[..., :1], narrow) is None
