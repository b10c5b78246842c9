"""Embed the images of a run: features, known columns such as labels, and two-dimensional maps.

Maps and searches use the directions of the features minus their mean: the similarity of two images
is the cosine of their directions. PCA is fast; t-SNE and UMAP take minutes and are cached in `RUN/map.npz`.
"""

import hashlib
import importlib.util
import os.path
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64, UInt16
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from byol.base.cache import read_arrays, write_arrays
from byol.base.console import Count, Say
from byol.base.errors import CheckpointError, DataError
from byol.base.files import check_writable
from byol.config import Config
from byol.data.labels.label_file import LabelFile, Labels, match_columns
from byol.data.pack.images import open_images
from byol.data.pack.packed import Packed
from byol.data.sources.opening import folder_of
from byol.encoder.encoder import Encoder
from byol.encoder.spec import EncoderSpec
from byol.evaluation.features import features_of, spread, trained
from byol.evaluation.metadata import are_alike

FILE_NAME = "map.npz"
MOST_PLACED = 10_000  # most images for t-SNE and UMAP, whose time grows faster than the number of images
NOWHERE = 65_535  # both coordinates of an image that is not on a map
_SPAN = 65_000
_DIMENSIONS = 50  # dimensions after PCA, before t-SNE and UMAP
_TSNE_STEPS = 500
_FEWEST = 5  # fewest images for a map

Places = Float32[np.ndarray, "image 2"]


@dataclass(frozen=True, eq=False)
class Embedded:
    """Images, their features, and the known columns of each image, such as labels and folders."""

    images: Packed
    features: Float32[np.ndarray, "image feature"]
    columns: dict[str, Labels]

    @classmethod
    def of(
        cls,
        images: Packed,
        run_dir: Path,
        *,
        config: Config,
        encoder: Encoder,
        source: str | None = None,
        metadata: Path | None = None,
        say: Say,
        progress: Count | None = None,
    ) -> "Embedded":
        """Embed `images`, which `open_run_images` opened with the same `source`; use cached features if any.

        If the cache cannot be written, `say` receives a note and the features are not cached.

        Raises:
            DataError: `metadata` cannot be read, too many of its rows match no image, or a feature is not
                finite.
        """
        columns = _find_columns(images, metadata, config=config, source=source or config.data.source, say=say)
        with _open_cache(run_dir / "features", say=say) as cache_folder:
            features = features_of(
                images,
                np.arange(len(images)),
                encoder=trained(encoder),
                cache_folder=cache_folder,
                progress=progress,
            )
        return cls(images, features, columns)

    @cached_property
    def directions(self) -> Float32[np.ndarray, "image feature"]:
        """The features minus their mean, scaled to length 1."""
        return self.direction_of(self.features)

    def direction_of(self, features: Float32[np.ndarray, "m feature"]) -> Float32[np.ndarray, "m feature"]:
        """Return the directions of other features; the mean of these images is subtracted."""
        centred = features - self.features.mean(axis=0)
        unit: Float32[np.ndarray, "m feature"] = centred / np.maximum(
            np.linalg.norm(centred, axis=1, keepdims=True), 1e-12
        )
        return unit


def open_run_images(
    config: Config, run_dir: Path, *, encoder: Encoder, source: str | None = None, say: Say
) -> Packed:
    """Open the run's images, or those of `source`, for the encoder; `say` receives notes on their labels.

    Raises:
        DataError: the images cannot be read, or have another number of channels.
    """
    wanted = encoder.spec.stored_px
    find = partial(_open_labelled, config, run_dir, source=source, spec=encoder.spec)
    images, notes = find(stored_px=None if source is None else wanted)  # try the training's pack first
    if images.stored_px != wanted:
        images, notes = find(stored_px=wanted)
    if images.channels != encoder.spec.channels:
        raise DataError(
            f"{images.folder.name}: has {images.channels} channels, but the encoder was trained on "
            f"{encoder.spec.channels}; give images like the training images"
        )
    for note in notes:
        say(note)
    return images


def _open_labelled(
    config: Config, run_dir: Path, *, source: str | None, stored_px: int | None, spec: EncoderSpec
) -> tuple[Packed, list[str]]:
    """Open images with the labels of `evaluation.labels`, if set; return them and notes on the labels."""
    evaluation = config.evaluation
    labels = None if evaluation.labels is None else LabelFile(Path(evaluation.labels))
    images = open_images(
        config,
        run_dir,
        console=None,
        source=source,
        labels=labels,
        stored_px=stored_px,
        alpha=spec.alpha,
        trained=spec.trained_layout,
        fingerprint=spec.data_fingerprint,
    )
    notes = [images.note] if images.is_source_gone else []
    if labels is None:
        return images, notes
    labels.check(max_unmatched=evaluation.max_unmatched)
    return images, [*notes, *labels.notes()]


@contextmanager
def _open_cache(folder: Path, *, say: Say) -> Iterator[Path]:
    """Yield the cache folder or, if it cannot be written, a temporary folder with its content."""
    try:
        check_writable(folder / "features.npy")
    except CheckpointError as error:
        say(f"the features are not cached: {error}")
    else:
        yield folder
        return
    with tempfile.TemporaryDirectory() as other:
        for path in folder.glob("*.npy"):
            try:
                (Path(other) / path.name).symlink_to(path.resolve())
            except OSError:  # Windows allows links only to some users
                shutil.copyfile(path, Path(other) / path.name)
        yield Path(other)


