"""Detect collapse from projections of a fixed set of images, and compare the encoder with that of step 0.

The loss cannot show collapse: it is lowest when every image gets the same projection. The comparison with
step 0 uses representations and no labels, for example view-retrieval accuracy.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from byol.base.text_table import percent

Verdict = Literal["healthy", "weak", "collapsing", "collapsed"]

NUM_IMAGES = 256  # in the fixed set, if the data has that many
# Upper bounds: feature std as a fraction of the ideal 1/sqrt(D), effective rank as a fraction of its maximum.
_BOUNDS: tuple[tuple[Verdict, float, float], ...] = (
    ("collapsed", 0.03, 0.0),
    ("collapsing", 0.15, 0.015),
    ("weak", 0.40, 0.03),
)
_NEIGHBOURS = 5
# An encoder is worse below these fractions of its retrieval accuracy (and 5 points lower) or rank at step 0.
_WORSE_RETRIEVAL, _WORSE_RETRIEVAL_BY, _WORSE_RANK = 0.8, 0.05, 0.5


@dataclass(frozen=True)
class Health:
    """Feature std, 0 (collapsed) .. 1/sqrt(D), effective rank, 1 .. D, and the verdict from both."""

    feature_std: float
    rank: float
    verdict: Verdict


def measure_feature_std(projection: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """Return the std over images of the l2-normalised projection, averaged over dimensions. No host sync.

    It is 1/sqrt(D) if directions are spread evenly over the sphere, and 0 if all are equal.
    """
    return torch.nn.functional.normalize(projection.float(), dim=1).std(dim=0, correction=0).mean()


def measure_rank(projection: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """Effective rank of the centred, l2-normalised projections: exp of the entropy of their singular values.

    Roy and Vetterli 2007; RankMe (arXiv 2210.02885, eq. 2). The mean is subtracted first, so that a common
    direction does not count.
    """
    normalised = torch.nn.functional.normalize(projection.float(), dim=1)
    values = torch.linalg.svdvals(normalised - normalised.mean(dim=0))
    share = values / values.sum().clamp_min(1e-12)
    return torch.exp(-(share * torch.log(share.clamp_min(1e-12))).sum())


@dataclass(frozen=True)
class Measures:
    """Measures of the encoder's representations of the fixed images; computing them trains nothing."""

    retrieval: float  # view-retrieval accuracy, see `measure_retrieval`; 0..1
    encoder_rank: float  # effective rank of the representations, 1..features
    knn: float | None  # kNN accuracy, 0..1, see `measure_knn`; None without labels of two classes
    alignment: float | None = None  # 0 .. 4, see `measure_alignment`; None in old records, like the next
    uniformity: float | None = None  # -4 .. 0, see `measure_uniformity`


def measure_retrieval(
    features1: Float[Tensor, "image feature"], features2: Float[Tensor, "image feature"]
) -> Float[Tensor, ""]:
    """View-retrieval accuracy: fraction of images whose second view is nearest to their own first view, 0..1.

    Similarity is the cosine of representations after subtracting the mean of the first or second views.
    Without that, the common mean would dominate the cosine.
    """
    centred = (x.float() - x.float().mean(dim=0) for x in (features1, features2))
    unit1, unit2 = (torch.nn.functional.normalize(x, dim=1) for x in centred)
    nearest = (unit2 @ unit1.T).argmax(dim=1)
    return (nearest == torch.arange(len(nearest), device=nearest.device)).float().mean()


def measure_alignment(
    features1: Float[Tensor, "image feature"], features2: Float[Tensor, "image feature"]
) -> Float[Tensor, ""]:
    """Mean of |u - v|^2 over the two views of each image, on the unit sphere; 0 (identical) .. 4.

    Wang and Isola 2020 (arXiv 2005.10242), section 4.1 with alpha 2. A low value is good only together with
    low uniformity: a collapsed encoder has 0 for both.
    """
    unit1, unit2 = (torch.nn.functional.normalize(x.float(), dim=1) for x in (features1, features2))
    return (unit1 - unit2).square().sum(dim=1).mean()


