"""Probe features with simple classifiers (kNN, logistic regression) and compute accuracy intervals.

All functions take arrays of features and never see an encoder. A classifier receives training features,
training labels and test features. No function here that chooses a setting or fits a classifier has a
parameter for test labels. Settings are chosen on a validation split of the training images.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor

from byol.base.errors import DataError, NoLabelsError, quote
from byol.metrics.folds import Indices
from byol.metrics.folds import Validation as Validation
from byol.metrics.logistic import Linear, Problem
from byol.metrics.neighbours import find_nearest, normalise

NUM_RANKED = 5  # top classes that a classifier returns per image
NEIGHBOURS = (1, 5, 10, 20, 50, 100, 200)
TEMPERATURES = (0.03, 0.07, 0.1, 0.2, 0.5)
INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
QUANTILE = 1.959964  # of the normal distribution at 0.975

SWEEP_ROWS = 10_000  # images the penalty is chosen on: bounds the time; more hardly change it
PCA_ROWS = 10_000
WHITENED_DIMENSIONS = 512
RIDGE = 0.01  # of the mean variance; directions of much smaller variance are not blown up

Train = Float32[np.ndarray, "train feature"]
Test = Float32[np.ndarray, "test feature"]
Labels = Int64[np.ndarray, " train"]
Scaler = Callable[[Train, Test], tuple[Train, Test]]  # uses statistics of the training images only


@dataclass(frozen=True)
class Prediction:
    """A classifier's ranked classes for each test image, and the hyper-parameters that were chosen."""

    ranked: Int64[np.ndarray, "test rank"]  # up to 5 classes, the most likely first; -1: no further class
    chosen: dict[str, int | float]

    @property
    def labels(self) -> Int64[np.ndarray, " test"]:
        """The most likely class."""
        return self.ranked[:, 0]


