"""Read files of labels and other columns, and match them with images; read lists of images.

If a file is ambiguous, it is either interpreted in one way, with a note, or refused with an example and the
kind of difference: labels that silently match no image would change the measured numbers.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64

from byol.base.errors import DataError
from byol.data.decode.index import Names
from byol.data.labels.explaining import ROUNDED, explain, is_rounded
from byol.data.labels.matching import describe_rules, find_contrary, find_first, match_files
from byol.data.labels.spelling import Spelled
from byol.data.labels.tables import Column, Table, read_lines, read_table
from byol.data.labels.text_files import decode_legacy

Numbers = Int64[np.ndarray, " n"]
Labels = tuple[Numbers, tuple[str, ...]]  # index into the class names, or -1; class names

_WHOLE = re.compile(r"-?\d{1,18}")


class LabelFile:
    """A table that is read once, and can be matched with one or several sets of images.

    `want` is "label" for a file of classes, "columns" to read all columns.

    Raises:
        DataError: the table cannot be read, or has two different values for one file.
    """

    def __init__(self, path: Path, *, want: Literal["label", "columns"] = "label") -> None:
        self.path, self._table, self._is_strict = path, read_table(path, want=want), want == "label"
        self._columns = {name: _sort_column(column) for name, column in self._table.columns.items()}
        self._plain = Spelled.plain(self._table.files)
        self._first = find_first(self._plain.keys)
        stacked = np.stack([numbers for numbers, _ in self._columns.values()])
        self._codes = np.unique(stacked, axis=1, return_inverse=True)[1].reshape(-1)
        _check_contradictions(self._table, self._columns, self._first)
        says_something = np.unique(self._first[(stacked >= 0).any(axis=0)])
        if want == "label" and len(says_something) == 0:
            raise DataError(f"{path}: has no labels, because their column is empty; fill it in")
        self._given = says_something
        self._is_used = np.zeros(len(self._first), dtype=np.bool_)
        self._rules: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._images = Names.of([])  # of all sets that were matched

    def match(self, names: Iterable[str], *, folder: Path | None = None) -> dict[str, Labels]:
        """Return the values of each column for the images with these names, by the rules of `match_files`.

        Images that are not in the file, and empty cells, get -1. Columns are in the order of the file.

        Raises:
            DataError: the file names none of the images, or several rows match one image.
        """
        images = Names.of(names)
        found = match_files(
            self.path,
            self._table.files,
            images,
            plain=self._plain,
            codes=self._codes,
            is_legacy=self._table.is_legacy,
            folder=folder,
        )
        self._images = Names.of(chain(self._images, images)) if len(self._images) else images
        if (found.rows < 0).all():
            raise DataError(
                f"{self.path}: none of its {len(self._given)} files is among the images; {self._explain()}"
            )
        self._is_used[self._first[found.is_used]] = True
        self._rules += found.rules
        self._examples = found.examples | self._examples
        labels = {
            name: _sort_classes(np.where(found.rows >= 0, numbers[found.rows], -1), words)
            for name, (numbers, words) in self._columns.items()
        }
        if self._is_strict and (labels["label"][0] < 0).all():
            raise DataError(f"{self.path}: has no label for any of the images; fill them in")
        return labels

    def check(self, *, max_unmatched: float) -> None:
        """Refuse a file if too many of its rows match none of the images.

        Raises:
            DataError: more than a fraction `max_unmatched` of its files match no image, or, unless this is 1,
                all files of one class; or two spellings of one image have different values.
        """
        lost, go_on = self._lost, "evaluation.max_unmatched=1 continues without them"
        if max_unmatched < 1 and len(lost):
            self._check_spellings("evaluation.max_unmatched=1 uses the one that is nearer to the image")
        if len(lost) > max_unmatched * len(self._given):
            raise DataError(
                f"{self.path}: {len(lost)} of its {len(self._given)} files match no image; "
                f"{self._explain()} ({go_on})"
            )
        if self._is_strict and max_unmatched < 1 and len(lost):
            numbers, words = self._columns["label"]
            kept = np.setdiff1d(self._given, lost)
            gone = np.setdiff1d(numbers[lost], numbers[kept])
            if len(gone):
                row = int(lost[np.isin(numbers[lost], gone)][0])
                raise DataError(
                    f"{self.path}: no file of the class {words[int(gone[0])]} matches an image"
                    f"{_count_others(len(gone))}; {self._explain(row)} ({go_on})"
                )

    def notes(self) -> Iterator[str]:
        """Iterate over notes on how the file was interpreted and its rows were matched, if there are any."""
        yield from self._table.notes
        yield from describe_rules(self.path, self._rules, self._examples)
        what = "labels" if self._is_strict else "rows"
        if len(self._lost):
            num = f"{len(self._lost)} of the {len(self._given)} {what}"
            yield f"left out, because no image matches: {num} in {self.path}; {self._explain()}"

    @property
    def _lost(self) -> Int64[np.ndarray, " lost"]:
        """The first rows of the files that have a value but match no image."""
        is_lost = ~self._is_used[self._given]
        return np.asarray(self._given[is_lost])

    def _explain(self, row: int | None = None) -> str:
        """Describe a file that matches no image, and how it differs from the most similar image."""
        if row is None:
            row = int(self._lost[0]) if len(self._lost) else 0
        return explain(self._table.files[row], self._images, is_legacy=self._table.is_legacy)

    def _check_spellings(self, go_on: str) -> None:
        """Refuse rows that name one image in two spellings but have different values."""
        table = self._table
        used = np.flatnonzero(self._is_used & (self._first == np.arange(len(self._first))))
        pair = find_contrary(table.files, used, self._lost, codes=self._codes, is_legacy=table.is_legacy)
        if pair is None:
            return
        one, two = (_show(table, row) for row in pair)
        raise DataError(
            f"{self.path}: {one} and {two} are spellings of one image, but their rows differ; keep the right "
            f"one ({go_on})"
        )


def match_labels(path: Path, names: Iterable[str], *, folder: Path | None = None) -> Labels:
    """Return the labels that the table `path` (columns `file`, `label`) gives to the images with these names.

    Images that are not in the table get -1. Rows that match no image are ignored (see `LabelFile.check`).

    Raises:
        DataError: the table cannot be read, contradicts itself, matches no image or several equally well.
    """
    return LabelFile(path).match(names, folder=folder)["label"]


def match_columns(
    path: Path, names: Iterable[str], *, folder: Path | None = None, max_unmatched: float = 1.0
) -> tuple[dict[str, Labels], list[str]]:
    """Return the values of each column but `file` for the images with these names, and notes on the table.

    Images that are not in the table, and empty cells, get -1; a column may be empty. Columns are in the order
    of the file; a column without a name (row numbers) is left out.

    Raises:
        DataError: the table cannot be read, has no column but `file` or two of one name, contradicts itself,
            matches no image or several equally well, or more than `max_unmatched` of it matches no image.
    """
    table = LabelFile(path, want="columns")
    columns = table.match(names, folder=folder)
    table.check(max_unmatched=max_unmatched)
    return columns, list(table.notes())


@dataclass(frozen=True)
class ImageList:
    """The content of a list: files as written there, their labels (-1 if there is none), and notes on it."""

    files: Names
    labels: Numbers
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    is_legacy: bool  # not Unicode: names are kept as bytes


def read_list(path: Path) -> ImageList:
    """Read the files that a list names.

    A .csv or .tsv file is a table with a header line. Any other file is text with one file per line.

    Raises:
        DataError: the list cannot be read, is empty, or has no column of files.
    """
    is_table = path.suffix.lower() in (".csv", ".tsv")
    table = read_table(path, want="list") if is_table else read_lines(path)
    column = table.columns.get("label")
    labels, class_names = (np.full(len(table.files), -1), ()) if column is None else _sort_column(column)
    return ImageList(table.files, labels, class_names, table.notes, table.is_legacy)


def encode_labels(labels: Iterable[str]) -> Labels:
    """Encode labels as indices into their sorted distinct values; "" becomes -1. Integers sort as numbers."""
    seen = {"": -1}
    numbers = np.fromiter((seen.setdefault(label, len(seen) - 1) for label in labels), dtype=np.int64)
    return _sort_classes(numbers, list(seen)[1:])


def _sort_column(column: Column) -> Labels:
    return _sort_classes(column.numbers, column.words)


def _sort_classes(numbers: Numbers, class_names: Iterable[str]) -> Labels:
    """Renumber labels so that only classes that occur are left, in sorted order."""
    names = list(class_names)
    used = np.unique(numbers[numbers >= 0]).tolist()
    are_whole = all(_WHOLE.fullmatch(names[number]) for number in used)
    used.sort(key=lambda number: (int(names[number]) if are_whole else 0, names[number]))
    ranks = np.full(len(names) + 1, -1)  # one more, so that index -1 gives -1
    ranks[used] = np.arange(len(used))
    return ranks[numbers], tuple(names[number] for number in used)


def _check_contradictions(table: Table, columns: dict[str, Labels], first: Numbers) -> None:
    for name, (numbers, words) in columns.items():
        if len(contrary := np.flatnonzero(numbers != numbers[first])):
            row = int(contrary[0])
            one, two = (words[number] if number >= 0 else "none" for number in numbers[[first[row], row]])
            file = _show(table, row)
            why = f", {ROUNDED}" if is_rounded(file) else "; keep one"
            raise DataError(f"{table.path}: {file} has two values of {name}, {one} and {two}{why}")


def _show(table: Table, row: int) -> str:
    """Return the name of a file for a message."""
    return decode_legacy(table.files[row]) if table.is_legacy else table.files[row]


def _count_others(num: int) -> str:
    return f" (nor of {num - 1} more)" if num > 1 else ""
