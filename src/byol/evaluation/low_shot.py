"""The low-shot curve: top-1 accuracy of logistic regression with few labelled images per class."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from byol.base.cache import Arrays, cache_key, load_or_make
from byol.evaluation.rows import Candidate
from byol.evaluation.splits import Splits
from byol.metrics.folds import Indices, Labels
from byol.metrics.probes import Test, Train, fit_logistic

PER_CLASS = (1, 2, 5, 10, 50)
# With one image per class there is no validation split to choose the penalty on, so it is fixed. On plankton
# its top-1 is within a point of the best penalty from 1e-4 to 1 (docs/decisions.md).
INVERSE_PENALTY = 0.1
MAX_IMAGES = 10_000  # per draw; bounds the time with many classes

_CLASS_SHARE = 0.5  # of the classes must have at least that many images


@dataclass(frozen=True)
class LowShot:
    """Top-1 accuracy, 0..1, with a few training images per class: mean and std over random draws."""

    features: str
    per_class: int
    num_draws: int
    mean: float
    std: float  # between draws


def choose_counts(splits: Splits) -> tuple[int, ...]:
    """Return the counts in `PER_CLASS` that at least half of the classes reach in every fold.

    A count that needs more than `MAX_IMAGES` images in total is left out.
    """
    counts = []
    for per_class in PER_CLASS:
        sizes = [np.unique(splits.train.labels[fold.train], return_counts=True)[1] for fold in splits.folds]
        enough = all((size >= per_class).mean() >= _CLASS_SHARE for size in sizes)
        if enough and max(size.clip(max=per_class).sum() for size in sizes) <= MAX_IMAGES:
            counts.append(per_class)
    return tuple(counts)


def draw_images(labels: Labels, *, per_class: int, seed: int, draw: int) -> Indices:
    """Draw `per_class` images of each class, or all images of a smaller class.

    For the same `draw`, a larger `per_class` adds images to the smaller sample.
    """
    rng = np.random.default_rng([seed, draw])
    members = (rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels))
    return np.sort(np.concatenate([places[:per_class] for places in members]))


def measure_low_shot(
    candidate: Candidate, splits: Splits, *, num_draws: int, seed: int, cache_folder: Path
) -> list[LowShot]:
    """Measure one point of the curve per usable number of images; all feature kinds get the same draws.

    Each draw takes its images from one fold's training set and is tested on that fold's test set. The draws
    cycle through the folds.
    """
    counts = choose_counts(splits)
    top1 = np.zeros((num_draws, len(counts)))
    for number, fold in enumerate(splits.folds[:num_draws]):
        draws = range(number, num_draws, len(splits.folds))
        known = splits.train.take(fold.train)
        features = candidate.of_fold(fold)
        key = cache_key("low-shot", candidate.transform, seed, *counts, "of", *draws, *features, known.labels)
        fit = partial(_fit, candidate, *features, labels=known.labels, counts=counts, draws=draws, seed=seed)
        predicted = load_or_make(cache_folder / f"{key}.npz", fit)[0]["predicted"]
        top1[draws] = (predicted == splits.test.labels[fold.test]).mean(axis=2)
    return [
        LowShot(candidate.name, per_class, num_draws, float(shares.mean()), float(shares.std(ddof=1)))
        for per_class, shares in zip(counts, top1.T, strict=True)
    ]


def _fit(
    candidate: Candidate,
    train: Train,
    test: Test,
    *,
    labels: Labels,
    counts: Sequence[int],
    draws: Sequence[int],
    seed: int,
) -> Arrays:
    """Predict the test classes for each draw and each number of training images."""
    predicted = np.empty((len(draws), len(counts), len(test)), dtype=np.int64)
    for at, (draw, per_class) in enumerate(product(draws, counts)):
        rows = draw_images(labels, per_class=per_class, seed=seed, draw=draw)
        few, scaled = candidate.scale(train[rows], test)
        ranked = fit_logistic(few, labels[rows], test=scaled, inverse_penalty=INVERSE_PENALTY)
        predicted[divmod(at, len(counts))] = ranked[:, 0]
    return {"predicted": predicted}
