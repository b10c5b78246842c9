"""How features lie in space, which needs no labels, and whether a trained encoder's lie better than at first.

Rank, alignment, uniformity and retrieval are those of `metrics/health.py`, here of more images, with the
encoder frozen and with an interval.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32

from byol.base.text_table import percent
from byol.metrics import health
from byol.metrics.probes import bootstrap_interval

_NUM_BOOTSTRAP = 2000
_LEAST_GAIN = 0.1  # of alignment + uniformity; draws of 256 images differ by 0.03 (docs/decisions.md)
_LOST_RANK = 0.25  # share of the untrained encoder's rank below which better retrieval is not enough

Features = Float32[np.ndarray, "image feature"]


@dataclass(frozen=True)
class Geometry:
    """What one encoder makes of some images and of two views of each."""

    rank: float  # effective rank, 1 .. max_rank: RankMe (arXiv 2210.02885), see `health.measure_rank`
    max_rank: int
    alignment: float  # of the two views, 0 .. 4, low is good; Wang and Isola 2020 (arXiv 2005.10242)
    uniformity: float  # of first views, about -4 .. 0, low is good; from the same paper
    retrieval: float  # share of images whose second view finds the first among all first views, 0 .. 1
    retrieval_low95: float  # over the images
    retrieval_high95: float


def measure(whole: Features, first: Features, *, second: Features, seed: int) -> Geometry:
    """The measures of features of whole images and of a first and a second view of each of these.

    Time and memory grow with the square of the number of images: 2,048 take about a second. For
    uniformity two images are needed.
    """
    whole_t, first_t, second_t = (torch.from_numpy(np.array(x)) for x in (whole, first, second))
    retrieval = float(health.measure_retrieval(first_t, second_t))
    found = np.arange(len(first)) < round(retrieval * len(first))
    low, high = bootstrap_interval(found, seed=seed, num=_NUM_BOOTSTRAP)
    return Geometry(
        rank=float(health.measure_rank(whole_t)),
        max_rank=min(len(whole) - 1, whole.shape[1]),  # one dimension goes with the mean
        alignment=float(health.measure_alignment(first_t, second_t)),
        uniformity=float(health.measure_uniformity(first_t)),
        retrieval=retrieval,
        retrieval_low95=low,
        retrieval_high95=high,
    )


def judge(trained: Geometry, untrained: Geometry) -> str:
    """Is the trained encoder better, in one sentence?

    -(alignment + uniformity) decides, by which `training/best.py` marks the best encoder as well: views of an
    image together, images apart. Each measure alone is best for some useless encoder, so a clear loss of
    view-retrieval accuracy, or of three quarters of the rank, overrules it.
    """
    figures = (
        f"alignment + uniformity {_loss(trained):.2f} (untrained {_loss(untrained):.2f}, lower is better), "
        f"view-retrieval accuracy {percent(trained.retrieval)} (untrained {percent(untrained.retrieval)}), "
        f"effective rank {trained.rank:.0f} (untrained {untrained.rank:.0f})"
    )
    gain = _loss(untrained) - _loss(trained)
    if trained.retrieval_high95 < untrained.retrieval_low95 or gain < -_LEAST_GAIN:
        return f"By measures without labels the trained encoder is WORSE than the untrained one: {figures}."
    if gain <= _LEAST_GAIN:
        return (
            f"By measures without labels the trained encoder is not better than the untrained one: {figures}."
        )
    if trained.rank < _LOST_RANK * untrained.rank:
        return (
            "Measures without labels cannot tell whether the trained encoder is better than the untrained "
            f"one, because it lost more than three quarters of its effective rank: {figures}."
        )
    return f"By measures without labels the trained encoder is better than the untrained one: {figures}."


def _loss(geometry: Geometry) -> float:
    return geometry.alignment + geometry.uniformity
