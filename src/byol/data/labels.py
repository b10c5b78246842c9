"""Lists of files and their labels, from text and CSV files, and which label belongs to which image.

Lists of a million lines are held as blocks of bytes and arrays of numbers, never as a million strings.
"""

import csv
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import TextIO

import numpy as np
from jaxtyping import Int64

from byol.data.index import Names, NamesBuilder
from byol.data.paths import find_parts, normalise
from byol.errors import DataError

Numbers = Int64[np.ndarray, " n"]
Labels = tuple[Numbers, tuple[str, ...]]  # index into the class names, or -1; class names

_WHOLE = re.compile(r"-?\d{1,18}")
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}  # that other programs write
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_list(path: Path) -> tuple[Names, Names]:
    """The files that a list names, as written there, and their labels; a label is "" where none is given.

    A .csv starts with a line that names its columns, `file` and perhaps `label`, in any case and order and
    beside others. Anything else is text, one file a line.

    Raises:
        DataError: the list cannot be read, is empty, or lacks the column `file`.
    """
    files, labels = NamesBuilder(), NamesBuilder()
    with _open(path) as stream:
        is_csv = path.suffix.lower() == ".csv"
        for file, label in _read_labels(stream, path) if is_csv else _read_text(stream):
            files.append(file)
            labels.append(label)
    if len(files) == 0:
        raise DataError(f"{path}: the list names no file; write one a line")
    return files.build(), labels.build()


def encode_labels(labels: Iterable[str]) -> Labels:
    """Labels as indices into their sorted distinct values; "" becomes -1. Whole numbers sort as numbers."""
    seen = {"": -1}
    numbers = np.fromiter((seen.setdefault(label, len(seen) - 1) for label in labels), dtype=np.int64)
    return _sort_classes(numbers, list(seen)[1:])


def match_labels(path: Path, names: Iterable[str]) -> Labels:
    """The labels that the CSV file `path` (columns `file`, `label`) gives to the images of these names.

    A file of the CSV is an image if one of the two paths ends with the other: `plate1/a.png` fits `a.png`
    and `/data/plate1/a.png`, not `plate2/a.png`. Images that the CSV leaves out get -1.

    Raises:
        DataError: the CSV cannot be read, contradicts itself, fits no image or fits several alike.
    """
    listed, labels = read_list(path)
    if path.suffix.lower() != ".csv":
        raise DataError(
            f"{path}: is read as a list of files without labels, as its name does not end in .csv; save it "
            f"as {path.stem}.csv, with the columns file and label"
        )
    if labels.blob.size == 0:
        raise DataError(f"{path}: no label is given; a CSV file with the columns file and label is needed")
    (found,) = _match_all(path, listed, names, columns={"label": labels}).values()
    if (found[0] < 0).all():
        raise DataError(f"{path}: its files that are among the images have no label")
    return found


def match_columns(path: Path, names: Iterable[str]) -> dict[str, Labels]:
    """What each column but `file` of the CSV file `path` says of the images of these names.

    Files are matched as by `match_labels`. Images that the CSV leaves out, and empty fields, get -1; a column
    may be empty. Columns come in the order of the file; one without a name (a row number) is left out.

    Raises:
        DataError: the CSV cannot be read, has no column but `file` or two of one name, contradicts itself,
            fits no image or fits several alike.
    """
    listed, columns = _read_columns(path)
    return _match_all(path, listed, names, columns=columns)


def count_unmatched(path: Path, *sets: Iterable[str]) -> tuple[int, int]:
    """How many labelled files of a CSV are no image of any set of names, and how many it has in all.

    A file that is named several times counts once. Files are matched as by `match_labels`.

    Raises:
        DataError: the CSV cannot be read, or fits several images alike.
    """
    listed, labels = read_list(path)
    names = [Names.of(each) for each in sets]
    known = find_parts(chain.from_iterable(names))
    files = _normalise(listed, known)
    keys = _hashes(files)
    wholes = _Places(keys, np.arange(len(files)))
    first = wholes.find(keys)
    is_labelled = np.fromiter((label != "" for label in labels), dtype=np.bool_, count=len(labels))
    given = np.unique(first[is_labelled])
    matches = [_match(path, files, _normalise(each, known), wholes=wholes, first=first) for each in names]
    return len(np.setdiff1d(given, np.concatenate(matches))), len(given)


