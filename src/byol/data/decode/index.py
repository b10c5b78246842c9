"""What is known of a set of images before any is packed: their names, and how to read each."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, overload, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt8, UInt64

from byol.data.decode.formats import ImageArray, LaidFile, Layout

_STRETCH = 65_536  # names whose offsets are numbers of Python's at once


class Names(Sequence[str]):
    """Many names as one block of UTF-8 and the offsets between them.

    A million names of 20 characters take 28 MB and stay one object, so that forked workers do not copy
    them; a list of `str` takes 100 MB. Bytes that are not UTF-8 survive (as surrogates, like in `os`).
    """

    def __init__(self, blob: UInt8[np.ndarray, " bytes"], offsets: Int64[np.ndarray, " n_plus_1"]) -> None:
        self.blob, self.offsets = blob, offsets

    @classmethod
    def of(cls, names: Iterable[str | bytes]) -> "Names":
        """From names of any number, taken one by one."""
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
        """The names at these places; four times as fast as one by one."""
        blob = self.blob.data
        for start in range(0, len(places), _STRETCH):
            some = np.asarray(places[start : start + _STRETCH])
            for begin, end in zip(self.offsets[some].tolist(), self.offsets[some + 1].tolist(), strict=True):
                yield str(blob[begin:end], "utf-8", "surrogateescape")

    def raw(self, index: int) -> bytes:
        """The bytes of a name; `index` is not negative."""
        return self.blob[self.offsets[index] : self.offsets[index + 1]].tobytes()

    def sorted(self) -> Int64[np.ndarray, " n"]:
        """The places of the names in the order of their bytes, which hold no 0; equal ones stay in order.

        Eight bytes at a time, the last first: stable sorts of whole numbers, no object a name.
        """
        order = np.arange(len(self))
        longest = int(np.diff(self.offsets).max(initial=0))
        for first in reversed(range(0, longest, 8)):
            order = order[np.argsort(self._words(first)[order], kind="stable")]
        return order

    def _words(self, first: int) -> UInt64[np.ndarray, " n"]:
        """Bytes `first` to `first` + 7 of each name as a number, 0 where it is shorter."""
        words = np.zeros(len(self), dtype=np.uint64)
        for place in range(first, first + 8):
            at = self.offsets[:-1] + place
            reaches = at < self.offsets[1:]
            words <<= np.uint64(8)
            words[reaches] |= self.blob[at[reaches]]
        return words


class NamesBuilder:
    """`Names` in the making."""

    def __init__(self) -> None:
        self._blob, self._offsets = bytearray(), array("q", [0])

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def append(self, name: str | bytes) -> None:
        self._blob += name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")
        self._offsets.append(len(self._blob))

    def build(self) -> Names:
        """Nothing may be appended afterwards."""
        return Names(np.frombuffer(self._blob, np.uint8), np.frombuffer(self._offsets, np.int64))


def array_layout_of(source: "Source") -> Layout:
    """The layout of the source's arrays of three axes; auto: it has none."""
    layout: Layout = getattr(source, "array_layout", "auto")
    return layout


def skips_unreadable(source: "Source") -> bool:
    """Whether images that the system cannot read are to be left out (`data.skip_unreadable`)."""
    return bool(getattr(source, "skip_unreadable", False))


@runtime_checkable
class Source(Protocol):
    """A set of images, each read when asked for; several threads may ask at once."""

    @property
    def name(self) -> str:
        """In words, for a sentence: "folder cells/", "STL-10, train+unlabeled"."""

    @property
    def labels(self) -> Int64[np.ndarray, " n"]:
        """Index into `class_names`, or -1 where the class is not known. Training never reads it."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def notes(self) -> tuple[str, ...]:
        """How a list of images was understood, one line each."""

    def __len__(self) -> int: ...

    def names(self, index: int) -> str:
        """What the image is called; unique, and a path where the image is a file."""

    def item(self, index: int) -> str | LaidFile | ImageArray:
        """What `image.read_square` and `image.peek` take: a path, or the image if it is in an array."""

    @property
    def file_bytes(self) -> float:
        """The mean size of the files, 0 where images are not files."""

    def fingerprint(self) -> str:
        """Changes when the images do: of names, sizes and times of files, or of the values of arrays."""
