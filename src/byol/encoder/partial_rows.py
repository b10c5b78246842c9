"""Rows of a table that is made image by image: a killed command continues without a lost or a double row.

    NAME.partial/progress.json    how far the other files are whole
    NAME.partial/values.f32       float32, a row for each image that could be used
    NAME.partial/places.i64       the place of each of these images in the source
    NAME.partial/left_out.csv     names and reasons of the other images
    NAME.partial/lock             held by the process that writes

Rows are appended and read back from the disk in blocks, so memory does not grow with their number.
"""

import csv
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn

import numpy as np
from jaxtyping import Float32

from byol.base.errors import CheckpointError
from byol.base.files import reason_of, write_atomically
from byol.base.locks import Holder, hold
from byol.data.pack.partial import csv_line, read_notes
from byol.data.sources.in_memory import Images
from byol.data.sources.left_out import Few

SAVE_INTERVAL_S = 5.0

_FORMAT = 1
_MARK, _VALUES, _PLACES, _BAD = "progress.json", "values.f32", "places.i64", "left_out.csv"
_LOCK = "lock"
_VALUE_BYTES, _PLACE_BYTES = 4, 8
_STRETCH = 65_536  # names that are made at once

Rows = Float32[np.ndarray, "row value"]


@dataclass
class Seen:
    """What was seen of the images so far, to be said at the end."""

    notes: dict[str, Few] = field(default_factory=dict)  # what was changed in images, and in how many
    num_outside: int = 0  # images whose values are outside of the training's range
    num_clipped: int = 0  # values beyond what the encoder sees, of so many
    num_values: int = 0

    def copy(self) -> "Seen":
        notes = {text: Few(few.count, list(few.names)) for text, few in self.notes.items()}
        return replace(self, notes=notes)


@dataclass
class _Mark:
    """How far the files are whole."""

    recipe: str  # rows of another recipe are other rows
    width: int  # values in a row
    done: int = 0  # images of the source that have been looked at
    num_rows: int = 0
    num_bad: int = 0
    bad_bytes: int = 0
    seen: Seen = field(default_factory=Seen)

    def ends(self) -> dict[str, int]:
        """The size of each file up to the last finished block, bytes."""
        return {
            _VALUES: self.num_rows * self.width * _VALUE_BYTES,
            _PLACES: self.num_rows * _PLACE_BYTES,
            _BAD: self.bad_bytes,
        }


