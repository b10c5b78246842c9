"""The files of a pack while it is written: images are appended; a killed process loses seconds of work."""

import csv
import io
import json
import os
import struct
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Bool, Int64

from byol.base.files import write_atomically
from byol.data.decode.formats import Channels, Geometry, ImageArray, Missing
from byol.data.decode.reading import Alpha
from byol.data.pack.place import remove_files
from byol.data.pack.statistics import CLIP
from byol.data.sources.left_out import Few

SAVE_INTERVAL_S = 5.0
BAD_FILES = "bad_files.csv"

_FORMAT = 1
_HEADER_BYTES = 128  # of images.npy; written last, when the number of rows is known
_BUFFER_BYTES = 2**20
_MARK, _ROWS, _FILLED = "progress.json", "rows.bin", "filled.bin"
_ROW = struct.Struct("<qq")  # record of rows.bin: index in the source; height << 32 | width
_PLACE = struct.Struct(
    "<q"
)  # start of a record of filled.bin: row number; then one bit per value follows: 1 if it is filled
_FILES = ("images.npy", _ROWS, BAD_FILES, _FILLED, _MARK)
MARK_FILES = (_ROWS, _FILLED, _MARK)  # not needed once the pack is complete


@dataclass(frozen=True)
class Recipe:
    """The source and the settings of a pack; the same recipe gives the same pack."""

    source_fingerprint: str
    stored_px: int | None
    limit_px: int | None  # if stored_px is None: the largest side that may be chosen
    channels: Channels
    geometry: Geometry = "square"
    decoder: int = 1  # `decode.DECODER` when the pack was made; early versions did not write it
    alpha: Alpha = "drop"  # in packs of early versions, which did not write it
    clip: float = CLIP  # in packs of early versions, which did not write it


@dataclass(frozen=True)
class Mark:
    """Up to where the files are complete and saved."""

    recipe: Recipe
    px: int
    channels: int  # of each image; 0 before the first
    itemsize: int  # bytes per value; 0 before the first image
    num_images: int  # of the source
    done: int  # images of the source that have been processed, good or bad
    num_rows: int
    num_bad: int
    bad_bytes: int
    num_filled: int = 0  # images with filled pixels
    notes: dict[str, Few] = field(default_factory=dict)  # changes to images, and in how many


def read_bad(folder: Path) -> Iterator[tuple[str, str]]:
    """Iterate over the names of the images that were left out of a pack, each with the reason.

    Raises:
        OSError: the list cannot be read.
    """
    with (folder / BAD_FILES).open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file)
        next(rows, None)
        yield from ((row[0], row[1]) for row in rows)


def read_notes(content: dict[str, dict[str, Any]]) -> dict[str, Few]:
    """Convert the notes from the JSON form in a `Mark` or in `pack.json`."""
    return {
        text: Few(int(few["count"]), [str(name) for name in few["names"]]) for text, few in content.items()
    }


