"""Packed images -> features, by a frozen encoder, an untrained one or from pixels; each made once and cached.

A cached array `features/<key>.npz` belongs to weights, preprocessing, images and rows: the key is a hash of
these. The folder may be deleted at any time.
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

from byol.base.cache import load_or_make
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
NUM_CALIBRATION = 1000  # training images that the norms of an untrained encoder see

BATCH = 256
PCA_VALUES = 2**28  # pixels that principal components are fitted on at once: 1 GB
_PCA_ROWS = 10_000

Rows = Int64[np.ndarray, " image"]
Features = Float32[np.ndarray, "image feature"]


@dataclass(frozen=True)
class FrozenEncoder:
    """An encoder that is only made when features are not yet cached, and what tells it from others."""

    identity: str
    spec: EncoderSpec
    make: Callable[[], Encoder]


def trained(encoder: Encoder) -> FrozenEncoder:
    """The encoder of a run as it is."""
    return FrozenEncoder(_hash_weights(encoder.module), encoder.spec, lambda: encoder)


def untrained(
    config: Config, spec: EncoderSpec, *, images: Packed, rows: Rows, device: str = "cpu"
) -> FrozenEncoder:
    """The random encoder of the run's seed, given a fair chance: its norms know the data.

    BatchNorm's running statistics would be 0 and 1, which no network in training ever sees. They are
    estimated on at most 1,000 of the training images (`rows`), seen whole.
    """
    key = derive_seed(config.trainer.seed, "init", index=0)
    module = Byol.of(config, channels=spec.channels, seed_key=key).online.encoder
    chosen = rows if len(rows) <= NUM_CALIBRATION else spread(rows, NUM_CALIBRATION)

    @cache
    def make() -> Encoder:
        _estimate_norms(module, images, rows=chosen, spec=spec)
        return Encoder(replace(spec, done=0), module, device=device)

    identity = _hash("untrained", _hash_weights(module), _identify(images, chosen))
    return FrozenEncoder(identity, spec, make)


def features_of(
    images: Packed,
    rows: Rows,
    *,
    encoder: FrozenEncoder,
    cache_folder: Path,
    progress: Count | None = None,
) -> Features:
    """Features of these rows of the packed images, in their order; from the cache if they are there.

    Raises:
        DataError: a feature is not a finite number; names the first such image.
    """
    spec = encoder.spec
    seen = (spec.seen_px, spec.stored_px, asdict(spec.pixels))
    key = _hash("encoder", encoder.identity, repr(seen), _identify(images, rows))

    def make() -> Features:
        features = encoder.make().embed_packed(images, rows=rows, batch_size=BATCH, progress=progress)
        check_finite(features, lambda place: images.names[int(rows[place])])
        return features

    return _cached(cache_folder / f"{key}.npz", make)


def view_features_of(
    images: Packed,
    rows: Rows,
    *,
    encoder: FrozenEncoder,
    transforms: DataTransforms,
    key: int,
    cache_folder: Path,
) -> tuple[Features, Features]:
    """Features of two random views of each of these images, drawn from `key`; from the cache if there.

    The views are those of training (`make_views`), the encoder is frozen as in `features_of`.

    Raises:
        DataError: as `features_of`.
    """
    spec = encoder.spec
    seen = (transforms.model_dump(), key, asdict(spec.pixels))
    name = _hash("views", encoder.identity, repr(seen), _identify(images, rows))

    def make() -> Features:
        sizes = torch.from_numpy(images.sizes[rows].astype(np.float32))
        parts = []
        for first in range(0, len(rows), BATCH):
            part = slice(first, min(first + BATCH, len(rows)))
            squares = _squares(images, rows[part])
            views = make_views(squares, sizes, transforms, key=key, rows=part, pixels=spec.pixels)
            parts.append(np.stack([encoder.make().encode_views(view).cpu().numpy() for view in views]))
        both: Features = np.concatenate(parts, axis=1).reshape(2 * len(rows), -1)  # all first, all second
        check_finite(both, lambda place: images.names[int(rows[place % len(rows)])])
        return both

    first_views, second_views = np.split(_cached(cache_folder / f"{name}.npz", make), 2)
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
    """Principal components (fitted on train) of the pixels that the encoder sees: whole views, flattened.

    At most 10,000 training images and 1 GB of their pixels are fitted on; all are then transformed in blocks.
    Without a folder nothing is cached.
    """
    num_pixels = spec.channels * spec.view_px**2
    num_fitted = max(min(_PCA_ROWS, PCA_VALUES // num_pixels), dimensions)
    fitted_rows = train_rows if len(train_rows) <= num_fitted else spread(train_rows, num_fitted)
    seen = (spec.view_px, asdict(spec.pixels), dimensions, seed)

    @cache
    def fit() -> PCA:
        pixels = _gather(_pixels(train, fitted_rows, spec=spec), num=len(fitted_rows))
        return fit_pca(pixels, dimensions=dimensions, seed=seed)

    def components(images: Packed, rows: Rows) -> Features:
        key = _hash("pixels", repr(seen), _identify(train, fitted_rows), _identify(images, rows))

        def make() -> Features:
            blocks = (fit().transform(block) for block in _pixels(images, rows, spec=spec))
            return _gather(blocks, num=len(rows))

        return make() if cache_folder is None else _cached(cache_folder / f"{key}.npz", make)

    return components(train, train_rows), components(test, test_rows)


# ---- Pixels and norms


def _squares(images: Packed, rows: Rows) -> torch.Tensor:
    return torch.from_numpy(images.read(np.asarray(rows, dtype=np.int64))).permute(0, 3, 1, 2)


def _pixels(images: Packed, rows: Rows, *, spec: EncoderSpec) -> Iterator[Features]:
    for first in range(0, len(rows), BATCH):
        squares = _squares(images, rows[first : first + BATCH])
        views = whole_view(squares, spec.view_px, pixels=spec.pixels)
        yield views.flatten(1).numpy()


def _gather(blocks: Iterator[np.ndarray], *, num: int) -> Features:
    """Blocks of `num` rows in all as one array: only one block is in memory beside it."""
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
    """`wanted` of the rows at even distances: all classes of a sorted set are among them."""
    return rows[np.linspace(0, len(rows) - 1, wanted).astype(np.int64)]


@torch.no_grad()
def _estimate_norms(module: nn.Module, images: Packed, *, rows: Rows, spec: EncoderSpec) -> None:
    """Set BatchNorm's running statistics to their plain mean over batches of these images."""
    module.eval()  # dropout and the like stay off
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    # Even parts: a part of one image has no variance.
    for part in np.array_split(rows, -(-len(rows) // BATCH)) if norms else []:
        module(whole_view(_squares(images, part), spec.seen_px, pixels=spec.pixels))
    module.eval()


# ---- The cache


def _cached(path: Path, make: Callable[[], Features]) -> Features:
    found: Features = load_or_make(path, lambda: {"features": make()})[0]["features"].astype(
        np.float32, copy=False
    )
    return found


def _identify(images: Packed, rows: Rows) -> str:
    return _hash(images.fingerprint, str(images.stored_px), rows.tobytes().hex())


def _hash(*parts: str) -> str:
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
