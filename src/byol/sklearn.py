"""byol in scikit-learn: images in, features out, in front of any classifier.

from sklearn.datasets import load_files
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from byol.sklearn import ByolFeatures

files = load_files("LABELLED/", load_content=False)        # a folder for each class
model = make_pipeline(ByolFeatures(run="runs/cells"), LogisticRegression())
model.fit(files.filenames, files.target)
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float32
from PIL import Image
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from byol.api.arguments import AnyPath, Overrides, list_overrides
from byol.api.evaluation import folder_of
from byol.api.run import Run, train
from byol.base.errors import ConfigError
from byol.base.files import write_atomically
from byol.data.decode.formats import Layout
from byol.data.pack.partial import csv_line
from byol.data.sources.in_memory import InMemoryImages, OneImage
from byol.encoder.encoder import Encoder, gather, load
from byol.encoder.feature_file import feature_columns

ArrayLike: TypeAlias = Any  # an array, a table, a tensor, a sequence of images, or a path

_SINGLE = (str, os.PathLike, Image.Image, Tensor, np.ndarray)


@dataclass(frozen=True)
class _Given:
    """Images that `fit` or `transform` got."""

    images: Any  # a path; or images of one shape in an array or a tensor; or a list of single ones
    layout: Layout | None = None  # of arrays; None: as the training's were


class ByolFeatures(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Features of images by an encoder trained with BYOL: `fit` trains or loads it, `transform` embeds.

    Images come in these forms, a sample each:

        path        str or Path of a folder, of a list (.txt, .csv) or of an array (.npy)
        paths       a sequence, an array, a Series or a DataFrame of one column, of files
        array       (image, height, width) or (image, height, width, channel), in the values of the files
        tensor      (image, height, width) or (image, channel, height, width)
        sequence    of arrays, tensors or Pillow images, of any sizes
        table       (image, pixel) of numbers: a flattened image in each row, see `image_shape`

    Labels are not used. Nothing is printed. NaN is a value that was not measured: it is filled from the
    image's other values.

    Args:
        run: the folder of a run, or a `Run`: `fit` loads its encoder, and no image is looked at. None: `fit`
            trains on the images it gets. In cross-validation that is one training for each fold.
        output: where to keep the run that `fit` trains, by which the same `fit` continues. Arrays are written
            beside it (`OUTPUT-images`). None: the run is not kept. Leave it None in cross-validation.
        hours, init, preset, overrides: of the training, as for `byol.train`.
        image_shape: (height, width) or (height, width, channel) of a flattened image; one number may be -1,
            as for `numpy.reshape`. None: a square, grey or in three colours.
        device: of the training and of the encoder, as for `byol.load`.
        batch_size: images that are read and embedded at once.

    Attributes:
        encoder_: the `byol.Encoder`.
        run_: the `Run`, where one is kept; else None.
        n_features_in_: pixels in a row, where `fit` got a table.

    Raises (from `fit` and `transform`):
        ConfigError: a setting is unknown or impossible, or rows are no images of `image_shape`.
        DataError: an image cannot be read, or is of another kind than those of the training; names it.
        CheckpointError: `run` holds no encoder, or `output` cannot be written.
        DivergedError, CollapsedError: the training has failed.
        ValueError: an array of another number of dimensions, or a table that is empty or not of numbers.
    """

    def __init__(
        self,
        run: Run | AnyPath | None = None,
        *,
        output: AnyPath | None = None,
        hours: str | float | None = None,
        init: AnyPath | None = None,
        preset: str | None = None,
        overrides: Overrides = None,
        image_shape: Sequence[int] | None = None,
        device: str = "auto",
        batch_size: int = 256,
    ) -> None:
        self.run = run
        self.output = output
        self.hours = hours
        self.init = init
        self.preset = preset
        self.overrides = overrides
        self.image_shape = image_shape
        self.device = device
        self.batch_size = batch_size

    def fit(self, X: ArrayLike, y: object = None) -> "ByolFeatures":
        """Train an encoder on these images, or load the one of `run`."""
        given = self._read(X, reset=True)
        self.run_, self.encoder_ = self._load() if self.run is not None else self._train(given)
        return self

    def transform(self, X: ArrayLike) -> Float32[np.ndarray, "image feature"]:
        """Features of the images, a row each; those of a folder in the order of their paths."""
        check_is_fitted(self, "encoder_")
        given, encoder = self._read(X, reset=False), self.encoder_
        spec = encoder.spec if given.layout is None else replace(encoder.spec, layout=given.layout)
        images = given.images if isinstance(given.images, Path) else list(given.images)
        blocks = encoder.embed_source(gather(images, spec), batch_size=self.batch_size)
        empty = np.empty((0, encoder.spec.num_features), dtype=np.float32)
        return np.concatenate([empty, *(block.features for block in blocks)])

    def get_feature_names_out(self, input_features: object = None) -> np.ndarray:
        """`f000`, `f001`, ...: the columns of a feature file. `input_features` is not used."""
        check_is_fitted(self, "encoder_")
        return np.array(feature_columns(self.encoder_.spec.num_features), dtype=object)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True  # not one_d_array: that would mean numbers, here they are paths
        tags.input_tags.string = True
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = []  # always float32
        return tags

    # ---- The encoder

    def _load(self) -> tuple[Run | None, Encoder]:
        assert self.run is not None
        run = self.run if isinstance(self.run, Run) else None
        return run, load(folder_of(self.run), device=self.device)

    def _train(self, given: "_Given") -> tuple[Run | None, Encoder]:
        if self.output is not None:
            run = self._train_in(Path(self.output), given)
            return run, load(run.folder, device=self.device)
        with tempfile.TemporaryDirectory(prefix="byol-") as folder:
            run = self._train_in(Path(folder) / "run", given)
            return None, load(run.folder, device=self.device)

    def _train_in(self, folder: Path, given: "_Given") -> Run:
        known = [] if self.device == "auto" else [f"trainer.device={self.device}"]
        known += [] if given.layout is None else [f"data.layout={given.layout}"]
        run = train(
            _store(given.images, folder.with_name(f"{folder.name}-images")),
            output=folder,
            hours=self.hours,
            init=self.init,
            preset=self.preset,
            overrides=[*known, *list_overrides(self.overrides)],
            progress=False,
        )
        if run.stopped_by is not None:  # the training has caught it, to save what it had
            raise KeyboardInterrupt(f"stopped by {run.stopped_by} after step {run.done}")
        return run

    # ---- Images in any form

    def _read(self, X: ArrayLike, *, reset: bool) -> "_Given":
        if isinstance(X, str | os.PathLike):
            return _Given(Path(X))
        if isinstance(X, Tensor) and X.ndim in (3, 4):
            values = X.detach().cpu()
            return _Given(values[:, None] if X.ndim == 3 else values)
        if isinstance(X, list | tuple) and X and isinstance(X[0], _SINGLE) and _is_image(X[0]):
            return _Given([_as_path(item) for item in X])
        if getattr(X, "ndim", 2) <= 2 and (listed := _list_items(X)) is not None:
            return _Given(listed)
        if isinstance(X, np.ndarray) and X.ndim in (3, 4):
            return _Given(X[..., None], "hwc") if X.ndim == 3 else _Given(X)
        rows = validate_data(self, X, reset=reset, ensure_all_finite="allow-nan")
        return _Given(rows.reshape(len(rows), *self._find_shape(rows.shape[1])), "hwc")

    def _find_shape(self, num_pixels: int) -> tuple[int, ...]:
        """Height, width and channels of an image of so many values.

        Raises:
            ConfigError: `image_shape` is of other images, or None and they are no squares.
        """
        if self.image_shape is not None:
            try:
                shape = np.empty(num_pixels, dtype=np.bool_).reshape(tuple(self.image_shape)).shape
            except (ValueError, TypeError):
                shape = ()
            if len(shape) not in (2, 3) or 0 in shape:
                raise ConfigError(
                    f"image_shape={self.image_shape}: a row of {num_pixels} values does not fit; "
                    "give (height, width) or (height, width, channel)"
                )
            return (*shape, 1) if len(shape) == 2 else shape
        for channels in (1, 3):
            side = round((num_pixels / channels) ** 0.5)
            if side * side * channels == num_pixels:
                return side, side, channels
        raise ConfigError(
            f"image_shape: a row of {num_pixels} values is no square image; set its shape, for example "
            "image_shape=(height, width)"
        )


