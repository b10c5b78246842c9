"""Labelled images that are exact copies of others: the same stored square, and the same size before."""

import hashlib

import numpy as np
from jaxtyping import Bool, Int64, Shaped, UInt64

from byol.data.pack.packed import Packed

Rows = Int64[np.ndarray, " image"]
Digests = UInt64[np.ndarray, "image 2"]
DuplicateGroups = Int64[np.ndarray, " image"]

_BLOCK = 256  # images read at once
_MOST_KNOWN = 4  # sets of images whose digests are held: training and test, of two labellings
_known: dict[str, Digests] = {}


def digest_images(images: Packed, rows: Rows) -> Digests:
    """128 bits of each image. Held in memory for the next call; 100,000 images of 110 px take 5 s."""
    sizes = np.ascontiguousarray(images.sizes[rows])
    which = hashlib.blake2b(images.fingerprint.encode() + rows.tobytes() + sizes.tobytes(), digest_size=16)
    key = which.hexdigest()
    if key not in _known:
        while len(_known) >= _MOST_KNOWN:
            del _known[next(iter(_known))]
        _known[key] = _digest(images, rows)
    return _known[key]


def _digest(images: Packed, rows: Rows) -> Digests:
    digests = bytearray()
    for first in range(0, len(rows), _BLOCK):
        chosen = rows[first : first + _BLOCK]
        squares, sizes = images.read(chosen), np.ascontiguousarray(images.sizes[chosen])
        kind = f"{squares.dtype} {squares.shape[1:]}".encode()
        for square, size in zip(squares, sizes, strict=True):
            digest = hashlib.blake2b(kind + size.tobytes(), digest_size=16)
            digest.update(square.data)
            digests += digest.digest()
    return np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)


def find_groups(digests: Digests) -> DuplicateGroups | None:
    """A number for each image that its copies share; None if no image is there twice."""
    distinct, duplicates = np.unique(_as_keys(digests), return_inverse=True)
    return duplicates.astype(np.int64) if len(distinct) < len(digests) else None


def are_among(digests: Digests, others: UInt64[np.ndarray, "other 2"]) -> Bool[np.ndarray, " image"]:
    """For each image whether it is a copy of one of the others."""
    found: Bool[np.ndarray, " image"] = np.isin(_as_keys(digests), _as_keys(others))
    return found


def _as_keys(digests: Digests) -> Shaped[np.ndarray, " image"]:
    """16 bytes each, which compare as one value."""
    return np.ascontiguousarray(digests).view("S16")[:, 0]
