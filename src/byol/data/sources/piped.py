"""Read a list of image files from standard input: `find . -name '*.png' | byol embed RUN - -o f.parquet`."""

from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from byol.base.errors import DataError
from byol.data.decode.formats import Layout
from byol.data.decode.index import Names, NamesBuilder
from byol.data.sources.kinds import FileSource
from byol.data.sources.walk import pairs, stamp

PIPED = "-"  # this source means standard input

BLOCK_BYTES = 2**20


def open_piped(
    read: Callable[[int], bytes], *, layout: Layout = "auto", skip_unreadable: bool = False
) -> FileSource:
    """Open the files that a stream names, relative to the current folder: one per line or between `\\0`.

    `read` returns at most the given number of next bytes of the stream, none at its end. Names are bytes, as
    in the file system, and are kept in one block, not as one object per name.

    Raises:
        DataError: the stream names no file, or the disk fails.
    """
    names = _read_names(read)
    if len(names) == 0:
        raise DataError("-: standard input names no file; write one per line, as `find` does")
    stamps = array("q")
    for index in range(len(names)):
        stamps.extend(stamp(names.raw(index)))
    return FileSource(
        "the list on standard input",
        Path(),
        names,
        pairs(stamps),
        np.full(len(names), -1),
        (),
        layout,
        skip_unreadable=skip_unreadable,
    )


def _read_names(read: Callable[[int], bytes]) -> Names:
    builder, separator, rest = NamesBuilder(), b"\n", b""
    for block in _blocks(read):
        if len(builder) == 0 and b"\0" in block:  # find -print0
            separator = b"\0"
        *lines, rest = (rest + block).split(separator)
        for line in lines:
            _add(builder, line, separator)
    _add(builder, rest, separator)
    return builder.build()


def _blocks(read: Callable[[int], bytes]) -> Iterator[bytes]:
    while block := read(BLOCK_BYTES):
        yield block


def _add(builder: NamesBuilder, line: bytes, separator: bytes) -> None:
    name = line.rstrip(b"\r") if separator == b"\n" else line
    if len(builder) == 0:
        name = name.removeprefix(b"\xef\xbb\xbf")
    if name.strip():
        builder.append(name)