def check_classes(labels: Labels, class_names: Sequence[str]) -> None:
    """Refuse labels (indices into `class_names`) that are too few to train and validate a classifier.

    Raises:
        NoLabelsError: there are no labels.
        DataError: there are fewer than two classes, or no class has two images.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) == 0:
        raise NoLabelsError("no image has a label; give --labels FILE.csv with the columns file,label")
    if len(classes) == 1:
        raise DataError(
            f"labels have one class only ({quote(class_names[classes[0]])}, {counts[0]} images): "
            "a classifier needs at least two classes; label images of another one"
        )
    if counts.max() < 2:
        raise DataError(
            f"labels have one image of each of {len(classes)} classes: "
            "nothing is left to choose a classifier on; label more images"
        )


# ---- Scaling and PCA


def standardise(train: Train, test: Test) -> tuple[Train, Test]:
    """Shift and scale every feature to mean 0 and standard deviation 1 over the TRAINING images.

    A feature that is (nearly) constant there is only shifted.
    """
    mean = train.mean(axis=0, dtype=np.float64)
    std = train.std(axis=0, dtype=np.float64)
    std[std <= 1e-6 * (np.abs(mean) + 1e-6)] = 1.0
    shift, scale = mean.astype(np.float32), (1.0 / std).astype(np.float32)
    return (train - shift) * scale, (test - shift) * scale


def rescale(train: Train, test: Test) -> tuple[Train, Test]:
    """Shift features to mean 0; scale all by one factor to mean variance 1 over the TRAINING images.

    Use it for principal components, whose variances carry information: after standardisation the last
    components, mostly noise, would count as much as the first. CIFAR-10, 256 components, logistic regression,
    `standardise` -> `rescale`: 34.1 -> 37.0 % with 5,000 training images, 21.6 -> 29.0 % with 500.
    """
    mean = train.mean(axis=0, dtype=np.float64)
    std = float(np.sqrt(train.var(axis=0, dtype=np.float64).mean()))
    shift, scale = mean.astype(np.float32), np.float32(1.0 / std if std > 0.0 else 1.0)
    return (train - shift) * scale, (test - shift) * scale


def fit_pca(train: Train, *, dimensions: int, seed: int) -> PCA:
    """Fit randomised PCA on the training images; at most `dimensions` components.

    Above 10,000 images it uses 10,000 of them, drawn with `seed`.
    """
    if len(train) > PCA_ROWS:
        train = train[draw(len(train), PCA_ROWS, seed=seed)]
    components = min(dimensions, *train.shape)
    return PCA(components, svd_solver="randomized", random_state=seed).fit(train)


def whiten(
    train: Train, test: Test, *, seed: int
) -> tuple[Float32[np.ndarray, "train component"], Float32[np.ndarray, "test component"]]:
    """Rotate and scale features so that, over the TRAINING images, they are uncorrelated with variance 1.

    Of more than 512 features, whitening uses the first 512 principal components. A variance counts 1 % of the
    mean variance more than it is: directions in which training images hardly differ stay small.
    """
    if train.shape[1] > WHITENED_DIMENSIONS:
        pca = fit_pca(train, dimensions=WHITENED_DIMENSIONS, seed=seed)
        train, test = (pca.transform(part).astype(np.float32) for part in (train, test))
    mean = train.mean(axis=0, dtype=np.float64).astype(np.float32)
    train, test = train - mean, test - mean
    variances, directions = np.linalg.eigh((train.T @ train).astype(np.float64) / len(train))
    variances = variances.clip(min=0.0)
    mean_variance = float(variances.mean()) or 1.0  # 0 if all images have the same features
    matrix = (directions / np.sqrt(variances + RIDGE * mean_variance)).astype(np.float32)
    return train @ matrix, test @ matrix


def draw(num: int, wanted: int, *, seed: int) -> Indices:
    """Draw `wanted` distinct indices below `num`, in ascending order."""
    return np.sort(np.random.default_rng(seed).choice(num, wanted, replace=False))


# ---- k nearest neighbours


def knn(train: Train, labels: Labels, *, test: Test, seed: int, groups: Labels | None = None) -> Prediction:
    """Classify by `knn_rank` with the k and temperature that are best on a validation split."""
    k, temperature = choose_knn(train, labels, seed=seed, groups=groups)
    ranked = knn_rank(train, labels, test=test, k=k, temperature=temperature)
    return Prediction(ranked, {"k": k, "temperature": temperature})


def whitened_knn(
    train: Train, labels: Labels, *, test: Test, seed: int, groups: Labels | None = None
) -> Prediction:
    """Classify by `knn` on whitened features."""
    train, test = whiten(train, test, seed=seed)
    return knn(train, labels, test=test, seed=seed, groups=groups)


def choose_knn(train: Train, labels: Labels, *, seed: int, groups: Labels | None = None) -> tuple[int, float]:
    """Return the k and temperature with the highest top-1 on a validation split; ties go to the smallest."""
    part = Validation.of(labels, seed=seed, groups=groups)
    classes, index = np.unique(labels, return_inverse=True)
    ks = [k for k in NEIGHBOURS if k <= len(part.fit)]
    fit_index, truth = torch.from_numpy(index[part.fit]), torch.from_numpy(index[part.held_out])
    num_right = np.zeros((len(ks), len(TEMPERATURES)), dtype=np.int64)
    first = 0
    for similarity, neighbour in find_nearest(train[part.held_out], normalise(train[part.fit]), k=ks[-1]):
        wanted = truth[first : first + len(neighbour)]
        first += len(neighbour)
        for column, temperature in enumerate(TEMPERATURES):
            weight = _weigh(similarity, temperature=temperature)
            votes = weight.new_zeros(len(weight), len(classes))
            # Each larger k adds its votes to those of the smaller k, so every vote is counted once.
            for row, (fewer, k) in enumerate(pairwise([0, *ks])):
                votes.scatter_add_(1, fit_index[neighbour[:, fewer:k]], weight[:, fewer:k])
                num_right[row, column] += int((votes.argmax(dim=1) == wanted).sum())
    best_row, best_column = np.unravel_index(num_right.argmax(), num_right.shape)
    return ks[best_row], TEMPERATURES[best_column]


def knn_rank(
    train: Train, labels: Labels, *, test: Test, k: int, temperature: float
) -> Int64[np.ndarray, "test rank"]:
    """Rank up to 5 classes per test image by a weighted vote of its k nearest training images; -1: no vote.

    A neighbour with cosine similarity s has the weight exp(s / temperature). The search is exact and runs in
    blocks, so memory does not grow with the number of test images. A k above the number of training images
    means all of them.
    """
    classes, index = np.unique(labels, return_inverse=True)
    train_index = torch.from_numpy(index)
    ranked = np.empty((len(test), min(NUM_RANKED, len(classes))), dtype=np.int64)
    first = 0
    for similarity, neighbour in find_nearest(test, normalise(train), k=k):
        weight = _weigh(similarity, temperature=temperature)
        votes = weight.new_zeros(len(weight), len(classes)).scatter_add_(1, train_index[neighbour], weight)
        # A stable sort gives ties to the first class.
        sums, order = (part[:, : ranked.shape[1]] for part in votes.sort(dim=1, descending=True, stable=True))
        named = np.where(sums.numpy() > 0.0, classes[order.numpy()], -1)
        ranked[first : first + len(votes)] = named
        first += len(votes)
    return ranked


def _weigh(similarity: Float[Tensor, "image k"], *, temperature: float) -> Float[Tensor, "image k"]:
    # Dividing all weights by the nearest neighbour's avoids overflow and does not change the ranking.
    return ((similarity - similarity[:, :1]).double() / temperature).exp()


# ---- Logistic regression


def logistic_regression(
    train: Train,
    labels: Labels,
    *,
    test: Test,
    seed: int,
    groups: Labels | None = None,
    scale: Scaler = standardise,
) -> Prediction:
    """Multinomial logistic regression (L2 penalty, L-BFGS) on features scaled by `scale`.

    The inverse penalty C is chosen on a validation split; the classifier is then refitted on all training
    images. 50,000 images of 512 features and 10 classes take 4 to 8 s on one core.
    """
    train, test = scale(train, test)
    inverse_penalty = choose_logistic(train, labels, seed=seed, groups=groups)
    ranked = fit_logistic(train, labels, test=test, inverse_penalty=inverse_penalty)
    return Prediction(ranked, {"C": inverse_penalty})


def fit_logistic(
    train: Train, labels: Labels, *, test: Test, inverse_penalty: float
) -> Int64[np.ndarray, "test rank"]:
    """Fit logistic regression with this penalty; return up to 5 classes per test image, most likely first."""
    classes, truth = np.unique(labels, return_inverse=True)
    found = Problem.of(train, truth, num_classes=len(classes)).fit(inverse_penalty=inverse_penalty)
    return rank(found.score(test), classes)


def rank(
    scores: Float[np.ndarray, "test klass"], classes: NDArray[np.int64]
) -> Int64[np.ndarray, "test rank"]:
    """Return the (up to 5) classes with the highest scores, the highest first; ties go to the first class."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :NUM_RANKED]
    return classes[order].astype(np.int64)


