"""Divide labelled images into training and test images.

    evaluation.train or data.source   evaluation.test  training images      test images
    stl10, cifar10, cifar100, motifs  none             its training split   its test split
    folder, list, array               none             four of five         every fifth of a class, by name
    anything                          set              all labelled images  all labelled images

`evaluation.folds` replaces the second row by k-fold cross-validation: each labelled image is tested once. A
single training (`byol finetune`) holds out the first fold. Images without a label are left out.

Exact duplicates never lie on both sides of a split. They are assigned together. If there is a separate test
set, its images that duplicate training images are left out. Official test splits are not changed.
"""

import posixpath
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from byol.base.errors import ConfigError, DataError, quote
from byol.config.schema import EvaluationConfig
from byol.data.labels.label_file import encode_labels, match_columns
from byol.data.pack.packed import Packed
from byol.data.sources.opening import folder_of, splits_of
from byol.evaluation.duplicate_groups import DuplicateGroups, are_among, digest_images, find_groups
from byol.metrics.folds import DEFAULT_FOLDS, Fold, Groups, make_folds
from byol.metrics.probes import check_classes

TEST_PART = "test part"  # the protocol without folds
FOLDER = "folder"  # used in place of a column name: the images of a folder are a group

_TEST_EVERY = 5


@dataclass(frozen=True)
class Split:
    """Labelled images of a pack: their rows, classes, groups (if any) and duplicates."""

    images: Packed
    rows: Int64[np.ndarray, " image"]
    labels: Int64[np.ndarray, " image"]  # indices into `Splits.class_names`
    groups: Groups | None = None
    duplicates: DuplicateGroups | None = None  # a number that duplicates share; None: there are no duplicates

    @property
    def units(self) -> Int64[np.ndarray, " image"] | None:
        """Numbers of the units that a split must not divide: groups, else duplicates; None: single images."""
        return self.duplicates if self.groups is None else self.groups.numbers

    @property
    def group_numbers(self) -> Int64[np.ndarray, " image"] | None:
        return None if self.groups is None else self.groups.numbers

    def take(self, places: Int64[np.ndarray, " some"]) -> "Split":
        """Return the subset of the images at these places."""
        groups = self.groups
        groups = None if groups is None else replace(groups, numbers=groups.numbers[places])
        duplicates = None if self.duplicates is None else self.duplicates[places]
        return Split(self.images, self.rows[places], self.labels[places], groups, duplicates)


@dataclass(frozen=True)
class Splits:
    """Two disjoint sets of labelled images or, with folds, the same set twice."""

    train: Split
    test: Split
    class_names: tuple[str, ...]
    description: str
    num_unlabelled: int  # images left out because they have no label
    protocol: str  # "test part", "5 folds", "5 folds by plate"
    folds: tuple[Fold, ...]  # indices into `train` and `test`; each test image is in exactly one fold
    seen: bool = False  # the encoder was trained on the test images, without their labels
    notes: tuple[str, ...] = ()  # notes for the user about the images

    def __post_init__(self) -> None:
        if self.train.images is self.test.images:
            for fold in self.folds:
                both = np.intersect1d(self.train.rows[fold.train], self.test.rows[fold.test])
                assert len(both) == 0, "an image is trained and tested on"

    @property
    def num_classes(self) -> int:
        """The number of classes with training images."""
        return len(np.unique(self.train.labels))

    @property
    def num_train(self) -> int:
        """The number of images that a classifier is trained on; with folds, their mean."""
        return round(sum(len(fold.train) for fold in self.folds) / len(self.folds))


def name_source(source: str) -> str:
    """Return the name of a source for messages and tables."""
    return source if splits_of(source) else Path(source).name or source


