"""Compute the statistics and the checksum of the packed images while they are written."""

import hashlib
import os
import zlib
from array import array
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np
from jaxtyping import Bool, Int64, Real, UInt32

from byol.data.pack.partial import PartialPack
from byol.data.pack.statistics import (
    count_measured,
    count_values,
    find_clipped,
    find_extremes,
    no_counts,
    summarise,
)
from byol.method.views import Pixels

CHUNK_BYTES = 2**21  # processed at once; other threads that need the interpreter wait 1 ms meanwhile


class RunningStatistics:
    """Follow the rows of `images.npy` while they are appended; a thread reads them from the system's cache.

    Doing this after packing would take a seventh of the time of packing photographs, on about one core. The
    checksum begins with the header of the file, which holds the number of rows: this number is guessed.
    """

    def __init__(self, writer: PartialPack) -> None:
        self._writer, self._file = writer, writer.images_path.open("rb", buffering=0)
        self._filled, self._num_filled = writer.filled_path.open("rb"), 0  # number of records read
        self._reader, self._hasher = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._num_given, self._last = 0, Future[None]()

    def __enter__(self) -> "RunningStatistics":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.shutdown(cancel_futures=True)
        self._hasher.shutdown()
        self._file.close()
        self._filled.close()

    def follow(self, *, at_least: int = CHUNK_BYTES) -> None:
        """Call this after each image: start to process the new rows if they have at least this many bytes."""
        writer = self._writer
        num_new = writer.num_rows - self._num_given
        if num_new * writer.row_bytes < at_least:
            return
        if self._num_given == 0:  # now the channels and bit depth of the images are known
            self._guess = writer.head(writer.mark.num_images - writer.num_bad)
            self._file.seek(len(self._guess))
            self._digest = hashlib.blake2b(self._guess, digest_size=16)
            self._checksums = array("I")
            self._counts = no_counts(writer.channels, writer.dtype)
            self._extremes = np.outer([np.inf, -np.inf], np.ones(writer.channels))
            self._last.set_result(None)
        writer.flush()
        self._last = self._reader.submit(
            self._look, self._last, range(self._num_given, writer.num_rows), writer.num_filled
        )
        self._num_given = writer.num_rows

    @property
    def checksums(self) -> UInt32[np.ndarray, " n"]:
        """The CRC-32 of each row; after `finish`."""
        return np.array(self._checksums, dtype=np.uint32)

    def finish(self) -> tuple[Pixels, float, str]:
        """Return the statistics of the channels, the fraction of clipped values and the checksum of the file.

        Call this when the file is complete.

        Raises:
            OSError: the file cannot be read.
        """
        if self._writer.num_rows == 0:  # of a part whose images are all left out
            self._counts, self._checksums = no_counts(0, self._writer.dtype), array("I")
            return Pixels((), (), (), ()), 0.0, self._digest_file()
        self.follow(at_least=1)
        self._last.result()
        digest = self._digest.hexdigest()
        if self._guess != self._writer.head(self._writer.num_rows):  # some images could not be read
            digest = self._digest_file()
        is_float = self._writer.dtype == np.float32
        clip = self._writer.mark.recipe.clip
        pixels = summarise(self._counts, self._extremes if is_float else None, clip=clip)
        return pixels, find_clipped(self._counts, pixels), digest

    @property
    def counts(self) -> Int64[np.ndarray, "channels levels"]:
        """The histogram of each channel; after `finish`."""
        return self._counts

    def _digest_file(self) -> str:
        self._file.seek(0)
        return hashlib.file_digest(self._file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()

    def _look(self, before: "Future[None]", new: range, num_filled: int) -> None:
        """Process new rows; `num_filled` images have filled pixels, up to the last of these rows."""
        before.result()  # raises an error of the rows before
        shape, dtype = self._writer.row_shape, self._writer.dtype
        most = max(1, CHUNK_BYTES // self._writer.row_bytes)
        for first in range(new.start, new.stop, most):
            count = min(most, new.stop - first)
            rows = np.fromfile(self._file, dtype, count=count * int(np.prod(shape))).reshape(count, *shape)
            hashed = self._hasher.submit(self._hash, rows)
            filled = self._take_filled(first + count, num_filled)
            whole = np.delete(rows, [row - first for row in filled], axis=0) if filled else rows
            if len(whole):
                count_values(whole, out=self._counts)
                self._widen(whole)
            for row, is_filled in filled.items():
                some = rows[row - first][None], is_filled[None]
                count_measured(*some, out=self._counts)
                self._widen(*some)
            hashed.result()

    def _hash(self, rows: Real[np.ndarray, "n px px channels"]) -> None:
        self._digest.update(rows.data)
        self._checksums.extend(zlib.crc32(row.data) for row in rows)

    def _take_filled(self, end: int, number: int) -> dict[int, Bool[np.ndarray, "px px channels"]]:
        """Return which values are filled in the rows before `end`; `number` records have been written."""
        found = {}
        while self._num_filled < number:
            record = self._filled.read(self._writer.filled_bytes)
            row, is_filled = self._writer.unpack_filled(record)
            if row >= end:
                self._filled.seek(-len(record), os.SEEK_CUR)
                break
            found[row] = is_filled
            self._num_filled += 1
        return found

    def _widen(
        self,
        rows: Real[np.ndarray, "n px px channels"],
        filled: Bool[np.ndarray, "n px px channels"] | None = None,
    ) -> None:
        if rows.dtype == np.float32:
            smallest, largest = find_extremes(rows, filled)
            np.minimum(self._extremes[0], smallest, out=self._extremes[0])
            np.maximum(self._extremes[1], largest, out=self._extremes[1])