def choose_rows(num: int, most: int) -> Int64[np.ndarray, " image"]:
    """Choose at most `most` of `num` rows at even distances, so that a sorted set keeps all classes."""
    return spread(np.arange(num), min(num, most))


# ---- Maps


def place_by_pca(directions: Float32[np.ndarray, "image feature"], *, seed: int) -> Places:
    """Return the first two principal components, or raise DataError for fewer than 5 images."""
    if len(directions) < _FEWEST:
        raise DataError(f"{len(directions)} images are too few for a map; give at least {_FEWEST}")
    places: Places = _reduce(directions, dimensions=2, seed=seed)
    return places


def list_slow_maps() -> tuple[str, ...]:
    """Return the names of the maps that take minutes: t-SNE, and UMAP if umap-learn is installed."""
    return ("t-SNE", "UMAP") if importlib.util.find_spec("umap") is not None else ("t-SNE",)


def place_most_slowly(
    names: Sequence[str],
    directions: Float32[np.ndarray, "image feature"],
    *,
    run_dir: Path,
    seed: int,
    say: Say,
) -> Iterator[tuple[str, UInt16[np.ndarray, "image 2"]]]:
    """Yield each map when it is ready. It has at most MOST_PLACED images; all others are at NOWHERE."""
    rows = choose_rows(len(directions), MOST_PLACED)
    said: set[str] = set()

    def say_once(line: str) -> None:
        if line not in said:
            say(line)
        said.add(line)

    for name in names:
        places = place_slowly(name, directions[rows], run_dir=run_dir, seed=seed, say=say_once)
        every = np.full((len(directions), 2), NOWHERE, dtype=np.uint16)
        every[rows] = to_uint16(places)
        yield name, every


def place_slowly(
    name: str, directions: Float32[np.ndarray, "image feature"], *, run_dir: Path, seed: int, say: Say
) -> Places:
    """Return the t-SNE or UMAP positions of the images, from the cache `RUN/map.npz` if it has them.

    `say` receives a line before a slow computation, and a note if the cache cannot be written.
    """
    path = run_dir / FILE_NAME
    key = f"{name} {seed} {hashlib.sha256(np.ascontiguousarray(directions).tobytes()).hexdigest()[:32]}"
    cached = read_arrays(path) or {}
    if key in cached:
        return np.asarray(cached[key], dtype=np.float32)
    say(f"computing {name} of {len(directions):,} images")
    reduced = _reduce(directions, dimensions=_DIMENSIONS, seed=seed)
    places = (_place_by_tsne if name == "t-SNE" else _place_by_umap)(reduced, seed=seed)
    # Drop cached maps of other weights or images.
    same = {other: cached[other] for other in cached if other.split()[1:] == key.split()[1:]}
    try:
        write_arrays(path, same | {key: places})
    except CheckpointError as error:
        say(f"the map is not cached: {error}")
    return places


def to_uint16(places: Places) -> UInt16[np.ndarray, "image 2"]:
    """Scale positions to integers 0 .. 65,000, centred, with the same scale on both axes."""
    low, high = places.min(axis=0), places.max(axis=0)
    scaled = (places - (low + high) / 2) / max(float((high - low).max()), 1e-12) + 0.5
    whole: UInt16[np.ndarray, "image 2"] = np.rint(scaled * _SPAN).astype(np.uint16)
    return whole


def _reduce(
    directions: Float32[np.ndarray, "image feature"], *, dimensions: int, seed: int
) -> Float32[np.ndarray, "image component"]:
    most = min(dimensions, *directions.shape)
    model = PCA(most, svd_solver="randomized", random_state=seed)
    return np.asarray(model.fit_transform(directions), dtype=np.float32)


def _place_by_tsne(reduced: Float32[np.ndarray, "image component"], *, seed: int) -> Places:
    perplexity = min(30.0, (len(reduced) - 1) / 3)
    model = TSNE(init="pca", perplexity=perplexity, max_iter=_TSNE_STEPS, random_state=seed)
    return np.asarray(model.fit_transform(reduced), dtype=np.float32)


def _place_by_umap(reduced: Float32[np.ndarray, "image component"], *, seed: int) -> Places:
    import umap

    with warnings.catch_warnings():  # umap warns that a seed restricts it to one thread
        warnings.simplefilter("ignore")
        model = umap.UMAP(n_neighbors=min(15, len(reduced) - 1), random_state=seed)
        return np.asarray(model.fit_transform(reduced), dtype=np.float32)


# ---- Columns


def _find_columns(
    images: Packed, metadata: Path | None, *, config: Config, source: str, say: Say
) -> dict[str, Labels]:
    """Return labels, folders (if several, and not equal to the labels), and the columns of a CSV file."""
    columns: dict[str, Labels] = {}
    if (images.labels >= 0).any():
        columns["label"] = (np.asarray(images.labels), images.class_names)
    folders = [os.path.dirname(name) for name in images.names]
    distinct = sorted(set(folders))
    if len(distinct) > 1:
        numbers = {folder: number for number, folder in enumerate(distinct)}
        values = np.array([numbers[folder] for folder in folders], dtype=np.int64)
        if "label" not in columns or not are_alike(values, columns["label"][0]):
            columns["folder"] = (values, tuple(distinct))
    if metadata is None:
        return columns
    found, notes = match_columns(
        metadata,
        images.names,
        folder=folder_of(source),
        max_unmatched=config.evaluation.max_unmatched,
    )
    for note in notes:
        say(note)
    return columns | found