def _find_duplicates(
    images: Packed, rows: NDArray[np.int64]
) -> tuple[DuplicateGroups | None, tuple[str, ...]]:
    """Find duplicates among the labelled images, and describe them for the user.

    Raises:
        DataError: too few labelled images are left without the duplicates.
    """
    duplicates = find_groups(digest_images(images, rows))
    if duplicates is None:
        return None, ()
    distinct, first = np.unique(duplicates, return_index=True)
    labels = images.labels[rows]
    check_classes(labels[first], images.class_names)
    pairs = np.unique(np.stack([duplicates, labels]), axis=1)
    contrary = int((np.unique(pairs[0], return_counts=True)[1] > 1).sum())
    also = f" ({contrary} have labels that contradict each other)" if contrary else ""
    num = len(rows) - len(distinct)
    return duplicates, (
        f"{num} of {len(rows)} labelled images are exact duplicates of others{also}; duplicates never lie on "
        "both sides of a split",
    )


def hold_out(images: Packed, *, name: str) -> Splits:
    """Hold out every fifth image of each class, sorted by name; duplicates go to the same side.

    Raises:
        DataError: there are too few labelled images.
    """
    labelled = np.flatnonzero(images.labels >= 0)
    check_classes(images.labels[labelled], images.class_names)
    duplicates, notes = _find_duplicates(images, labelled)
    by_name = np.array(
        sorted(range(len(labelled)), key=lambda place: images.names[int(labelled[place])]), dtype=np.int64
    )
    labels = images.labels[labelled]
    if duplicates is None:
        is_original = np.ones(len(labelled), dtype=bool)
    else:
        is_original = np.zeros(len(labelled), dtype=bool)
        is_original[by_name[np.unique(duplicates[by_name], return_index=True)[1]]] = True
    is_test = np.zeros(len(labelled), dtype=bool)
    for label in np.unique(labels):
        members = by_name[(labels[by_name] == label) & is_original[by_name]]
        is_test[members[_TEST_EVERY - 1 :: _TEST_EVERY]] = True
    if duplicates is not None:
        is_test = np.isin(duplicates, duplicates[is_test])
    if not is_test.any():
        different = "" if duplicates is None else "different "
        raise DataError(
            f"{name}: no class has {_TEST_EVERY} {different}labelled images, so byol cannot hold out test "
            "images; label more images, or give test images with --test"
        )
    both = Split(images, labelled, labels, duplicates=duplicates)
    check_classes(labels[~is_test], images.class_names)
    return _whole(
        both.take(np.flatnonzero(~is_test)),
        both.take(np.flatnonzero(is_test)),
        description=f"{name}: every fifth image of each class held out for testing",
        num_unlabelled=len(images) - len(labelled),
        notes=notes,
    )


def _whole(
    train: Split, test: Split, *, description: str, num_unlabelled: int, notes: tuple[str, ...]
) -> Splits:
    """Return splits with a single fold: train on one set, test on the other."""
    fold = Fold(np.arange(len(train.rows)), np.arange(len(test.rows)))
    class_names = tuple(train.images.class_names)
    return Splits(train, test, class_names, description, num_unlabelled, TEST_PART, (fold,), notes=notes)


def fold_images(images: Packed, evaluation: EvaluationConfig, *, source: str) -> Splits:
    """Divide all labelled images into stratified folds; no group lies in two folds."""
    rows = np.flatnonzero(images.labels >= 0)
    labels = images.labels[rows]
    check_classes(labels, images.class_names)
    groups = None
    if evaluation.groups is not None:
        groups = _find_groups(
            images, rows, column=evaluation.groups, labels=evaluation.labels, folder=folder_of(source)
        )
    num = evaluation.folds or DEFAULT_FOLDS
    duplicates, notes = _find_duplicates(images, rows)
    both = Split(images, rows, labels, groups, duplicates)
    folds = make_folds(labels, num=num, seed=evaluation.seed, groups=groups, duplicates=duplicates)
    for fold in folds:
        check_classes(labels[fold.train], images.class_names)
    protocol = f"{num} folds" + ("" if groups is None else f" by {groups.column}")
    return Splits(
        both,
        both,
        tuple(images.class_names),
        f"{name_source(source)}: {protocol}",
        len(images) - len(rows),
        protocol,
        folds,
        notes=notes,
    )


