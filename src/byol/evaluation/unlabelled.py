"""How good an encoder is without labels, and what its features show of the images it was trained on.

Beside `measures.json` it leaves `neighbours.png` (a row is an image and the 8 most like it) and
`prototypes.csv` (images that are worth a label).
"""

import csv
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from byol.artifacts.encoder import load
from byol.artifacts.sheets import Sample, draw_contact
from byol.config import Config
from byol.data.images import open_images
from byol.data.labels import Labels, match_columns
from byol.data.packed import Packed
from byol.evaluation import geometry
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
    Progress,
    features_of,
    spread,
    trained,
    untrained,
    view_features_of,
)
from byol.evaluation.kept import Arrays, keep, make_key
from byol.evaluation.metadata import ColumnScore, find_unusable, folders_of, judge_column
from byol.evaluation.neighbours import (
    Distinct,
    Neighbours,
    Prototypes,
    find_neighbours,
    find_outliers,
    find_prototypes,
)
from byol.evaluation.settings import read_config
from byol.evaluation.splits import check_fit
from byol.files import write_atomically
from byol.plan import make_key as make_seed
from byol.training.distributed import keep_freed_memory

MOST_IMAGES = 100_000  # of more, as many at even distances
NUM_MEASURED = 2048  # images that encoders are measured on: rank up to 2,047, retrieval to 2 points
NUM_NEIGHBOURS = 10  # that the distance of an outlier is the mean of
NUM_QUERIES, NUM_SHOWN = 12, 8  # rows of the sheet, and neighbours in one
NUM_PROTOTYPES = 100
NUM_OUTLIERS = 20

_FOLDER, _LABEL = "folder", "label"

Features = Float32[np.ndarray, "image feature"]
Rows = Int64[np.ndarray, " image"]
Say = Callable[[str], None]


def describe(
    run_dir: Path,
    *,
    overrides: Sequence[str] = (),
    metadata: Path | None = None,
    say: Say | None = None,
    progress: Progress | None = None,
) -> Description:
    """Describe a run's features of its training images without labels, and save that in the run folder.

    Of more than 100,000 images 100,000 are described. The trained encoder is compared with the untrained one
    on at most 2,048 of them. `metadata` is a CSV with the column `file` and others: which of these, and
    whether the folder, the features tell. `overrides` as for `table.evaluate`; `say` hears of columns that
    are left out, `progress` of images done.

    Raises:
        CheckpointError: the folder holds no run, or no encoder yet.
        ConfigError: an override is not valid, or would change what the run was.
        DataError: the images or `metadata` cannot be read, features are not finite or all the same.
    """
    start = time.perf_counter()
    keep_freed_memory()
    config = read_config(run_dir, overrides)
    online = load(run_dir, device="cpu" if config.trainer.device == "cpu" else "auto")
    images = open_images(config, run_dir, console=None)
    check_fit(images, online.spec, name=Path(config.data.source).name or config.data.source)
    rows = np.arange(len(images))
    rows = rows if len(rows) <= MOST_IMAGES else spread(rows, MOST_IMAGES)
    columns = _find_columns(images, rows, metadata=metadata)
    features = features_of(
        images, rows, encoder=trained(online), cache_folder=run_dir / "features", progress=progress
    )
    seed = config.evaluation.seed
    found = _find(features, seed=seed, cache_folder=run_dir / "features")
    encoders = {
        "untrained": untrained(config, online.spec, images=images, rows=rows, device=str(online.device)),
        "byol online": trained(online),
    }
    measured = _choose_measured(rows, seed=config.trainer.seed)
    geometries = {
        name: _measure(encoder, images, measured, config=config, cache_folder=run_dir / "features")
        for name, encoder in encoders.items()
    }
    description = Description(
        num_images=len(rows),
        num_copies=len(rows) - len(found.distinct.rows),
        num_measured=len(measured),
        done=online.spec.done,
        seconds=0.0,
        encoders=tuple(EncoderMeasures(name, **asdict(one)) for name, one in geometries.items()),
        verdict=geometry.judge(geometries["byol online"], geometries["untrained"]),
        neighbours=tuple(_make_queries(found, images.names, rows=rows)),
        prototypes=tuple(_make_prototypes(found.prototypes, images.names, rows=rows)),
        outliers=tuple(_make_outliers(found, images.names, rows=rows)),
        metadata=tuple(_judge_columns(features, columns, found=found, config=config, say=say)),
    )
