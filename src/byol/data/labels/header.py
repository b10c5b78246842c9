"""The line of a table that names its columns: where it is, what separates columns, which column is which."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from byol.base.errors import DataError, quote
from byol.data.decode.content import IMAGE_SUFFIXES
from byol.data.labels.text_files import EXPORT, LEGACY, decode_legacy, open_text, refuse_empty, strip_blank

Want = Literal["label", "list", "columns"]  # a column of classes; one if it is there; all but the files

# Names of columns without spaces, `_`, `-`, `.` and `#`; the first group that fits one column decides.
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
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_SPACE = "".join(SEPARATORS) + " "
_OF_COMMENTS = "#"
_OTHER_TEXTS = (("{", "JSON"), ("[", "JSON"), ("<", "a web page or XML"))


@dataclass(frozen=True)
class Header:
    """The names of the columns, and how the rows below them are to be read."""

    path: Path
    names: list[str]
    separator: str
    num_skipped: int  # rows above it
    line: int  # where it ends, from 1

    @property
    def file_at(self) -> int:
        """The place of the column of the file names.

        Raises:
            DataError: several columns could be meant.
        """
        place = self._choose(self.names, _FILE_NAMES, purpose="file")
        assert place is not None
        return place

    def choose_columns(self, *, want: Want) -> dict[str, int]:
        """Names of the columns to be read, and their places.

        Raises:
            DataError: a column is missing, there twice, or several could be meant.
        """
        file_at = self.file_at
        if want != "columns":
            rest = ["" if place == file_at else name for place, name in enumerate(self.names)]
            at = self._choose(rest, _LABEL_NAMES, purpose="label")
            if at is None and want == "label":
                others = ", ".join(name for name in rest if name) or "the files"
                raise DataError(
                    f"{self.path}: has no labels, because it has no column `label`, only {others}; rename "
                    "the column of the classes to label"
                )
            return {} if at is None else {"label": at}
        places = [place for place, name in enumerate(self.names) if name and place != file_at]
        if not places:
            raise DataError(
                f"{self.path}: has no column besides `{self.names[file_at]}`; add one, such as file,plate"
            )
        names = [self.names[place] for place in places]
        if "label" not in names:
            names = ["label" if name.casefold() == "label" else name for name in names]
        for name in names:
            if names.count(name) > 1:
                raise DataError(f"{self.path}: line {self.line} names a column twice, {name}; rename one")
        return dict(zip(names, places, strict=True))

    def describe(self, places: dict[str, int], *, want: Want) -> Iterator[str]:
        """Which columns stand for `file` and `label`, where they are called otherwise."""
        named = {"file": self.file_at} | ({"label": places["label"]} if want != "columns" and places else {})
        others = [
            f"{quote(self.names[place])} as `{purpose}`"
            for purpose, place in named.items()
            if self.names[place].casefold() != purpose
        ]
        if others:
            yield f"{self.path}: read the column {' and '.join(others)}"

    def _choose(self, names: list[str], groups: tuple[set[str], ...], *, purpose: str) -> int | None:
        found = _find_named(names, groups)
        if len(found) > 1:
            if len({names[place] for place in found}) == 1:
                raise DataError(
                    f"{self.path}: line {self.line} names a column twice, {names[found[0]]}; rename one"
                )
            several = " and ".join(names[place] for place in found)
            raise DataError(
                f"{self.path}: line {self.line} has {several}, and each may be the column `{purpose}`; "
                f"rename the right one to {purpose}, and the other to something else"
            )
        return found[0] if found else None


def find_header(path: Path, encoding: str) -> Header:
    """The first line that is neither blank nor a comment; the separator is the one that shows a `file` in it.

    Raises:
        DataError: there is no such line, or no column in it is named as one of files.
    """
    with open_text(path, encoding) as stream:
        first = strip_blank(stream.readline()).strip('"').lower()
    stated = first[4:5] if first.startswith("sep=") else ""  # as Excel writes it
    found = [
        header
        for separator in stated or SEPARATORS
        if (header := _read_header(path, encoding, separator, start=int(bool(stated)))) is not None
    ]
    if not found:
        raise refuse_empty(path)
    with_file = [header for header in found if _find_named(header.names, _FILE_NAMES)]
    header = max(with_file or found, key=lambda header: len(header.names))
    if not with_file:
        raise _refuse_header(header)
    return header


def _read_header(path: Path, encoding: str, separator: str, *, start: int) -> Header | None:
    """The line of names if columns were separated so; `start` is the first row that may be it."""
    with open_text(path, encoding) as stream:
        rows = csv.reader(stream, delimiter=separator, strict=True)
        try:
            for place, row in enumerate(rows):
                names = [strip_blank(decode_legacy(name) if encoding == LEGACY else name) for name in row]
                if place < start or not any(name.strip(_SPACE) for name in names):
                    continue
                if not names[0].startswith(_OF_COMMENTS) or _find_named(names, _FILE_NAMES):
                    return Header(path, names, separator, place, rows.line_num)
        except csv.Error:
            pass
    return None


def _refuse_header(header: Header) -> DataError:
    names, place = header.names, f"line {header.line}"
    for start, what in _OTHER_TEXTS:
        if names[0].startswith(start):
            return DataError(f"{header.path}: is {what}, not a table; {EXPORT}")
    shown = ", ".join(name[:80] or "(none)" for name in names[:8]) + (", ..." if len(names) > 8 else "")
    if any(name.lower().endswith(IMAGE_SUFFIXES) for name in names):
        return DataError(
            f"{header.path}: {place} already names an image ({shown}); write the names of the columns above "
            "it, such as file,label"
        )
    one = " (commas, semicolons, tabs and bars separate columns)" if len(names) == 1 else ""
    return DataError(
        f"{header.path}: {place} names the columns {shown}{one}, but no column `file`: rename the column of "
        f"file names to file, or write file,label above {place} if that line already names an image"
    )


def _find_named(names: list[str], groups: tuple[set[str], ...]) -> list[int]:
    """The columns whose names are of the first group that has any."""
    plain = ["".join(char for char in name.casefold() if char not in " _-.#") for name in names]
    for group in groups:
        if found := [place for place, name in enumerate(plain) if name in group]:
            exact = [place for place in found if names[place] in group]
            return exact if len(exact) == 1 else found
    return []
