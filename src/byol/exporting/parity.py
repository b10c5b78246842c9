"""Check that an export computes the same features as `Encoder.embed`, after it has been written."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float32, Real
from torch import Tensor

from byol.base.errors import CheckpointError
from byol.device.devices import exact_fp32
from byol.encoder.encoder import Encoder
from byol.encoder.spec import EncoderSpec
from byol.exporting.preprocessing import DTYPES

TOLERANCE = 1e-4  # largest difference between features, relative to the largest feature
_BATCHES = (1, 3, 8)

Images = Real[Tensor, "batch channel height width"]
Features = Float32[np.ndarray, "batch feature"]
Run = Callable[[Images], Features]


def check_parity(run: Run, encoder: Encoder, *, what: str) -> float:
    """Return the largest difference between the features of `run` and the encoder, relative to the largest.

    It is taken over three batches of different sizes, whose images shrink, grow, or shrink on one side only.

    Raises:
        CheckpointError: it is above TOLERANCE, or a feature is not finite.
    """
    # The images already have the channels of the encoder.
    reference = Encoder(replace(encoder.spec, select=None), encoder.module, device=str(encoder.device))
    differences = []
    for batch, (height, width) in zip(_BATCHES, _list_sizes(encoder.spec), strict=True):
        images = draw_images(encoder.spec, batch, height, width)
        expected = reference.embed(list(images))
        differences.append(find_difference(run(images), expected))
    return accept(max(differences), what=what)


def check_views_parity(run: Run, encoder: Encoder, *, what: str) -> float:
    """Do the same for a network without preprocessing: `run` gets views for the network.

    Raises:
        CheckpointError: same as `check_parity`.
    """
    spec = encoder.spec
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(max(_BATCHES), spec.channels, spec.seen_px, spec.seen_px, generator=generator)
    differences = []
    for batch in _BATCHES:
        expected = encoder.encode_views(views[:batch]).cpu().numpy()
        with torch.no_grad(), exact_fp32(views.device):
            differences.append(find_difference(run(views[:batch]), expected))
    return accept(max(differences), what=what)


def draw_images(spec: EncoderSpec, batch: int, height: int, width: int) -> Images:
    """Draw images of noise with values in the training range and slightly outside it."""
    rng = np.random.default_rng((batch, height, width))
    low, high = (np.array(ends)[None, :, None, None] for ends in (spec.pixels.low, spec.pixels.high))
    values = low + (high - low) * rng.uniform(-0.05, 1.05, (batch, spec.channels, height, width))
    if spec.bits < 32:
        values = values.round().clip(0, 2**spec.bits - 1)
    return torch.from_numpy(values).to(DTYPES[spec.bits])


def find_difference(found: Features, expected: Features) -> float:
    """Return the largest difference, relative to the largest feature; infinite if one is not finite."""
    if found.shape != expected.shape or not np.isfinite(found).all() or not np.isfinite(expected).all():
        return float("inf")
    largest = max(float(np.abs(expected).max(initial=0.0)), 1e-12)
    return float(np.abs(found - expected).max(initial=0.0)) / largest


def accept(difference: float, *, what: str) -> float:
    """Return the difference if it is small enough.

    Raises:
        CheckpointError: it is above TOLERANCE.
    """
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f"{what}: its features differ from byol's by {difference:.2g} of the largest (at most "
            f"{TOLERANCE:g} is accepted), so nothing is written; try another --format, and report this"
        )
    return difference


def _list_sizes(spec: EncoderSpec) -> tuple[tuple[int, int], ...]:
    """Return heights and widths: as stored, both larger, one smaller."""
    px = spec.stored_px
    return (px, px), (2 * px + 3, px + 7), (max(px // 2, 1), px + 5)
