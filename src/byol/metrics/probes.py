"""Judge features by simple classifiers: kNN and logistic regression, and how sure their accuracies are.

Everything works on arrays of features and never sees an encoder. A classifier is given training features,
training labels and test features; nothing here that chooses a setting or fits a classifier has a parameter
for test labels. Settings are chosen on a validation part of the training images.
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

NUM_RANKED = 5  # classes that a classifier names for an image
NEIGHBOURS = (1, 5, 10, 20, 50, 100, 200)
TEMPERATURES = (0.03, 0.07, 0.1, 0.2, 0.5)
INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
QUANTILE = 1.959964  # of the normal distribution at 0.975

SWEEP_ROWS = 10_000  # images the penalty is chosen on: bounds the time, and it hardly depends on more
PCA_ROWS = 10_000

Train = Float32[np.ndarray, "train feature"]
Test = Float32[np.ndarray, "test feature"]
Labels = Int64[np.ndarray, " train"]
Scaler = Callable[[Train, Test], tuple[Train, Test]]  # shifts and scales features by the training images


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of each test image, and the settings that were chosen for it."""

    ranked: Int64[np.ndarray, "test rank"]  # up to 5 classes, the likeliest first; -1: no further one
    chosen: dict[str, int | float]

    @property
    def labels(self) -> Int64[np.ndarray, " test"]:
        """The likeliest class."""
        return self.ranked[:, 0]


def check_classes(labels: Labels, class_names: Sequence[str]) -> None:
    """Refuse labels (indices into `class_names`) that no classifier can be trained and chosen on.

    Raises:
        NoLabelsError: there are none.
        DataError: fewer than two classes, or no class with two images.
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


# ---- Features to features


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
    """Shift every feature to mean 0, scale all by one factor to a mean variance of 1, over TRAINING images.

    For principal components, whose sizes mean something: brought to one size, the last ones, mostly noise,
    count as much as the first. CIFAR-10, 256 components, logistic regression: 34.1 -> 37.0 % with 5,000
    training images, 21.6 -> 29.0 % with 500.
    """
    mean = train.mean(axis=0, dtype=np.float64)
    std = float(np.sqrt(train.var(axis=0, dtype=np.float64).mean()))
    shift, scale = mean.astype(np.float32), np.float32(1.0 / std if std > 0.0 else 1.0)
    return (train - shift) * scale, (test - shift) * scale


def fit_pca(train: Train, *, dimensions: int, seed: int) -> PCA:
    """Principal components of the training images, at most `dimensions`, images and features; randomised.

    Above 10,000 images, 10,000 of them are used, drawn from `seed`.
    """
    if len(train) > PCA_ROWS:
        train = train[draw(len(train), PCA_ROWS, seed=seed)]
    components = min(dimensions, *train.shape)
    return PCA(components, svd_solver="randomized", random_state=seed).fit(train)


def draw(num: int, wanted: int, *, seed: int) -> Indices:
    """`wanted` different indices below `num`, ascending."""
    return np.sort(np.random.default_rng(seed).choice(num, wanted, replace=False))


# ---- k nearest neighbours


def knn(train: Train, labels: Labels, *, test: Test, seed: int, groups: Labels | None = None) -> Prediction:
    """`knn_rank` with the k and temperature that are best on a validation part of the training images."""
    k, temperature = choose_knn(train, labels, seed=seed, groups=groups)
    ranked = knn_rank(train, labels, test=test, k=k, temperature=temperature)
    return Prediction(ranked, {"k": k, "temperature": temperature})


def choose_knn(train: Train, labels: Labels, *, seed: int, groups: Labels | None = None) -> tuple[int, float]:
    """The k and temperature with the highest top-1 on the validation part; the smallest of equals."""
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
            # The votes of the k nearest are those of fewer, and the rest: every vote is counted once.
            for row, (fewer, k) in enumerate(pairwise([0, *ks])):
                votes.scatter_add_(1, fit_index[neighbour[:, fewer:k]], weight[:, fewer:k])
                num_right[row, column] += int((votes.argmax(dim=1) == wanted).sum())
    best_row, best_column = np.unravel_index(num_right.argmax(), num_right.shape)
    return ks[best_row], TEMPERATURES[best_column]


def knn_rank(
    train: Train, labels: Labels, *, test: Test, k: int, temperature: float
) -> Int64[np.ndarray, "test rank"]:
    """Up to 5 classes of each test image, by vote of its k most similar training images; -1: no vote left.

    Similarity s is the cosine; a vote weighs exp(s / temperature). Exact, in blocks: memory does not grow
    with the number of test images. A k above the number of training images means all of them.
    """
    classes, index = np.unique(labels, return_inverse=True)
    train_index = torch.from_numpy(index)
    ranked = np.empty((len(test), min(NUM_RANKED, len(classes))), dtype=np.int64)
    first = 0
    for similarity, neighbour in find_nearest(test, normalise(train), k=k):
        weight = _weigh(similarity, temperature=temperature)
        votes = weight.new_zeros(len(weight), len(classes)).scatter_add_(1, train_index[neighbour], weight)
        # Stable: of equal votes the first class wins, whatever the number of classes.
        sums, order = (part[:, : ranked.shape[1]] for part in votes.sort(dim=1, descending=True, stable=True))
        named = np.where(sums.numpy() > 0.0, classes[order.numpy()], -1)
        ranked[first : first + len(votes)] = named
        first += len(votes)
    return ranked


def _weigh(similarity: Float[Tensor, "image k"], *, temperature: float) -> Float[Tensor, "image k"]:
    # Relative to the nearest neighbour: no temperature overflows, and the winner is the same.
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
    """Multinomial logistic regression (L2 penalty, L-BFGS) on features that `scale` brings to a common size.

    The inverse penalty C is the best on a validation part of the training images; with it the classifier is
    fitted anew on all of them. 4 to 8 s at 50,000 images of 512 features and 10 classes on one core.
    """
    train, test = scale(train, test)
    inverse_penalty = choose_logistic(train, labels, seed=seed, groups=groups)
    ranked = fit_logistic(train, labels, test=test, inverse_penalty=inverse_penalty)
    return Prediction(ranked, {"C": inverse_penalty})


def fit_logistic(
    train: Train, labels: Labels, *, test: Test, inverse_penalty: float
) -> Int64[np.ndarray, "test rank"]:
    """Up to 5 classes of each test image, the likeliest first, by a logistic regression of this penalty."""
    classes, truth = np.unique(labels, return_inverse=True)
    found = Problem.of(train, truth, num_classes=len(classes)).fit(inverse_penalty=inverse_penalty)
    return rank(found.score(test), classes)


def rank(
    scores: Float[np.ndarray, "test klass"], classes: NDArray[np.int64]
) -> Int64[np.ndarray, "test rank"]:
    """The (up to 5) classes of the highest scores, the highest first; of equal ones the first class."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :NUM_RANKED]
    return classes[order].astype(np.int64)


