"""Features without a network: k-means on whitened patches (Coates, Lee and Ng 2011).

    every patch of 6 x 6 px -> contrast normalised -> whitened -> triangle activations -> mean per quadrant

The triangle activation of centroid k is max(0, mean over all centroids of the distances - distance to k).
These features use no label and no training of a network. On one core 60,000 images take a few minutes, so an
encoder that was trained for longer has to be better.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from sklearn.cluster import KMeans
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from byol.data.pack.packed import Packed
from byol.encoder.spec import EncoderSpec
from byol.evaluation.features import gather_blocks, hash_parts, identify, load_or_save, read_squares, spread
from byol.method.networks import build_encoder
from byol.method.views import Pixels, encode_whole, whole_view

NUM_QUADRANTS = 4
MOST_PX = 32  # larger images are shrunk to this side, which bounds the time and gives the patches more to see
NUM_FITTED = 1000  # images that whitening and centroids are learned from
MOST_VALUES = 2**28  # of all features together, train and test: 1 GB
# Per image, value and class: logistic regression, the choice of C and few labels, as multiplications of an
# encoder (measured on plankton, docs/decisions.md).
FITS = 4000

_PATCH_PX = 6
_MOST_COMPONENTS = 64  # of a whitened patch; bounds the time with many channels
_PATCHES_PER_IMAGE = 40
_LEAST_VARIANCE = 0.1  # added to the variance of a patch; the variance of all pixels is 1
_REGULARISER = 0.1  # added to each variance in whitening, in units of their mean
BATCH = 32  # images at once: their distances fit in the cache of a CPU

Rows = Int64[np.ndarray, " image"]
Features = Float32[np.ndarray, "image feature"]
Views = Float[Tensor, "image channel px px"]
Patches = Float[Tensor, "image place value"]


@dataclass(frozen=True)
class Dictionary:
    """How patches are whitened, and the centroids they are compared with."""

    px: int  # side of the images
    patch_px: int
    mean: Float[Tensor, " value"]
    whitening: Float[Tensor, "value component"]
    centroids: Float[Tensor, "centroid component"]

    @classmethod
    def fit(cls, views: Views, *, num_centroids: int, seed: int) -> "Dictionary":
        """Learn from 40 random patches of each image.

        There are fewer centroids if fewer patches differ.
        """
        px = views.shape[-1]
        patch_px = choose_patch_px(px)
        generator = torch.Generator().manual_seed(seed)
        blocks = []
        for some in torch.split(views, BATCH):
            patches = cut_patches(some, patch_px)
            # A place that is drawn twice counts twice.
            places = torch.randint(patches.shape[1], (len(some), _PATCHES_PER_IMAGE), generator=generator)
            blocks.append(patches[torch.arange(len(some))[:, None], places].flatten(0, 1))
        chosen = torch.cat(blocks).double()
        mean = chosen.mean(dim=0)
        centred = chosen - mean
        variances, axes = torch.linalg.eigh(centred.T @ centred / len(centred))  # the largest last
        variances, axes = variances[-_MOST_COMPONENTS:].clamp(min=0.0), axes[:, -_MOST_COMPONENTS:]
        added = _REGULARISER * variances.mean() + torch.finfo(torch.float32).tiny
        whitening = axes / (variances + added).sqrt()
        whitened = (centred @ whitening).float().numpy()
        num = min(num_centroids, len(np.unique(whitened, axis=0)))
        model = KMeans(num, init="random", n_init=1, max_iter=10, random_state=seed).fit(whitened)
        centroids = torch.from_numpy(model.cluster_centers_).float()
        return cls(px, patch_px, mean.float(), whitening.float(), centroids)

    @torch.inference_mode()
    def encode(self, views: Views) -> Float[Tensor, "image feature"]:
        """Return the mean activation of each centroid over each quadrant: 4 x centroids features."""
        whitened = (cut_patches(views, self.patch_px) - self.mean) @ self.whitening
        distances = torch.cdist(whitened, self.centroids)
        activations = F.relu(distances.mean(dim=2, keepdim=True) - distances)
        num_places = _count_places(self.px)
        maps = activations.reshape(len(views), num_places, num_places, -1)
        halves = slice(0, -(-num_places // 2)), slice(num_places // 2, num_places)
        quadrants = [maps[:, rows, columns].mean(dim=(1, 2)) for rows in halves for columns in halves]
        return torch.cat(quadrants, dim=1)


@dataclass(frozen=True)
class PatchEncoder:
    """A dictionary, learned only if its features are not cached; `identity` is part of the cache key."""

    identity: str
    px: int  # side of the whole views
    pixels: Pixels
    mirrored: bool
    make: Callable[[], Dictionary]


def patch_encoder(
    images: Packed, rows: Rows, *, spec: EncoderSpec, num_centroids: int, seed: int
) -> PatchEncoder:
    """Return the encoder whose dictionary is learned from at most 1,000 of these rows, without labels.

    It sees whole views as the run's encoder does, mirror images included, but of at most 32 px.
    """
    px, pixels = choose_px(spec), spec.pixels
    fitted = rows if len(rows) <= NUM_FITTED else spread(rows, NUM_FITTED)

    @cache
    def make() -> Dictionary:
        views = torch.cat(list(_read(images, fitted, px=px, pixels=pixels)))
        return Dictionary.fit(views, num_centroids=num_centroids, seed=seed)

    settings = repr((px, asdict(pixels), num_centroids, seed))
    kind = "mirrored patches" if spec.mirrored else "patches"
    identity = hash_parts(kind, settings, identify(images, fitted))
    return PatchEncoder(identity, px, pixels, spec.mirrored, make)


def patch_features(images: Packed, rows: Rows, *, encoder: PatchEncoder, cache_folder: Path) -> Features:
    """Compute, or load from the cache, the features of these rows of the packed images, in the same order.

    Raises:
        CheckpointError: the cache folder cannot be written.
    """

    def encode(views: Views) -> Features:
        return encode_whole(encoder.make().encode, views, mirrored=encoder.mirrored).numpy()

    def make() -> Features:
        return gather_blocks(
            map(encode, _read(images, rows, px=encoder.px, pixels=encoder.pixels)), num=len(rows)
        )

    key = hash_parts(encoder.identity, identify(images, rows))
    return load_or_save(cache_folder / f"{key}.npy", make)


def _read(images: Packed, rows: Rows, *, px: int, pixels: Pixels) -> Iterator[Views]:
    """Yield whole views in blocks."""
    for first in range(0, len(rows), BATCH):
        yield whole_view(read_squares(images, rows[first : first + BATCH]), px, pixels=pixels)


def find_obstacle(spec: EncoderSpec, *, num_images: int, num_classes: int, num_centroids: int) -> str | None:
    """Say why these features would cost more than they are worth; None: they do not.

    The rule: features and classifiers take at most as many multiplications per image as those of the encoder,
    and the features at most 1 GB.
    """
    per_value = FITS * num_classes
    work = count_work(spec, num_centroids=num_centroids) + per_value * NUM_QUADRANTS * num_centroids
    limit = count_encoder_work(spec) + per_value * spec.num_features
    if work > limit:
        return f"{work / limit:.2g} times the work of the encoder"
    if (num_values := NUM_QUADRANTS * num_centroids * num_images) > MOST_VALUES:
        return f"their features would take {4 * num_values / 2**30:.1f} GB, more than 1 GB"
    return None


def count_work(spec: EncoderSpec, *, num_centroids: int) -> int:
    """Return the multiplications per image: whitening of each patch, and its distances."""
    px = choose_px(spec)
    num_values = spec.channels * choose_patch_px(px) ** 2
    num_components = min(num_values, _MOST_COMPONENTS)
    return _count_places(px) ** 2 * num_components * (num_values + num_centroids)


@cache  # asked for each number of centroids that is tried
def count_encoder_work(spec: EncoderSpec) -> int:
    """Return the multiplications per image of the encoder's convolutions and linear layers."""
    with torch.device("meta"):  # shapes only: nothing is computed
        module = build_encoder(spec.name, channels=spec.channels, view_px=spec.view_px, stem=spec.stem).eval()
        image = torch.empty(1, spec.channels, spec.seen_px, spec.seen_px)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(image)
    return int(counter.get_total_flops()) // 2


def choose_px(spec: EncoderSpec) -> int:
    """Return the side of the images that patches are cut from."""
    return min(spec.view_px, MOST_PX)


def choose_patch_px(px: int) -> int:
    """Return the side of the patches: 6 px, less for images below 12 px, so that quadrants differ."""
    return max(1, min(_PATCH_PX, px // 2))


def _count_places(px: int) -> int:
    return px - choose_patch_px(px) + 1


def cut_patches(views: Views, patch_px: int) -> Patches:
    """Return all patches, each with mean 0 and variance about 1; a blank patch stays 0."""
    patches = F.unfold(views, patch_px).transpose(1, 2)
    centred = patches - patches.mean(dim=2, keepdim=True)
    variances = centred.square().mean(dim=2, keepdim=True)
    return centred / (variances + _LEAST_VARIANCE).sqrt()
