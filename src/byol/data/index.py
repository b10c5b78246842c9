"""What is known of a set of images before any is packed: their names, and how to read each."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, overload, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt8

from byol.data.formats import ImageArray, Kind


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
        blob, offsets = bytearray(), array("q", [0])
        for name in names:
            blob += name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")
            offsets.append(len(blob))
        return cls(np.frombuffer(bytes(blob), dtype=np.uint8), np.array(offsets, dtype=np.int64))

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
        first, end = self.offsets[index % len(self)], self.offsets[index % len(self) + 1]
        return bytes(self.blob[first:end]).decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        for index in range(len(self)):
            yield self[index]


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

    def __len__(self) -> int: ...

    def names(self, index: int) -> str:
        """What the image is called; unique, and a path where the image is a file."""

    def read(self, index: int) -> ImageArray:
        """The image, uint8 or uint16.

        Raises:
            DataError: why it cannot be read; the name is left to the caller.
        """

    def peek(self, index: int) -> Kind:
        """The kind of image that `read` returns, without reading the pixels where the format allows.

        Raises:
            DataError: as `read`, though damage to the pixels is not seen.
        """

    def fingerprint(self) -> str:
        """Changes when the images do: of names, sizes and times of files, or of the values of arrays."""
