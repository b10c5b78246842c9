"""Do the features encode metadata (plate, day, folder) that they should not? byol warns of batch effects."""

import os.path
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64
from sklearn.covariance import ledoit_wolf
from sklearn.model_selection import StratifiedKFold

from byol.data.labels.label_file import Labels, encode_labels
from byol.metrics.probes import balanced_accuracy, standardise
from byol.metrics.scores import balanced_interval

NUM_FOLDS = 5
NUM_BOOTSTRAP = 2000
MOST_VALUES = 1000

NUM_ROWS = 10_000  # images used to judge a column
_LEAST_A_VALUE = 2 * NUM_FOLDS  # images per value, if a column has very many values
_WARN_ABOVE = 0.1  # of the distance from chance to perfect accuracy

Features = Float32[np.ndarray, "image feature"]
Values = Int64[np.ndarray, " image"]


@dataclass(frozen=True)
class ColumnScore:
    """How well the features predict a metadata column; the accuracies are balanced accuracies, 0..1."""

    column: str
    num_values: int
    accuracy: float
    low95: float
    high95: float
    chance: float
    warning: bool  # clearly above chance, and the column is not the label


def folders_of(names: Iterable[str]) -> Labels | None:
    """Return the folder of each image as a column, or None if all images lie in one folder."""
    folders = encode_labels(os.path.dirname(name) or "." for name in names)
    return folders if len(folders[1]) > 1 else None


def are_alike(one: Values, other: Int64[np.ndarray, " image"]) -> bool:
    """Return whether two columns divide the images into the same groups."""
    num_pairs = np.unique(np.stack([one, other]), axis=1).shape[1]
    return bool(num_pairs == len(np.unique(one)) == len(np.unique(other)))


def find_unusable(values: Values) -> str | None:
    """Return why a column (-1: unknown) cannot be judged, or None if it can."""
    classes, counts = np.unique(values[values >= 0], return_counts=True)
    if len(classes) < 2:
        return "has one value" if len(classes) else "is empty"
    if (counts >= NUM_FOLDS).sum() < 2:
        return f"has no two values of {NUM_FOLDS} images each"
    if (counts >= NUM_FOLDS).sum() > MOST_VALUES:
        return f"has {len(classes)} values, more than {MOST_VALUES}"
    return None


def judge_column(features: Features, values: Values, *, name: str, is_label: bool, seed: int) -> ColumnScore:
    """Predict a column from the features and return the balanced accuracy of 5-fold cross-validation.

    The classifier is linear discriminant analysis (`_discriminate`) on at most about 10,000 images, balanced
    over the values. Values with fewer than 5 images are left out. The interval is a bootstrap over images.
    `warning` is set if the interval's lower end exceeds chance by more than 10 % of the distance from chance
    to perfect accuracy and the column is not the label.
    """
    assert find_unusable(values) is None
    rows = _draw(values, seed=seed)
    classes, truth = np.unique(values[rows], return_inverse=True)
    predicted = np.empty(len(rows), dtype=np.int64)
    folds = StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=seed)
    for train, test in folds.split(truth, truth):
        fit, asked = standardise(features[rows[train]], features[rows[test]])
        predicted[test] = _discriminate(fit, truth[train], asked=asked)
    low, high = balanced_interval(predicted == truth, truth, seed=seed, num=NUM_BOOTSTRAP)
    chance = 1.0 / len(classes)
    return ColumnScore(
        column=name,
        num_values=len(classes),
        accuracy=balanced_accuracy(predicted, truth),
        low95=low,
        high95=high,
        chance=chance,
        warning=not is_label and low > chance + _WARN_ABOVE * (1.0 - chance),
    )


def _draw(values: Values, *, seed: int) -> Int64[np.ndarray, " drawn"]:
    """Draw about 10,000 rows, at most an equal share per value, from the values with at least 5 images."""
    rng = np.random.default_rng(seed)
    classes, counts = np.unique(values[values >= 0], return_counts=True)
    kept = classes[counts >= NUM_FOLDS]
    most = max(_LEAST_A_VALUE, NUM_ROWS // len(kept))
    drawn = [rng.permutation(np.flatnonzero(values == value))[:most] for value in kept]
    return np.sort(np.concatenate(drawn))


def _discriminate(
    fit: Float32[np.ndarray, "fit feature"], truth: Values, *, asked: Float32[np.ndarray, "asked feature"]
) -> Int64[np.ndarray, " asked"]:
    """Linear discriminant analysis: shared Ledoit-Wolf (2004) shrunk covariance, equal class priors.

    It has no hyper-parameters and no iterations: 10,000 images of 512 features take half a second.
    """
    fit, asked = fit.astype(np.float64), asked.astype(np.float64)
    mean = np.stack([fit[truth == value].mean(axis=0) for value in range(truth.max() + 1)])
    covariance, _ = ledoit_wolf(fit - mean[truth], assume_centered=True)
    # Keeps the matrix invertible if features are nearly constant or outnumber the images.
    covariance[np.diag_indices_from(covariance)] += 1e-6
    weight = np.linalg.solve(covariance, mean.T)
    scores = asked @ weight - 0.5 * (mean.T * weight).sum(axis=0)
    best: Int64[np.ndarray, " asked"] = scores.argmax(axis=1)
    return best
