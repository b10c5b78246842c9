"""Tables and lists that people write: which encoding, which separator, which column names the files.

Every row is read once and kept as bytes and numbers, never as strings: a million rows take about 50 MB.
"""

import csv
import unicodedata
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64

from byol.base.errors import DataError, printable
from byol.data.decode.content import IMAGE_SUFFIXES
from byol.data.decode.index import Names, NamesBuilder
from byol.data.labels.text_files import LEGACY, decode_legacy, find_encoding, open_text, reading

Want = Literal["label", "list", "columns"]  # a column of classes; one if it is there; all but the files

# As pandas reads them: https://pandas.pydata.org/docs/reference/api/pandas.read_csv.html (na_values)
MISSING = frozenset(
    [
        "#N/A",
        "#N/A N/A",
        "#NA",
        "-1.#IND",
        "-1.#QNAN",
        "-NaN",
        "-nan",
        "1.#IND",
        "1.#QNAN",
        "<NA>",
        "N/A",
        "NA",
        "NULL",
        "NaN",
        "None",
        "n/a",
        "nan",
        "null",
    ]
)

# Names of columns without spaces, `_`, `-` and `.`; the first group that fits one column decides.
_FILE_NAMES = (
    {"file"},
    {"filename", "files", "filenames"},
    {"image", "images", "imagename", "imagefile", "imagefilename", "img", "imgname"},
    {"filepath", "imagepath", "imgpath", "path", "relativepath", "fullpath"},
    {"id", "imageid", "imgid", "fileid", "idcode"},
)
_LABEL_NAMES = (
    {"label"},
    {"labels", "class", "category", "target", "y"},
    {"classname", "categoryname", "labelname"},
    {"classid", "categoryid", "labelid", "targetid"},
)
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True)
class Column:
    """The values of a column: of each row an index into `words`, or -1 where nothing is said."""

    numbers: Int64[np.ndarray, " row"]
    words: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Rows of a file: the names as written, and the columns beside them."""

    path: Path
    files: Names
    columns: dict[str, Column]
    is_legacy: bool  # not Unicode: names are kept as bytes, words are read as Windows-1252
    notes: tuple[str, ...]  # what was understood that nobody said, one line each


def read_table(path: Path, *, want: Want) -> Table:
    """A table with a line of column names: encoding, separator and the columns are found from its content.

    Raises:
        DataError: it cannot be read, is no table, names no file, lacks a column or has it twice.
    """
    encoding = find_encoding(path)
    with reading(path):
        separator, header, num_skipped = _find_header(path, encoding)
        file_at = _choose(header, _FILE_NAMES, path=path, purpose="file", is_needed=True)
        assert file_at is not None
        places = _choose_columns(header, file_at, path=path, want=want)
        files, builders = NamesBuilder(), {name: _ColumnBuilder() for name in places}
        with open_text(path, encoding) as stream:
            rows = csv.reader(stream, delimiter=separator, strict=True)
            for _ in range(num_skipped + 1):
                next(rows)
            needed = (file_at, *places.values())
            for row in _check_rows(rows, path, header=header, needed=needed, separator=separator):
                files.append(row[file_at])
                for name, place in places.items():
                    builders[name].append(row[place].strip())
    names = files.build()
    if len(names) == 0:
        raise DataError(f"{path}: the list names no file; write one a line, below the names of the columns")
    is_legacy = encoding == LEGACY
    columns = {name: builder.build(is_legacy=is_legacy) for name, builder in builders.items()}
    notes = [*_describe_columns(header, file_at, places, path=path, want=want)]
    notes += _describe_values(path, builders, columns)
    if is_legacy:
        notes.append(_describe_legacy(path, names, columns))
    return Table(path, names, columns, is_legacy, tuple(notes))


def read_lines(path: Path) -> Table:
    """A text file that names one file a line.

    Raises:
        DataError: it cannot be read, or names no file.
    """
    encoding, files = find_encoding(path), NamesBuilder()
    with reading(path), open_text(path, encoding) as stream:
        for line in stream:
            if line.strip():
                files.append(line.rstrip("\r\n"))
    if len(files) == 0:
        raise DataError(f"{path}: the list names no file; write one a line")
    names = files.build()
    notes = (_describe_legacy(path, names, {}),) if encoding == LEGACY else ()
    return Table(path, names, {}, encoding == LEGACY, notes)


# ---- The line of column names


def _find_header(path: Path, encoding: str) -> tuple[str, list[str], int]:
    """The separator, the names of the columns, and how many lines stand before them."""
    with open_text(path, encoding) as stream:
        first = stream.readline().strip().strip('"').lower()
    stated = first[4:5] if first.startswith("sep=") else ""  # as Excel writes it
    found: dict[str, list[str]] = {}
    for separator in (stated or _SEPARATORS) if stated else _SEPARATORS:
        with open_text(path, encoding) as stream:
            rows = csv.reader(stream, delimiter=separator, strict=True)
            if stated:
                next(rows)
            try:
                found[separator] = [name.strip() for name in next(rows, [])]
            except csv.Error:
                continue
    with_file = {key: names for key, names in found.items() if _find_named(names, _FILE_NAMES)}
    choice = with_file or found or {",": [first]}
    separator = max(choice, key=lambda key: len(choice[key]))
    header = choice[separator]
    if not with_file:
        raise _refuse_header(path, header)
    return separator, header, int(bool(stated))


def _refuse_header(path: Path, header: list[str]) -> DataError:
    shown = ", ".join(name or "(none)" for name in header[:8]) + (", ..." if len(header) > 8 else "")
    if any(name.lower().endswith(IMAGE_SUFFIXES) for name in header):
        return DataError(
            f"{path}: line 1 is already an image ({shown}); write the names of the columns above it, such as "
            "file,label"
        )
    return DataError(
        f"{path}: line 1 names the columns {shown}; a column `file` is needed: rename the one of the file "
        "names to file, or write file,label above line 1 if that is an image already"
    )


def _find_named(header: list[str], groups: tuple[set[str], ...]) -> list[int]:
    """The columns whose names are of the first group that has any."""
    plain = ["".join(char for char in name.casefold() if char not in " _-.") for name in header]
    for group in groups:
        if found := [place for place, name in enumerate(plain) if name in group]:
            exact = [place for place in found if header[place] in group]
            return exact if len(exact) == 1 else found
    return []


def _choose(
    header: list[str], groups: tuple[set[str], ...], *, path: Path, purpose: str, is_needed: bool
) -> int | None:
    found = _find_named(header, groups)
    if len(found) > 1:
        names = " and ".join(header[place] for place in found)
        if len({header[place] for place in found}) == 1:
            raise DataError(f"{path}: line 1 names a column twice, {header[found[0]]}; rename one")
        raise DataError(
            f"{path}: line 1 has {names}, and each may be the column `{purpose}`; rename the right one to "
            f"{purpose}, the other to something else"
        )
    if not found and is_needed:
        others = ", ".join(name for name in header if name)
        raise DataError(
            f"{path}: no {purpose} is given, there is no column `{purpose}`, only {others}; rename the "
            f"column of the classes to {purpose}"
        )
    return found[0] if found else None


def _choose_columns(header: list[str], file_at: int, *, path: Path, want: Want) -> dict[str, int]:
    """Names of the columns to be read, and their places."""
    if want != "columns":
        rest = ["" if place == file_at else name for place, name in enumerate(header)]
        at = _choose(rest, _LABEL_NAMES, path=path, purpose="label", is_needed=want == "label")
        return {} if at is None else {"label": at}
    places = [place for place, name in enumerate(header) if name and place != file_at]
    if not places:
        raise DataError(f"{path}: has no column beside `{header[file_at]}`; add one, such as file,plate")
    names = [header[place] for place in places]
    if "label" not in names:
        names = ["label" if name.casefold() == "label" else name for name in names]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{path}: line 1 names a column twice, {name}; rename one")
    return dict(zip(names, places, strict=True))


def _describe_columns(
    header: list[str], file_at: int, places: dict[str, int], *, path: Path, want: Want
) -> Iterator[str]:
    """Which columns stand for `file` and `label`, where they are called otherwise."""
    named = {"file": file_at} | ({"label": places["label"]} if want != "columns" and places else {})
    others = [
        f"{header[place]!r} as `{purpose}`"
        for purpose, place in named.items()
        if header[place].casefold() != purpose
    ]
    if others:
        yield f"{path}: read the column {' and '.join(others)}"


# ---- Rows


def _check_rows(
    rows: Iterable[list[str]], path: Path, *, header: list[str], needed: tuple[int, ...], separator: str
) -> Iterator[list[str]]:
    least, file_at = max(needed) + 1, needed[0]
    for number, row in enumerate(rows, start=2):
        if not any(map(str.strip, row)):
            continue
        if len(row) < least or any(row[len(header) :]):
            raise DataError(
                f"{path}: row {number} has {len(row)} fields, not {len(header)}; put a name that holds "
                f"{_SEPARATORS.get(separator, separator)} in quotes, and name every column in line 1"
            )
        if not row[file_at].strip():
            raise DataError(f"{path}: row {number} names no file; fill it in or remove the row")
        yield row


@dataclass
class _ColumnBuilder:
    """A `Column` in the making."""

    known: dict[str, int] = field(default_factory=dict)
    numbers: "array[int]" = field(default_factory=lambda: array("i"))
    num_empty: int = 0
    num_missing: int = 0  # words such as NaN

    def append(self, value: str) -> None:
        if value and value not in MISSING:
            self.numbers.append(self.known.setdefault(value, len(self.known)))
            return
        self.numbers.append(-1)
        self.num_empty += not value
        self.num_missing += bool(value)

    def build(self, *, is_legacy: bool) -> Column:
        """Words in one Unicode form; whole numbers without the `.0` that pandas adds if some are missing."""
        words = [
            unicodedata.normalize("NFC", decode_legacy(word) if is_legacy else word) for word in self.known
        ]
        if all(map(_is_whole, words)):
            words = [word.removesuffix(".0") for word in words]
        places = {word: place for place, word in enumerate(dict.fromkeys(words))}
        table = np.array([*(places[word] for word in words), -1])
        return Column(table[np.frombuffer(self.numbers, dtype=np.int32)], tuple(places))


def _is_whole(word: str) -> bool:
    return word.removesuffix(".0").removeprefix("-").isdecimal()


def _describe_values(
    path: Path, builders: dict[str, _ColumnBuilder], columns: dict[str, Column]
) -> Iterator[str]:
    """What in the cells was taken for something else than it says."""
    for name, builder in builders.items():
        what = "no class" if name == "label" else "not known"
        if num := builder.num_missing:
            yield (
                f"{path}: {num} cells of `{name}` hold a word for a missing value, such as NaN or NA: {what};"
                " write another word if it is one"
            )
        if name == "label" and builder.num_empty:
            yield f"{path}: {builder.num_empty} cells of `{name}` are empty: {what}"
        words = columns[name].words
        if name == "label" and len(words) < 1000:
            yield from _describe_alike(path, words)


def _describe_alike(path: Path, words: Iterable[str]) -> Iterator[str]:
    seen: dict[str, str] = {}
    for word in words:
        other = seen.setdefault(word.casefold(), word)
        if other != word:
            yield f"{path}: the classes {other!r} and {word!r} differ by letter case alone; both are kept"


def _describe_legacy(path: Path, files: Names, columns: dict[str, Column]) -> str:
    texts: Iterable[str] = (word for column in columns.values() for word in column.words)
    example = next((text for text in texts if not text.isascii()), None)
    if example is None:
        example = next((decode_legacy(name) for name in files if not name.isascii()), "")
    return (
        f"{path}: is not UTF-8, so it was read as Windows-1252 (cp1252), which gives {printable(example)!r}; "
        "save it as UTF-8 if that is wrong"
    )
