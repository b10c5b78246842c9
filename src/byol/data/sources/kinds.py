"""The two kinds of source: image files, and arrays that hold many images."""

import hashlib
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from byol.data.decode.arrays import as_given
from byol.data.decode.formats import ImageArray, LaidFile, Layout
from byol.data.decode.index import Names
from byol.data.sources.left_out import LeftOut
from byol.data.sources.official import Part
from byol.data.sources.walk import stamp


@dataclass(frozen=True, eq=False)
class FileSource:
    """Image files; relative names are relative to `folder`."""

    name: str
    folder: Path
    files: Names
    stamps: Int64[np.ndarray, "n 2"]  # size in bytes (-1: missing), time of the last change in ns
    labels: Int64[np.ndarray, " n"]
    class_names: tuple[str, ...]
    layout: Layout = "auto"  # data.layout
    left_out: LeftOut = field(default_factory=LeftOut)
    skip_unreadable: bool = False  # data.skip_unreadable
    notes: tuple[str, ...] = ()  # how a list was interpreted, one line each
    array_layout: Layout = "auto"  # of the arrays among the files, found from all their shapes

    def __len__(self) -> int:
        return len(self.files)

    def names(self, index: int) -> str:
        return self.files[index]

    def item(self, index: int) -> str | LaidFile:
        path = os.path.join(self.folder, self.files[index])
        if self.layout == self.array_layout == "auto":
            return path
        return LaidFile(path, self.array_layout, self.layout)

    def select(self, indices: Int64[np.ndarray, " some"]) -> "FileSource":
        """Return a source of these images only."""
        files = Names.of(self.files.raw(index) for index in indices.tolist())
        return replace(self, files=files, stamps=self.stamps[indices], labels=self.labels[indices])

    @property
    def file_bytes(self) -> float:
        return float(self.stamps[:, 0].clip(min=0).mean())

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(self.files.blob.data, digest_size=16)
        digest.update(self.files.offsets.data)
        digest.update(self.stamps.data)
        digest.update(b"" if self.layout == "auto" else self.layout.encode())
        if self.array_layout != self.layout:
            digest.update(b"arrays " + self.array_layout.encode())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Images of one size, in memory or in memory maps."""

    name: str
    parts: tuple[Part, ...]
    labels: Int64[np.ndarray, " n"]
    class_names: tuple[str, ...]
    files: tuple[Path, ...] = ()  # that the arrays map into memory
    stored_layout: Layout = "hwc"  # of the arrays in these files
    left_out: LeftOut = field(default_factory=LeftOut)
    notes: tuple[str, ...] = ()
    array_layout: Layout = "auto"  # as in `FileSource`; auto: there is no channel axis

    def __len__(self) -> int:
        return sum(len(part.images) for part in self.parts)

    def names(self, index: int) -> str:
        part, row = self._find(index)
        return f"{part.prefix}{row:06d}"

    def item(self, index: int) -> ImageArray:
        part, row = self._find(index)
        return as_given(part.images[row].reshape(*part.images.shape[1:3], -1), "hwc")

    @property
    def file_bytes(self) -> float:
        return 0.0

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(self.name.encode(errors="surrogateescape"), digest_size=16)
        if self.files:
            digest.update(
                b"".join(os.fsencode(path.name) + np.array(stamp(path)).tobytes() for path in self.files)
            )
            digest.update(b"" if self.stored_layout == "hwc" else self.stored_layout.encode())
        else:
            for part in self.parts:
                digest.update(np.ascontiguousarray(part.images).data)
        return digest.hexdigest()

    def _find(self, index: int) -> tuple[Part, int]:
        for part in self.parts:
            if index < len(part.images):
                return part, index
            index -= len(part.images)
        raise IndexError(f"image {index} beyond the end of {self.name}")
