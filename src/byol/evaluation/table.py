"""The table: how good an encoder is, beside pixels and the untrained encoder, with intervals.

Saved as `eval.json`, whose rows others read; the format is described in docs/files.md.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from byol.artifacts.encoder import SPEC_NAME, Encoder, load
from byol.config import Config, diff_configs, load_config
from byol.errors import CheckpointError, ConfigError
from byol.evaluation import probes
from byol.evaluation.features import Progress, features_of, pixel_components, trained, untrained
from byol.evaluation.splits import Splits, open_splits
from byol.files import write_atomically
from byol.training.distributed import keep_freed_memory

FORMAT = 1
FILE_NAME = "eval.json"
PCA_DIMENSIONS = 256

_CLASSIFIERS = ("logistic regression", "knn")
_HEADINGS = ("features", "transform", "classifier", "dims", "top-1", "95 % interval", "balanced", "chosen")
_BASELINES = ("untrained", "pixels")
# What an evaluation may set differently from the run: its own section, and where the images lie.
_MAY_CHANGE = ("evaluation.", "data.source:", "data.root:", "data.packs:", "data.download:", "data.memory:")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One classifier on one kind of features; accuracies are shares of the test images, 0..1."""

    features: str  # "pixels", "untrained", "byol online", "byol target"
    transform: str  # "none", "pca-256"
    classifier: str  # "logistic regression", "knn"
    dimensions: int
    top1: float
    low95: float  # bootstrap over the test images
    high95: float
    balanced: float  # mean over classes of the share that is right
    chosen: dict[str, int | float]  # settings, chosen on a part of the training images
    seconds: float  # to choose, fit and predict; without the features