def hold_out_first(splits: Splits) -> Splits:
    """Use the first fold as the test set."""
    first, groups = splits.folds[0], splits.train.groups
    what = "" if groups is None else f", together with every {groups.column} in it"
    return _whole(
        splits.train.take(first.train),
        splits.train.take(first.test),
        description=f"{splits.description}, the first held out{what}",
        num_unlabelled=splits.num_unlabelled,
        notes=splits.notes,
    )


def _find_groups(
    images: Packed, rows: NDArray[np.int64], *, column: str, labels: str | None, folder: Path | None
) -> Groups:
    """Return the groups of the images: their folders, or a column of the label file."""
    key = "evaluation.groups"
    if column == FOLDER:
        numbers, names = encode_labels(posixpath.dirname(name) or "." for name in images.names)
    elif labels is None:
        raise ConfigError(
            f"{key}: byol looks for the column {column!r} in the label file, but there is none; give "
            f"--labels FILE.csv, or --groups {FOLDER}"
        )
    else:
        columns, _ = match_columns(Path(labels), images.names, folder=folder)
        if column not in columns:
            raise DataError(f"{key}: {labels} has no column {column!r}; choose from {', '.join(columns)}")
        numbers, names = columns[column]
    missing = rows[numbers[rows] < 0]
    if len(missing):
        raise DataError(
            f"{key}: {len(missing)} labelled images have no {column}, for example "
            f"{images.names[int(missing[0])]}; fill in the column {column!r} of {labels}"
        )
    return Groups(column, numbers[rows], names)


def pair(train: Packed, test: Packed, *, names: tuple[str, str], is_official: bool) -> Splits:
    """Use all labelled images of both sets. Test classes are matched to training classes by name.

    Test images that duplicate labelled training images are left out, unless the split is official.

    Raises:
        DataError: both sets are the same, labels are missing, a test class has no training image, or every
            test image is a duplicate.
    """
    if train.fingerprint == test.fingerprint:
        raise DataError(
            f"{names[1]}: the test images are the training images; give others, or leave out --test to hold "
            "out a fifth"
        )
    train_rows, test_rows = np.flatnonzero(train.labels >= 0), np.flatnonzero(test.labels >= 0)
    check_classes(train.labels[train_rows], train.class_names)
    if len(test_rows) == 0:
        raise DataError(
            f"{names[1]}: no test image has a label; give --labels FILE.csv with the columns file,label"
        )
    description = (
        f"{names[0]}: its own training and test images" if names[0] == names[1] else " / ".join(names)
    )
    num_unlabelled = len(train) - len(train_rows) + len(test) - len(test_rows)
    digests, test_digests = digest_images(train, train_rows), digest_images(test, test_rows)
    is_copy = are_among(test_digests, digests)
    notes: tuple[str, ...] = ()
    if is_copy.any():
        counted = "counted, as the official split has them" if is_official else "left out"
        notes = (
            f"{is_copy.sum()} of {len(is_copy)} test images are exact duplicates of training images: "
            f"{counted}",
        )
        if is_copy.all() and not is_official:
            raise DataError(
                f"{names[1]}: all {len(is_copy)} test images are exact duplicates of training images; give "
                "others, or leave out --test to hold out a fifth"
            )
        test_rows = test_rows if is_official else test_rows[~is_copy]
    return _whole(
        Split(train, train_rows, train.labels[train_rows], duplicates=find_groups(digests)),
        Split(test, test_rows, _translate(train, test, labels=test.labels[test_rows], name=names[1])),
        description=description,
        num_unlabelled=num_unlabelled,
        notes=notes,
    )


def _translate(train: Packed, test: Packed, *, labels: NDArray[np.int64], name: str) -> NDArray[np.int64]:
    """Convert test labels to indices into the training classes; refuse classes without training images."""
    index = {class_name: position for position, class_name in enumerate(train.class_names)}
    known = set(np.unique(train.labels))
    table = np.full(len(test.class_names), -1, dtype=np.int64)
    for label in np.unique(labels):
        class_name = test.class_names[label]
        if index.get(class_name) not in known:
            raise DataError(
                f"{name}: the test class {quote(class_name)} has no training image; "
                "use the same class names in both splits"
            )
        table[label] = index[class_name]
    return table[labels]