def choose_logistic(train: Train, labels: Labels, *, seed: int, groups: Labels | None = None) -> float:
    """Return the inverse penalty C with the highest top-1 on a validation split; ties go to the smallest.

    It tries values in ascending order and stops after two in a row below the best. Above 10,000 training
    images it uses 10,000 of them, drawn with `seed`, for fitting and validation together.
    """
    if len(train) > SWEEP_ROWS:
        drawn = draw(len(train), SWEEP_ROWS, seed=seed)
        train, labels = train[drawn], labels[drawn]
        groups = None if groups is None else groups[drawn]
    part = Validation.of(labels, seed=seed, groups=groups)
    classes, truth = np.unique(labels[part.fit], return_inverse=True)
    problem, held_out = Problem.of(train[part.fit], truth, num_classes=len(classes)), train[part.held_out]
    best, best_right, num_below = INVERSE_PENALTIES[0], -1, 0
    model: Linear | None = None
    for inverse_penalty in INVERSE_PENALTIES:
        # Warm start from the previous penalty's solution.
        model = problem.fit(inverse_penalty=inverse_penalty, start=model)
        predicted = classes[model.score(held_out).argmax(axis=1)]
        num_right = int((predicted == labels[part.held_out]).sum())
        num_below = num_below + 1 if num_right < best_right else 0
        if num_right > best_right:
            best, best_right = inverse_penalty, num_right
        if num_below == 2:
            break
    return best


# ---- Accuracy and intervals


def balanced_accuracy(predicted: Int64[np.ndarray, " image"], labels: Int64[np.ndarray, " image"]) -> float:
    """Mean over the classes in `labels` of the per-class accuracy, 0..1."""
    right = predicted == labels
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def bootstrap_interval(correct: Bool[np.ndarray, " image"], *, seed: int, num: int) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of `correct`; never narrower than Wilson's interval.

    The number of correct answers in a resample is binomial, so it is drawn directly. With few images, or with
    nearly all or none correct, the bootstrap is far too confident (12 of 12: "100 to 100 %"), so the outer
    ends of both intervals are used. With thousands of images both intervals agree.
    """
    resamples: NDArray[np.int64] = np.random.default_rng(seed).binomial(
        len(correct), correct.mean(), size=num
    )
    low, high = np.quantile(resamples / len(correct), [0.025, 0.975])
    return join_intervals((float(low), float(high)), wilson_interval(float(correct.mean()), len(correct)))


def wilson_interval(share: float, num: int | float, *, quantile: float = QUANTILE) -> tuple[float, float]:
    """Wilson score interval (1927) of a fraction, 0..1; `num`: independent answers, may be fractional."""
    squared = quantile**2 / num
    middle = (share + squared / 2) / (1 + squared)
    half = math.sqrt(squared * (share * (1 - share) + squared / 4)) / (1 + squared)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def join_intervals(*intervals: tuple[float, float]) -> tuple[float, float]:
    """Return the lowest lower end and the highest upper end."""
    lows, highs = zip(*intervals, strict=True)
    return min(lows), max(highs)
