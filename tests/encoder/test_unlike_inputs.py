"""Inputs in other forms than files have: `embed` gives the right features, or refuses with the next step."""

from pathlib import Path

import numpy as np
import pytest
import torch

from byol.base.errors import DataError, ValueRangeWarning
from byol.encoder.encoder import Encoder, load
from byol.exporting.parity import draw_images
from exports import Case

SIZE = (3, 20, 18)  # images, height, width


def open_encoder(folder: Path, *, bits: int = 8, channels: int = 3) -> Encoder:
    case = Case("test_resnet", "small", channels, bits, view_px=16, stored_px=16)  # type: ignore[arg-type]
    return load(case.save(folder), device="cpu")


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_first_are_found(channels: int, bits: int, tmp_path: Path) -> None:
    encoder = open_encoder(tmp_path, bits=bits, channels=channels)
    first = draw_images(encoder.spec, *SIZE)
    last = np.moveaxis(first.numpy(), 1, -1)
    expected = encoder.embed(last)
    for images in (first, first.numpy(), list(first), list(first.numpy())):
        np.testing.assert_array_equal(encoder.embed(images), expected)
    for image in (first[0], first[0].numpy()):  # a batch of one is computed in another order
        np.testing.assert_allclose(encoder.embed(image), expected[:1], rtol=1e-3, atol=1e-6)


def test_a_tensor_with_the_channels_last_is_refused(tmp_path: Path) -> None:
    encoder = open_encoder(tmp_path)
    last = draw_images(encoder.spec, *SIZE).permute(0, 2, 3, 1)
    with pytest.raises(DataError, match=r"image 0: has 20 channels, but the encoder was trained on 3"):
        encoder.embed(last)


@pytest.mark.parametrize("bits", [8, 16])
def test_scaled_and_normalised_floats_are_refused(bits: int, tmp_path: Path) -> None:
    encoder = open_encoder(tmp_path, bits=bits)
    unit = torch.rand(SIZE[0], 3, *SIZE[1:])
    for images in (
        unit,
        unit.numpy(),
        unit.permute(0, 2, 3, 1).numpy(),
        (unit - 0.5) / 0.2,
        list(unit.double()),
    ):
        with pytest.raises(DataError, match=rf"image 0: .*floating-point.*{bits}-bit.*give values as"):
            encoder.embed(images)


def test_floats_are_told_if_the_encoder_was_trained_on_larger_ones(tmp_path: Path) -> None:
    encoder = open_encoder(tmp_path, bits=32)
    pixels = encoder.spec.pixels
    object.__setattr__(pixels, "low", (0.0,) * 3)
    object.__setattr__(pixels, "high", (4095.0,) * 3)
    unit = torch.rand(3, *SIZE[1:])
    for images in (unit, (unit - 0.5) / 0.2):
        with pytest.warns(
            ValueRangeWarning,
            match=r"image 0: channel 0: .* 4095; check how the image was recorded and scaled",
        ):
            encoder.embed(images)
