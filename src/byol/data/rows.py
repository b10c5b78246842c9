"""Rows of an array file, read when they are asked for and then forgotten."""

import os
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Real

from byol.errors import DataError

_READS_AT = hasattr(os, "preadv")


class RowFile:
    """The images of an `.npy` file, as a map and by rows; several threads may read at once.

    Pages of a map that have been touched count as memory of the process: up to 2 MB around each row (Linux
    6.18). Rows that are read do not, and the system keeps the file in its cache either way. A row takes 2 us.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.map: Real[np.ndarray, "n px px channels"] = np.load(path, mmap_mode="r")
        self._offset, self._row_bytes = int(self.map.offset), self.map[0].nbytes
        if _READS_AT:  # Windows reads from the map, and cannot remove a file that is open
            self._handle = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)

    def read(
        self,
        rows: Int64[np.ndarray, " batch"],
        *,
        out: Real[np.ndarray, "batch px px channels"] | None = None,
    ) -> Real[np.ndarray, "batch px px channels"]:
        """Copies of these rows, into `out` if it is given.

        Raises:
            DataError: the file has become shorter, or cannot be read any more.
        """
        assert len(rows) == 0 or 0 <= rows.min() <= rows.max() < len(self.map)
        if out is None:
            out = np.empty((len(rows), *self.map.shape[1:]), dtype=self.map.dtype)
        if not _READS_AT:
            np.take(self.map, rows, axis=0, out=out)
            return out
        places = out.view(np.uint8).reshape(len(rows), self._row_bytes)
        for place, row in zip(places, map(int, rows), strict=True):
            try:
                num_read = os.preadv(self._handle, (place.data,), self._offset + row * self._row_bytes)
            except OSError as error:
                raise DataError(f"{self.path}: cannot be read ({error.strerror})") from None
            if num_read != self._row_bytes:
                raise DataError(f"{self.path}: is cut short at image {row}; delete its folder to pack again")
        return out
