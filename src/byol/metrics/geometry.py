"""Label-free measures of features, and whether the trained encoder beats the untrained one by them.

They are those of `metrics/health.py`: effective rank, alignment, uniformity and view-retrieval accuracy. Here
they use more images and a frozen encoder, and retrieval has an interval.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32

from byol.base.text_table import percent
from byol.metrics import health
from byol.metrics.probes import bootstrap_interval

_NUM_BOOTSTRAP = 2000
_LEAST_GAIN = 0.1  # of alignment + uniformity; samples of 256 images differ by 0.03 (docs/decisions.md)
_LOST_RANK = 0.25  # fraction of the untrained encoder's rank below which there is no positive verdict

_ADVICE = (
    "This is common after a short training: train longer. If the training was long, look at the views in the "
    "report of byol check: each view should still show what matters in its image."
)

Features = Float32[np.ndarray, "image feature"]


@dataclass(frozen=True)
class Geometry:
    """The label-free measures of one encoder."""

    rank: float  # effective rank, 1 .. max_rank: RankMe (arXiv 2210.02885), see `health.measure_rank`
    max_rank: int
    alignment: float  # of the two views, 0 .. 4, low is good; Wang and Isola 2020 (arXiv 2005.10242)
    uniformity: float  # of first views, about -4 .. 0, low is good; from the same paper
    retrieval: (
        float  # view-retrieval accuracy: fraction of images whose second view retrieves the first, 0 .. 1
    )
    retrieval_low95: float  # bootstrap over the images
    retrieval_high95: float


def measure(whole: Features, first: Features, *, second: Features, seed: int) -> Geometry:
    """Compute the measures from features of whole images and of two views of each image.

    Time and memory grow with the square of the number of images; 2,048 take about a second. Uniformity needs
    at least two images.
    """
    whole_t, first_t, second_t = (torch.from_numpy(np.array(x)) for x in (whole, first, second))
    retrieval = float(health.measure_retrieval(first_t, second_t))
    found = np.arange(len(first)) < round(retrieval * len(first))
    low, high = bootstrap_interval(found, seed=seed, num=_NUM_BOOTSTRAP)
    return Geometry(
        rank=float(health.measure_rank(whole_t)),
        max_rank=min(len(whole) - 1, whole.shape[1]),  # subtracting the mean removes one dimension
        alignment=float(health.measure_alignment(first_t, second_t)),
        uniformity=float(health.measure_uniformity(first_t)),
        retrieval=retrieval,
        retrieval_low95=low,
        retrieval_high95=high,
    )


def judge(trained: Geometry, untrained: Geometry) -> str:
    """Say in one sentence whether the trained encoder is better than the untrained one.

    The criterion is -(alignment + uniformity), which `training/best.py` also uses to pick the best encoder:
    it rewards similar views of an image and dissimilar images. Some useless encoder is best by each measure
    alone. Therefore a clear loss of view-retrieval accuracy, or of three quarters of the rank, overrules the
    criterion.
    """
    figures = (
        f"alignment + uniformity {_loss(trained):.2f} (untrained {_loss(untrained):.2f}; lower is better), "
        f"view-retrieval accuracy {percent(trained.retrieval)} (untrained {percent(untrained.retrieval)}; "
        "higher is better)"
    )
    gain = _loss(untrained) - _loss(trained)
    start, rule = (
        "Judged without labels, the trained encoder is",
        "alignment + uniformity, the deciding measure,",
    )
    if trained.retrieval_high95 < untrained.retrieval_low95:
        return (
            f"{start} WORSE than the untrained one, because its view-retrieval accuracy is lower and the "
            f"intervals do not overlap: {figures}. {_ADVICE}"
        )
    if gain < -_LEAST_GAIN:
        return f"{start} WORSE than the untrained one, because {rule} is higher: {figures}. {_ADVICE}"
    if gain <= _LEAST_GAIN:
        return (
            f"{start} not better than the untrained one: for that, {rule} must be lower by more than "
            f"{_LEAST_GAIN:g}: {figures}. {_ADVICE}"
        )
    if trained.rank < _LOST_RANK * untrained.rank:
        return (
            "Measures without labels cannot tell whether the trained encoder is better than the untrained "
            f"one, because it lost more than three quarters of its effective rank: {trained.rank:.0f} "
            f"(untrained {untrained.rank:.0f}), {figures}."
        )
    return f"{start} better than the untrained one, because {rule} is lower: {figures}."


def _loss(geometry: Geometry) -> float:
    return geometry.alignment + geometry.uniformity