def _sort_classes(numbers: Numbers, class_names: Iterable[str]) -> Labels:
    """The same labels with the classes that occur alone, in their order."""
    names = list(class_names)
    used = np.unique(numbers[numbers >= 0]).tolist()
    are_whole = all(_WHOLE.fullmatch(names[number]) for number in used)
    used.sort(key=lambda number: (int(names[number]) if are_whole else 0, names[number]))
    ranks = np.full(len(names) + 1, -1)  # one more, so that -1 finds -1
    ranks[used] = np.arange(len(used))
    return ranks[numbers], tuple(names[number] for number in used)


# ---- Reading lists


@contextmanager
def _open(path: Path) -> Iterator[TextIO]:
    try:
        with path.open("rb") as file:
            head = file.read(1024)
        if head.startswith(_UTF16) or b"\0" in head:
            raise DataError(f"{path}: is UTF-16, or no text; save it as UTF-8 (a CSV file: with commas)")
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            yield stream
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror})") from None


def _read_text(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        if line.strip():
            yield line.rstrip("\r\n"), ""


def _read_labels(stream: TextIO, path: Path) -> Iterator[tuple[str, str]]:
    rows = _read_rows(stream, path)
    header = next(rows)
    file_at, label_at = header.index("file"), header.index("label") if "label" in header else None
    for row in rows:
        yield row[file_at], "" if label_at is None else row[label_at].strip()


def _read_columns(path: Path) -> tuple[Names, dict[str, Names]]:
    """The column `file`, and all others that have a name."""
    with _open(path) as stream:
        rows = _read_rows(stream, path)
        header = next(rows)
        places = [place for place, column in enumerate(header) if column not in ("", "file")]
        if not places:
            raise DataError(f"{path}: has no column beside `file`; add one, such as file,plate")
        if len(set(header)) < len(header):
            raise DataError(f"{path}: line 1 names a column twice, {header}; rename one")
        files, builders = NamesBuilder(), [NamesBuilder() for _ in places]
        file_at = header.index("file")
        for row in rows:
            files.append(row[file_at])
            for place, builder in zip(places, builders, strict=True):
                builder.append(row[place].strip())
    if len(files) == 0:
        raise DataError(f"{path}: the list names no file; write one a line")
    columns = zip(places, builders, strict=True)
    return files.build(), {header[place]: builder.build() for place, builder in columns}


def _read_rows(stream: TextIO, path: Path) -> Iterator[list[str]]:
    """The names of the columns, then a list of fields a file."""
    line, rows = 1, csv.reader(stream)
    try:
        header = _name_columns(next(rows, []))
        if "file" not in header:
            for separator, name in _SEPARATORS.items():
                if "file" in _name_columns(separator.join(header).split(separator)):
                    raise DataError(f"{path}: has {name} between its columns; save it as UTF-8 with commas")
            raise DataError(f"{path}: line 1 names the columns {header}; a column `file` is needed")
        yield header
        file_at = header.index("file")
        for line, row in enumerate(rows, start=2):
            if not row:
                continue
            if len(row) != len(header) or not row[file_at]:
                raise DataError(
                    f"{path}: row {line} has {len(row)} fields or no file, not {len(header)} fields"
                )
            yield row
    except csv.Error as error:
        raise DataError(f"{path}: row {line} cannot be read ({error})") from None


def _name_columns(written: Iterable[str]) -> list[str]:
    """`file` and `label` may be written in any case where they are not there as such."""
    header = [column.strip() for column in written]
    for name in ("file", "label"):
        if name not in header:
            header = [name if column.lower() == name else column for column in header]
    return header


# ---- Which file of a list is which image


def _match_all(
    path: Path, listed: Names, names: Iterable[str], *, columns: dict[str, Names]
) -> dict[str, Labels]:
    """What each column says of each image."""
    images = Names.of(names)
    known = find_parts(images)
    files, images = _normalise(listed, known), _normalise(images, known)
    keys = _hashes(files)
    wholes = _Places(keys, np.arange(len(files)))
    first = wholes.find(keys)
    encoded = {column: encode_labels(values) for column, values in columns.items()}
    for column, (numbers, class_names) in encoded.items():
        if len(contrary := np.flatnonzero(numbers != numbers[first])):
            file = int(contrary[0])
            one, two = (class_names[number] if number >= 0 else "" for number in numbers[[first[file], file]])
            raise DataError(f"{path}: {files[file]} has two {column}s, {one} and {two}; keep one")
    match = _match(path, files, images, wholes=wholes, first=first)
    if (match < 0).all():
        like = images[-1] if len(images) else "(there are none)"
        raise DataError(
            f"{path}: none of its {len(files)} files is among the images; it names {listed[0]}, "
            f"the images are named like {like}"
        )
    return {
        column: _sort_classes(np.where(match >= 0, numbers[match], -1), class_names)
        for column, (numbers, class_names) in encoded.items()
    }


def _match(
    path: Path, files: Names, images: Names, *, wholes: "_Places", first: Numbers
) -> Int64[np.ndarray, " images"]:
    """For each image the place of its file in the list, or -1. `first`: where each file is named first.

    Paths are compared by 64-bit hashes: of a million files and a million images, one set in three million
    would see two that are alike by chance.
    """
    image_keys = _hashes(images)
    match = wholes.find(image_keys)
    # Files whose path is longer than the image's.
    distinct = np.flatnonzero(first == np.arange(len(files)))
    open_ones = np.flatnonzero(match < 0)
    match[open_ones] = _tails_of(files, distinct).find(image_keys[open_ones], alone=True)
    # Images whose path is longer: the longest tail that is a file.
    for depth in count(1):
        tails, rows = _drop(images, np.flatnonzero(match < 0), depth)
        if len(rows) == 0:
            break
        match[rows] = wholes.find(tails)
    _check_single(path, files, images, match=match, image_keys=image_keys)
    return match


class _Places:
    """Where each of many keys comes first."""

    def __init__(self, keys: Numbers, places: Numbers) -> None:
        order = np.argsort(keys, kind="stable")
        self._keys, at, counts = np.unique(keys[order], return_index=True, return_counts=True)
        self._places, self._alone = places[order[at]], counts == 1

    def find(self, keys: Int64[np.ndarray, " m"], *, alone: bool = False) -> Int64[np.ndarray, " m"]:
        """-1 where a key is not there, or with `alone` where it is there several times."""
        if len(self._keys) == 0:
            return np.full(len(keys), -1)
        at = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        known = self._keys[at] == keys
        return np.where(known & self._alone[at] if alone else known, self._places[at], -1)


def _tails_of(files: Names, places: Int64[np.ndarray, " m"]) -> _Places:
    """Each proper tail of these files: of `a/b/c`, `b/c` and `c`."""
    keys, at = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for depth in count(1):
        tails, places = _drop(files, places, depth)
        if len(places) == 0:
            return _Places(np.concatenate(keys), np.concatenate(at))
        keys.append(tails)
        at.append(places)
    raise AssertionError


def _drop(names: Names, places: Int64[np.ndarray, " m"], depth: int) -> tuple[Numbers, Numbers]:
    """Hashes of those of the names that have more than `depth` parts, without these, and their places."""
    deep = np.fromiter((at for at in map(int, places) if names.raw(at).count(b"/") >= depth), dtype=np.int64)
    tails = (names[at].split("/", depth)[depth] for at in map(int, deep))
    return np.fromiter(map(hash, tails), dtype=np.int64, count=len(deep)), deep


def _check_single(path: Path, files: Names, images: Names, *, match: Numbers, image_keys: Numbers) -> None:
    """Refuse a file that fits several images."""
    order = np.argsort(match, kind="stable")
    order = order[match[order] >= 0]
    same, other = match[order[1:]] == match[order[:-1]], image_keys[order[1:]] != image_keys[order[:-1]]
    if len(twice := np.flatnonzero(same & other)):
        one, two = map(int, order[twice[0] :][:2])
        raise DataError(
            f"{path}: {files[int(match[one])]} fits several images, {images[one]} and {images[two]}; "
            "write more of its path"
        )


def _hashes(names: Names) -> Numbers:
    return np.fromiter(map(hash, names), dtype=np.int64, count=len(names))


def _normalise(names: Names, known: frozenset[str]) -> Names:
    return Names.of(normalise(name, known=known) for name in names)
