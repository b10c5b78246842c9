"""Evaluate an encoder without labels, and show what its features say about the training images.

It writes `measures.json`, `neighbours.png` (each row: an image and its 8 nearest neighbours) and
`prototypes.csv` (images worth labelling first).
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from byol.base.cache import Arrays, cache_key, load_or_make
from byol.base.console import Count, Say, silent
from byol.base.errors import DataError
from byol.base.files import collecting, write_atomically
from byol.config import Config
from byol.data.labels.label_file import Labels, match_columns, match_labels
from byol.data.pack.images import open_images
from byol.data.pack.packed import Packed
from byol.data.sources.opening import folder_of
from byol.device.ranks import keep_freed_memory
from byol.encoder.encoder import load
from byol.encoder.feature_file import write_prototypes
from byol.evaluation.description import (
    FILE_NAME,
    PROTOTYPES_NAME,
    SHEET_NAME,
    Description,
    EncoderMeasures,
    Neighbour,
    Outlier,
    Prototype,
    Query,
)
from byol.evaluation.features import (
    FrozenEncoder,
    features_of,
    spread,
    trained,
    untrained,
    view_features_of,
)
from byol.evaluation.labelled import check_fit
from byol.evaluation.metadata import ColumnScore, are_alike, find_unusable, folders_of, judge_column
from byol.method.schedule import derive_seed
from byol.metrics import geometry
from byol.metrics.neighbours import (
    Distinct,
    Neighbours,
    Prototypes,
    find_neighbours,
    find_outliers,
    find_prototypes,
)
from byol.pictures.sheets import Sample, draw_contact
from byol.runfolder.leftovers import tidy
from byol.runfolder.settings import read_config

MOST_IMAGES = 100_000  # of a larger set, byol describes evenly spaced images
NUM_MEASURED = 2048  # images the encoders are compared on: rank up to 2,047, retrieval accuracy to 2 points
NUM_NEIGHBOURS = 10  # an outlier's distance is the mean over these
NUM_QUERIES, NUM_SHOWN = 12, 8  # rows of `neighbours.png`, and neighbours per row
NUM_PROTOTYPES = 100
NUM_OUTLIERS = 20

_FOLDER = "folder"

Features = Float32[np.ndarray, "image feature"]
Rows = Int64[np.ndarray, " image"]
Values = Int64[np.ndarray, " image"]


# Longer than 60 lines, because it describes its arguments and fills the fields of the result.
def describe(
    run_dir: Path,
    *,
    overrides: Sequence[str] = (),
    metadata: Path | None = None,
    say: Say = silent,
    progress: Count | None = None,
    unsaved: list[str] | None = None,
) -> Description:
    """Evaluate a run on its training images without labels, and save the results in the run folder.

    Of more than 100,000 images, 100,000 evenly spaced ones are used. The trained encoder is compared with
    the untrained one on at most 2,048 of these.

    Args:
        overrides: as for `table.evaluate`.
        metadata: CSV with the column `file` and others. byol tests which columns the features predict; it
            always tests the folder, if there are several.
        say: receives notes on columns that are left out.
        progress: receives the number of images done.
        unsaved: as for `table.evaluate`.

    Raises:
        CheckpointError: the folder holds no run, or no encoder yet, or cannot be written.
        ConfigError: an override is not valid, or would change how the run was trained.
        DataError: the images or `metadata` cannot be read, or features are not finite or all the same.
    """
    start, cache_folder = time.perf_counter(), run_dir / "features"
    tidy(run_dir)
    keep_freed_memory()
    config = read_config(run_dir, overrides)
    online = load(run_dir, device="cpu" if config.trainer.device == "cpu" else "auto")
    images = open_images(
        config,
        run_dir,
        console=None,
        alpha=online.spec.alpha,
        trained=online.spec.trained_layout,
        fingerprint=online.spec.data_fingerprint,
    )
    if images.is_source_gone:
        say(images.note)
    check_fit(images, online.spec, name=Path(config.data.source).name or config.data.source)
    rows = spread(np.arange(len(images)), min(len(images), MOST_IMAGES))
    columns = _find_columns(images, rows, metadata=metadata, config=config, say=say)
    features = features_of(
        images, rows, encoder=trained(online), cache_folder=cache_folder, progress=progress
    )
    found = _find(features, seed=config.evaluation.seed, cache_folder=cache_folder)
    measured = choose_measured(rows, seed=config.trainer.seed)
    frozen = untrained(config, online.spec, images=images, rows=rows, device=str(online.device))
    measure = partial(_measure, images=images, rows=measured, config=config, cache_folder=cache_folder)
    before = measure(frozen, whole=None)
    after = measure(trained(online), whole=features[np.searchsorted(rows, measured)])
    labels = _find_label_columns(columns, images, rows, config=config)
    description = Description(
        num_images=len(rows),
        num_copies=len(rows) - len(found.distinct.rows),
        num_measured=len(measured),
        done=online.spec.done,
        seconds=round(time.perf_counter() - start, 2),
        encoders=(
            EncoderMeasures("untrained", **asdict(before)),
            EncoderMeasures("byol online", **asdict(after)),
        ),
        verdict=geometry.judge(after, before),
        neighbours=tuple(_list_queries(found, images, rows=rows)),
        prototypes=tuple(_list_prototypes(found, images, rows=rows)),
        outliers=tuple(_list_outliers(found, images, rows=rows)),
        metadata=tuple(
            _judge_columns(
                features, columns, found=found, labels=labels, seed=config.evaluation.seed, say=say
            )
        ),
    )
    with collecting(unsaved):
        _save(description, images, run_dir=run_dir)
    return description


# ---- Measures and neighbours


def choose_measured(rows: Rows, *, seed: int) -> Int64[np.ndarray, " measured"]:
    """Draw at most 2,048 images at random, because nearby files in a folder are often very similar."""
    if len(rows) <= NUM_MEASURED:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, NUM_MEASURED, replace=False))


def _measure(
    encoder: FrozenEncoder,
    *,
    images: Packed,
    rows: Rows,
    whole: Features | None,
    config: Config,
    cache_folder: Path,
) -> geometry.Geometry:
    """Measure one encoder; every encoder sees the same views. `whole`: features of these rows, if known."""
    first, second = view_features_of(
        images,
        rows,
        encoder=encoder,
        transforms=config.data_transforms,
        key=derive_seed(config.trainer.seed, "measures", index=0),
        cache_folder=cache_folder,
    )
    if whole is None:
        whole = features_of(images, rows, encoder=encoder, cache_folder=cache_folder)
    return geometry.measure(whole, first, second=second, seed=config.evaluation.seed)


@dataclass(frozen=True)
class _Found:
    """Neighbours and prototypes of the described images; numbers are indices into the features."""

    distinct: Distinct
    neighbours: Neighbours  # among distinct images, as indices into `distinct.rows`
    prototypes: Prototypes


def _find(features: Features, *, seed: int, cache_folder: Path) -> _Found:
    """Find neighbours and prototypes. The result is cached because this is slow for many images."""
    distinct = Distinct.of(features)

    def make() -> Arrays:
        neighbours = find_neighbours(features[distinct.rows], k=NUM_NEIGHBOURS)
        prototypes = find_prototypes(features, distinct, num=NUM_PROTOTYPES, seed=seed)
        return {
            "index": neighbours.index,
            "similarity": neighbours.similarity,
            "rows": prototypes.rows,
            "sizes": prototypes.sizes,
        }

    key = cache_key("neighbours", features, NUM_NEIGHBOURS, NUM_PROTOTYPES, seed)
    loaded, _ = load_or_make(cache_folder / f"{key}.npz", make)
    neighbours = Neighbours(loaded["index"].astype(np.int64), loaded["similarity"].astype(np.float32))
    prototypes = Prototypes(loaded["rows"].astype(np.int64), loaded["sizes"].astype(np.int64))
    return _Found(distinct, neighbours, prototypes)


def _list_queries(found: _Found, images: Packed, *, rows: Rows) -> Iterator[Query]:
    """Yield prototypes of clusters of all sizes, with their nearest neighbours."""
    prototypes = found.prototypes.rows
    chosen = spread(prototypes, min(NUM_QUERIES, len(prototypes)))
    for place in np.searchsorted(found.distinct.rows, chosen):
        others = found.neighbours.index[place, :NUM_SHOWN]
        alike = zip(found.distinct.rows[others], found.neighbours.similarity[place], strict=False)
        row = int(rows[found.distinct.rows[place]])
        yield Query(
            row,
            images.names[row],
            tuple(
                Neighbour(int(rows[other]), images.names[int(rows[other])], round(float(likeness), 4))
                for other, likeness in alike
            ),
        )


def _list_prototypes(found: _Found, images: Packed, *, rows: Rows) -> Iterator[Prototype]:
    for place, size in zip(found.prototypes.rows, found.prototypes.sizes, strict=True):
        row = int(rows[place])
        yield Prototype(row, images.names[row], int(size))


def _list_outliers(found: _Found, images: Packed, *, rows: Rows) -> Iterator[Outlier]:
    for place, distance in zip(*find_outliers(found.neighbours, num=NUM_OUTLIERS), strict=True):
        row = int(rows[found.distinct.rows[place]])
        yield Outlier(row, images.names[row], round(float(distance), 4))


# ---- Columns


def _find_columns(
    images: Packed, rows: Rows, *, metadata: Path | None, config: Config, say: Say
) -> dict[str, Values]:
    """Return the folder column, if there are several folders, and the CSV's columns; -1: unknown."""
    names = list(images.names)
    folders = folders_of(names)
    columns: dict[str, Labels] = {} if folders is None else {_FOLDER: folders}
    if metadata is not None:
        folder = folder_of(config.data.source)
        found, notes = match_columns(
            metadata, names, folder=folder, max_unmatched=config.evaluation.max_unmatched
        )
        columns |= found
        for note in notes:
            say(note)
    return {name: values[rows] for name, (values, _) in columns.items()}


