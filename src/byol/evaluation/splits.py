"""Which labelled images a classifier is trained on, and which it is tested on.

    evaluation.train or data.source   evaluation.test  training images        test images
    stl10, cifar10, cifar100, motifs  none             its training split     its test split
    folder, list, array               none             four of five           every fifth of a class, by name
    anything                          given            all that have a label  all that have a label

Images without a label are left out.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from byol.artifacts.encoder import EncoderSpec
from byol.config import Config
from byol.data.images import open_images
from byol.data.labels import read_list
from byol.data.packed import Packed
from byol.data.sources import splits_of
from byol.data.value_range import check_bits
from byol.errors import DataError
from byol.evaluation.probes import check_classes

_TEST_EVERY = 5


@dataclass(frozen=True)
class Split:
    """Labelled images of a pack: their rows there, and their classes."""

    images: Packed
    rows: Int64[np.ndarray, " image"]
    labels: Int64[np.ndarray, " image"]  # indices into `Splits.class_names`


@dataclass(frozen=True)
class Splits:
    """Two disjoint sets of labelled images."""

    train: Split
    test: Split
    class_names: tuple[str, ...]
    description: str
    num_unlabelled: int  # images left out


def open_splits(
    config: Config, run_dir: Path, *, spec: EncoderSpec, say: Callable[[str], None] | None = None
) -> Splits:
    """Open (and pack, where that has not been done) the labelled images of `config.evaluation`.

    They are stored as `spec` says that the encoder takes them. `say` hears what is left out.

    Raises:
        DataError: images cannot be read, or have other channels than the encoder takes; labels are missing or
            too few; a test class is unknown in training.
    """
    evaluation = config.evaluation
    source = evaluation.train if evaluation.train is not None else config.data.source
    has_splits = "test" in splits_of(source)
    train = _open(config, run_dir, source=source, split="train" if has_splits else None, spec=spec)
    if evaluation.test is None and not has_splits:
        splits = _hold_out(train, name=_short(source))
    else:
        target = evaluation.test if evaluation.test is not None else source
        split = "test" if "test" in splits_of(target) else None
        test = _open(config, run_dir, source=target, split=split, spec=spec)
        splits = _pair(train, test, names=(_short(source), _short(target)))
    if say is not None:
        for line in _describe_left_out(splits, evaluation.labels):
            say(line)
    return splits


def _describe_left_out(splits: Splits, labels: str | None) -> Iterator[str]:
    used, unlabelled = len(splits.train.rows) + len(splits.test.rows), splits.num_unlabelled
    if unlabelled:
        yield f"left out, without a label: {unlabelled} of {used + unlabelled} images"
    if labels is not None:
        given = sum(label != "" for label in read_list(Path(labels))[1])
        if used < given:
            yield f"left out, of no image here: {given - used} of the {given} labels in {labels}"


def _open(config: Config, run_dir: Path, *, source: str, split: str | None, spec: EncoderSpec) -> Packed:
    images = open_images(
        config,
        run_dir,
        console=None,
        source=source,
        split=split,
        labels=config.evaluation.labels,
        stored_px=spec.stored_px,
    )
    if images.channels != spec.channels:
        raise DataError(
            f"{_short(source)}: has {images.channels} channels, the encoder was trained on {spec.channels}; "
            "give images like those of the training"
        )
    try:
        check_bits(images.bits, spec.bits)
    except DataError as error:
        raise DataError(f"{_short(source)}: {error}") from None
    return images


def _short(source: str) -> str:
    return source if splits_of(source) else Path(source).name or source


def _hold_out(images: Packed, *, name: str) -> Splits:
    """Every fifth image of each class, in the order of their names, is for testing."""
    labelled = np.flatnonzero(images.labels >= 0)
    check_classes(images.labels[labelled], images.class_names)
    by_name = np.array(sorted(labelled, key=lambda row: images.names[int(row)]), dtype=np.int64)
    is_test = np.zeros(len(images), dtype=bool)
    for label in np.unique(images.labels[labelled]):
        members = by_name[images.labels[by_name] == label]
        is_test[members[_TEST_EVERY - 1 :: _TEST_EVERY]] = True
    test_rows, train_rows = labelled[is_test[labelled]], labelled[~is_test[labelled]]
    if len(test_rows) == 0:
        raise DataError(
            f"{name}: no class has {_TEST_EVERY} labelled images, so none can be held out for testing; "
            "label more images, or give others by --test"
        )
    return Splits(
        Split(images, train_rows, images.labels[train_rows]),
        Split(images, test_rows, images.labels[test_rows]),
        tuple(images.class_names),
        f"{name}: every fifth image of a class is held out",
        len(images) - len(labelled),
    )


def _pair(train: Packed, test: Packed, *, names: tuple[str, str]) -> Splits:
    """All labelled images of both; test classes are found in train by their names."""
    if train.fingerprint == test.fingerprint:
        raise DataError(
            f"{names[1]}: the test images are the training images; give others, or leave --test out: "
            "then a fifth is held out"
        )
    train_rows, test_rows = np.flatnonzero(train.labels >= 0), np.flatnonzero(test.labels >= 0)
    check_classes(train.labels[train_rows], train.class_names)
    if len(test_rows) == 0:
        raise DataError(
            f"{names[1]}: no test image has a label; "
            "give them by --labels FILE.csv with the columns file,label"
        )
    description = f"{names[0]}: its training and test split" if names[0] == names[1] else " / ".join(names)
    return Splits(
        Split(train, train_rows, train.labels[train_rows]),
        Split(test, test_rows, _translate(train, test, labels=test.labels[test_rows], name=names[1])),
        tuple(train.class_names),
        description,
        len(train) - len(train_rows) + len(test) - len(test_rows),
    )


def _translate(train: Packed, test: Packed, *, labels: NDArray[np.int64], name: str) -> NDArray[np.int64]:
    """Test labels as indices into the training classes, of which they must be."""
    index = {class_name: position for position, class_name in enumerate(train.class_names)}
    known = set(np.unique(train.labels))
    table = np.full(len(test.class_names), -1, dtype=np.int64)
    for label in np.unique(labels):
        class_name = test.class_names[label]
        if index.get(class_name) not in known:
            raise DataError(
                f"{name}: no training image is of the test class {class_name!r}; "
                "give both splits the same class names"
            )
        table[label] = index[class_name]
    return table[labels]
