"""Examine every image of a source: kinds, sizes, ranges; unreadable, blank and duplicate images.

Some numbers and a thumbnail of 24 px are kept for each image, 0.7 KB.
"""

import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, UInt8, UInt64

from byol.base.console import Count
from byol.checking.duplicates import THUMBNAIL_PX, Alike, find_alike, hash_thumbnail, quantise
from byol.data.decode.content import suffix_of
from byol.data.decode.fitting import fit, select_channels
from byol.data.decode.formats import Channels, ImageArray, LaidFile, Member, path_of
from byol.data.decode.image import load
from byol.data.decode.index import Source
from byol.data.decode.jpeg import find_damage_in
from byol.data.decode.reading import NO_END, Alpha, note, noting
from byol.data.sources.left_out import Few
from byol.data.sources.parallel import read_ahead
from byol.data.sources.survey import BLANK_STD, ImageNumbers, count_used_bits, summarise_sides, take_measured

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True, eq=False)
class Look(ImageNumbers):
    """The data that a check keeps for one image."""

    digest: int  # 64-bit hash of its values
    hash: int  # see `duplicates.hash_thumbnail`
    thumbnail: UInt8[np.ndarray, "side side"]
    notes: tuple[str, ...] = ()  # see `reading.py`; and damage that the decoder does not report


def look_at(item: str | LaidFile | ImageArray, *, channels: Channels, alpha: Alpha = "auto") -> Look:
    """Examine an image with the channels and the treatment of transparency in the settings.

    Raises:
        DataError: the image cannot be read, or does not have these channels.
    """
    with noting(alpha) as reading:
        loaded = load(item)
        image, path = select_channels(loaded.pixels, channels), _on_disk(item)
        if path is not None and NO_END not in reading.notes and (damage := find_damage_in(path)):
            note(damage)
    measured = take_measured(image, loaded.filled, channels=channels)
    digest = hashlib.blake2b(repr((image.shape, image.dtype.str)).encode(), digest_size=8)
    digest.update(np.ascontiguousarray(image).data)
    thumbnail = _as_grey(fit(image, THUMBNAIL_PX))
    return Look(
        **vars(ImageNumbers.of(image, measured, loaded.missing)),
        digest=int.from_bytes(digest.digest()),
        hash=hash_thumbnail(thumbnail),
        thumbnail=quantise(thumbnail),
        notes=tuple(reading.notes),
    )


def _on_disk(item: str | LaidFile | ImageArray) -> str | Member | None:
    return item if isinstance(item, Member) else path_of(item)


def _as_grey(image: ImageArray) -> Float32[np.ndarray, "side side"]:
    """Convert to grey: luma for colours, which JPEG preserves best; the mean for other channels."""
    channels = image.shape[2]
    weights = (
        _LUMA if channels == 3 and image.dtype == np.uint8 else np.full(channels, 1.0 / channels, np.float32)
    )
    grey: Float32[np.ndarray, "side side"] = image.astype(np.float32) @ weights
    return grey


@dataclass(frozen=True, eq=False)
class Examined:
    """The results for all images of a source; one row for each image that can be read."""

    source: Source
    places: Int64[np.ndarray, " n"]  # index in the source
    sizes: Int32[np.ndarray, "n 2"]  # height, width, in px
    channels: Int32[np.ndarray, " n"]
    bits: Int32[np.ndarray, " n"]
    has_equal_channels: Bool[np.ndarray, " n"]
    digests: UInt64[np.ndarray, " n"]
    hashes: UInt64[np.ndarray, " n"]
    thumbnails: UInt8[np.ndarray, "n side side"]
    measures: Float32[np.ndarray, "values 3"]  # smallest, largest, std of each channel, image by image
    missing: Float32[np.ndarray, " n"]  # fraction of the values that were not measured, and are filled
    bad: tuple[tuple[str, str], ...]  # name, reason
    changed: Mapping[str, Few] = field(default_factory=dict)  # notes of `Look`
    alpha: Alpha = "auto"  # treatment of transparency used here

    def __len__(self) -> int:
        return len(self.places)

    def name(self, row: int) -> str:
        return self.source.names(int(self.places[row]))

    @cached_property
    def kinds(self) -> Counter[tuple[int, int]]:
        """Number of images for each (channels, bits), the most common first."""
        return Counter(
            dict(Counter(zip(self.channels.tolist(), self.bits.tolist(), strict=True)).most_common())
        )

    @property
    def usual(self) -> Int64[np.ndarray, " usual"]:
        """The rows of images of the most common kind."""
        return np.flatnonzero(self._is_usual)

    @cached_property
    def _is_usual(self) -> Bool[np.ndarray, " n"]:
        channels, bits = next(iter(self.kinds))
        is_usual: Bool[np.ndarray, " n"] = (self.channels == channels) & (self.bits == bits)
        return is_usual

    @cached_property
    def _usual(self) -> Float32[np.ndarray, "usual channel 3"]:
        channels, _ = next(iter(self.kinds))
        rows: Float32[np.ndarray, "row 3"] = self.measures[np.repeat(self._is_usual, self.channels)]
        return rows.reshape(-1, channels, 3)

    @property
    def smallest(self) -> tuple[float, ...]:
        """Smallest value of each channel in all images of the most common kind."""
        return tuple(self._usual[..., 0].min(axis=0).tolist())

    @property
    def largest(self) -> tuple[float, ...]:
        """Largest value of each channel in all images of the most common kind."""
        return tuple(self._usual[..., 1].max(axis=0).tolist())

    @property
    def used_bits(self) -> int:
        """Bits in use: 12 for 12-bit data in 16-bit files; otherwise the bits of a stored value."""
        _, bits = next(iter(self.kinds))
        return count_used_bits(bits, max(self.largest))

    @property
    def sides(self) -> tuple[int, int, int, int]:
        """Smallest, median, 95th percentile and largest of the longest sides, in px."""
        return summarise_sides(self.sizes.max(axis=1))

    @property
    def one_size(self) -> tuple[int, int] | None:
        """Height and width in px, if all images have the same; otherwise None."""
        first = self.sizes[0]
        return (int(first[0]), int(first[1])) if (self.sizes == first).all() else None

    @cached_property
    def is_blank(self) -> Bool[np.ndarray, " n"]:
        """Whether each image is blank: its std is below BLANK_STD x range in every channel.

        The range is 255 for 8 bit, otherwise the 95th percentile of the ranges of single images, so that one
        hot pixel in the set does not make all others blank.
        """
        if len(self) == 0:
            return np.zeros(0, dtype=np.bool_)
        _, bits = next(iter(self.kinds))
        smallest, largest, std = np.moveaxis(self._usual, 2, 0)
        span = np.full(std.shape[1], 255.0)
        if bits > 8:
            span = np.maximum(np.percentile(largest - smallest, 95, axis=0, method="lower"), 1e-6)
        blank = np.zeros(len(self), dtype=np.bool_)
        blank[self._is_usual] = (std / span < BLANK_STD).all(axis=1)
        return blank

    def count_suffixes(self) -> Counter[str]:
        """Count the suffixes of all files, readable or not; empty if images are not files."""
        if not self.source.file_bytes:
            return Counter()
        names = (self.source.names(index) for index in range(len(self.source)))
        return Counter(suffix_of(name) for name in names)

    def count_folders(self) -> int:
        """Count the folders that hold images; 0 if images are not files."""
        if not self.source.file_bytes:
            return 0
        return len({os.path.dirname(self.source.names(index)) for index in range(len(self.source))})


