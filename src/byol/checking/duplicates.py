"""Find duplicates: images with equal values, or so similar that one is a copy of the other.

A near duplicate is a copy of an image after compression, a small change of brightness, or resizing. It is
found by a 64-bit hash of the low frequencies of a grey thumbnail, in which at most MOST_BITS differ; then the
thumbnails are compared. Such hashes agree in one of four groups of 16 bits, so only those are compared.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8, UInt64

THUMBNAIL_PX = 24
MOST_BITS = 3  # of 64 that may differ
LEAST_CORRELATION = 0.995  # of the values of two thumbnails; for different round cells it is up to 0.99
MOST_STRETCH = 1.1  # largest ratio of the aspect ratios of two images
_GROUP_BITS, _NUM_GROUPS = 16, 4
MOST_COMPARED = 1000  # each image is compared with at most so many that follow it in its group
_LOW = 8  # number of frequencies along a side
_BLOCK = 2**14  # pairs of thumbnails compared at once


def _cosines(num: int) -> Float32[np.ndarray, "low num"]:
    """Return rows 0 to 7 of the discrete cosine transform."""
    at = (2 * np.arange(num) + 1) * np.pi / (2 * num)
    return np.cos(np.arange(_LOW)[:, None] * at).astype(np.float32)


_COSINES = _cosines(THUMBNAIL_PX)


def hash_thumbnail(thumbnail: Float32[np.ndarray, "side side"]) -> int:
    """Return a hash that hardly changes with compression, size, brightness, contrast: its 64 bits say which
    low frequencies of the discrete cosine transform are above their median."""
    frequencies = (_COSINES @ (thumbnail - thumbnail.mean()) @ _COSINES.T).ravel()
    return int.from_bytes(np.packbits(frequencies > np.median(frequencies[1:])).tobytes())


def quantise(thumbnail: Float32[np.ndarray, "side side"]) -> UInt8[np.ndarray, "side side"]:
    """Scale from the smallest to the largest value to 8 bits, which removes brightness and contrast."""
    low = float(thumbnail.min())
    span = max(float(thumbnail.max()) - low, 1e-12)
    return np.rint((thumbnail - low) * (255.0 / span)).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Alike:
    """For each image: the first earlier image of which it is a duplicate."""

    same_as: Int64[np.ndarray, " n"]  # index of that image; -1: no duplicate
    is_exact: Bool[np.ndarray, " n"]
    is_complete: bool  # False: so many are similar that not all of these were compared

    @property
    def num_exact(self) -> int:
        return int(self.is_exact.sum())

    @property
    def num_near(self) -> int:
        return int((self.same_as >= 0).sum()) - self.num_exact


def find_alike(
    digests: UInt64[np.ndarray, " n"],
    hashes: UInt64[np.ndarray, " n"],
    *,
    thumbnails: UInt8[np.ndarray, "n side side"],
    aspects: Float32[np.ndarray, " n"],
    may_be_near: Bool[np.ndarray, " n"],
) -> Alike:
    """Find exact duplicates (equal `digests`) and near ones (similar `hashes`, `aspects` and `thumbnails`).

    Only images with `may_be_near` can be near duplicates: hashes of blank images are random. Takes O(n log
    n).
    """
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    original = first[inverse]  # the first image with equal values
    is_exact = original < np.arange(len(digests))
    candidates = np.flatnonzero(~is_exact & may_be_near)
    earlier, later, is_complete = find_close(hashes[candidates])
    earlier, later = candidates[earlier], candidates[later]
    is_near = _compare(earlier, later, thumbnails=thumbnails, aspects=aspects)
    near = np.full(len(digests), len(digests))
    np.minimum.at(near, later[is_near], earlier[is_near])
    same_as = np.where(is_exact, original, np.where(near < len(digests), near, -1))
    return Alike(same_as, is_exact, is_complete)


def find_leaks(alike: Alike, num_train: int) -> Alike:
    """Find test images that repeat one of the first `num_train` images, which are for training.

    `alike` describes all images. A test image equal to an earlier test image is a leak if that one is.
    """
    same_as, is_exact = alike.same_as.copy(), alike.is_exact.copy()
    inside = np.flatnonzero(is_exact & (same_as >= num_train))  # copies within the test images
    is_exact[inside], same_as[inside] = False, alike.same_as[same_as[inside]]
    leaks = same_as < num_train
    same_as, is_exact = np.where(leaks, same_as, -1), is_exact & leaks
    return Alike(same_as[num_train:], is_exact[num_train:], alike.is_complete)


def find_close(hashes: UInt64[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return pairs (earlier, later) of hashes that differ in at most MOST_BITS; and if all were compared."""
    pairs, is_complete = [np.zeros((2, 0), dtype=np.int64)], True
    shared_bits = np.uint64(64 - _GROUP_BITS)
    for group in range(_NUM_GROUPS):
        left, right = np.uint64(group * _GROUP_BITS), np.uint64((64 - group * _GROUP_BITS) % 64)
        turned = hashes << left | hashes >> right if group else hashes  # rotated: the group is first
        order = np.argsort(turned, kind="stable")
        turned = turned[order]
        keys = turned >> shared_bits
        at = np.arange(len(turned))
        for step in range(1, MOST_COMPARED + 1):
            at = at[at + step < len(turned)]
            at = at[keys[at] == keys[at + step]]
            if len(at) == 0:
                break
            close = at[np.bitwise_count(turned[at] ^ turned[at + step]) <= MOST_BITS]
            pairs.append(np.stack([order[close], order[close + step]]))
        else:
            is_complete = False
    found = np.unique(np.sort(np.concatenate(pairs, axis=1), axis=0), axis=1)
    return found[0], found[1], is_complete


def _compare(
    earlier: Int64[np.ndarray, " pair"],
    later: Int64[np.ndarray, " pair"],
    *,
    thumbnails: UInt8[np.ndarray, "n side side"],
    aspects: Float32[np.ndarray, " n"],
) -> Bool[np.ndarray, " pair"]:
    """Return for each pair whether its images are near duplicates."""
    stretch = aspects[earlier] / aspects[later]
    is_same: Bool[np.ndarray, " pair"] = (stretch < MOST_STRETCH) & (stretch > 1.0 / MOST_STRETCH)
    for start in range(0, len(earlier), _BLOCK):
        part = slice(start, start + _BLOCK)
        one, other = (_normalised(thumbnails[which[part]]) for which in (earlier, later))
        is_same[part] &= np.einsum("ij,ij->i", one, other) > LEAST_CORRELATION
    return is_same


def _normalised(thumbnails: UInt8[np.ndarray, "n side side"]) -> Float32[np.ndarray, "n value"]:
    values = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)
    return values
