"""Names of files that another system may have written: with backslashes, with a drive.

On Windows a backslash separates folders. Elsewhere it may be part of a name: it is where such a file exists,
and else it separates folders too, so that lists and tables from Windows can be used.
"""

import os
import posixpath
from collections.abc import Iterable
from pathlib import Path

_SEPARATES = os.sep == "\\"


def find_parts(names: Iterable[str]) -> frozenset[str]:
    """The names of files and folders, in these paths of existing files, that hold a backslash."""
    if _SEPARATES:
        return frozenset()
    return frozenset(part for name in names if "\\" in name for part in name.split("/") if "\\" in part)


def normalise(file: str, *, known: frozenset[str] = frozenset()) -> str:
    """`file` with slashes, without "." and "..", for comparison; `known` parts keep their backslashes."""
    if "\\" in file and not all(part in known for part in file.split("/") if "\\" in part):
        file = file.replace("\\", "/")
    return posixpath.normpath(file)


def find_listed(folder: Path, file: str) -> str:
    """The file that a line of a list means: as written if it is there, else with slashes."""
    if "\\" not in file or (not _SEPARATES and os.path.lexists(os.path.join(folder, file))):
        return file
    return file.replace("\\", "/")
