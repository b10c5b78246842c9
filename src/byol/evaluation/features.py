"""Compute and cache features of packed images: by a trained or untrained encoder, or PCA of pixels.

Each array is cached as `features/<key>.npy`, where the key is a hash of the weights, preprocessing, images
and rows. The folder can be deleted at any time.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64
from sklearn.decomposition import PCA
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from byol.base.cache import load_or_make_array
from byol.base.console import Count
from byol.config import Config, DataTransforms
from byol.data.pack.packed import Packed
from byol.encoder.encoder import Encoder
from byol.encoder.finite import check_finite
from byol.encoder.spec import EncoderSpec
from byol.method.networks import Byol
from byol.method.schedule import derive_seed
from byol.method.views import make_views, whole_view
from byol.metrics.probes import fit_pca

FORMAT = 1
NUM_CALIBRATION = 1000  # training images that calibrate the BatchNorm statistics of an untrained encoder

BATCH = 256
PCA_VALUES = 2**28  # pixel values that PCA is fitted on: 1 GB
_PCA_ROWS = 10_000

Rows = Int64[np.ndarray, " image"]
Features = Float32[np.ndarray, "image feature"]


@dataclass(frozen=True)
class FrozenEncoder:
    """An encoder that is built only if its features are not cached; `identity` is part of the cache key."""

    identity: str
    spec: EncoderSpec
    make: Callable[[], Encoder]


def trained(encoder: Encoder) -> FrozenEncoder:
    """Wrap the trained encoder of a run."""
    return FrozenEncoder(_hash_weights(encoder.module), encoder.spec, lambda: encoder)


def untrained(
    config: Config, spec: EncoderSpec, *, images: Packed, rows: Rows, device: str = "cpu"
) -> FrozenEncoder:
    """Return the untrained encoder of the run's seed, with BatchNorm statistics estimated on the data.

    The initial running statistics, 0 and 1, would make the baseline unfairly weak. They are estimated on
    whole views of at most 1,000 of the training images (`rows`).
    """
    key = derive_seed(config.trainer.seed, "init", index=0)
    module = Byol.of(config, channels=spec.channels, seed_key=key).online.encoder
    chosen = rows if len(rows) <= NUM_CALIBRATION else spread(rows, NUM_CALIBRATION)

    @cache
    def make() -> Encoder:
        _estimate_norms(module, images, rows=chosen, spec=spec)
        return Encoder(replace(spec, done=0), module, device=device)

    identity = hash_parts("untrained", _hash_weights(module), identify(images, chosen))
    return FrozenEncoder(identity, spec, make)


def features_of(
    images: Packed,
    rows: Rows,
    *,
    encoder: FrozenEncoder,
    cache_folder: Path,
    progress: Count | None = None,
) -> Features:
    """Compute, or load from the cache, the features of these rows of the packed images, in the same order.

    Raises:
        DataError: a feature is not a finite number; the message names the first such image.
        CheckpointError: the cache folder cannot be written.
    """
    spec = encoder.spec
    seen = (spec.seen_px, spec.stored_px, asdict(spec.pixels))
    kind = "mirrored encoder" if spec.mirrored else "encoder"
    key = hash_parts(kind, encoder.identity, repr(seen), identify(images, rows))

    def make() -> Features:
        features = encoder.make().embed_packed(images, rows=rows, batch_size=BATCH, progress=progress)
        check_finite(features, lambda place: images.names[int(rows[place])])
        return features

    return load_or_save(cache_folder / f"{key}.npy", make)


def view_features_of(
    images: Packed,
    rows: Rows,
    *,
    encoder: FrozenEncoder,
    transforms: DataTransforms,
    key: int,
    cache_folder: Path,
) -> tuple[Features, Features]:
    """Compute, or load from the cache, the features of two random views of each image; `key` seeds the views.

    The views are the training augmentations (`make_views`). The encoder is frozen, as in `features_of`.

    Raises:
        DataError: as `features_of`.
    """
    spec = encoder.spec
    seen = (transforms.model_dump(), key, asdict(spec.pixels))
    name = hash_parts("views", encoder.identity, repr(seen), identify(images, rows))

    def make() -> Features:
        sizes = torch.from_numpy(images.sizes[rows].astype(np.float32))
        parts = []
        for first in range(0, len(rows), BATCH):
            part = slice(first, min(first + BATCH, len(rows)))
            squares = read_squares(images, rows[part])
            views = make_views(squares, sizes, transforms, key=key, rows=part, pixels=spec.pixels)
            parts.append(np.stack([encoder.make().encode_views(view).cpu().numpy() for view in views]))
        both: Features = np.concatenate(parts, axis=1).reshape(2 * len(rows), -1)  # first, then second
        check_finite(both, lambda place: images.names[int(rows[place % len(rows)])])
        return both

    first_views, second_views = np.split(load_or_save(cache_folder / f"{name}.npy", make), 2)
    return first_views, second_views


def pixel_components(
    train: Packed,
    test: Packed,
    *,
    train_rows: Int64[np.ndarray, " train"],
    test_rows: Int64[np.ndarray, " test"],
    spec: EncoderSpec,
    dimensions: int,
    seed: int,
    cache_folder: Path | None,
) -> tuple[Float32[np.ndarray, "train component"], Float32[np.ndarray, "test component"]]:
    """Return principal components, fitted on `train`, of the flattened whole views that the encoder sees.

    PCA is fitted on at most 10,000 training images and about 1 GB of their pixels. All images are then
    transformed in blocks. Nothing is cached if `cache_folder` is None.
    """
    num_pixels = spec.channels * spec.view_px**2
    num_fitted = max(min(_PCA_ROWS, PCA_VALUES // num_pixels), dimensions)
    fitted_rows = train_rows if len(train_rows) <= num_fitted else spread(train_rows, num_fitted)
    seen = (spec.view_px, asdict(spec.pixels), dimensions, seed)

    @cache
    def fit() -> PCA:
        pixels = gather_blocks(_pixels(train, fitted_rows, spec=spec), num=len(fitted_rows))
        return fit_pca(pixels, dimensions=dimensions, seed=seed)

    def components(images: Packed, rows: Rows) -> Features:
        key = hash_parts("pixels", repr(seen), identify(train, fitted_rows), identify(images, rows))

        def make() -> Features:
            blocks = (fit().transform(block) for block in _pixels(images, rows, spec=spec))
            return gather_blocks(blocks, num=len(rows))

        return make() if cache_folder is None else load_or_save(cache_folder / f"{key}.npy", make)

    return components(train, train_rows), components(test, test_rows)


# ---- Pixels and BatchNorm statistics


def read_squares(images: Packed, rows: Rows) -> torch.Tensor:
    """Read rows of the packed images: (image, channel, px, px), as stored."""
    return torch.from_numpy(images.read(np.asarray(rows, dtype=np.int64))).permute(0, 3, 1, 2)


def _pixels(images: Packed, rows: Rows, *, spec: EncoderSpec) -> Iterator[Features]:
    for first in range(0, len(rows), BATCH):
        squares = read_squares(images, rows[first : first + BATCH])
        views = whole_view(squares, spec.view_px, pixels=spec.pixels)
        yield views.flatten(1).numpy()


def gather_blocks(blocks: Iterator[np.ndarray], *, num: int) -> Features:
    """Copy blocks with `num` rows in total into one array. Only one block is in memory at a time."""
    gathered: Features | None = None
    first = 0
    for block in blocks:
        if gathered is None:
            gathered = np.empty((num, block.shape[1]), dtype=np.float32)
        gathered[first : first + len(block)] = block
        first += len(block)
    assert gathered is not None and first == num
    return gathered


def spread(rows: Rows, wanted: int) -> Int64[np.ndarray, " wanted"]:
    """Return `wanted` evenly spaced rows, so that the sample covers all classes of a sorted set."""
    return rows[np.linspace(0, len(rows) - 1, wanted).astype(np.int64)]


@torch.no_grad()
def _estimate_norms(module: nn.Module, images: Packed, *, rows: Rows, spec: EncoderSpec) -> None:
    """Set BatchNorm's running statistics to their plain mean over batches of these images."""
    module.eval()  # keeps dropout and similar layers off
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    # Batches of equal size: the variance of a single-image batch is undefined.
    for part in np.array_split(rows, -(-len(rows) // BATCH)) if norms else []:
        module(whole_view(read_squares(images, part), spec.seen_px, pixels=spec.pixels))
    module.eval()


# ---- The cache


def load_or_save(path: Path, make: Callable[[], Features]) -> Features:
    """Load the array from the file, or make it and save it there."""
    return np.asarray(load_or_make_array(path, make), dtype=np.float32)


def identify(images: Packed, rows: Rows) -> str:
    """Return the part of a cache key that stands for these rows of the packed images."""
    return hash_parts(images.fingerprint, str(images.stored_px), rows.tobytes().hex())


def hash_parts(*parts: str) -> str:
    """Return a cache key: a hash that changes if a part or the format of the cache changes."""
    digest = hashlib.sha256(str(FORMAT).encode())
    for part in parts:
        digest.update(b"\0" + part.encode())
    return digest.hexdigest()[:32]


def _hash_weights(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, value in module.state_dict().items():
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
