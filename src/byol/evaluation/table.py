"""The table: how good an encoder is, beside pixels and the untrained encoder, with intervals.

Saved as `eval.json`, whose rows others read; the format is described in docs/files.md.
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
from byol.base.errors import NoLabelsError
from byol.base.files import write_atomically
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
from byol.metrics.verdict import BASELINES, ONLINE, judge
from byol.runfolder.settings import read_config

FORMAT = 2
FILE_NAME = "eval.json"

_HEADINGS = (
    "features", "transform", "classifier", "dims", "top-1", "95 % interval", "top-5", "balanced",
    "95 % interval", "chosen",
)  # fmt: skip
_TO_THE_LEFT = ("features", "transform", "classifier", "chosen")


@dataclass(frozen=True)
class Confusion:
    """Of one row: how many images of each class (first index) were taken for each class (second)."""

    features: str
    classifier: str
    counts: tuple[tuple[int, ...], ...]  # in the order of `Table.class_names`


@dataclass(frozen=True)
class Table:
    """What `eval.json` holds."""

    split: str
    protocol: str  # "test part", "5 folds", "5 folds by plate"
    settings: dict[str, Any]  # the section `evaluation` of the configuration
    num_train: int  # of folds the mean
    num_test: int
    num_classes: int  # that occur
    class_names: tuple[str, ...]
    num_unlabelled: int
    done: int  # training steps of the encoder
    seconds: float
    rows: tuple[Row, ...]
    low_shot: tuple[LowShot, ...]
    confusion: Confusion
    seen: bool = False  # the test images are among those that BYOL was trained on, without labels

    def render(self) -> str:
        """The rows as plain text for a terminal, and the verdict below them."""
        about = f"{self.split}; {self.num_train} training and {self.num_test} test images, "
        if self.protocol != TEST_PART:
            about = f"{self.split}; {self.num_test} images, each tested once, "
        lines = [f"{about}{self.num_classes} classes", "", *_render_rows(self.rows), ""]
        sentences = [*self.verdict().splitlines(), *([SEEN] if self.seen else [])]
        return "\n".join([*lines, *_render_low_shot(self.low_shot), *wrap(*sentences)])

    def save(self, path: Path) -> None:
        """Write it as JSON, whole or not at all.

        Raises:
            CheckpointError: the file cannot be written.
        """
        content = add_checksum({"format": FORMAT, **asdict(self)})
        lines = ",\n".join(f"  {json.dumps(key)}: {_dump(value)}" for key, value in content.items())
        write_atomically(path, f"{{\n{lines}\n}}\n".encode())

    def verdict(self) -> str:
        """A sentence a classifier: is the online encoder above both baselines, and the intervals apart?"""
        return "\n".join(found.sentence for found in judge(self.rows))


def check_labels(run_dir: Path, *, overrides: Sequence[str] = ()) -> None:
    """Open labelled images and other weights, and part them, as `evaluate` does: mistakes are told at once.

    To have no labels at all is no mistake.

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


def evaluate(
    run_dir: Path,
    *,
    overrides: Sequence[str] = (),
    say: Say = silent,
    progress: Count | None = None,
) -> Table:
    """Evaluate the encoders of a run on labelled images, and save the table in the run folder.

    `overrides` are of `evaluation.` and of where the data lie (`data.`). Classifiers see test images only to
    predict their class. `say` hears a line for each kind of features, `progress` the images done.

    Raises:
        CheckpointError: the folder holds no run, or no encoder yet.
        ConfigError: an override is not valid, or would change what the run was.
        DataError: the labelled images cannot be read, or have no or too few labels.
    """
    start = time.perf_counter()
    keep_freed_memory()
    config = read_config(run_dir, overrides)
    evaluation, cache_folder = config.evaluation, run_dir / "features"
    # "cuda" is where the run was trained, which need not be where it is evaluated.
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
        say(f"{num_reused} of {len(rows)} rows come from the cache in {cache_folder}")
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
    table.save(run_dir / FILE_NAME)
    return table


def _warn_of_few_groups(splits: Splits, say: Say) -> None:
    groups = splits.test.group_numbers
    if groups is not None and (num := len(np.unique(groups))) < MIN_GROUPS:
        say(f"only {num} group{'s' if num > 1 else ''} of test images, so the intervals are rough")


def _judge_all(
    candidate: Candidate, splits: Splits, *, config: Config, cache_folder: Path
) -> Iterator[tuple[Row, Predicted]]:
    """A row for each classifier, the linear one first."""
    seed, num_bootstrap = config.evaluation.seed, config.evaluation.num_bootstrap
    for name in (SGD if splits.num_train > config.evaluation.sgd_above else LINEAR, KNN):
        found = predict(candidate, splits, classifier=name, seed=seed, cache_folder=cache_folder)
        row = make_row(
            candidate, found, splits=splits, classifier=name, num_bootstrap=num_bootstrap, seed=seed
        )
        yield row, found


def _confuse(judged: tuple[Row, Predicted], splits: Splits) -> Confusion:
    row, found = judged
    counts = count_confusions(found.ranked[:, 0], splits.test.labels, num_classes=len(splits.class_names))
    return Confusion(row.features, row.classifier, tuple(map(tuple, counts.tolist())))


# ---- Words


def _describe_judged(candidate: Candidate, judged: Sequence[tuple[Row, Predicted]]) -> str:
    return f"{candidate.name}: " + ", ".join(f"{row.classifier} {percent(row.top1)}" for row, _ in judged)


def _render_rows(rows: Sequence[Row]) -> list[str]:
    """The head, a line below it, and a line a row."""
    kept = [at for at, name in enumerate(_HEADINGS) if name != "top-5" or rows[0].top5 is not None]
    cells = [[row[at] for at in kept] for row in (_HEADINGS, *map(_to_cells, rows))]
    return render_columns(cells, left=[name in _TO_THE_LEFT for name in cells[0]])


def _render_low_shot(points: Sequence[LowShot]) -> list[str]:
    """Features downwards, images of each class to the right; empty without points."""
    if not points:
        return []
    counts = dict.fromkeys(point.per_class for point in points)
    cells = [["training images per class", *map(str, counts)]]
    for name in dict.fromkeys(point.features for point in points):
        shares = [
            f"{percent(point.mean)} ± {100.0 * point.std:.1f}" for point in points if point.features == name
        ]
        cells.append([name, *shares])
    about = f"logistic regression with few labels: top-1, mean ± std over {points[0].num_draws} random draws"
    return [about, "", *render_columns(cells, left=[True, *(False for _ in counts)]), ""]


def _to_cells(row: Row) -> tuple[str, ...]:
    chosen = ", ".join(f"{name} = {_show(value)}" for name, value in row.chosen.items())
    return (
        row.features,
        row.transform,
        row.classifier,
        str(row.dimensions),
        percent(row.top1),
        percent_range(row.low95, row.high95),
        "" if row.top5 is None else percent(row.top5),
        percent(row.balanced),
        percent_range(row.balanced_low95, row.balanced_high95),
        chosen,
    )


def _show(value: int | float | list[int | float]) -> str:
    return f"{min(value):g} to {max(value):g}" if isinstance(value, list) else f"{value:g}"


def _dump(value: object) -> str:
    """JSON with a line an element of a list of objects."""
    if isinstance(value, Sequence) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(f"    {json.dumps(element)}" for element in value) + "\n  ]"
    return json.dumps(value)
