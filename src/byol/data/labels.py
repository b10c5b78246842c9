"""Lists of files and their labels, from text and CSV files, and which label belongs to which image."""

import csv
import os.path
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from byol.errors import DataError

Labels = tuple[Int64[np.ndarray, " n"], tuple[str, ...]]  # index into the class names, or -1; class names


def read_list(path: Path) -> tuple[list[str], list[str]]:
    """The files that a list names, as written there, and their labels; a label is "" where none is given.

    A .csv starts with a line that names its columns, `file` and perhaps `label`, in any order and beside
    others. Anything else is text, one file a line.

    Raises:
        DataError: the list cannot be read, is empty, or lacks the column `file`.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            if path.suffix.lower() == ".csv":
                files, labels = _read_csv(csv.reader(stream), path)
            else:
                files = [line for line in stream.read().splitlines() if line.strip()]
                labels = [""] * len(files)
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror})") from None
    if not files:
        raise DataError(f"{path}: the list names no file; write one a line")
    return files, labels


def encode_labels(labels: Sequence[str]) -> Labels:
    """Labels as indices into their sorted distinct values; "" becomes -1. Whole numbers sort as numbers."""
    distinct = set(labels) - {""}
    numbers = all(label.lstrip("-").isdecimal() for label in distinct)
    class_names = tuple(sorted(distinct, key=(lambda label: (int(label), label)) if numbers else None))
    index = {name: number for number, name in enumerate(class_names)} | {"": -1}
    return np.array([index[label] for label in labels], dtype=np.int64), class_names


def match_labels(path: Path, names: Iterable[str]) -> Labels:
    """The labels that the CSV file `path` (columns `file`, `label`) gives to the images of these names.

    A file of the CSV is an image if one of the two paths ends with the other: `plate1/a.png` fits `a.png`
    and `/data/plate1/a.png`, not `plate2/a.png`. Images that the CSV leaves out get -1.

    Raises:
        DataError: the CSV cannot be read, contradicts itself, fits no image or fits several alike.
    """
    files, labels = read_list(path)
    if not any(labels):
        raise DataError(f"{path}: no label is given; a CSV file with the columns file and label is needed")
    label_of: dict[str, str] = {}
    for file, label in zip(map(_normalise, files), labels, strict=True):
        if label_of.setdefault(file, label) != label:
            raise DataError(f"{path}: {file} has two labels, {label_of[file]} and {label}; keep one")
    by_tail = _index_by_tails(label_of)
    image_of: dict[str, str] = {}
    found: list[str] = []
    for name in names:
        match = _find(_normalise(name), label_of, by_tail)
        found.append("" if match is None else label_of[match])
        if match is not None and image_of.setdefault(match, name) != name:
            raise DataError(
                f"{path}: {match} fits several images, {image_of[match]} and {name}; write more of its path"
            )
    if not any(found):
        raise DataError(
            f"{path}: none of its {len(files)} files is among the images; it names {files[0]}, "
            f"the images are named like {name if found else '(there are none)'}"
        )
    return encode_labels(found)


def _read_csv(rows: Iterable[list[str]], path: Path) -> tuple[list[str], list[str]]:
    files, labels = [], []
    line = 1
    try:
        rows = iter(rows)
        header = [column.strip() for column in next(rows, [])]
        if "file" not in header:
            raise DataError(f"{path}: line 1 names the columns {header}; a column `file` is needed")
        file_at, label_at = header.index("file"), header.index("label") if "label" in header else None
        for line, row in enumerate(rows, start=2):
            if not row:
                continue
            if len(row) != len(header) or not row[file_at]:
                raise DataError(
                    f"{path}: row {line} has {len(row)} fields or no file, not {len(header)} fields"
                )
            files.append(row[file_at])
            labels.append("" if label_at is None else row[label_at].strip())
    except csv.Error as error:
        raise DataError(f"{path}: row {line} cannot be read ({error})") from None
    return files, labels


def _normalise(file: str) -> str:
    return os.path.normpath(file).replace("\\", "/")


def _tails(file: str) -> list[str]:
    """`a/b/c` -> `b/c`, `c`."""
    parts = file.split("/")
    return ["/".join(parts[first:]) for first in range(1, len(parts))]


def _index_by_tails(files: Iterable[str]) -> dict[str, str | None]:
    """Each proper tail of each file -> the file, or None where several files share the tail."""
    index: dict[str, str | None] = {}
    for file in files:
        for tail in _tails(file):
            index[tail] = None if tail in index else file
    return index


def _find(name: str, files: dict[str, str], by_tail: dict[str, str | None]) -> str | None:
    if name in files:
        return name
    longer = by_tail.get(name)
    return longer if longer is not None else next((tail for tail in _tails(name) if tail in files), None)
