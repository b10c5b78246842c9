"""Read rows of an array file without keeping them in memory."""

import os
import zlib
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, Real, UInt32

from byol.base.disk import DiskError, describe, is_of_the_disk, try_again
from byol.base.errors import DataError

READS_AT = hasattr(os, "preadv")


class RowFile:
    """The images of an `.npy` file: read by rows, or as a memory map; several threads may read at once.

    Pages of a map that have been accessed count as memory of the process: up to 2 MB around each row (Linux
    6.18). Rows that `read` returns do not, and the system caches the file in both cases. A row takes 2 us.
    The map is made only when it is first used, because some file systems do not support maps.

    `checksums` has the CRC-32 of each row. A row is compared with it when it is first read, and `is_checked`
    records that; give the array of an earlier `RowFile` of the same file to go on with it.

    Raises:
        OSError, ValueError: the file cannot be read or holds no array.
    """

    def __init__(
        self,
        path: Path,
        *,
        checksums: UInt32[np.ndarray, " n"] | None = None,
        is_checked: Bool[np.ndarray, " n"] | None = None,
    ) -> None:
        self.path = path
        self._checksums = checksums
        self._handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        with open(os.dup(self._handle), "rb") as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0
            header = read(stream) if version == (1, 0) else np.lib.format.read_array_header_2_0(stream)
            self.shape: tuple[int, ...] = header[0]
            self.dtype: np.dtype[Any] = header[2]
            self._offset = stream.tell()
        if self.dtype.kind not in "uf" or self.dtype.itemsize > 4 or len(self.shape) != 4 or header[1]:
            raise ValueError(f"it holds {self.dtype} of shape {self.shape}, not images")
        self._row_bytes = prod(self.shape[1:]) * self.dtype.itemsize
        if checksums is not None and len(checksums) != len(self):
            raise ValueError(f"{len(self)} rows, {len(checksums)} checksums")
        self._is_checked = np.zeros(self.shape[0], dtype=np.bool_) if is_checked is None else is_checked
        if not READS_AT:  # Windows: read from the map, and close the file so that it can be deleted
            self.map  # noqa: B018
            os.close(self._handle)
            del self._handle

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return len(self) * self._row_bytes

    @cached_property
    def map(self) -> Real[np.ndarray, "n px px channels"]:
        """The opened file, even if it has been replaced; in memory if the file system has no maps."""
        try:
            with open(os.dup(self._handle), "rb") as stream:
                return np.memmap(stream, self.dtype, mode="r", offset=self._offset, shape=self.shape)
        except OSError:
            return self.read(np.arange(len(self)))

    def read(
        self,
        rows: Int64[np.ndarray, " some"],
        *,
        out: Real[np.ndarray, "batch px px channels"] | None = None,
        places: Int64[np.ndarray, " some"] | None = None,
    ) -> Real[np.ndarray, "batch px px channels"]:
        """Return copies of these rows, in `out` if it is given; at these `places` of it, if they are given.

        Raises:
            DataError: the file has become shorter, is damaged, or cannot be read any more.
        """
        assert len(rows) == 0 or 0 <= rows.min() <= rows.max() < len(self)
        out = self._empty(len(rows)) if out is None else out
        places = np.arange(len(rows)) if places is None else places
        if not READS_AT:
            out[places] = self.map[rows]
        else:
            self._read_with_pread(rows, out=out, places=places)
        self._check(rows, out, places=places)
        return out

    def _check(
        self,
        rows: Int64[np.ndarray, " some"],
        images: Real[np.ndarray, "batch px px channels"],
        *,
        places: Int64[np.ndarray, " some"],
    ) -> None:
        """Raises DataError for the first image whose bytes are not those that were packed."""
        if self._checksums is None:
            return
        for which in np.flatnonzero(~self._is_checked[rows]):
            row = rows[which]
            if zlib.crc32(images[places[which]].data) != self._checksums[row]:
                raise DataError(
                    f"{self.path}: is damaged at image {row} (its checksum differs); delete "
                    f"{self.path.parent} to pack again"
                )
            self._is_checked[row] = True

    def _empty(self, num: int) -> Real[np.ndarray, "{num} px px channels"]:
        return np.empty((num, *self.shape[1:]), dtype=self.dtype)

    def _read_with_pread(
        self,
        rows: Int64[np.ndarray, " some"],
        *,
        out: Real[np.ndarray, "batch px px channels"],
        places: Int64[np.ndarray, " some"],
    ) -> None:
        slots = out.view(np.uint8).reshape(len(out), self._row_bytes)
        for place, row in zip(map(slots.__getitem__, places.tolist()), rows.tolist(), strict=True):
            try:
                num_read = os.preadv(self._handle, (place.data,), self._offset + row * self._row_bytes)
            except OSError as error:
                num_read = self._read_again(place, row, error)
            if num_read != self._row_bytes:
                raise DataError(f"{self.path}: is cut short at image {row}; delete its folder to pack again")

    def _read_again(self, place: Any, row: int, error: OSError) -> int:
        """Try again to read a row after a disk error; return its number of bytes."""
        if not is_of_the_disk(error):
            raise DataError(f"{self.path}: cannot be read ({describe(error)})") from None
        try:
            return try_again(
                lambda: os.preadv(self._handle, (place.data,), self._offset + row * self._row_bytes)
            )
        except DiskError as failure:
            raise DataError(
                f"{self.path}: cannot be read, {failure}; check the disk, then repeat the command"
            ) from None
