"""Divide labelled images: folds for cross-validation, and a validation split to choose settings on.

Images of one group (a plate, a patient) look alike for reasons other than their class. If groups are set, no
split here divides a group. No split separates exact duplicates either, whatever their labels.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from byol.base.errors import DataError

DEFAULT_FOLDS = 5  # if groups are set but no number of folds

_VALIDATION_FOLDS = 5  # one of these is held out
# Above this many groups, small groups are dealt like images: StratifiedGroupKFold takes 0.5 ms per group.
# Large groups are dealt round-robin.
_MANY_GROUPS, _LARGE_SHARE = 1000, 0.01

Labels = Int64[np.ndarray, " image"]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Fold:
    """Indices of training and test images, into two sets or into one (then they are disjoint)."""

    train: Indices
    test: Indices


@dataclass(frozen=True)
class Groups:
    """The group of each image, as an index into the group names."""

    column: str  # what a group is, e.g. "plate"
    numbers: Labels
    names: tuple[str, ...]


def make_folds(
    labels: Labels, *, num: int, seed: int, groups: Groups | None = None, duplicates: Labels | None = None
) -> tuple[Fold, ...]:
    """Divide images into `num` stratified folds; each fold is the test set once.

    No group lies in two folds. Neither do duplicates (images that share a number in `duplicates`), unless
    they belong to two groups. In that case the training set leaves out the duplicates of test images.

    Raises:
        DataError: every class has too few images, there are too few groups, or a fold would be empty or leave
            fewer than two classes to train on.
    """
    most = int(np.unique(labels, return_counts=True)[1].max())
    if most < num:
        raise DataError(
            f"evaluation.folds: the largest class has {most} labelled images, fewer than {num} folds; "
            f"label more images, or give fewer folds: --folds {max(2, most)}"
        )
    if groups is not None:
        _check_groups(labels, groups, num=num)
        pairs = split_groups(labels, groups.numbers, num=num, seed=seed)
        if duplicates is not None:
            pairs = [(rest[~np.isin(duplicates[rest], duplicates[part])], part) for rest, part in pairs]
    elif duplicates is not None:
        pairs = split_groups(labels, duplicates, num=num, seed=seed)
    else:
        pairs = _split_evenly(labels, num=num, seed=seed)
    for rest, part in pairs:
        if len(part) == 0 or len(np.unique(labels[rest])) < 2:
            where = "evaluation.folds" if groups is None else f"evaluation.groups: {groups.column}"
            raise DataError(
                f"{where}: one of {num} folds has no images, or leaves one class only to learn from; label "
                "more images of the rare classes, or give fewer folds: --folds 2"
            )
    return tuple(Fold(rest, part) for rest, part in pairs)


def find_unlearnt(labels: Labels, units: Labels | None) -> Indices:
    """Return the classes that are never trained on before they are tested: one image, or one group, only."""
    units = np.arange(len(labels)) if units is None else units
    pairs = np.unique(np.stack([labels, units]), axis=1)
    classes, counts = np.unique(pairs[0], return_counts=True)
    return classes[counts < 2]


def _check_groups(labels: Labels, groups: Groups, *, num: int) -> None:
    where = f"evaluation.groups: {groups.column}"
    num_groups = len(np.unique(groups.numbers))
    if num_groups < num:
        fewer = f"give fewer folds: --folds {num_groups}" if num_groups > 1 else "choose another column"
        raise DataError(f"{where}: {num_groups} group(s) with labels, fewer than {num} folds; {fewer}")
    if len(find_unlearnt(labels, groups.numbers)) == len(np.unique(labels)):
        raise DataError(
            f"{where}: every class lies within one group, so that no fold could learn the class it is tested "
            "on; choose another column"
        )


@dataclass(frozen=True)
class Validation:
    """Two disjoint sets of training images: fit candidate settings on one, compare them on the other."""

    fit: Indices
    held_out: Indices

    @classmethod
    def of(cls, labels: Labels, *, seed: int, groups: Labels | None = None) -> "Validation":
        """Hold out a fifth of each class, at least one image; a class with a single image is not held out.

        With `groups`, whole groups are held out, about a fifth of the images. Duplicates can serve as groups.

        Raises:
            DataError: no group can be held out.
        """
        if groups is not None:
            return cls._of_groups(labels, groups, seed=seed)
        rng = np.random.default_rng(seed)
        held_out = np.zeros(len(labels), dtype=bool)
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            num = max(1, round(len(members) / _VALIDATION_FOLDS)) if len(members) > 1 else 0
            held_out[members[:num]] = True
        assert held_out.any(), "check_classes was not called"
        return cls(np.flatnonzero(~held_out), np.flatnonzero(held_out))

    @classmethod
    def _of_groups(cls, labels: Labels, groups: Labels, *, seed: int) -> "Validation":
        num_groups = len(np.unique(groups))
        for num_folds in range(min(_VALIDATION_FOLDS, num_groups), 1, -1):
            for fit, held_out in split_groups(labels, groups, num=num_folds, seed=seed):
                if len(held_out) and len(np.unique(labels[fit])) > 1:
                    return cls(fit, held_out)
        raise DataError(
            f"evaluation.groups: {len(labels)} training images lie in {num_groups} group(s), of "
            "which none can be held out to choose a classifier on; label images of more groups"
        )


def split_groups(labels: Labels, groups: Labels, *, num: int, seed: int) -> list[tuple[Indices, Indices]]:
    """Return `num` stratified pairs (rest, part) such that no group lies in two parts.

    The list is empty if the largest class has fewer than `num` images or `num` is below 2. A part may be
    empty.
    """
    if num < 2 or np.unique(labels, return_counts=True)[1].max() < num:
        return []
    _, first, member, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    if len(first) > _MANY_GROUPS:
        is_large = sizes > _LARGE_SHARE * len(labels)
        small, large = np.flatnonzero(~is_large), np.flatnonzero(is_large)
        if np.bincount(labels[first[small]]).max() >= num:
            part_of = np.empty(len(first), dtype=np.int64)
            part_of[large[np.argsort(-sizes[large], kind="stable")]] = np.arange(len(large)) % num
            for number, (_, part) in enumerate(_split_evenly(labels[first[small]], num=num, seed=seed)):
                part_of[small[part]] = number
            is_part = [part_of[member] == number for number in range(num)]
            return [(np.flatnonzero(~inside), np.flatnonzero(inside)) for inside in is_part]
    splitter = StratifiedGroupKFold(num, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")
        return list(splitter.split(labels, labels, groups))


def _split_evenly(labels: Labels, *, num: int, seed: int) -> list[tuple[Indices, Indices]]:
    splitter = StratifiedKFold(num, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")
        return list(splitter.split(labels, labels))
