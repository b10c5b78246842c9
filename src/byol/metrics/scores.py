"""Score predictions: top-1, top-5, balanced accuracy, their intervals, and confusion counts.

This is the only module that compares predictions with test labels.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.special import stdtrit

from byol.metrics.probes import (
    NUM_RANKED,
    balanced_accuracy,
    bootstrap_interval,
    join_intervals,
    wilson_interval,
)

MIN_CLASSES_TOP5 = 6  # with fewer classes, five guesses are always right
MIN_GROUPS = 10  # with fewer groups, the intervals are rough

_PRIOR = 2.0  # pseudo-answers added per class when its variance is estimated
_BLOCK = 100  # group resamples in memory at once

Labels = Int64[np.ndarray, " image"]
Interval = tuple[float, float]
Counts = Float64[np.ndarray, "group klass"]


@dataclass(frozen=True)
class Scores:
    """Accuracies on the test images, 0..1, with 95 % intervals."""

    top1: float
    low95: float
    high95: float
    top5: float | None  # None below six classes
    balanced: float  # mean over classes of the per-class accuracy
    balanced_low95: float
    balanced_high95: float


def score(
    ranked: Int64[np.ndarray, "image rank"],
    labels: Labels,
    *,
    num_classes: int,
    seed: int,
    num_bootstrap: int,
    groups: Labels | None = None,
) -> Scores:
    """Compare ranked predictions (most likely class first) with the true classes.

    The intervals come from resampling groups if `groups` is set, otherwise images.
    """
    correct = ranked[:, 0] == labels
    if groups is None:
        overall = bootstrap_interval(correct, seed=seed, num=num_bootstrap)
        balanced = balanced_interval(correct, labels, seed=seed, num=num_bootstrap)
    else:
        overall, balanced = group_intervals(correct, labels, groups=groups, seed=seed, num=num_bootstrap)
    among = (ranked[:, :NUM_RANKED] == labels[:, None]).any(axis=1)
    return Scores(
        top1=float(correct.mean()),
        low95=overall[0],
        high95=overall[1],
        top5=float(among.mean()) if num_classes >= MIN_CLASSES_TOP5 else None,
        balanced=balanced_accuracy(ranked[:, 0], labels),
        balanced_low95=balanced[0],
        balanced_high95=balanced[1],
    )


def balanced_interval(
    correct: Bool[np.ndarray, " image"], labels: Labels, *, seed: int, num: int
) -> Interval:
    """Stratified 95 % percentile bootstrap interval of balanced accuracy: each class is resampled on its own.

    It is never narrower than Wilson's interval with the same variance. As in `probes.bootstrap_interval`, the
    number of correct answers per class is drawn from a binomial distribution.
    """
    rng = np.random.default_rng(seed)
    mean = np.zeros(num)
    classes, counts = np.unique(labels, return_counts=True)
    right = np.array([correct[labels == label].sum() for label in classes])
    for num_right, count in zip(right, counts, strict=True):
        mean += rng.binomial(count, num_right / count, size=num) / (count * len(classes))
    return join_intervals(_percentiles(mean), _stratified_interval(right, counts))


def _stratified_interval(right: Int64[np.ndarray, " klass"], counts: Int64[np.ndarray, " klass"]) -> Interval:
    """Wilson's interval for the effective sample size that matches the variance of the mean over classes.

    To estimate that variance, each class accuracy is shrunk towards the mean by two pseudo-answers; otherwise
    a class with one image would have no variance. With one class, or if all or no answers are right, the
    interval follows from the image counts alone.
    """
    shares = right / counts
    middle = float(shares.mean())
    smooth = (right + _PRIOR * middle) / (counts + _PRIOR)
    if 0.0 < middle < 1.0:
        variance = np.sum(smooth * (1.0 - smooth) / counts) / len(counts) ** 2
        effective = smooth.mean() * (1.0 - smooth.mean()) / variance
    else:  # the limit of the formula above
        effective = len(counts) ** 2 / np.sum(1.0 / counts)
    return wilson_interval(middle, float(effective))


def group_intervals(
    correct: Bool[np.ndarray, " image"], labels: Labels, *, groups: Labels, seed: int, num: int
) -> tuple[Interval, Interval]:
    """95 % bootstrap intervals of top-1 and balanced accuracy, from resamples of whole groups.

    Answers within a group are correlated, so resampling images would be overconfident; resampling few groups
    is as well. Each interval is therefore never narrower than that of images, nor than Wilson's interval with
    the between-group variance and Student's t quantile. A class that is missing from a resample is left out
    of its mean. With a single group the interval is that of images, because there is no between-group
    variance.
    """
    classes, column = np.unique(labels, return_inverse=True)
    names, row = np.unique(groups, return_inverse=True)
    totals, right = np.zeros((2, len(names), len(classes)))
    np.add.at(totals, (row, column), 1)
    np.add.at(right, (row, column), correct)
    rng = np.random.default_rng(seed)
    top1, balanced = [], []
    for first in range(0, num, _BLOCK):
        drawn = rng.multinomial(
            len(names), np.full(len(names), 1 / len(names)), size=min(_BLOCK, num - first)
        )
        num_right, num_images = drawn @ right, drawn @ totals
        top1.append(num_right.sum(axis=1) / num_images.sum(axis=1))
        shares = np.divide(num_right, num_images, out=np.zeros_like(num_right), where=num_images > 0)
        balanced.append(shares.sum(axis=1) / (num_images > 0).sum(axis=1))
    return (
        join_intervals(
            _percentiles(np.concatenate(top1)),
            bootstrap_interval(correct, seed=seed, num=num),
            _cluster_interval(right.sum(axis=1, keepdims=True), totals.sum(axis=1, keepdims=True)),
        ),
        join_intervals(
            _percentiles(np.concatenate(balanced)),
            balanced_interval(correct, labels, seed=seed, num=num),
            _cluster_interval(right, totals),
        ),
    )


def _cluster_interval(right: Counts, totals: Counts) -> Interval:
    """Wilson's interval with the between-group variance and Student's t quantile for (groups - 1) degrees.

    The mean over classes of right / total is linearised: each group contributes its correct answers above the
    class average. A class that lies in one group adds no variance, because there is nothing to compare it
    with.
    """
    num_groups, present = len(totals), (totals > 0).sum(axis=0)
    shares = right.sum(axis=0) / totals.sum(axis=0)
    share = float(shares.mean())
    excess = (right - shares * totals) / totals.sum(axis=0)
    excess *= np.sqrt(
        present / np.maximum(present - 1, 1)
    )  # one degree of freedom is used by the class accuracy
    variance = float((excess.mean(axis=1) ** 2).sum())
    if num_groups < 2 or variance == 0.0:
        return share, share
    quantile = float(stdtrit(num_groups - 1, 0.975))
    return wilson_interval(share, share * (1.0 - share) / variance, quantile=quantile)


def count_confusions(
    predicted: Labels, labels: Labels, *, num_classes: int
) -> Int64[np.ndarray, "truth predicted"]:
    """Count the images of each true class (row) that are predicted as each class (column)."""
    counts = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def _percentiles(values: np.ndarray) -> Interval:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
