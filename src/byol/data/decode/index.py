"""A set of images before packing: the names of the images, and how to read each."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, overload, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt8, UInt64

from byol.data.decode.formats import ImageArray, LaidFile, Layout

_STRETCH = 65_536  # number of names whose offsets are converted to Python numbers at once


class Names(Sequence[str]):
    """Many names, stored as one block of UTF-8 with offsets.

    A million names of 20 characters take 28 MB in one object, which forked workers do not copy; a list of
    `str` takes 100 MB. Bytes that are not UTF-8 are kept (as surrogates, as in `os`).
    """

    def __init__(self, blob: UInt8[np.ndarray, " bytes"], offsets: Int64[np.ndarray, " n_plus_1"]) -> None:
        self.blob, self.offsets = blob, offsets

    @classmethod
    def of(cls, names: Iterable[str | bytes]) -> "Names":
        """Make it from an iterable of names."""
        builder = NamesBuilder()
        for name in names:
            builder.append(name)
        return builder.build()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Names": ...
    def __getitem__(self, index: int | slice) -> "str | Names":
        if isinstance(index, slice):
            return Names.of(self[i] for i in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"name {index} of {len(self)}")
        return self.raw(index % len(self)).decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return self.pick(range(len(self)))

    def pick(self, places: Sequence[int] | Int64[np.ndarray, " some"]) -> Iterator[str]:
        """Yield the names at these places, four times as fast as by single indices."""
        blob = self.blob.data
        for start in range(0, len(places), _STRETCH):
            some = np.asarray(places[start : start + _STRETCH])
            for begin, end in zip(self.offsets[some].tolist(), self.offsets[some + 1].tolist(), strict=True):
                yield str(blob[begin:end], "utf-8", "surrogateescape")

    def raw(self, index: int) -> bytes:
        """Return the bytes of a name. `index` must not be negative."""
        return self.blob[self.offsets[index] : self.offsets[index + 1]].tobytes()

    def sorted(self) -> Int64[np.ndarray, " n"]:
        """Return the places of the names, stably sorted by their bytes, which must not contain 0.

        It sorts integers of eight bytes, from the last to the first, without creating an object per name.
        """
        order = np.arange(len(self))
        longest = int(np.diff(self.offsets).max(initial=0))
        for first in reversed(range(0, longest, 8)):
            order = order[np.argsort(self._words(first)[order], kind="stable")]
        return order

    def _words(self, first: int) -> UInt64[np.ndarray, " n"]:
        """Return bytes `first` to `first` + 7 of each name as an integer; missing bytes are 0."""
        words = np.zeros(len(self), dtype=np.uint64)
        for place in range(first, first + 8):
            at = self.offsets[:-1] + place
            reaches = at < self.offsets[1:]
            words <<= np.uint64(8)
            words[reaches] |= self.blob[at[reaches]]
        return words


class NamesBuilder:
    """Builds `Names`, one name at a time."""

    def __init__(self) -> None:
        self._blob, self._offsets = bytearray(), array("q", [0])

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def append(self, name: str | bytes) -> None:
        self._blob += name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")
        self._offsets.append(len(self._blob))

    def build(self) -> Names:
        """Return the names. Do not append afterwards."""
        return Names(np.frombuffer(self._blob, np.uint8), np.frombuffer(self._offsets, np.int64))


def array_layout_of(source: "Source") -> Layout:
    """Return the layout of the source's arrays with three axes; auto: it has no such arrays."""
    layout: Layout = getattr(source, "array_layout", "auto")
    return layout


def skips_unreadable(source: "Source") -> bool:
    """Return whether to leave out images that the system cannot read (`data.skip_unreadable`)."""
    return bool(getattr(source, "skip_unreadable", False))


def sample(source: "Source", most: int) -> Sequence[int]:
    """Return the indices of at most `most` images of a source: at equal distances, unless it chooses them."""
    choose = getattr(source, "sample", None)
    if choose is not None:
        chosen: Sequence[int] = choose(most)
        return chosen
    return range(0, len(source), -(-len(source) // most))


@runtime_checkable
class Source(Protocol):
    """A set of images, each read on request. Several threads may read at once."""

    @property
    def name(self) -> str:
        """The name for messages, such as "folder cells/" or "STL-10, train+unlabeled"."""

    @property
    def labels(self) -> Int64[np.ndarray, " n"]:
        """Indices into `class_names`; -1: unknown class. Training never reads them."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on how a list of images was read, one line each."""

    def __len__(self) -> int: ...

    def names(self, index: int) -> str:
        """Return the unique name of an image; for a file, its path."""

    def item(self, index: int) -> str | LaidFile | ImageArray:
        """Return the argument for `image.read_square` and `image.peek`: a path, or the image of an array."""

    @property
    def file_bytes(self) -> float:
        """The mean size of the files in bytes; 0: the images are not files."""

    def fingerprint(self) -> str:
        """Return a hash of the names, sizes and times of files, or of the values of arrays."""
