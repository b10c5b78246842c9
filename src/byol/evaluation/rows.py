"""Compute the rows of the evaluation table: each kind of features, with each classifier, over all folds."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from byol.base.cache import Arrays, cache_key, load_or_make
from byol.base.console import Count, Say
from byol.config import Config
from byol.encoder.encoder import Encoder, load
from byol.encoder.spec import SPEC_NAME, EncoderSpec
from byol.evaluation.features import features_of, pixel_components, trained, untrained
from byol.evaluation.labelled import LEARNED
from byol.evaluation.patches import find_obstacle, patch_encoder, patch_features
from byol.evaluation.splits import Split, Splits
from byol.evaluation.weights import name_weights, open_weights
from byol.metrics import probes
from byol.metrics.folds import Fold
from byol.metrics.scores import score
from byol.metrics.sgd import sgd

LINEAR, SGD, KNN, WHITENED_KNN = "logistic regression", "sgd", "knn", "whitened knn"
PCA_DIMENSIONS = 256
_MOST_REMEMBERED = 2**30  # bytes of cached pixel components: 5 folds of 200,000 images

Features = Float32[np.ndarray, "image feature"]
Train = Float32[np.ndarray, "train feature"]
Test = Float32[np.ndarray, "test feature"]
Pair = tuple[Train, Test]
Chosen = dict[str, int | float | list[int | float]]


@dataclass(frozen=True)
class Row:
    """The result of one classifier on one kind of features; accuracies are fractions, 0..1."""

    features: str  # "pixels", "patches", "untrained", "byol online", "byol target", "weights NAME"
    transform: str  # "none", "pca-256", "k-means"
    classifier: str  # "logistic regression" or "sgd", "knn", "whitened knn"
    dimensions: int
    top1: float
    low95: float  # resampled over the test images, or over their groups: `scores.score`
    high95: float
    top5: float | None  # None below six classes
    balanced: float  # mean over classes of the per-class accuracy
    balanced_low95: float
    balanced_high95: float
    chosen: Chosen  # hyper-parameters chosen on a validation split; a list if the folds differ
    seconds: float  # time to choose, fit and predict, without computing the features


@dataclass(frozen=True)
class Candidate:
    """One kind of features to evaluate."""

    name: str
    transform: str
    of_fold: Callable[[Fold], Pair]  # features of the fold's training and test images

    @property
    def scale(self) -> probes.Scaler:
        """The function that scales these features before a linear classifier."""
        return probes.standardise if not self.transform.startswith("pca-") else probes.rescale


@dataclass(frozen=True)
class Predicted:
    """A classifier's predictions for all test images."""

    ranked: Int64[np.ndarray, "image 5"]  # classes, the most likely first; -1: no further class
    chosen: Chosen
    dimensions: int
    seconds: float
    reused: bool  # every fold came from the cache


# ---- Features


def make_candidates(
    config: Config,
    run_dir: Path,
    *,
    splits: Splits,
    online: Encoder,
    say: Say,
    progress: Count | None,
) -> Iterator[Candidate]:
    """Yield the kinds of features, baselines first, so that the user sees what BYOL has to beat.

    `say` receives how other weights were read, a warning if they were trained with labels, and why there are
    no patches.
    """
    train, test, cache_folder = splits.train, splits.test, run_dir / "features"

    def pixels(fold: Fold) -> Pair:
        return pixel_components(
            train.images,
            test.images,
            train_rows=train.rows[fold.train],
            test_rows=test.rows[fold.test],
            spec=online.spec,
            dimensions=PCA_DIMENSIONS,
            seed=config.evaluation.seed,
            cache_folder=cache_folder if len(splits.folds) == 1 else None,
        )

    yield Candidate("pixels", f"pca-{PCA_DIMENSIONS}", _remember(pixels))
    if (
        patches := _make_patches(config, splits, spec=online.spec, cache_folder=cache_folder, say=say)
    ) is not None:
        yield patches
    device = online.device.type
    encoders = {
        "untrained": untrained(config, online.spec, images=train.images, rows=train.rows, device=device)
    }
    if (source := config.evaluation.weights) is not None:
        weights = open_weights(source, spec=online.spec, device=device, say=say)
        name = name_weights(source, which=weights.spec.which)
        encoders[name] = weights
        if weights.spec.which == "finetuned":
            say(f"{name}: {LEARNED}")
    encoders["byol online"] = trained(online)
    if (run_dir / "target" / SPEC_NAME).is_file():
        encoders["byol target"] = trained(load(run_dir / "target", device=device))
    for name, encoder in encoders.items():
        parts = [train] if test is train else [train, test]
        features = [
            features_of(part.images, part.rows, encoder=encoder, cache_folder=cache_folder, progress=progress)
            for part in parts
        ]
        yield Candidate(name, "none", _select(features[0], features[-1]))


