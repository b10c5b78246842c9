"""Files of labels and of other columns, and what they say of each image; lists of images.

What a file leaves in doubt is either understood in one way, and said, or refused with an example and the kind
of difference: labels that quietly fit nothing would change what is measured.
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
    """A table that was read once, to be matched with one set of images or with several.

    `want` is "label" for a file of classes, "columns" for a file of all that is known.

    Raises:
        DataError: the table cannot be read, or says two things of one file.
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
        self._images = Names.of([])  # of all sets

    def match(self, names: Iterable[str], *, folder: Path | None = None) -> dict[str, Labels]:
        """What each column says of the images of these names, by the rules of `matching.match_files`.

        Images that the file leaves out, and empty cells, get -1. Columns come in the order of the file.

        Raises:
            DataError: no image is named, or one could be named by several rows.
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
        """Refuse a file of which too much names none of the images that were matched.

        Raises:
            DataError: more than the share `max_unmatched` of what it says is of no image, or, unless that
                is 1, all that it says of a class; or it says two things of an image in two spellings.
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
        """What was understood in the file, and how its rows were matched; nothing if all is plain."""
        yield from self._table.notes
        yield from describe_rules(self.path, self._rules, self._examples)
        what = "labels" if self._is_strict else "rows"
        if len(self._lost):
            num = f"{len(self._lost)} of the {len(self._given)} {what}"
            yield f"left out, because no image matches: {num} in {self.path}; {self._explain()}"

    @property
    def _lost(self) -> Int64[np.ndarray, " lost"]:
        """The first rows of files that say something and are no image."""
        is_lost = ~self._is_used[self._given]
        return np.asarray(self._given[is_lost])

    def _explain(self, row: int | None = None) -> str:
        """An example of a file that is no image, and how it differs from the image nearest to it."""
        if row is None:
            row = int(self._lost[0]) if len(self._lost) else 0
        return explain(self._table.files[row], self._images, is_legacy=self._table.is_legacy)

    def _check_spellings(self, go_on: str) -> None:
        """Refuse rows that name one image in two spellings and say two things of it."""
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
    """The labels that the table `path` (columns `file`, `label`) gives to the images of these names.

    Images that it leaves out get -1. What it says of no image is passed over: `LabelFile.check` refuses it.

    Raises:
        DataError: the table cannot be read, contradicts itself, fits no image or fits several alike.
    """
    return LabelFile(path).match(names, folder=folder)["label"]


def match_columns(
    path: Path, names: Iterable[str], *, folder: Path | None = None, max_unmatched: float = 1.0
) -> tuple[dict[str, Labels], list[str]]:
    """What each column but `file` of a table says of the images of these names, and what to say of the table.

    Images that it leaves out, and empty cells, get -1; a column may be empty. Columns come in the order of
    the file; one without a name (a row number) is left out.

    Raises:
        DataError: the table cannot be read, has no column but `file` or two of one name, contradicts itself,
            fits no image or fits several alike, or more than the share `max_unmatched` of it is of no image.
    """
    table = LabelFile(path, want="columns")
    columns = table.match(names, folder=folder)
    table.check(max_unmatched=max_unmatched)
    return columns, list(table.notes())


@dataclass(frozen=True)
class ImageList:
    """What a list says: files as written there, their labels (-1 where it has none), what to say of it."""

    files: Names
    labels: Numbers
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    is_legacy: bool  # not Unicode: names are kept as bytes


def read_list(path: Path) -> ImageList:
    """The files that a list names.

    A .csv or .tsv is a table that starts with a line of column names. Anything else is text, one file a line.

    Raises:
        DataError: the list cannot be read, is empty, or names no column of files.
    """
    is_table = path.suffix.lower() in (".csv", ".tsv")
    table = read_table(path, want="list") if is_table else read_lines(path)
    column = table.columns.get("label")
    labels, class_names = (np.full(len(table.files), -1), ()) if column is None else _sort_column(column)
    return ImageList(table.files, labels, class_names, table.notes, table.is_legacy)


def encode_labels(labels: Iterable[str]) -> Labels:
    """Labels as indices into their sorted distinct values; "" becomes -1. Whole numbers sort as numbers."""
    seen = {"": -1}
    numbers = np.fromiter((seen.setdefault(label, len(seen) - 1) for label in labels), dtype=np.int64)
    return _sort_classes(numbers, list(seen)[1:])


def _sort_column(column: Column) -> Labels:
    return _sort_classes(column.numbers, column.words)


def _sort_classes(numbers: Numbers, class_names: Iterable[str]) -> Labels:
    """The same labels with the classes that occur alone, in their order."""
    names = list(class_names)
    used = np.unique(numbers[numbers >= 0]).tolist()
    are_whole = all(_WHOLE.fullmatch(names[number]) for number in used)
    used.sort(key=lambda number: (int(names[number]) if are_whole else 0, names[number]))
    ranks = np.full(len(names) + 1, -1)  # one more, so that -1 finds -1
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
    """The name of a file as it is to be read."""
    return decode_legacy(table.files[row]) if table.is_legacy else table.files[row]


def _count_others(num: int) -> str:
    return f" (nor of {num - 1} more)" if num > 1 else ""
