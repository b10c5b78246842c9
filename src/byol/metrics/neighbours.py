"""Nearest neighbours, prototypes (cluster representatives) and outliers among images.

All functions take arrays of features and compare them by cosine similarity. Of images with equal features
(exact duplicates) only the first counts: a duplicate says nothing about the encoder, and it would hide that
an image resembles no other image.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from byol.base.errors import DataError

MOST_FITTED = 10_000  # images that k-means is fitted on; the others join the nearest centre
BLOCK = 2**25  # query similarities in memory at once, 128 MB
TILE = 4096  # images per side of a similarity tile: 64 MB, and as much again for its transpose

Features = Float32[np.ndarray, "image feature"]
Numbers = Int64[np.ndarray, " n"]


@dataclass(frozen=True)
class Distinct:
    """The images without later duplicates."""

    rows: Int64[np.ndarray, " distinct"]  # row of the first image of each set of duplicates, ascending
    member: Int64[np.ndarray, " image"]  # per image: index in `rows` of itself or its original

    @classmethod
    def of(cls, features: Features) -> "Distinct":
        """Find duplicates: images whose features are equal bit for bit.

        Raises:
            DataError: all images have the same features.
        """
        lines = np.ascontiguousarray(features).view(np.dtype((np.void, features.shape[1] * 4)))[:, 0]
        _, first, member = np.unique(lines, return_index=True, return_inverse=True)
        if len(first) < 2:
            raise DataError(
                f"all {len(features)} images have the same features: they are copies of one image, or the "
                "encoder has collapsed; look at RUN/metrics.jsonl, and at the images with byol check"
            )
        order = np.argsort(first)
        place = np.empty(len(first), dtype=np.int64)
        place[order] = np.arange(len(first))
        return cls(first[order], place[member])


@dataclass(frozen=True)
class Neighbours:
    """The k nearest other images of each image, the most similar first."""

    index: Int64[np.ndarray, "image k"]
    similarity: Float32[np.ndarray, "image k"]  # cosine similarity


def normalise(features: Features) -> Float32[Tensor, "image feature"]:
    """Return a copy scaled to unit length, so that dot products are cosines."""
    return F.normalize(torch.from_numpy(np.array(features, dtype=np.float32)))


def find_nearest(
    queries: Float32[np.ndarray, "query feature"], bank: Float32[Tensor, "image feature"], *, k: int
) -> Iterator[tuple[Float32[Tensor, "block k"], Int64[Tensor, "block k"]]]:
    """Yield, per block of queries, cosines and rows of the k nearest in `bank`, most similar first. Exact.

    `bank` must have unit length. A larger k than its number of rows returns all rows. Memory does not grow
    with the number of queries.
    """
    k, block = min(k, len(bank)), max(1, BLOCK // len(bank))
    # One buffer for all blocks: allocating a new one for each took 11 % of the time.
    similarities = torch.empty(min(block, len(queries)), len(bank))
    for first in range(0, len(queries), block):
        unit = normalise(queries[first : first + block])
        yield torch.mm(unit, bank.T, out=similarities[: len(unit)]).topk(k, dim=1)


def find_neighbours(features: Features, *, k: int) -> Neighbours:
    """Find the k nearest other images of each image, or all others if there are fewer. Exact.

    Each tile of similarities serves both its rows and its columns, so every pair is computed once. Memory: a
    copy of the features and two tiles. 100,000 images of 512 features take 100 s on one core.
    """
    num = len(features)
    k = min(k, num - 1)
    unit = normalise(features)
    best = torch.full((num, k), -torch.inf)
    index = torch.zeros((num, k), dtype=torch.int64)
    starts = range(0, num, TILE)
    for rows, columns in combinations_with_replacement(starts, 2):
        tile = unit[rows : rows + TILE] @ unit[columns : columns + TILE].T
        if rows == columns:
            tile.fill_diagonal_(-torch.inf)
            _merge(best, index, tile, rows=rows, columns=columns)
        else:
            _merge(best, index, tile, rows=rows, columns=columns)
            _merge(best, index, tile.T.contiguous(), rows=columns, columns=rows)
    return Neighbours(index.numpy(), best.numpy())


def _merge(best: Tensor, index: Tensor, tile: Tensor, *, rows: int, columns: int) -> None:
    """Merge a tile's similarities into the current best neighbours of its rows."""
    stretch, k = slice(rows, rows + len(tile)), best.shape[1]
    values, places = tile.topk(min(k, tile.shape[1]), dim=1)
    both, found = torch.cat([best[stretch], values], 1), torch.cat([index[stretch], places + columns], 1)
    best[stretch], chosen = both.topk(k, dim=1)
    index[stretch] = found.gather(1, chosen)


# ---- Prototypes and outliers


@dataclass(frozen=True)
class Prototypes:
    """The image nearest to each cluster centre, largest cluster first."""

    rows: Int64[np.ndarray, " cluster"]
    sizes: Int64[np.ndarray, " cluster"]  # number of images, duplicates included


def find_prototypes(features: Features, distinct: Distinct, *, num: int, seed: int) -> Prototypes:
    """Return the image nearest to the centre of each of `num` clusters (fewer if there are fewer images).

    The clusters come from k-means on unit-length features (scikit-learn, one k-means++ start). Duplicates
    count once. k-means is fitted on at most 10,000 random images; every image joins the nearest centre.
    """
    unit = normalise(features[distinct.rows]).numpy()
    num = min(num, len(unit))
    fitted = unit
    if len(unit) > MOST_FITTED:
        fitted = np.random.default_rng(seed).choice(unit, MOST_FITTED, replace=False)
    with warnings.catch_warnings():
        # Features that point in equal directions leave clusters empty.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = KMeans(num, n_init=1, random_state=seed).fit(fitted)
    cluster_of = model.predict(unit)
    distance = np.square(unit - model.cluster_centers_[cluster_of]).sum(axis=1)
    order = np.lexsort((distance, cluster_of))
    clusters, first = np.unique(cluster_of[order], return_index=True)
    sizes = np.bincount(cluster_of[distinct.member], minlength=num)[clusters]
    largest = np.argsort(-sizes, kind="stable")
    return Prototypes(distinct.rows[order[first]][largest], sizes[largest])


def find_outliers(neighbours: Neighbours, *, num: int) -> tuple[Numbers, Float32[np.ndarray, " n"]]:
    """Return indices and mean cosine distances of the images furthest from their neighbours, descending."""
    distance = 1.0 - neighbours.similarity.mean(axis=1)
    furthest = np.argsort(-distance, kind="stable")[:num]
    return furthest, distance[furthest]
