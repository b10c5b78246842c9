"""Open the labelled images that a configuration names, and report what byol noticed about them."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from byol.base.console import Say, silent
from byol.base.errors import ConfigError, DataError
from byol.config import Config
from byol.config.schema import EvaluationConfig
from byol.data.labels.label_file import LabelFile
from byol.data.pack.images import open_images
from byol.data.pack.packed import Packed
from byol.data.pack.value_range import check_bits
from byol.data.sources.opening import splits_of
from byol.encoder.spec import EncoderSpec
from byol.evaluation.splits import Splits, fold_images, hold_out, hold_out_first, name_source, pair
from byol.metrics.folds import find_unlearnt

SEEN = (
    "BYOL saw the test images during training, without their labels; accuracy on new images may be lower (to "
    "avoid this, keep a folder of images apart from training, and test on it with --test)."
)
LEARNED = "this encoder was trained with labels, perhaps those of the test images"


def open_splits(
    config: Config,
    run_dir: Path,
    *,
    spec: EncoderSpec,
    is_single: bool = False,
    say: Say = silent,
) -> Splits:
    """Open the labelled images of `config.evaluation`, and pack them first if necessary.

    Args:
        spec: the encoder's spec; images are stored at the size that it needs.
        is_single: train only once: use the first of several folds as the test set.
        say: receives notes, for example how many images have no label.

    Raises:
        NoLabelsError: no training image has a label.
        DataError: images cannot be read, or have other channels than the encoder takes; labels or groups are
            missing or too few; a test class has no training image.
        ConfigError: folds are requested although there are test images.
    """
    evaluation = config.evaluation
    source = evaluation.train if evaluation.train is not None else config.data.source
    has_splits = "test" in splits_of(source)
    has_test = evaluation.test is not None or has_splits
    if has_test and (evaluation.folds is not None or evaluation.groups is not None):
        name = "folds" if evaluation.folds is not None else "groups"
        raise ConfigError(
            f"evaluation.{name}: the images have a test split ({name_source(evaluation.test or source)}), "
            f"so there is nothing to fold; leave out --{name}, or give other images with --train"
        )
    labels = None if evaluation.labels is None else LabelFile(Path(evaluation.labels))
    open_part = partial(_open, config, run_dir, labels=labels, spec=spec)
    train = open_part(source=source, split="train" if has_splits else None)
    if has_test:
        target = evaluation.test if evaluation.test is not None else source
        split = "test" if "test" in splits_of(target) else None
        test = open_part(source=target, split=split)
        _check_all(labels, evaluation)
        names = (name_source(source), name_source(target))
        splits = pair(train, test, names=names, is_official=split is not None)
    elif evaluation.folds is not None or evaluation.groups is not None:
        target = source
        _check_all(labels, evaluation)
        splits = fold_images(train, evaluation, source=source)
        splits = hold_out_first(splits) if is_single else splits
    else:
        target = source
        _check_all(labels, evaluation)
        splits = hold_out(train, name=name_source(source))
    is_own = splits.test.images.fingerprint == spec.data_fingerprint
    seen = is_own or _lies_within(target, config.data.source)
    splits = replace(splits, seen=seen)
    understood = (*splits.train.images.source_notes, *(labels.notes() if labels is not None else ()))
    for line in (*understood, *_describe_left_out(splits), *splits.notes, *_describe_unlearnt(splits)):
        say(line)
    return splits


def _lies_within(target: str, source: str) -> bool:
    """Return whether `target` is `source` or lies inside it. Always False for sets with official splits."""
    if splits_of(target) or splits_of(source):
        return False
    return Path(target).resolve().is_relative_to(Path(source).resolve())


def _check_all(labels: LabelFile | None, evaluation: EvaluationConfig) -> None:
    if labels is not None:
        labels.check(max_unmatched=evaluation.max_unmatched)


def _describe_left_out(splits: Splits) -> Iterator[str]:
    packs = {id(split.images): split.images for split in (splits.train, splits.test)}.values()
    if splits.num_unlabelled:
        num_images = sum(map(len, packs))
        yield f"{splits.num_unlabelled:,} of {num_images:,} images have no label and are left out"


def _describe_unlearnt(splits: Splits) -> Iterator[str]:
    """Describe classes that are counted in the accuracy but that a classifier cannot learn."""
    if splits.test is splits.train:
        rare = find_unlearnt(splits.train.labels, splits.train.units)
        where = "one image" if splits.train.groups is None else f"images of one {splits.train.groups.column}"
        what = f"with labels for {where} only, which a classifier never sees before it is tested on them"
    else:
        classes, counts = np.unique(splits.train.labels, return_counts=True)
        unknown = np.setdiff1d(splits.test.labels, classes)
        rare, what = classes[counts < 2], "with one training image only"
        if len(unknown):
            rare, what = unknown, "in the test part alone, never learnt"
    if len(rare):
        others = f" (and {len(rare) - 1} more)" if len(rare) > 1 else ""
        yield f"classes {what}: {splits.class_names[rare[0]]}{others}; label more of their images"


def _open(
    config: Config,
    run_dir: Path,
    *,
    source: str,
    split: str | None,
    labels: LabelFile | None,
    spec: EncoderSpec,
) -> Packed:
    images = open_images(
        config,
        run_dir,
        console=None,
        source=source,
        split=split,
        labels=labels,
        stored_px=spec.stored_px,
        alpha=spec.alpha,
        trained=spec.trained_layout,
        fingerprint=spec.data_fingerprint,
    )
    check_fit(images, spec, name=name_source(source))
    return images


def check_fit(images: Packed, spec: EncoderSpec, *, name: str) -> None:
    """Refuse images whose channels or bit depth differ from what the encoder takes.

    Raises:
        DataError: the channels or the bit depth differ.
    """
    if images.channels != spec.channels:
        raise DataError(
            f"{name}: the images have {images.channels} channels, but the encoder was trained on "
            f"{spec.channels}; give images like the training images"
        )
    try:
        check_bits(images.bits, spec.bits)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