def measure_uniformity(features: Float[Tensor, "image feature"]) -> Float[Tensor, ""]:
    """Log of the mean of exp(-2 |u - v|^2) over all pairs of images, on the unit sphere; needs two images.

    Wang and Isola 2020, section 4.1 with t 2. It is 0 if all are equal, and near -4 if they are spread evenly
    in many dimensions.
    """
    unit = torch.nn.functional.normalize(features.float(), dim=1)
    distances = torch.pdist(unit).square()
    return torch.logsumexp(-2.0 * distances, dim=0) - math.log(len(distances))


def measure_knn(features: Float[Tensor, "image feature"], labels: Int64[Tensor, " image"]) -> float | None:
    """Leave-one-out 5-NN accuracy by cosine similarity and majority vote, 0..1. Waits for the device.

    `labels` are -1 where unknown. Returns None unless at least two classes have 2 or more labelled images.
    """
    known = labels >= 0
    classes, counts = labels[known].unique(return_counts=True)  # type: ignore[no-untyped-call]
    if int((counts >= 2).sum()) < 2:
        return None
    unit, targets = torch.nn.functional.normalize(features[known].float(), dim=1), labels[known]
    likeness = (unit @ unit.T).fill_diagonal_(-2.0)
    nearest = targets[likeness.topk(min(_NEIGHBOURS, len(unit) - 1), dim=1).indices]
    votes = (nearest[:, :, None] == classes).sum(dim=1)
    return float((classes[votes.argmax(dim=1)] == targets).float().mean())


def compare(now: Measures, before: Measures) -> tuple[str, str]:
    """Return two lines for the end of a run that compare each measure at step 0 with its value now."""
    parts = [
        f"view-retrieval accuracy {percent(before.retrieval)} -> {percent(now.retrieval)}",
        f"effective rank {before.encoder_rank:.1f} -> {now.encoder_rank:.1f}",
    ]
    if before.knn is not None and now.knn is not None:
        parts.append(f"kNN accuracy {percent(before.knn)} -> {percent(now.knn)}")
    return (
        f"quick check on up to {NUM_IMAGES} images, before -> after training (too few to judge by: run byol "
        "eval):",
        ", ".join(parts),
    )


def has_lost_rank(now: Measures, before: Measures) -> bool:
    """Return whether the effective rank of the representations is below half of what it was."""
    return now.encoder_rank < _WORSE_RANK * before.encoder_rank


def describe_loss(now: Measures, before: Measures) -> str | None:
    """Describe the measure by which the encoder is clearly worse than before, or return None.

    No labels are used.

    Clearly worse means: view-retrieval accuracy is below 0.8 of what it was and 5 points lower, or the rank
    is below half.
    """
    least = min(before.retrieval * _WORSE_RETRIEVAL, before.retrieval - _WORSE_RETRIEVAL_BY)
    if now.retrieval < least:
        return f"view-retrieval accuracy {percent(before.retrieval)} -> {percent(now.retrieval)}"
    if has_lost_rank(now, before):
        return f"effective rank {before.encoder_rank:.1f} -> {now.encoder_rank:.1f}"
    return None


def judge(projection: Float[Tensor, "batch dim"]) -> Health:
    """Judge a network's health from its projections of the fixed set. Waits for the device."""
    feature_std, rank = float(measure_feature_std(projection)), float(measure_rank(projection))
    std_share, rank_share = feature_std * projection.shape[1] ** 0.5, rank / min(projection.shape)
    for verdict, std_bound, rank_bound in _BOUNDS:
        if std_share < std_bound or rank_share < rank_bound:
            return Health(feature_std, rank, verdict)
    return Health(feature_std, rank, "healthy")