def _make_patches(
    config: Config, splits: Splits, *, spec: EncoderSpec, cache_folder: Path, say: Say
) -> Candidate | None:
    """Return the features without a network; None, and a line that says why, if they would cost too much."""
    if (wanted := config.evaluation.num_centroids) is None:
        return None
    train, test = splits.train, splits.test
    parts = [train] if test is train else [train, test]
    num_images = sum(len(part.rows) for part in parts)
    obstacle_of = partial(find_obstacle, spec, num_images=num_images, num_classes=splits.num_classes)
    num_centroids = wanted
    if (obstacle := obstacle_of(num_centroids=wanted)) is not None:
        num_centroids = max(1, wanted // 2)
        if obstacle_of(num_centroids=num_centroids) is not None:
            fits = (wanted >> halvings for halvings in range(2, wanted.bit_length()))
            fewer = next((num for num in fits if obstacle_of(num_centroids=num) is None), None)
            hint = "" if fewer is None else f"; to include it, add evaluation.num_centroids={fewer}"
            say(f"k-means on patches left out ({obstacle}){hint}")
            return None
        say(
            f"k-means on patches: {num_centroids} clusters instead of {wanted}, to take no longer than the "
            "encoder"
        )
    encoder = patch_encoder(
        train.images, train.rows, spec=spec, num_centroids=num_centroids, seed=config.evaluation.seed
    )
    features = [
        patch_features(part.images, part.rows, encoder=encoder, cache_folder=cache_folder) for part in parts
    ]
    return Candidate("patches", "k-means", _select(features[0], features[-1]))


def _remember(make: Callable[[Fold], Pair]) -> Callable[[Fold], Pair]:
    """Cache each fold's features in memory while their total size is below the limit."""
    made: dict[int, Pair] = {}

    def recall(fold: Fold) -> Pair:
        if (found := made.get(id(fold))) is not None:
            return found
        pair = make(fold)
        held = sum(part.nbytes for each in (*made.values(), pair) for part in each)
        if held <= _MOST_REMEMBERED:
            made[id(fold)] = pair
        return pair

    return recall


def _select(train: Train, test: Test) -> Callable[[Fold], Pair]:
    return lambda fold: (_take(train, fold.train), _take(test, fold.test))


def _take(features: Features, places: Int64[np.ndarray, " some"]) -> Float32[np.ndarray, "some feature"]:
    # `places` selects every image in order, so no copy is needed.
    return features if len(places) == len(features) else features[places]


# ---- Predictions


def predict(
    candidate: Candidate, splits: Splits, *, classifier: str, seed: int, cache_folder: Path
) -> Predicted:
    """Choose hyper-parameters, fit and predict for each fold, or load the predictions from the cache."""
    ranked = np.full((len(splits.test.rows), probes.NUM_RANKED), -1)
    chosen: list[dict[str, int | float]] = []
    seconds, reused, dimensions = 0.0, True, 0
    for fold in splits.folds:
        features = candidate.of_fold(fold)
        known = splits.train.take(fold.train)
        key = cache_key(classifier, candidate.transform, seed, *features, known.labels, known.units)
        fit = partial(_fit, candidate, *features, known=known, classifier=classifier, seed=seed)
        fitted, was_cached = load_or_make(cache_folder / f"{key}.npz", fit)
        ranked[fold.test, : fitted["ranked"].shape[1]] = fitted["ranked"]
        chosen.append(json.loads(str(fitted["chosen"])))
        seconds += float(fitted["seconds"])
        reused &= was_cached
        dimensions = features[0].shape[1]
    return Predicted(ranked, _join(chosen), dimensions, round(seconds, 2), reused)


def _fit(
    candidate: Candidate, train: Train, test: Test, *, known: Split, classifier: str, seed: int
) -> Arrays:
    """Fit on the labelled training images `known`. This function gets test features but never test labels."""
    start = time.perf_counter()
    classifiers: dict[str, Callable[..., probes.Prediction]] = {
        LINEAR: partial(probes.logistic_regression, scale=candidate.scale),
        SGD: partial(sgd, scale=candidate.scale),
        KNN: probes.knn,
        WHITENED_KNN: probes.whitened_knn,
    }
    found = classifiers[classifier](train, known.labels, test=test, seed=seed, groups=known.units)
    seconds = np.array(time.perf_counter() - start)
    return {"ranked": found.ranked, "chosen": np.array(json.dumps(found.chosen)), "seconds": seconds}


def _join(chosen: Sequence[dict[str, int | float]]) -> Chosen:
    """Return one value per hyper-parameter if all folds agree, else the list of all folds' values."""
    values = {name: [one[name] for one in chosen] for name in chosen[0]}
    return {name: each[0] if len(set(each)) == 1 else each for name, each in values.items()}


def make_row(
    candidate: Candidate,
    predicted: Predicted,
    *,
    splits: Splits,
    classifier: str,
    num_bootstrap: int,
    seed: int,
) -> Row:
    """Compare the predictions with the labels of the test images."""
    scores = score(
        predicted.ranked,
        splits.test.labels,
        num_classes=splits.num_classes,
        seed=seed,
        num_bootstrap=num_bootstrap,
        groups=splits.test.group_numbers,
    )
    return Row(
        features=candidate.name,
        transform=candidate.transform,
        classifier=classifier,
        dimensions=predicted.dimensions,
        chosen=predicted.chosen,
        seconds=predicted.seconds,
        **asdict(scores),
    )