def examine(
    source: Source,
    *,
    channels: Channels,
    num_workers: int,
    alpha: Alpha = "auto",
    progress: Count | None = None,
) -> Examined:
    """Examine all images; `progress` is called with (images done, images in total).

    Raises:
        DataError: the disk fails and the source does not skip unreadable files.
    """
    columns = _Columns()
    indices = range(len(source))
    look = partial(look_at, channels=channels, alpha=alpha)
    with closing(read_ahead(look, source, indices, num_workers=num_workers, result_bytes=1024)) as found:
        for index, one in found:
            if isinstance(one, Look):
                columns.append(index, one)
                for text in one.notes:
                    columns.changed.setdefault(text, Few()).add(source.names(index))
            else:
                columns.bad.append((source.names(index), str(one)))
            if progress is not None:
                progress(index + 1, len(source))
    return columns.build(source, alpha=alpha)


class _Columns:
    """Builds an `Examined` image by image; keeps numbers in arrays, 8 bytes each."""

    def __init__(self) -> None:
        self._rows, self._measures = array("q"), array("f")
        self._keys, self._thumbnails, self._missing = array("Q"), bytearray(), array("f")
        self.bad: list[tuple[str, str]] = []
        self.changed: dict[str, Few] = {}

    def append(self, index: int, look: Look) -> None:
        numbers = index, look.height, look.width, len(look.std), look.bits, look.has_equal_channels
        self._rows.extend(map(int, numbers))
        self._keys.extend((look.digest, look.hash))
        self._missing.append(look.missing)
        self._thumbnails += look.thumbnail.tobytes()
        self._measures.frombytes(np.stack([look.smallest, look.largest, look.std], axis=1).tobytes())

    def build(self, source: Source, *, alpha: Alpha) -> Examined:
        rows = (
            np.frombuffer(self._rows, np.int64).reshape(-1, 6) if self._rows else np.zeros((0, 6), np.int64)
        )
        keys = np.array(self._keys, np.uint64).reshape(-1, 2)
        thumbnails = np.frombuffer(self._thumbnails, np.uint8)
        return Examined(
            source=source,
            places=rows[:, 0],
            sizes=rows[:, 1:3].astype(np.int32),
            channels=rows[:, 3].astype(np.int32),
            bits=rows[:, 4].astype(np.int32),
            has_equal_channels=rows[:, 5] > 0,
            digests=keys[:, 0],
            hashes=keys[:, 1],
            thumbnails=thumbnails.reshape(-1, THUMBNAIL_PX, THUMBNAIL_PX),
            measures=np.array(self._measures, np.float32).reshape(-1, 3),
            missing=np.array(self._missing, np.float32),
            bad=tuple(self.bad),
            changed=self.changed,
            alpha=alpha,
        )


def find_duplicates(*parts: Examined) -> Alike:
    """Find images that repeat an earlier one in the concatenated `parts`."""
    sizes = np.concatenate([part.sizes for part in parts])
    return find_alike(
        np.concatenate([part.digests for part in parts]),
        np.concatenate([part.hashes for part in parts]),
        thumbnails=np.concatenate([part.thumbnails for part in parts]),
        aspects=(sizes[:, 1] / sizes[:, 0]).astype(np.float32),
        may_be_near=np.concatenate([~part.is_blank for part in parts]),
    )