@dataclass(frozen=True)
class Table:
    """What `eval.json` holds."""

    split: str
    num_train: int
    num_test: int
    num_classes: int
    num_unlabelled: int
    done: int  # training steps of the encoder
    seconds: float
    rows: tuple[Row, ...]

    def render(self) -> str:
        """The rows as plain text for a terminal, and the verdict below them."""
        cells = [_HEADINGS, *map(_to_cells, self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(_HEADINGS))]
        # Names to the left, numbers to the right.
        lines = [
            "  ".join(
                text.ljust(width) if column in (0, 1, 2, 7) else text.rjust(width)
                for column, (text, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in cells
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        about = f"{self.split}; {self.num_train} training and {self.num_test} test images, "
        return "\n".join([f"{about}{self.num_classes} classes", "", *lines, "", self.verdict()])

    def save(self, path: Path) -> None:
        """Write it as JSON, whole or not at all.

        Raises:
            CheckpointError: the file cannot be written.
        """
        content = json.dumps({"format": FORMAT, **asdict(self)}, indent=2)
        write_atomically(path, content.encode() + b"\n")

    def verdict(self) -> str:
        """A sentence a classifier: is the online encoder above both baselines, and the intervals apart?"""
        return "\n".join(_judge(self.rows, classifier=classifier) for classifier in _CLASSIFIERS)


def evaluate(
    run_dir: Path,
    *,
    overrides: Sequence[str] = (),
    say: Say | None = None,
    progress: Progress | None = None,
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
    # "cuda" is where the run was trained, which need not be where it is evaluated.
    online = load(run_dir, device="cpu" if config.trainer.device == "cpu" else "auto")
    splits = open_splits(config, run_dir, spec=online.spec, say=say)
    rows: list[Row] = []
    for candidate in _make_candidates(config, run_dir, splits=splits, online=online, progress=progress):
        new = [_probe(candidate, splits, config=config, classifier=name) for name in _CLASSIFIERS]
        rows += new
        if say is not None:
            say(f"{candidate.name}: " + ", ".join(f"{row.classifier} {_percent(row.top1)}" for row in new))
    table = Table(
        split=splits.description,
        num_train=len(splits.train.rows),
        num_test=len(splits.test.rows),
        num_classes=len(np.unique(splits.train.labels)),
        num_unlabelled=splits.num_unlabelled,
        done=online.spec.done,
        seconds=round(time.perf_counter() - start, 2),
        rows=tuple(rows),
    )
    table.save(run_dir / FILE_NAME)
    return table


# ---- Configuration


def read_config(run_dir: Path, overrides: Sequence[str]) -> Config:
    """What the run was, with `overrides` of its evaluation and of where the images lie.

    Raises:
        CheckpointError: the folder holds no run.
        ConfigError: an override is not valid, or would change what the run was.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise CheckpointError(
            f"{run_dir}: holds no run (no config.yaml); name a run's folder, or train one: "
            "byol train IMAGES/ -o runs/NAME"
        )
    config = load_config(path, list(overrides), preset=None)
    changes = diff_configs(load_config(path, [], preset=None), config)
    refused = [change for change in changes if not change.startswith(_MAY_CHANGE)]
    if refused:
        raise ConfigError(f"evaluation cannot change what the run was ({'; '.join(refused)}); leave it out")
    return config


# ---- Features and rows


@dataclass(frozen=True)
class _Candidate:
    """One kind of features of both splits."""

    name: str
    transform: str
    train: Float32[np.ndarray, "train feature"]
    test: Float32[np.ndarray, "test feature"]


def _make_candidates(
    config: Config, run_dir: Path, *, splits: Splits, online: Encoder, progress: Progress | None
) -> Iterator[_Candidate]:
    """Baselines first, so that what BYOL has to beat is known when its rows come."""
    train, test, cache_folder = splits.train, splits.test, run_dir / "features"
    pixels = pixel_components(
        train.images,
        test.images,
        train_rows=train.rows,
        test_rows=test.rows,
        spec=online.spec,
        dimensions=PCA_DIMENSIONS,
        seed=config.evaluation.seed,
        cache_folder=cache_folder,
    )
    yield _Candidate("pixels", f"pca-{PCA_DIMENSIONS}", *pixels)
    encoders = {
        "untrained": untrained(
            config, online.spec, images=train.images, rows=train.rows, device=str(online.device)
        ),
        "byol online": trained(online),
    }
    if (run_dir / "target" / SPEC_NAME).is_file():
        encoders["byol target"] = trained(load(run_dir / "target", device=online.device.type))
    for name, encoder in encoders.items():
        train_features, test_features = (
            features_of(
                split.images, split.rows, encoder=encoder, cache_folder=cache_folder, progress=progress
            )
            for split in (train, test)
        )
        yield _Candidate(name, "none", train_features, test_features)


def _probe(candidate: _Candidate, splits: Splits, *, config: Config, classifier: str) -> Row:
    """The one place where predictions meet the labels of the test images."""
    start = time.perf_counter()
    train, labels, test, seed = candidate.train, splits.train.labels, candidate.test, config.evaluation.seed
    if classifier == "knn":
        predicted = probes.knn(train, labels, test=test, seed=seed)
    else:
        scale = probes.standardise if candidate.transform == "none" else probes.rescale
        predicted = probes.logistic_regression(train, labels, test=test, seed=seed, scale=scale)
    seconds = time.perf_counter() - start
    truth = splits.test.labels
    correct = predicted.labels == truth
    low, high = probes.bootstrap_interval(correct, seed=seed, num=config.evaluation.num_bootstrap)
    return Row(
        features=candidate.name,
        transform=candidate.transform,
        classifier=classifier,
        dimensions=candidate.train.shape[1],
        top1=float(correct.mean()),
        low95=low,
        high95=high,
        balanced=probes.balanced_accuracy(predicted.labels, truth),
        chosen=predicted.chosen,
        seconds=round(seconds, 2),
    )


# ---- Words


def _percent(share: float) -> str:
    return f"{100.0 * share:.1f} %"


def _to_cells(row: Row) -> tuple[str, ...]:
    interval = f"{100.0 * row.low95:.1f} to {100.0 * row.high95:.1f}"
    chosen = ", ".join(f"{name} = {value:g}" for name, value in row.chosen.items())
    accuracy = _percent(row.top1), interval, _percent(row.balanced)
    return (row.features, row.transform, row.classifier, str(row.dimensions), *accuracy, chosen)


def _judge(rows: Sequence[Row], *, classifier: str) -> str:
    """Is the online encoder above both baselines by this classifier?"""
    by_features = {row.features: row for row in rows if row.classifier == classifier}
    byol = by_features["byol online"]
    baselines = [by_features[name] for name in _BASELINES]
    best = max(baselines, key=lambda row: row.top1)
    overlapping = [row.features for row in baselines if row.high95 >= byol.low95]
    against = " and ".join(f"{row.features} {_percent(row.top1)}" for row in baselines)
    figures = f"{classifier} {_percent(byol.top1)} against {against}"
    if byol.top1 <= best.top1:
        return f"BYOL does not help here: {figures}."
    if overlapping:
        return f"BYOL is ahead, but not surely: {figures}; the interval overlaps that of {overlapping[0]}."
    return f"BYOL helps: {figures}; the intervals do not overlap."