def choose_logistic(train: Train, labels: Labels, *, seed: int, groups: Labels | None = None) -> float:
    """The inverse penalty C with the highest top-1 on the validation part; the smallest of equals.

    Goes upwards and stops after two values below the best so far. Above 10,000 training images, 10,000 drawn
    from `seed` serve for fitting and validation together.
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
        # From one penalty's solution to the next.
        model = problem.fit(inverse_penalty=inverse_penalty, start=model)
        predicted = classes[model.score(held_out).argmax(axis=1)]
        num_right = int((predicted == labels[part.held_out]).sum())
        num_below = num_below + 1 if num_right < best_right else 0
        if num_right > best_right:
            best, best_right = inverse_penalty, num_right
        if num_below == 2:
            break
    return best


# ---- How good, and how sure


def balanced_accuracy(predicted: Int64[np.ndarray, " image"], labels: Int64[np.ndarray, " image"]) -> float:
    """Mean over the classes in `labels` of the share of a class's images that are right, 0..1."""
    right = predicted == labels
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def bootstrap_interval(correct: Bool[np.ndarray, " image"], *, seed: int, num: int) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the share of `correct`, from `num` resamples of the test images,
    never narrower than Wilson's.

    The number of right answers in a resample of images is binomial, so it is drawn as such: the same
    distribution without the resampling. With few images, or nearly all or none right, it is far too sure
    (12 of 12: "100 to 100 %"), so that the outer ends of both count; with thousands both are the same.
    """
    resamples: NDArray[np.int64] = np.random.default_rng(seed).binomial(
        len(correct), correct.mean(), size=num
    )
    low, high = np.quantile(resamples / len(correct), [0.025, 0.975])
    return join_intervals((float(low), float(high)), wilson_interval(float(correct.mean()), len(correct)))


def wilson_interval(share: float, num: int | float, *, quantile: float = QUANTILE) -> tuple[float, float]:
    """Score interval (Wilson 1927) of a share, 0..1, of so many independent answers, not only whole ones."""
    squared = quantile**2 / num
    middle = (share + squared / 2) / (1 + squared)
    half = math.sqrt(squared * (share * (1 - share) + squared / 4)) / (1 + squared)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def join_intervals(*intervals: tuple[float, float]) -> tuple[float, float]:
    """The lowest of the lower and the highest of the upper ends."""
    lows, highs = zip(*intervals, strict=True)
    return min(lows), max(highs)
