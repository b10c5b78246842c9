"""Read the images of a pack that consists of many shards, as if they were in one file."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from jaxtyping import Int64, Real, UInt32

from byol.base.disk import DiskError, is_of_the_disk, try_again
from byol.base.errors import DataError
from byol.data.pack.rows import RowFile

MOST_OPEN = 256  # files; fewer if the system allows few
_SHARE_OF_FILES = 4  # use at most this fraction of the files that the process may open: 1 / 4


@dataclass(frozen=True)
class Shard:
    """One entry of `shards` in the `pack.json` of a pack of many shards."""

    name: str  # of its folder, relative to the folder of the pack
    num_images: int
    bytes: int  # of its `images.npy`
    blake2b: str  # of its `images.npy`

    @property
    def path(self) -> str:
        """The path of its images, relative to the folder of the pack."""
        return f"{self.name}/images.npy"


class ShardedRows:
    """The images of all shards, one shard after the other, with the interface of `RowFile`.

    A shard is opened when a row of it is first read; at most `MOST_OPEN` files are open at once. `locate`
    returns the path of the images of a shard; for a pack in object storage it first fetches them.
    `shape` is that of all images (N, px, px, channels).
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        *,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        checksums: UInt32[np.ndarray, " n"],
        locate: Callable[[Shard], Path],
        most_open: int = MOST_OPEN,
    ) -> None:
        assert len(checksums) == shape[0] == sum(shard.num_images for shard in shards)
        self.shards, self.shape, self.dtype = tuple(shards), shape, dtype
        self._starts = np.array([0, *accumulate(shard.num_images for shard in shards)], dtype=np.int64)
        self.checksums, self._is_checked = checksums, np.zeros(shape[0], dtype=np.bool_)
        self._locate, self._most_open = locate, min(most_open, most_files())
        self._files: OrderedDict[int, RowFile] = OrderedDict()  # the least recently used first
        self._lock = Lock()

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def map(self) -> Real[np.ndarray, "n px px channels"]:
        """All images, in memory."""
        return self.read(np.arange(len(self)))

    def read(
        self,
        rows: Int64[np.ndarray, " batch"],
        *,
        out: Real[np.ndarray, "batch px px channels"] | None = None,
    ) -> Real[np.ndarray, "batch px px channels"]:
        """Return copies of these rows, in `out` if it is given. Each shard is visited once.

        Raises:
            DataError: a shard is missing, damaged, of other images, or cannot be read.
        """
        assert len(rows) == 0 or 0 <= rows.min() <= rows.max() < len(self)
        out = np.empty((len(rows), *self.shape[1:]), dtype=self.dtype) if out is None else out
        if len(rows) == 0:
            return out
        which = np.searchsorted(self._starts, rows, side="right") - 1
        order = np.argsort(which, kind="stable")
        numbers, firsts = np.unique(which[order], return_index=True)
        for number, places in zip(numbers.tolist(), np.split(order, firsts[1:]), strict=True):
            self._read_shard(number, rows[places] - self._starts[number], out=out, places=places)
        return out

    def _read_shard(
        self,
        number: int,
        rows: Int64[np.ndarray, " some"],
        *,
        out: Real[np.ndarray, "batch px px channels"],
        places: Int64[np.ndarray, " some"],
    ) -> None:
        self.file(number).read(rows, out=out, places=places)

    def file(self, number: int) -> RowFile:
        """Return the opened images of a shard. Keep them only while you read: they hold a file open.

        Raises:
            DataError: the shard is missing, damaged or of other images.
        """
        with self._lock:
            if (file := self._files.get(number)) is not None:
                self._files.move_to_end(number)
                return file
        file = self._open(number)  # two threads may both open it, which does no harm
        with self._lock:
            self._files[number] = file
            while len(self._files) > self._most_open:
                self._files.popitem(last=False)  # closed when no thread reads it any more
        return file

    def forget(self, number: int) -> None:
        """Close the file of a shard, so that the next read opens it anew; its rows count as not compared."""
        with self._lock:
            self._files.pop(number, None)
        self._is_checked[self._rows_of(number)] = False

    def _rows_of(self, number: int) -> slice:
        return slice(int(self._starts[number]), int(self._starts[number + 1]))

    def _open(self, number: int) -> RowFile:
        shard, rows = self.shards[number], self._rows_of(number)
        path = self._locate(shard)
        try:
            file = try_again(
                lambda: RowFile(path, checksums=self.checksums[rows], is_checked=self._is_checked[rows])
            )
            if file.shape[1:] != self.shape[1:] or file.dtype != self.dtype:
                raise ValueError(f"it holds {file.dtype} of shape {file.shape}")
        except DiskError as error:
            raise error.locate(str(path)) from None
        except (ValueError, EOFError, SyntaxError, TypeError, OSError) as error:
            if isinstance(error, OSError) and is_of_the_disk(error):
                raise DiskError.of(error).locate(str(path)) from None
            raise DataError(
                f"{path}: is missing or damaged ({type(error).__name__}); delete the "
                "folder of the pack to pack its images again"
            ) from None
        return file


Rows = RowFile | ShardedRows  # the images of a pack


def most_files() -> int:
    """Return how many files of shards may be open, so that enough are left for everything else."""
    try:
        import resource
    except ImportError:  # Windows
        return MOST_OPEN
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST_OPEN if limit == resource.RLIM_INFINITY else max(1, limit // _SHARE_OF_FILES)