def _find_label_columns(
    columns: Mapping[str, Values], images: Packed, rows: Rows, *, config: Config
) -> set[str]:
    """Return the columns that features are meant to predict: `label`, and the folder if it is the class.

    The folder is the class if all images of a folder have the same class in the image set. If there is a
    label file, the folder is the class if labels and folders divide the labelled images in the same way.
    """
    found, path = {"label"}, config.evaluation.labels
    folders, labels = columns.get(_FOLDER), images.labels[rows]
    if folders is None:
        return found
    if path is not None:
        try:
            labels = match_labels(Path(path), images.names, folder=folder_of(config.data.source))[0][rows]
        except DataError:  # the labels belong to other images
            return found
        is_labelled = labels >= 0
        is_class = bool(is_labelled.any()) and are_alike(folders[is_labelled], labels[is_labelled])
    else:
        num_pairs = np.unique(np.stack([folders, labels]), axis=1).shape[1]
        is_class = bool(labels.min() >= 0) and num_pairs == len(np.unique(folders))
    return found | {_FOLDER} if is_class else found


def _judge_columns(
    features: Features,
    columns: Mapping[str, Values],
    *,
    found: _Found,
    labels: set[str],
    seed: int,
    say: Say,
) -> Iterator[ColumnScore]:
    """Judge every usable column. Duplicates are left out, because they would leak between the folds."""
    distinct = found.distinct.rows
    for name, values in columns.items():
        problem = find_unusable(values[distinct])
        if problem is None:
            yield judge_column(
                features[distinct], values[distinct], name=name, is_label=name in labels, seed=seed
            )
        else:
            say(f"column {name!r} {problem}; left out")


# ---- Files


def _save(description: Description, images: Packed, *, run_dir: Path) -> None:
    """Write `measures.json`, the neighbour sheet and the list of prototypes."""
    description.save(run_dir / FILE_NAME)
    prototypes = description.prototypes
    write_prototypes(
        run_dir / PROTOTYPES_NAME, [one.name for one in prototypes], sizes=[one.size for one in prototypes]
    )
    wanted = [
        row for query in description.neighbours for row in (query.row, *(one.row for one in query.neighbours))
    ]
    shown = np.array(wanted)
    sample = Sample(
        tuple(images.names[row] for row in wanted), images.read(shown), images.sizes[shown], images.pixels
    )
    columns = 1 + len(description.neighbours[0].neighbours)
    write_atomically(run_dir / SHEET_NAME, draw_contact(sample, columns=columns))
