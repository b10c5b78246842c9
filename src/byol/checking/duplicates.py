"""Images that are there twice: of equal values, or so alike that one is a copy of the other.

A near duplicate is what compression, a little more light or another size make of an image. It is found by a
hash of 64 bits, the signs of the low frequencies of a grey thumbnail, of which at most MOST_BITS differ; then
the thumbnails are compared. Hashes that are so close agree in one of four groups of 16 bits at least, so only
those that share a group are looked at: never all pairs.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8, UInt64

THUMBNAIL_PX = 24
MOST_BITS = 3  # of 64 that differ
LEAST_CORRELATION = 0.995  # of two thumbnails' values; of different round cells it is up to 0.99
MOST_STRETCH = 1.1  # ratio of two images' aspects
_GROUP_BITS, _NUM_GROUPS = 16, 4
MOST_COMPARED = 1000  # of those that share a group each is compared with so many that follow in order
_LOW = 8  # frequencies along a side
_BLOCK = 2**14  # pairs whose thumbnails are compared at once


def _cosines(num: int) -> Float32[np.ndarray, "low num"]:
    """Rows 0 to 7 of the discrete cosine transform."""
    at = (2 * np.arange(num) + 1) * np.pi / (2 * num)
    return np.cos(np.arange(_LOW)[:, None] * at).astype(np.float32)


_COSINES = _cosines(THUMBNAIL_PX)


def hash_thumbnail(thumbnail: Float32[np.ndarray, "side side"]) -> int:
    """64 bits that hardly change with compression, size, brightness and contrast: which low frequencies of
    the discrete cosine transform are above their median."""
    frequencies = (_COSINES @ (thumbnail - thumbnail.mean()) @ _COSINES.T).ravel()
    return int.from_bytes(np.packbits(frequencies > np.median(frequencies[1:])).tobytes())


def quantise(thumbnail: Float32[np.ndarray, "side side"]) -> UInt8[np.ndarray, "side side"]:
    """From its own darkest to its own brightest value in 256 steps: brightness and contrast are lost."""
    low = float(thumbnail.min())
    span = max(float(thumbnail.max()) - low, 1e-12)
    return np.rint((thumbnail - low) * (255.0 / span)).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Alike:
    """For each image the first of those before it that it repeats."""

    same_as: Int64[np.ndarray, " n"]  # the place of that image, -1: it repeats none
    is_exact: Bool[np.ndarray, " n"]
    is_complete: bool  # False: so many are alike that not all of these were compared

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
    """Of equal `digests`: exact. Of close `hashes`, aspects and thumbnails: near, unless it may not be.

    Images that show nothing may not: of these all hashes are chance. Time grows with n log n.
    """
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    original = first[inverse]  # the first of the images of equal values
    is_exact = original < np.arange(len(digests))
    candidates = np.flatnonzero(~is_exact & may_be_near)
    earlier, later, is_complete = _find_close(hashes[candidates])
    earlier, later = candidates[earlier], candidates[later]
    is_near = _compare(earlier, later, thumbnails=thumbnails, aspects=aspects)
    near = np.full(len(digests), len(digests))
    np.minimum.at(near, later[is_near], earlier[is_near])
    same_as = np.where(is_exact, original, np.where(near < len(digests), near, -1))
    return Alike(same_as, is_exact, is_complete)


def find_leaks(alike: Alike, num_train: int) -> Alike:
    """Of images of which the first `num_train` are for training: which of the others repeat one of these.

    `alike` is of all. An image that equals another of the test part leaks if that one does.
    """
    same_as, is_exact = alike.same_as.copy(), alike.is_exact.copy()
    inside = np.flatnonzero(is_exact & (same_as >= num_train))  # copies within the test part
    is_exact[inside], same_as[inside] = False, alike.same_as[same_as[inside]]
    leaks = same_as < num_train
    same_as, is_exact = np.where(leaks, same_as, -1), is_exact & leaks
    return Alike(same_as[num_train:], is_exact[num_train:], alike.is_complete)


def _find_close(hashes: UInt64[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray, bool]:
    """Pairs (earlier, later) of hashes that differ in MOST_BITS at most, and whether all were looked at."""
    pairs, is_complete = [np.zeros((2, 0), dtype=np.int64)], True
    shared_bits = np.uint64(64 - _GROUP_BITS)
    for group in range(_NUM_GROUPS):
        left, right = np.uint64(group * _GROUP_BITS), np.uint64((64 - group * _GROUP_BITS) % 64)
        turned = hashes << left | hashes >> right if group else hashes  # the group comes first
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
    """Whether the images of each pair show the same."""
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