def _is_image(item: Any) -> bool:
    """Whether one of a sequence is an image for itself, not a row of a table."""
    return not isinstance(item, np.ndarray | Tensor) or item.ndim >= 2


def _as_path(item: Any) -> Any:
    return Path(item) if isinstance(item, str | os.PathLike) else item


def _list_items(X: ArrayLike) -> list[Any] | None:
    """Paths or images in an array of objects or text, or a table of one column; None: these are numbers."""
    values = X.to_numpy() if hasattr(X, "to_numpy") else X
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "OUT":
        return None
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or not all(isinstance(item, _SINGLE) for item in values):
        return None
    return [_as_path(item) for item in values]


# ---- Images on the disk, where a training reads them


def _store(images: Any, place: Path) -> Path:
    """Where these images lie; those that are in memory are written to `place`, with a suffix where needed.

    What is there already is not written again: a run knows its images by the times of their files.
    """
    if isinstance(images, Path):
        return images
    if isinstance(images, Tensor):
        images = np.moveaxis(images.numpy(), 1, -1)
    if isinstance(images, np.ndarray):
        path = place.with_name(f"{place.name}.npy")
        if not _holds(path, images):
            write_atomically(path, lambda file: np.save(file, images, allow_pickle=False))
        return path
    if all(isinstance(item, Path) for item in images):
        path = place.with_name(f"{place.name}.csv")
        lines = [csv_line("file"), *(csv_line(str(item.absolute())) for item in images)]
        write_atomically(path, b"".join(lines))
        return path
    for index, item in enumerate(images):
        _store_one(item, place / f"{index:07d}")
    return place


def _store_one(item: OneImage, path: Path) -> None:
    """As it is: a Pillow image as TIFF, values as .npy."""
    if isinstance(item, Image.Image):
        write_atomically(path.with_suffix(".tif"), lambda file: item.save(file, "TIFF"))
        return
    values = InMemoryImages([item]).item(0)
    assert isinstance(values, np.ndarray)
    if not _holds(path.with_suffix(".npy"), values):
        write_atomically(path.with_suffix(".npy"), lambda file: np.save(file, values, allow_pickle=False))


def _holds(path: Path, values: np.ndarray) -> bool:
    """Whether an .npy file holds these values."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return found.dtype == values.dtype and np.array_equal(found, values, equal_nan=values.dtype.kind == "f")
