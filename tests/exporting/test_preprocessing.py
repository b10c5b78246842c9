"""Preprocessing in an exported graph is that of `Encoder.embed`: Pillow's to the bit for whole numbers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from byol.data.decode.image import read_square
from byol.encoder.spec import EncoderSpec
from byol.exporting.parity import draw_images
from byol.exporting.preprocessing import Preprocessing
from byol.method.views import Pixels, whole_view
from runs import make_spec

STORED, SEEN = 37, 48
RANGES = {8: (0.0, 255.0), 16: (100.0, 4000.0), 32: (-3.0, 7.0)}
SIZES = (  # both shrink, one grows, both grow; tall ones, of which Pillow resizes rows first; as stored
    (37, 37), (48, 37), (100, 61), (61, 100), (301, 407), (20, 90), (500, 3), (150, 3), (20, 11), (1, 5),
    (37, 200),
)  # fmt: skip


def make(bits: int, channels: int, geometry: str) -> EncoderSpec:
    low, high = RANGES[bits]
    pixels = Pixels((low,) * channels, (high,) * channels, (0.4,) * channels, (0.25,) * channels)
    return replace(
        make_spec(),
        bits=bits,
        channels=channels,
        stored_px=STORED,
        whole_px=SEEN,
        geometry=geometry,
        pixels=pixels,
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("geometry", ["square", "scale"])
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_it_is_that_of_embed(bits: int, channels: int, geometry: str) -> None:
    spec = make(bits, channels, geometry)
    preprocess = Preprocessing(spec)
    place = preprocess.squash if geometry == "square" else preprocess.place
    for height, width in SIZES:
        images = draw_images(spec, 2, height, width)
        rows = images.permute(0, 2, 3, 1).numpy()
        squares = [read_square(row, px=STORED, channels=None, geometry=geometry).pixels for row in rows]  # type: ignore[arg-type]
        expected = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)
        found = place(images)
        if bits < 32:
            assert torch.equal(found, expected.double()), (height, width)
        torch.testing.assert_close(found, expected.double(), atol=1e-5, rtol=0, msg=f"{height}x{width}")
        views = whole_view(expected, SEEN, pixels=spec.pixels)
        torch.testing.assert_close(preprocess(images), views, atol=2e-6, rtol=0)


def test_values_at_the_ends_of_the_type_are_not_clipped_and_others_are() -> None:
    """uint16 that fills its type, as 8 bits do."""
    spec = replace(make(16, 1, "square"), whole_px=None, view_px=STORED)
    full = replace(spec, pixels=Pixels((0.0,), (65535.0,), (0.0,), (1.0,)))
    images = (
        torch.tensor([0, 65535], dtype=torch.int32).to(torch.uint16)[:, None, None, None].expand(2, 1, 40, 50)
    )
    assert Preprocessing(full)(images).unique().tolist() == [0.0, 1.0]
    clipped = replace(spec, pixels=Pixels((100.0,), (4000.0,), (0.0,), (1.0,)))
    assert Preprocessing(clipped)(images).unique().tolist() == [0.0, 1.0]
