"""Does an export give the features of `Encoder.embed`? It is tried when it has been written."""

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

TOLERANCE = 1e-4  # largest difference of two features, as a share of the largest feature
_BATCHES = (1, 3, 8)

Images = Real[Tensor, "batch channel height width"]
Features = Float32[np.ndarray, "batch feature"]
Run = Callable[[Images], Features]


def check_parity(run: Run, encoder: Encoder, *, what: str) -> float:
    """The largest difference between the features of `run` and the encoder's, over three batches of images.

    The batches have different sizes, and images that shrink, grow and both; relative to the largest feature.

    Raises:
        CheckpointError: it is above TOLERANCE, or a feature is not finite.
    """
    # Images have the channels of the encoder already.
    reference = Encoder(replace(encoder.spec, select=None), encoder.module, device=str(encoder.device))
    differences = []
    for batch, (height, width) in zip(_BATCHES, _list_sizes(encoder.spec), strict=True):
        images = draw_images(encoder.spec, batch, height, width)
        expected = reference.embed(list(images))
        differences.append(find_difference(run(images), expected))
    return accept(max(differences), what=what)


def check_views_parity(run: Run, encoder: Encoder, *, what: str) -> float:
    """The same of a network alone: `run` is given views as the encoder's network sees them.

    Raises:
        CheckpointError: as `check_parity`.
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
    """Images of noise whose values lie around the range of the training, some of them beyond."""
    rng = np.random.default_rng((batch, height, width))
    low, high = (np.array(ends)[None, :, None, None] for ends in (spec.pixels.low, spec.pixels.high))
    values = low + (high - low) * rng.uniform(-0.05, 1.05, (batch, spec.channels, height, width))
    if spec.bits < 32:
        values = values.round().clip(0, 2**spec.bits - 1)
    return torch.from_numpy(values).to(DTYPES[spec.bits])


def find_difference(found: Features, expected: Features) -> float:
    """The largest difference of two features, as a share of the largest; infinite if one is not finite."""
    if found.shape != expected.shape or not np.isfinite(found).all() or not np.isfinite(expected).all():
        return float("inf")
    largest = max(float(np.abs(expected).max(initial=0.0)), 1e-12)
    return float(np.abs(found - expected).max(initial=0.0)) / largest


def accept(difference: float, *, what: str) -> float:
    """The difference, if it is small enough.

    Raises:
        CheckpointError: it is not.
    """
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f"{what}: its features differ from byol's by {difference:.2g} of the largest (at most "
            f"{TOLERANCE:g} is accepted), so nothing is written; try another --format, and report this"
        )
    return difference


def _list_sizes(spec: EncoderSpec) -> tuple[tuple[int, int], ...]:
    """Heights and widths: as stored, both larger, one smaller."""
    px = spec.stored_px
    return (px, px), (2 * px + 3, px + 7), (max(px // 2, 1), px + 5)
