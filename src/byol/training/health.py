"""Is it learning or has it collapsed? Measured on projections of a fixed set of images, in one word.

The loss cannot tell: it is lowest when every image gets the same projection.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Verdict = Literal["healthy", "weak", "collapsing", "collapsed"]

NUM_IMAGES = 256  # of the fixed set, where the data has as many
# Upper bounds: feature std as a share of its ideal 1/sqrt(D), effective rank as a share of its largest.
_BOUNDS: tuple[tuple[Verdict, float, float], ...] = (
    ("collapsed", 0.03, 0.0),
    ("collapsing", 0.15, 0.015),
    ("weak", 0.40, 0.03),
)
ADVICE = (
    "try a lower learning rate (optimizer.params.lr), a larger trainer.m, or views that keep more of the "
    "image (data_transforms.view1.crop_area)"
)


@dataclass(frozen=True)
class Health:
    """`feature_std` 0 (collapsed) .. 1/sqrt(D); effective `rank` 1 .. D; and the word for both."""

    feature_std: float
    rank: float
    verdict: Verdict


def measure_feature_std(projection: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """Mean over dimensions of the std, over images, of the l2-normalised projection. The host does not wait.

    1/sqrt(D) where directions are spread evenly over the sphere, 0 where all are the same.
    """
    return torch.nn.functional.normalize(projection.float(), dim=1).std(dim=0, correction=0).mean()


def measure_rank(projection: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """Effective rank of the centred, l2-normalised projections: exp of the entropy of their singular values.

    Roy and Vetterli 2007; RankMe (arXiv 2210.02885, eq. 2) with the mean taken away, so that one common
    direction does not count.
    """
    normalised = torch.nn.functional.normalize(projection.float(), dim=1)
    values = torch.linalg.svdvals(normalised - normalised.mean(dim=0))
    share = values / values.sum().clamp_min(1e-12)
    return torch.exp(-(share * torch.log(share.clamp_min(1e-12))).sum())


def judge(projection: Float[Tensor, "batch dim"]) -> Health:
    """The health of a network from its projections of the fixed set. The host waits here."""
    feature_std, rank = float(measure_feature_std(projection)), float(measure_rank(projection))
    std_share, rank_share = feature_std * projection.shape[1] ** 0.5, rank / min(projection.shape)
    for verdict, std_bound, rank_bound in _BOUNDS:
        if std_share < std_bound or rank_share < rank_bound:
            return Health(feature_std, rank, verdict)
    return Health(feature_std, rank, "healthy")