class PartialRows:
    """Appends rows to an unfinished table, from where an earlier process of the same recipe has stopped.

    Raises:
        CheckpointError: the folder cannot be written, the disk is full, or another process writes the table.
    """

    def __init__(self, folder: Path, *, recipe: str, width: int) -> None:
        self.folder = folder
        self._stack = ExitStack()
        with _told(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._stack.enter_context(hold(folder / _LOCK, while_busy=self._refuse))
        found = _read_mark(folder)
        self.is_other = found is not None and (found.recipe, found.width) != (recipe, width)
        """Whether the folder held rows of other images or of another encoder, which are dropped."""
        self.mark = _Mark(recipe, width) if found is None or self.is_other else found
        self.num_before = self.mark.done
        """Images that an earlier process has looked at."""
        self._bad_in_block = 0
        try:
            with _told(folder):
                self._files = {name: _open(folder / name, end=end) for name, end in self.mark.ends().items()}
        except BaseException:
            self._stack.close()
            raise
        self._saved_s = time.monotonic()

    def __enter__(self) -> "PartialRows":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Whatever ended the work, the blocks that are finished are saved."""
        try:
            self.save()
        finally:
            for file in self._files.values():
                file.close()
            self._stack.close()

    def append_bad(self, name: str, reason: str) -> None:
        """An image that cannot be used; it counts when its block is finished."""
        with _told(self.folder):
            self._files[_BAD].write(csv_line(name, reason))
        self._bad_in_block += 1

    def finish_block(self, places: Sequence[int], rows: Rows, *, end: int, seen: Seen) -> None:
        """Rows of images at these places; all images before the place `end` have been looked at.

        `seen` is of all images so far.
        """
        assert len(places) == len(rows) and rows.shape[1] == self.mark.width
        with _told(self.folder):
            self._files[_VALUES].write(np.ascontiguousarray(rows, dtype="<f4").data)
            self._files[_PLACES].write(np.asarray(places, dtype="<i8").data)
            self.mark.bad_bytes = self._files[_BAD].tell()
        self.mark.num_rows += len(places)
        self.mark.num_bad += self._bad_in_block
        self._bad_in_block = 0
        self.mark.done, self.mark.seen = end, seen.copy()
        if time.monotonic() - self._saved_s >= SAVE_INTERVAL_S:
            self.save()

    def save(self) -> None:
        """Make the finished blocks certain, against loss of power too."""
        with _told(self.folder):
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
        content = {"format": _FORMAT} | asdict(self.mark)
        write_atomically(self.folder / _MARK, json.dumps(content).encode())
        self._saved_s = time.monotonic()

    def read_bad(self) -> Iterator[tuple[str, str]]:
        """Names and reasons of the images that could not be used."""
        self._files[_BAD].flush()
        with (self.folder / _BAD).open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield from ((name, reason) for name, reason in csv.reader(file))

    def _refuse(self, holder: Holder | None) -> NoReturn:
        raise CheckpointError(
            f"{self.folder}: {holder or 'another process'} is writing the same output; wait for it, or "
            "choose another output"
        )

    def values(self) -> "StoredRows":
        """All rows, on the disk."""
        self._files[_VALUES].flush()
        return StoredRows(self.folder / _VALUES, self.mark.num_rows, self.mark.width)

    def names(self, images: Images) -> "PickedNames":
        """The name of each row's image."""
        self._files[_PLACES].flush()
        return PickedNames(images, self.folder / _PLACES, self.mark.num_rows)

    def remove(self) -> None:
        """Delete the files, when the table is written."""
        for name in (_MARK, *self.mark.ends(), _LOCK):
            (self.folder / name).unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()


class StoredRows:
    """Rows in a file of float32; a slice of them is read when it is asked for."""

    def __init__(self, path: Path, num: int, width: int) -> None:
        self._path, self.shape = path, (num, width)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Rows:
        first, end, _ = rows.indices(len(self))
        num, width = max(0, end - first), self.shape[1]
        offset = first * width * _VALUE_BYTES
        values = np.fromfile(self._path, dtype="<f4", count=num * width, offset=offset)
        return values.reshape(num, width).astype(np.float32, copy=False)


class PickedNames(Sequence[str]):
    """Names of the images at the places that a file holds; a slice of them is a list."""

    def __init__(self, images: Images, path: Path, num: int) -> None:
        self._images, self._path, self._num = images, path, num

    def __len__(self) -> int:
        return self._num

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _STRETCH):
            yield from self[first : first + _STRETCH]

    def __getitem__(self, rows: Any) -> Any:
        if not isinstance(rows, slice):
            return self[rows : rows + 1][0]
        return [self._images.names(place) for place in self.places(rows)]

    def places(self, rows: slice = slice(None)) -> list[int]:
        """Places in the source."""
        first, end, _ = rows.indices(len(self))
        count = max(0, end - first)
        found: list[int] = np.fromfile(self._path, "<i8", count, offset=first * _PLACE_BYTES).tolist()
        return found


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Put a failure of the disk into words."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be written ({reason_of(error)}); free space, then repeat the command"
        ) from None


def _open(path: Path, *, end: int) -> BinaryIO:
    """For reading and writing behind the first `end` bytes; what is behind them is cut off."""
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644), "r+b")
    file.truncate(end)
    file.seek(end)
    return file


def _read_mark(folder: Path) -> _Mark | None:
    """None if there is none of this format, or a file is shorter than it says."""
    try:
        content = json.loads((folder / _MARK).read_bytes())
        if content.pop("format") != _FORMAT:
            return None
        seen = content.pop("seen")
        mark = _Mark(seen=Seen(read_notes(seen.pop("notes")), **seen), **content)
        is_whole = all((folder / name).stat().st_size >= end for name, end in mark.ends().items())
        return mark if is_whole else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
