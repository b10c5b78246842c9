"""The evaluation table: accuracies of the encoder and of baselines, with intervals.

It is saved as `eval.json`, which other programs may read; docs/files.md describes the format.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from byol.base.console import Count, Say, silent
from byol.base.errors import NoLabelsError, quote
from byol.base.files import collecting, write_atomically
from byol.base.records import add_checksum
from byol.base.text_table import percent, percent_range, render_columns, wrap
from byol.config import Config
from byol.device.ranks import keep_freed_memory
from byol.encoder.encoder import load
from byol.evaluation.labelled import SEEN, open_splits
from byol.evaluation.low_shot import LowShot, measure_low_shot
from byol.evaluation.rows import (
    KNN,
    LINEAR,
    SGD,
    WHITENED_KNN,
    Candidate,
    Predicted,
    Row,
    make_candidates,
    make_row,
    predict,
)
from byol.evaluation.splits import TEST_PART, Splits
from byol.evaluation.weights import open_weights
from byol.metrics.folds import Validation
from byol.metrics.scores import MIN_GROUPS, count_confusions
from byol.metrics.verdict import BASELINES, ONLINE, judge, show_classifier
from byol.runfolder.settings import read_config

FORMAT = 2
FILE_NAME = "eval.json"

_HEADINGS = (
    "features", "transform", "classifier", "dims", "top-1", "95 % interval", "top-5", "balanced",
    "95 % interval", "chosen settings",
)  # fmt: skip
_TO_THE_LEFT = ("features", "transform", "classifier", "chosen settings")


@dataclass(frozen=True)
class Confusion:
    """The confusion matrix of one row: number of images by true class (first index) and predicted class."""

    features: str
    classifier: str
    counts: tuple[tuple[int, ...], ...]  # in the order of `Table.class_names`


@dataclass(frozen=True)
class Table:
    """The content of `eval.json`."""

    split: str
    protocol: str  # "test part", "5 folds", "5 folds by plate"
    settings: dict[str, Any]  # the section `evaluation` of the configuration
    num_train: int  # with folds, their mean
    num_test: int
    num_classes: int  # classes with training images
    class_names: tuple[str, ...]
    num_unlabelled: int
    done: int  # training steps of the encoder
    seconds: float
    rows: tuple[Row, ...]
    low_shot: tuple[LowShot, ...]
    confusion: Confusion
    seen: bool = False  # BYOL was trained on the test images, without their labels

    def render(self) -> str:
        """Return the rows as a plain-text table for a terminal, followed by the verdict."""
        about = f"classifiers trained on {self.num_train:,} images and tested on {self.num_test:,}"
        if self.protocol != TEST_PART:
            about = f"{self.num_test:,} images, each tested once"
        lines = [
            f"{_show_split(self.split)}; {about}; {self.num_classes} classes",
            "",
            *_render_rows(self.rows),
            "",
        ]
        lines += [*_explain_rows(self.rows), ""]
        sentences = [*self.verdict().splitlines(), *([SEEN] if self.seen else [])]
        return "\n".join([*lines, *_render_low_shot(self.low_shot), *wrap(*sentences)])

    def save(self, path: Path) -> None:
        """Write the table as JSON. The write is atomic.

        Raises:
            CheckpointError: the file cannot be written.
        """
        content = add_checksum({"format": FORMAT, **asdict(self)})
        lines = ",\n".join(f"  {json.dumps(key)}: {_dump(value)}" for key, value in content.items())
        write_atomically(path, f"{{\n{lines}\n}}\n".encode())

    def verdict(self) -> str:
        """Say per classifier whether the online encoder beats all baselines, and how certain that is."""
        return "\n".join(found.sentence for found in judge(self.rows))


def check_labels(run_dir: Path, *, overrides: Sequence[str] = ()) -> bool:
    """Open and split labelled images and open other weights as `evaluate` does, to report mistakes early.

    Return whether there are labels; none at all is no error.

    Raises:
        CheckpointError, ConfigError, DataError: as `evaluate`.
    """
    config = read_config(run_dir, overrides)
    spec = load(run_dir, device="cpu").spec
    with contextlib.suppress(NoLabelsError):
        splits = open_splits(config, run_dir, spec=spec)
        for fold in splits.folds:
            known = splits.train.take(fold.train)
            Validation.of(known.labels, seed=config.evaluation.seed, groups=known.units)
        if config.evaluation.weights is not None:
            open_weights(config.evaluation.weights, spec=spec, device="cpu")
        return True
    return False


# Longer than 60 lines, because it describes its arguments and fills the fields of the result.
def evaluate(
    run_dir: Path,
    *,
    overrides: Sequence[str] = (),
    say: Say = silent,
    progress: Count | None = None,
    unsaved: list[str] | None = None,
) -> Table:
    """Evaluate the encoders of a run on labelled images, and save the table in the run folder.

    Classifiers see test images only to predict their class.

    Args:
        overrides: changes to settings under `evaluation.` and to where the images are (`data.`).
        say: receives a line for each kind of features.
        progress: receives the number of images done.
        unsaved: receives why the result cannot be saved. None: that is raised.

    Raises:
        CheckpointError: the folder holds no run, or no encoder yet, or cannot be written.
        ConfigError: an override is not valid, or would change how the run was trained.
        DataError: the labelled images cannot be read, or have too few labels or none.
    """
    start = time.perf_counter()
    keep_freed_memory()
    config = read_config(run_dir, overrides)
    evaluation, cache_folder = config.evaluation, run_dir / "features"
    # "cuda" is where the run was trained. The machine that evaluates it may have no GPU.
    online = load(run_dir, device="cpu" if config.trainer.device == "cpu" else "auto")
    splits = open_splits(config, run_dir, spec=online.spec, say=say)
    _warn_of_few_groups(splits, say)
    rows, num_reused = list[Row](), 0
    low_shot, confusions = list[LowShot](), list[Confusion]()
    for candidate in make_candidates(
        config, run_dir, splits=splits, online=online, say=say, progress=progress
    ):
        judged = list(_judge_all(candidate, splits, config=config, cache_folder=cache_folder))
        rows += [row for row, _ in judged]
        num_reused += sum(found.reused for _, found in judged)
        if candidate.name == ONLINE:
            confusions.append(_confuse(judged[0], splits))
        if (num_draws := evaluation.num_draws) is not None and candidate.name in (ONLINE, *BASELINES):
            low_shot += measure_low_shot(
                candidate, splits, num_draws=num_draws, seed=evaluation.seed, cache_folder=cache_folder
            )
        say(_describe_judged(candidate, judged))
    if num_reused:
        say(f"{num_reused} of {len(rows)} rows below were computed earlier and come from {cache_folder}")
    table = Table(
        split=splits.description,
        protocol=splits.protocol,
        settings=evaluation.model_dump(),
        num_train=splits.num_train,
        num_test=len(splits.test.rows),
        num_classes=splits.num_classes,
        class_names=splits.class_names,
        num_unlabelled=splits.num_unlabelled,
        done=online.spec.done,
        seconds=round(time.perf_counter() - start, 2),
        rows=tuple(rows),
        low_shot=tuple(low_shot),
        confusion=confusions[0],
        seen=splits.seen,
    )
    with collecting(unsaved):
        table.save(run_dir / FILE_NAME)
    return table


def _warn_of_few_groups(splits: Splits, say: Say) -> None:
    groups = splits.test.group_numbers
    if groups is not None and (num := len(np.unique(groups))) < MIN_GROUPS:
        say(f"only {num} group{'s' if num > 1 else ''} of test images, so the intervals are rough")


def _judge_all(
    candidate: Candidate, splits: Splits, *, config: Config, cache_folder: Path
) -> Iterator[tuple[Row, Predicted]]:
    """Yield a row for each classifier, the linear one first."""
    seed, num_bootstrap = config.evaluation.seed, config.evaluation.num_bootstrap
    linear = SGD if splits.num_train > config.evaluation.sgd_above else LINEAR
    for name in (linear, KNN, WHITENED_KNN):
        found = predict(candidate, splits, classifier=name, seed=seed, cache_folder=cache_folder)
        row = make_row(
            candidate, found, splits=splits, classifier=name, num_bootstrap=num_bootstrap, seed=seed
        )
        yield row, found


def _confuse(judged: tuple[Row, Predicted], splits: Splits) -> Confusion:
    row, found = judged
    counts = count_confusions(found.ranked[:, 0], splits.test.labels, num_classes=len(splits.class_names))
    return Confusion(row.features, row.classifier, tuple(map(tuple, counts.tolist())))


# ---- Text


def _describe_judged(candidate: Candidate, judged: Sequence[tuple[Row, Predicted]]) -> str:
    return f"{candidate.name}: " + ", ".join(
        f"{show_classifier(row.classifier)} {percent(row.top1)}" for row, _ in judged
    )


def _render_rows(rows: Sequence[Row]) -> list[str]:
    """Return the heading, a rule below it, and one line per row."""
    kept = [at for at, name in enumerate(_HEADINGS) if name != "top-5" or rows[0].top5 is not None]
    cells = [[row[at] for at in kept] for row in (_HEADINGS, *map(_to_cells, rows))]
    return render_columns(cells, left=[name in _TO_THE_LEFT for name in cells[0]])


def _show_split(split: str) -> str:
    """Return a description of a split with the names of its images in quotes: `images` is also a word."""
    names, colon, rest = split.partition(": ")
    return f"{' / '.join(map(quote, names.split(' / ')))}{colon}{rest}"


def _explain_rows(rows: Sequence[Row]) -> list[str]:
    """Say once what the names of rows and columns mean."""
    names = {row.features for row in rows}
    target = "; byol target: the target network"
    return wrap(
        f"{ONLINE}: the trained encoder, BYOL{target if 'byol target' in names else ''}.",
        "pca-N: pixels reduced to N numbers; dims: number of features; top-1: share of test images that are "
        "classified correctly; top-5: share whose class is among the first 5 guesses; balanced: mean top-1 "
        "over the classes; C, k, temperature: settings of the classifiers; whitened kNN: kNN on features "
        "that were made independent of each other and equal in size.",
    )


def _render_low_shot(points: Sequence[LowShot]) -> list[str]:
    """Return a table with one line per kind of features and one column per number of training images.

    The list is empty if there are no points.
    """
    if not points:
        return []
    counts = dict.fromkeys(point.per_class for point in points)
    cells = [["training images per class", *map(str, counts)]]
    for name in dict.fromkeys(point.features for point in points):
        shares = [
            f"{100.0 * point.mean:.1f} ± {100.0 * point.std:.1f} %"
            for point in points
            if point.features == name
        ]
        cells.append([name, *shares])
    about = f"logistic regression with few labels: top-1, mean ± std over {points[0].num_draws} random draws"
    return [about, "", *render_columns(cells, left=[True, *(False for _ in counts)]), ""]


def _to_cells(row: Row) -> tuple[str, ...]:
    chosen = ", ".join(f"{name} = {_show(value)}" for name, value in row.chosen.items())
    return (
        row.features,
        _show_transform(row),
        show_classifier(row.classifier),
        str(row.dimensions),
        percent(row.top1),
        percent_range(row.low95, row.high95),
        "" if row.top5 is None else percent(row.top5),
        percent(row.balanced),
        percent_range(row.balanced_low95, row.balanced_high95),
        chosen,
    )


def _show_transform(row: Row) -> str:
    """Return the transform with its true number of dimensions: images can have fewer than 256 values."""
    return f"pca-{row.dimensions}" if row.transform.startswith("pca-") else row.transform


def _show(value: int | float | list[int | float]) -> str:
    return f"{min(value):g} to {max(value):g}" if isinstance(value, list) else f"{value:g}"


def _dump(value: object) -> str:
    """Return JSON; a list of objects gets one line per object."""
    if isinstance(value, Sequence) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(f"    {json.dumps(element)}" for element in value) + "\n  ]"
    return json.dumps(value)
