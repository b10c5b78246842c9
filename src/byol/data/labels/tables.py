"""Tables and lists that people write: which encoding, which separator, which column names the files.

Every row is read once and kept as bytes and numbers, never as strings: a million rows take about 50 MB.
"""

import csv
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TextIO

import numpy as np
from jaxtyping import Int64

from byol.base.errors import DataError, quote
from byol.data.decode.index import Names, NamesBuilder
from byol.data.labels.header import SEPARATORS, Header, Want, find_header
from byol.data.labels.text_files import (
    LEGACY,
    decode_legacy,
    find_encoding,
    open_text,
    reading,
    remove_unseen,
    strip_blank,
)

_MOST_COMPARED = 10_000  # classes of which it is said that some may be one
_NUMBER = re.compile(r"(-?)0*(\d+)(?:[.,]0+)?")

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
        header = find_header(path, encoding)
        file_at, places = header.file_at, header.choose_columns(want=want)
        files, builders = NamesBuilder(), {name: _ColumnBuilder() for name in places}
        with open_text(path, encoding) as stream:
            for row in _read_rows(stream, header, least=max(file_at, *places.values(), 0) + 1):
                files.append(row[file_at])
                for name, place in places.items():
                    builders[name].append(strip_blank(row[place]))
    names = files.build()
    if len(names) == 0:
        raise DataError(f"{path}: the list names no file; write one per line, below the names of the columns")
    is_legacy = encoding == LEGACY
    columns = {name: builder.build(is_legacy=is_legacy) for name, builder in builders.items()}
    notes = [*header.describe(places, want=want), *_describe_values(path, builders, columns)]
    if is_legacy:
        words = chain(*(column.words for column in columns.values()))
        notes.append(_describe_legacy(path, chain(words, header.names, map(decode_legacy, names))))
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
        raise DataError(f"{path}: the list names no file; write one per line")
    names = files.build()
    notes = (_describe_legacy(path, map(decode_legacy, names)),) if encoding == LEGACY else ()
    return Table(path, names, {}, encoding == LEGACY, notes)


# ---- Rows


def _read_rows(stream: TextIO, header: Header, *, least: int) -> Iterator[list[str]]:
    """The rows below the header that are not blank, each with `least` fields or more.

    Raises:
        DataError: a row has too few or too many fields, names no file, or holds a quote that is not closed.
    """
    path, rows = header.path, csv.reader(stream, delimiter=header.separator, strict=True)
    num_columns, file_at, line = len(header.names), header.file_at, 1
    try:
        for place, row in enumerate(rows):
            line, start = rows.line_num + 1, line
            if place <= header.num_skipped or not any(map(str.strip, row)):
                continue
            if len(row) < least:
                raise DataError(
                    f"{path}: line {start} has {len(row)} fields, not {num_columns}; add the missing fields, "
                    "or remove the line"
                )
            if any(row[num_columns:]):
                raise DataError(
                    f"{path}: line {start} has {len(row)} fields, not {num_columns}; put a name that holds "
                    f"{SEPARATORS.get(header.separator, header.separator)} in quotes, and name every column "
                    f"in line {header.line}"
                )
            if not strip_blank(row[file_at]):
                raise DataError(f"{path}: line {start} names no file; fill it in or remove the line")
            yield row
    except csv.Error as error:
        raise DataError(
            f"{path}: cannot be read as a table from line {line} on ({error}); look there for a quote that "
            "is not closed"
        ) from None


@dataclass
class _ColumnBuilder:
    """A `Column` in the making."""

    known: dict[str, int] = field(default_factory=dict)
    numbers: "array[int]" = field(default_factory=lambda: array("i"))
    num_empty: int = 0
    missing: Counter[str] = field(default_factory=Counter)  # words such as NaN

    def append(self, value: str) -> None:
        if value and value not in MISSING:
            self.numbers.append(self.known.setdefault(value, len(self.known)))
            return
        self.numbers.append(-1)
        if value:
            self.missing[value] += 1
        else:
            self.num_empty += 1

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
        if num := builder.missing.total():
            yield (
                f"{path}: {num} cells of `{name}` hold {' or '.join(builder.missing)}, which is read as a "
                f"missing value: {what}; if it is a value, write another word"
            )
        if name == "label" and builder.num_empty:
            yield f"{path}: {builder.num_empty} cells of `{name}` are empty: {what}"
        words = columns[name].words
        if name == "label" and len(words) < _MOST_COMPARED:
            yield from _describe_alike(path, words)


def _describe_alike(path: Path, words: Iterable[str]) -> Iterator[str]:
    """Classes that may be one in two spellings: a line with the first two."""
    seen: dict[str, str] = {}
    pairs = [(other, word) for word in words if (other := seen.setdefault(_make_plain(word), word)) != word]
    if pairs:
        one, two = map(quote, pairs[0])
        more = f" (and {len(pairs) - 1} more)" if len(pairs) > 1 else ""
        yield (
            f"{path}: the classes {one} and {two}{more} differ only in spelling and count as two; if they "
            "are one class, use one spelling"
        )


def _make_plain(word: str) -> str:
    """Of numbers without leading zeros and `.0`; without regard to case, width, `_`, `-` and spaces."""
    if (number := _NUMBER.fullmatch(word)) is not None:
        return f"{number[1]}{number[2]}"
    plain = remove_unseen(unicodedata.normalize("NFKC", word)).casefold()
    return re.sub(r"(?<=\w)[\s_-]+(?=\w)", " ", plain)


def _describe_legacy(path: Path, texts: Iterable[str]) -> str:
    """The first of the texts that shows what the encoding does."""
    example = next((text for text in texts if not text.isascii()), "")
    return (
        f"{path}: is not UTF-8, so it was read as Windows-1252 (cp1252), which gives {quote(example)}; save "
        "it as UTF-8 if that is wrong"
    )