def read_mark(folder: Path) -> Mark | None:
    """Return the mark in an unfinished folder; None if there is none in this format."""
    try:
        content = json.loads((folder / _MARK).read_bytes())
        if content.pop("format") != _FORMAT:
            return None
        notes = read_notes(content.pop("notes", {}))
        return Mark(recipe=Recipe(**content.pop("recipe")), notes=notes, **content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # missing, or written by another version: start again


class PartialPack:
    """Append images to an unfinished pack, from the point up to which `mark` says that it is complete.

    While more is written, a thread flushes the written data to the disk (fsync), so that a power failure does
    not lose it: this takes about 1 s per GB.
    """

    def __init__(self, folder: Path, mark: Mark) -> None:
        self.folder, self.mark = folder, mark
        self.done, self.num_rows, self.num_bad = mark.done, mark.num_rows, mark.num_bad
        self.channels, self.itemsize = mark.channels, mark.itemsize
        self.notes = {text: Few(few.count, list(few.names)) for text, few in mark.notes.items()}
        folder.mkdir(parents=True, exist_ok=True)
        if mark.done == 0:
            remove_files(folder, _FILES)
        self._images, self._rows, self._bad, self._filled = (_open(folder / name) for name in _FILES[:4])
        for file, end in (
            (self._images, _HEADER_BYTES + self.num_rows * self.row_bytes),
            (self._rows, self.num_rows * 16),
            (self._bad, mark.bad_bytes if mark.done else 0),
            (self._filled, mark.num_filled * self.filled_bytes),
        ):
            file.truncate(end)
            file.seek(end)
        if mark.done == 0:
            self._bad.write(csv_line("file", "reason"))
        self.num_filled = mark.num_filled
        self._saver, self._saving = ThreadPoolExecutor(1), Future[None]()
        self._saving.set_result(None)
        self._saved_s = time.monotonic()

    @property
    def _written(self) -> tuple[BinaryIO, ...]:
        return self._images, self._rows, self._bad, self._filled

    @property
    def row_bytes(self) -> int:
        return self.mark.px**2 * self.channels * self.itemsize

    @property
    def filled_bytes(self) -> int:
        """Bytes per image in `filled.bin`."""
        return _PLACE.size + (self.mark.px**2 * self.channels + 7) // 8

    @property
    def images_path(self) -> Path:
        return self.folder / _FILES[0]

    @property
    def filled_path(self) -> Path:
        return self.folder / _FILLED

    def unpack_filled(self, record: bytes) -> tuple[int, Bool[np.ndarray, "px px channels"]]:
        """Return a row number and which of its values are filled, from one record of `filled.bin`."""
        bits = np.frombuffer(record, np.uint8, offset=_PLACE.size)
        filled = np.unpackbits(bits, count=self.mark.px**2 * self.channels).astype(np.bool_)
        return _PLACE.unpack_from(record)[0], filled.reshape(self.row_shape)

    @property
    def row_shape(self) -> tuple[int, int, int]:
        return self.mark.px, self.mark.px, self.channels

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype({0: np.uint8, 1: np.uint8, 2: np.uint16, 4: np.float32}[self.itemsize])

    def head(self, num_rows: int) -> bytes:
        """Return the header of `images.npy` for `num_rows` rows."""
        head = io.BytesIO()
        shape = (num_rows, *self.row_shape)
        np.lib.format.write_array_header_1_0(
            head, {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        )
        assert len(head.getvalue()) == _HEADER_BYTES
        return head.getvalue()

    def fits(self, image: ImageArray) -> bool:
        """Return whether the image has the same channels and bit depth as the images before it."""
        return (image.shape[2], image.dtype.itemsize) == (self.channels, self.itemsize)

    def append(
        self, index: int, image: ImageArray, *, height: int, width: int, filled: Missing | None = None
    ) -> None:
        """Append a readable image: `index` in the source, `height` and `width` before packing, in px.

        `filled` values are not counted in the statistics.
        """
        if self.num_rows == 0:  # all others must have the channels and bit depth of the first
            self.channels, self.itemsize = image.shape[2], image.dtype.itemsize
        assert self.fits(image) and image.nbytes == self.row_bytes
        self._images.write(image.data)
        self._rows.write(_ROW.pack(index, height << 32 | width))
        if filled is not None:
            bits = np.packbits(np.broadcast_to(filled, image.shape))
            self._filled.write(_PLACE.pack(self.num_rows) + bits.tobytes())
            self.num_filled += 1
        self.num_rows += 1

    def append_bad(self, name: str, reason: str) -> None:
        self._bad.write(csv_line(name, reason))
        self.num_bad += 1

    def note(self, name: str, texts: tuple[str, ...]) -> None:
        """Record what was changed in an image, see `reading.py`."""
        for text in texts:
            self.notes.setdefault(text, Few()).add(name)

    def finish_image(self) -> None:
        """Call this after each image, readable or not: every few seconds it saves what has been written."""
        self.done += 1
        if time.monotonic() - self._saved_s > SAVE_INTERVAL_S and self._saving.done():
            self.start_saving()

    def flush(self) -> None:
        """Flush the buffers, so that other readers of the files see everything written so far."""
        for file in self._written:
            file.flush()

    def start_saving(self) -> None:
        """Start to save everything written so far, in a thread."""
        self._saving.result()  # waits, and raises an error of the last save
        self.flush()
        mark = replace(
            self.mark,
            channels=self.channels,
            itemsize=self.itemsize,
            done=self.done,
            num_rows=self.num_rows,
            num_bad=self.num_bad,
            bad_bytes=self._bad.tell(),
            num_filled=self.num_filled,
            notes={text: replace(few) for text, few in self.notes.items()},
        )
        self._saving = self._saver.submit(self._save, mark)
        self._saved_s = time.monotonic()

    def _save(self, mark: Mark) -> None:
        for file in self._written:
            os.fsync(file.fileno())
        write_atomically(self.folder / _MARK, json.dumps({"format": _FORMAT} | asdict(mark)).encode())

    def close(self) -> None:
        """Save the rest, and close the files."""
        try:
            self.start_saving()
            self._saving.result()
        finally:
            self._saver.shutdown()
            for file in self._written:
                file.close()

    def complete_images(self) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, "n 2"]]:
        """Complete `images.npy`; return for each row its index, height and width (px) in the source."""
        assert self.done == self.mark.num_images
        self._images.seek(0)
        self._images.write(self.head(self.num_rows))
        self.flush()
        rows = np.fromfile(self.folder / _ROWS, dtype="<i8").reshape(-1, 2)
        return rows[:, 0].copy(), np.stack([rows[:, 1] >> 32, rows[:, 1] & 0xFFFFFFFF], axis=1)


def _open(path: Path) -> BinaryIO:
    """Open a file for reading and writing; create it if it is missing, keep its content if not."""
    return os.fdopen(
        os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644),
        "r+b",
        buffering=_BUFFER_BYTES,
    )


def csv_line(*fields: str) -> bytes:
    """Return a line of a CSV file; names in any encoding keep their bytes."""
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator="\n").writerow(fields)
    return line.getvalue().encode("utf-8", "surrogateescape")
