"""The files of a pack that is being written: images are appended; a killed writer loses seconds."""

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
_ROW = struct.Struct("<qq")  # of rows.bin: the place in the source; the height above 32 bits of the width
_PLACE = struct.Struct(
    "<q"
)  # of filled.bin: a row; then one bit for each of its values: whether it is filled
_FILES = ("images.npy", _ROWS, BAD_FILES, _FILLED, _MARK)
MARK_FILES = (_ROWS, _FILLED, _MARK)  # of no use once the pack is whole


@dataclass(frozen=True)
class Recipe:
    """What a pack is made from and how; the same recipe gives the same pack."""

    source_fingerprint: str
    stored_px: int | None
    limit_px: int | None  # where stored_px is None: the largest side that may be chosen
    channels: Channels
    geometry: Geometry = "square"
    decoder: int = 1  # `decode.DECODER` when it was made; packs that do not say it are of the first
    alpha: Alpha = "drop"  # so in packs that do not say it
    clip: float = CLIP  # so in packs that do not say it


@dataclass(frozen=True)
class Mark:
    """How far the files are whole."""

    recipe: Recipe
    px: int
    channels: int  # of an image, and its bytes a value: 0 before the first
    itemsize: int
    num_images: int  # of the source; of these
    done: int  # have been looked at
    num_rows: int
    num_bad: int
    bad_bytes: int
    num_filled: int = 0  # images with filled pixels
    notes: dict[str, Few] = field(default_factory=dict)  # what was changed in images, and in how many


def read_bad(folder: Path) -> Iterator[tuple[str, str]]:
    """Names and reasons of the images that were left out of a pack.

    Raises:
        OSError: the list cannot be read.
    """
    with (folder / BAD_FILES).open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file)
        next(rows, None)
        yield from ((row[0], row[1]) for row in rows)


def read_notes(content: dict[str, dict[str, Any]]) -> dict[str, Few]:
    """As `Mark.notes` and a pack's `notes` are written."""
    return {
        text: Few(int(few["count"]), [str(name) for name in few["names"]]) for text, few in content.items()
    }


def read_mark(folder: Path) -> Mark | None:
    """The mark in an unfinished folder; None if there is none of this format."""
    try:
        content = json.loads((folder / _MARK).read_bytes())
        if content.pop("format") != _FORMAT:
            return None
        notes = read_notes(content.pop("notes", {}))
        return Mark(recipe=Recipe(**content.pop("recipe")), notes=notes, **content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # missing, or of another version: nothing to continue


class PartialPack:
    """Appends images to an unfinished pack, from where `mark` says that it is whole.

    A thread makes what has been written certain, against loss of power too, while more is written: a disk
    takes about 1 s a GB for it.
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
        """Of one image in `filled.bin`."""
        return _PLACE.size + (self.mark.px**2 * self.channels + 7) // 8

    @property
    def images_path(self) -> Path:
        return self.folder / _FILES[0]

    @property
    def filled_path(self) -> Path:
        return self.folder / _FILLED

    def unpack_filled(self, record: bytes) -> tuple[int, Bool[np.ndarray, "px px channels"]]:
        """A row, and which of its values are filled, from `filled_bytes` of `filled.bin`."""
        bits = np.frombuffer(record, np.uint8, offset=_PLACE.size)
        filled = np.unpackbits(bits, count=self.mark.px**2 * self.channels).astype(np.bool_)
        return _PLACE.unpack_from(record)[0], filled.reshape(self.row_shape)

    @property
    def row_shape(self) -> tuple[int, int, int]:
        return self.mark.px, self.mark.px, self.channels

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype({1: np.uint8, 2: np.uint16, 4: np.float32}[self.itemsize])

    def head(self, num_rows: int) -> bytes:
        """What `images.npy` begins with if it has so many rows."""
        head = io.BytesIO()
        shape = (num_rows, *self.row_shape)
        np.lib.format.write_array_header_1_0(
            head, {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        )
        assert len(head.getvalue()) == _HEADER_BYTES
        return head.getvalue()

    def fits(self, image: ImageArray) -> bool:
        """Whether it has the channels and the depth of the images before it."""
        return (image.shape[2], image.dtype.itemsize) == (self.channels, self.itemsize)

    def append(
        self, index: int, image: ImageArray, *, height: int, width: int, filled: Missing | None = None
    ) -> None:
        """The next good image: `index` is its place in the source, the sizes those before packing.

        Values that are `filled` do not count in statistics.
        """
        if self.num_rows == 0:  # the first decides the kind
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
        """What was changed in an image, see `reading.py`."""
        for text in texts:
            self.notes.setdefault(text, Few()).add(name)

    def finish_image(self) -> None:
        """To be called after each image, good or bad: now and then what has been written is saved."""
        self.done += 1
        if time.monotonic() - self._saved_s > SAVE_INTERVAL_S and self._saving.done():
            self.start_saving()

    def flush(self) -> None:
        """From here on, others who open the files see all that has been written."""
        for file in self._written:
            file.flush()

    def start_saving(self) -> None:
        """Begin to save all that has been written so far."""
        self._saving.result()  # waits, and raises what went wrong
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
        """Save what has not been saved, and close the files."""
        try:
            self.start_saving()
            self._saving.result()
        finally:
            self._saver.shutdown()
            for file in self._written:
                file.close()

    def complete_images(self) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, "n 2"]]:
        """Make `images.npy` whole; returns each row's place in the source, and its height and width there."""
        assert self.done == self.mark.num_images
        self._images.seek(0)
        self._images.write(self.head(self.num_rows))
        self.flush()
        rows = np.fromfile(self.folder / _ROWS, dtype="<i8").reshape(-1, 2)
        return rows[:, 0].copy(), np.stack([rows[:, 1] >> 32, rows[:, 1] & 0xFFFFFFFF], axis=1)


def _open(path: Path) -> BinaryIO:
    """For reading and writing; created if missing, kept as it is if not."""
    return os.fdopen(
        os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644),
        "r+b",
        buffering=_BUFFER_BYTES,
    )


def csv_line(*fields: str) -> bytes:
    """A line of a CSV file; names in any encoding are kept as they are."""
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator="\n").writerow(fields)
    return line.getvalue().encode("utf-8", "surrogateescape")
