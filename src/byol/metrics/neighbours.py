"""Which images are alike, which stand for many and which for none: neighbours, prototypes, outliers.

Everything works on arrays of features; likeness is their cosine. Of images with equal features (exact
duplicates) the first stands for all: a copy says nothing of the encoder, and would hide an image that has no
other like it.
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

MOST_FITTED = 10_000  # images that clusters are found on: 100 of each of 100; all others join the nearest
BLOCK = 2**25  # similarities of queries that are held at once, 128 MB
TILE = 4096  # images a side of the similarities that are held at once: 64 MB, and as much again

Features = Float32[np.ndarray, "image feature"]
Numbers = Int64[np.ndarray, " n"]


@dataclass(frozen=True)
class Distinct:
    """The images without later copies of them."""

    rows: Int64[np.ndarray, " distinct"]  # the first image of each kind, ascending
    member: Int64[np.ndarray, " image"]  # for each image the place in `rows` of the one that it is or repeats

    @classmethod
    def of(cls, features: Features) -> "Distinct":
        """Images are copies if all their features are equal, bit for bit.

        Raises:
            DataError: all are.
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
    """The k nearest others of each image, most similar first."""

    index: Int64[np.ndarray, "image k"]
    similarity: Float32[np.ndarray, "image k"]  # cosine


def normalise(features: Features) -> Float32[Tensor, "image feature"]:
    """Directions of features: of length 1, so that their products are cosines. A copy."""
    return F.normalize(torch.from_numpy(np.array(features, dtype=np.float32)))


def find_nearest(
    queries: Float32[np.ndarray, "query feature"], bank: Float32[Tensor, "image feature"], *, k: int
) -> Iterator[tuple[Float32[Tensor, "block k"], Int64[Tensor, "block k"]]]:
    """Cosines and rows of the k nearest of `bank`, most similar first, for blocks of queries. Exact.

    `bank` is of length 1. A k above its number of rows means all of them. Memory does not grow with the
    number of queries.
    """
    k, block = min(k, len(bank)), max(1, BLOCK // len(bank))
    # One block of memory for all: the system would give, and clear, a new one each time (11 % of the time).
    similarities = torch.empty(min(block, len(queries)), len(bank))
    for first in range(0, len(queries), block):
        unit = normalise(queries[first : first + block])
        yield torch.mm(unit, bank.T, out=similarities[: len(unit)]).topk(k, dim=1)


def find_neighbours(features: Features, *, k: int) -> Neighbours:
    """The k nearest others of each image among all; at most all others. Exact.

    A tile of similarities serves the images of its rows and those of its columns, so that every pair is
    computed once. Memory beside the features (a copy of them): two tiles. 100,000 images of 512 features take
    100 s of one core.
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
    """Take what is better in a tile into the best so far of its rows."""
    stretch, k = slice(rows, rows + len(tile)), best.shape[1]
    values, places = tile.topk(min(k, tile.shape[1]), dim=1)
    both, found = torch.cat([best[stretch], values], 1), torch.cat([index[stretch], places + columns], 1)
    best[stretch], chosen = both.topk(k, dim=1)
    index[stretch] = found.gather(1, chosen)


# ---- Prototypes and outliers


@dataclass(frozen=True)
class Prototypes:
    """Images that stand for clusters, largest cluster first."""

    rows: Int64[np.ndarray, " cluster"]
    sizes: Int64[np.ndarray, " cluster"]  # images, copies counted


def find_prototypes(features: Features, distinct: Distinct, *, num: int, seed: int) -> Prototypes:
    """The image nearest to the centre of each of `num` clusters; at most as many as there are images.

    Clusters are those of k-means on features of length 1 (scikit-learn, one start by k-means++), in which an
    image counts once, however many copies it has. They are found on at most 10,000 images, drawn; every image
    belongs to the cluster whose centre is nearest.
    """
    unit = normalise(features[distinct.rows]).numpy()
    num = min(num, len(unit))
    fitted = unit
    if len(unit) > MOST_FITTED:
        fitted = np.random.default_rng(seed).choice(unit, MOST_FITTED, replace=False)
    with warnings.catch_warnings():
        # Directions that are equal leave clusters empty.
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
    """The images that are furthest from their nearest: their places, and mean cosine distances, falling."""
    distance = 1.0 - neighbours.similarity.mean(axis=1)
    furthest = np.argsort(-distance, kind="stable")[:num]
    return furthest, distance[furthest]
