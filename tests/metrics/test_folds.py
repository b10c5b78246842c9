"""Folds predict every image once; groups lie on one side of every division."""

import numpy as np
import pytest

from byol.base.errors import DataError
from byol.metrics import folds
from byol.metrics.folds import Fold, Groups, Validation, find_unlearnt, make_folds, split_groups


def make_groups(numbers: object) -> Groups:
    numbers = np.asarray(numbers, dtype=np.int64)
    return Groups("plate", numbers, tuple(f"p{number}" for number in range(numbers.max() + 1)))


def check_parts(folds: tuple[Fold, ...], num_images: int) -> None:
    """Each image is tested on once, and never trained on in that fold."""
    assert sorted(np.concatenate([fold.test for fold in folds])) == list(range(num_images))
    for fold in folds:
        assert sorted([*fold.train, *fold.test]) == list(range(num_images))


def test_folds_spread_every_class_evenly() -> None:
    labels = np.repeat([0, 1, 2], [50, 23, 2])
    folds = make_folds(labels, num=5, seed=0)
    check_parts(folds, 75)
    for fold in folds:
        tested = np.bincount(labels[fold.test], minlength=3)
        assert tested[0] == 10 and tested[1] in (4, 5) and tested[2] in (0, 1)
    again, other = make_folds(labels, num=5, seed=0), make_folds(labels, num=5, seed=1)
    np.testing.assert_array_equal(folds[0].test, again[0].test)
    assert not np.array_equal(folds[0].test, other[0].test)


def test_no_group_lies_in_two_folds_nor_in_both_validation_parts() -> None:
    rng = np.random.default_rng(0)
    groups, labels = rng.integers(0, 12, 240), rng.integers(0, 3, 240)
    folds = make_folds(labels, num=4, seed=0, groups=make_groups(groups))
    check_parts(folds, 240)
    for fold in folds:
        assert not set(groups[fold.train]) & set(groups[fold.test])
        part = Validation.of(labels[fold.train], seed=0, groups=groups[fold.train])
        inside = groups[fold.train]
        assert not set(inside[part.fit]) & set(inside[part.held_out])
        assert sorted([*part.fit, *part.held_out]) == list(range(len(fold.train)))
        assert 0.05 < len(part.held_out) / len(fold.train) < 0.4


def test_classes_that_no_fold_can_learn() -> None:
    labels = np.array([0, 0, 1, 2, 2, 2])
    assert find_unlearnt(labels, None).tolist() == [1]
    assert find_unlearnt(labels, np.array([0, 1, 1, 0, 0, 0])).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("labels", "groups", "num", "message"),
    [
        (
            [0, 0, 1, 1, 1],
            None,
            5,
            r"folds: the largest class has 3 labelled images, fewer than 5 folds; .*3$",
        ),
        ([0, 0, 0, 1], None, 2, r"folds: one of 2 folds has no images, or leaves one class only to learn"),
        ([0, 1] * 5, [0, 0, 1, 1, 1] * 2, 5, r"groups: plate: 2 group\(s\) with labels, .* --folds 2"),
        ([0, 1] * 5, [0] * 10, 2, r"groups: plate: 1 group\(s\) with labels, .* choose another column"),
        ([0, 1] * 5, [0, 1] * 5, 2, "groups: plate: every class lies within one group"),
        ([0, 0, 0, 1, 0, 0], [0, 1, 0, 1, 1, 1], 2, "groups: plate: one of 2 folds has no images, or leaves"),
    ],
)
def test_folds_that_cannot_be_made(
    labels: list[int], groups: list[int] | None, num: int, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        make_folds(np.array(labels), num=num, seed=0, groups=None if groups is None else make_groups(groups))
    assert "\n" not in str(caught.value)


def test_one_group_cannot_be_parted_for_validation() -> None:
    with pytest.raises(DataError, match=r"4 training images lie in 1 group\(s\), of which none can be held"):
        Validation.of(np.array([0, 1, 0, 1]), seed=0, groups=np.zeros(4, dtype=np.int64))


def test_copies_are_on_one_side_whatever_their_groups() -> None:
    rng = np.random.default_rng(1)
    duplicates, groups = rng.integers(0, 60, 120), rng.integers(0, 8, 120)
    labels = duplicates % 2
    for fold in make_folds(labels, num=4, seed=0, duplicates=duplicates):
        assert not set(duplicates[fold.train]) & set(duplicates[fold.test])
        assert len(fold.train) + len(fold.test) == 120
    for fold in make_folds(labels, num=4, seed=0, groups=make_groups(groups), duplicates=duplicates):
        assert not set(duplicates[fold.train]) & set(duplicates[fold.test])
        assert not set(groups[fold.train]) & set(groups[fold.test]) and len(fold.train) > 20


def test_very_many_small_groups_are_dealt_like_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folds, "StratifiedGroupKFold", None)  # not asked
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(2000), 2))
    labels = groups % 3
    parts = split_groups(labels, groups, num=5, seed=0)
    assert sorted(np.concatenate([part for _, part in parts])) == list(range(4000))
    for rest, part in parts:
        assert len(rest) == 3200 and len(part) == 800 and not set(groups[rest]) & set(groups[part])
        assert np.ptp(np.bincount(labels[part])) <= 6
    # Two large ones, such as blank images, go to two parts.
    groups = np.concatenate([groups, np.repeat([2000, 2001], [300, 200])])
    labels = np.concatenate([labels, np.arange(500) % 3])
    sizes = [len(part) for _, part in split_groups(labels, groups, num=5, seed=0)]
    assert sorted(sizes) == [800, 800, 800, 1000, 1100]


def test_few_images_of_each_class_can_be_parted_by_group() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    part = Validation.of(labels, seed=0, groups=np.array([0, 0, 1, 2, 3, 4, 5, 6]))
    assert len(part.held_out) and len(np.unique(labels[part.fit])) > 1
