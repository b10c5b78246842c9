"""Few labels: which numbers of them, which images, and that draws see training images alone."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from byol.data.pack.packed import Packed
from byol.evaluation import low_shot as low_shot_file
from byol.evaluation.low_shot import choose_counts, draw_images, measure_low_shot
from byol.evaluation.rows import Candidate
from byol.evaluation.splits import Split, Splits
from byol.metrics.folds import Fold, make_folds
from byol.metrics.probes import standardise

Features = NDArray[np.float32]
Labels = NDArray[np.int64]


def make_splits(train: Labels, test: Labels | None = None, *, num_folds: int = 1) -> Splits:
    images = object.__new__(Packed)  # nobody looks at it
    part = Split(images, np.arange(len(train)), train)
    if test is None:
        folds = make_folds(train, num=num_folds, seed=0)
        return Splits(part, part, ("a", "b"), "", 0, f"{num_folds} folds", folds)
    fold = Fold(np.arange(len(train)), np.arange(len(test)))
    other = Split(object.__new__(Packed), np.arange(len(test)), test)
    return Splits(part, other, ("a", "b"), "", 0, "test part", (fold,))


def make_clouds(num_images: int, *, seed: int) -> tuple[Features, Labels]:
    rng = np.random.default_rng(seed)
    labels = np.arange(num_images) % 2
    return (rng.normal(size=(num_images, 8)) + labels[:, None]).astype(np.float32), labels


def test_counts_that_half_of_the_classes_have(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.repeat([0, 1, 2, 3], [60, 12, 9, 1])
    assert choose_counts(make_splits(labels, labels)) == (1, 2, 5, 10)
    assert choose_counts(make_splits(np.repeat([0, 1], 50), labels)) == (1, 2, 5, 10, 50)
    # Of 12 images of a class a fold leaves 9 or fewer to train on.
    assert choose_counts(make_splits(np.repeat([0, 1], 12), num_folds=4)) == (1, 2, 5)
    monkeypatch.setattr(low_shot_file, "MAX_IMAGES", 16)
    assert choose_counts(make_splits(labels, labels)) == (1, 2, 5)


def test_a_draw_has_so_many_of_each_class_and_contains_the_smaller_ones() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 3, 7], [30, 20, 4]))
    few, more = (draw_images(labels, per_class=num, seed=1, draw=2) for num in (2, 10))
    assert np.unique(labels[few], return_counts=True)[1].tolist() == [2, 2, 2]
    assert np.unique(labels[more], return_counts=True)[1].tolist() == [10, 10, 4]
    assert set(few) <= set(more)
    assert set(few) != set(draw_images(labels, per_class=2, seed=1, draw=3))
    assert set(few) != set(draw_images(labels, per_class=2, seed=0, draw=2))


def test_the_curve_is_that_of_scikit_learn(tmp_path: Path) -> None:
    (train, labels), (test, truth) = make_clouds(60, seed=0), make_clouds(200, seed=1)
    candidate = Candidate("byol online", "none", lambda fold: (train, test))
    splits = make_splits(labels, truth)
    points = measure_low_shot(candidate, splits, num_draws=3, seed=0, cache_folder=tmp_path)
    assert [(point.features, point.per_class, point.num_draws) for point in points] == [
        ("byol online", per_class, 3) for per_class in (1, 2, 5, 10)
    ]
    for point in points:
        shares = []
        for draw in range(3):
            rows = draw_images(labels, per_class=point.per_class, seed=0, draw=draw)
            few, scaled = standardise(train[rows], test)
            model = LogisticRegression(C=low_shot_file.INVERSE_PENALTY, max_iter=1000, tol=1e-6)
            shares.append(model.fit(few, labels[rows]).score(scaled, truth))
        assert point.mean == pytest.approx(np.mean(shares), abs=0.005)
        assert point.std == pytest.approx(np.std(shares, ddof=1), abs=0.01)
    assert points[-1].mean > points[0].mean


def test_draws_go_round_the_folds_and_know_no_image_they_are_tested_on(tmp_path: Path) -> None:
    features, labels = make_clouds(60, seed=0)
    asked: list[Fold] = []

    def of_fold(fold: Fold) -> tuple[Features, Features]:
        asked.append(fold)
        return features[fold.train], features[fold.test]

    splits = make_splits(labels, num_folds=3)
    candidate = Candidate("pixels", "pca-256", of_fold)
    for num_draws, num_folds in ((5, 3), (2, 2)):
        del asked[:]
        points = measure_low_shot(candidate, splits, num_draws=num_draws, seed=0, cache_folder=tmp_path)
        assert asked == list(splits.folds[:num_folds]) and len(points) == 4


def test_the_second_time_nothing_is_fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (train, labels), (test, truth) = make_clouds(60, seed=0), make_clouds(50, seed=1)
    candidate = Candidate("untrained", "none", lambda fold: (train, test))
    splits = make_splits(labels, truth)
    first = measure_low_shot(candidate, splits, num_draws=2, seed=0, cache_folder=tmp_path)
    monkeypatch.setattr(low_shot_file, "fit_logistic", None)
    assert measure_low_shot(candidate, splits, num_draws=2, seed=0, cache_folder=tmp_path) == first
    # Test labels are no part of what was fitted.
    spoilt = make_splits(labels, 1 - truth)
    points = measure_low_shot(candidate, spoilt, num_draws=2, seed=0, cache_folder=tmp_path)
    assert [point.mean for point in points] == pytest.approx([1 - point.mean for point in first])
