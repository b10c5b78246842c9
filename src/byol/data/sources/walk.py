"""Find the images in a folder and its subfolders in one pass, and count what is skipped."""

import errno
import os
import stat
from array import array
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64

from byol.base.disk import DiskError, describe, is_of_the_disk, try_again
from byol.base.errors import DataError
from byol.data.decode.content import HEAD_BYTES, image_kind, is_image_suffix, suffix_of
from byol.data.decode.index import Names
from byol.data.sources.left_out import Few, LeftOut

_LOOKS = 3  # files of each unknown suffix whose first bytes are read

# Files and folders that systems, cameras and viewers put beside images; in lower case.
_SYSTEM = frozenset(
    {
        b"thumbs.db", b"ehthumbs.db", b"desktop.ini", b"@eadir", b"#recycle", b"#snapshot", b"__macosx",
        b"$recycle.bin", b"system volume information", b"lost+found", b"icon\r", b"dicomdir", b"picasa.ini",
    }
)  # fmt: skip


class Walk:
    """Find the names of images in sorted order, with sizes, times and parent folders.

    Hidden files and folders are skipped. A folder that can be reached twice through links is entered once, so
    that loops of links end. Paths are bytes: names in any encoding are kept unchanged. The names of the files
    in a folder are kept in one block, not as one object each.
    """

    def __init__(self, *, skip_unreadable: bool) -> None:
        self.stamps, self.parents = array("q"), array("i")
        self.parent_numbers: dict[bytes, int] = {}  # name of a subfolder -> its number; -1: the top folder
        self.left_out = LeftOut()
        self._skip, self._failure = skip_unreadable, DataError()
        self._entered: set[tuple[int, int]] = set()
        self._looks: dict[str, int] = {}
        self._suffixes: dict[bytes, bool] = {}  # suffix as written -> whether it is an image suffix

    def names(self, folder: bytes) -> Iterator[bytes]:
        """Iterate over the names of all images below `folder`, relative to it.

        Raises:
            DataError: the disk fails, or there are folders without permission to read (after all others have
                been read), and unreadable folders are not skipped.
        """
        yield from self._names(folder, prefix=b"")
        if self.left_out.unreadable.count and not self._skip:
            number = self.left_out.unreadable.count
            more = f" (and {number - 1} more folders: {self.left_out.unreadable})" if number > 1 else ""
            raise DataError(f"{self._failure}{more}")

    def _names(self, folder: bytes, *, prefix: bytes) -> Iterator[bytes]:
        try:
            entries, is_folder = self._enter(folder, prefix)
        except DiskError as error:
            where = os.fsdecode(folder)
            if not (self._skip or error.for_good):  # stop: a failing disk would fail again for each folder
                raise error.locate(where) from None
            if self.left_out.unreadable.count == 0:
                self._failure = error.locate(where)
            self.left_out.unreadable.add(where)
            return
        parent = prefix[:-1].rpartition(b"/")[2]
        for place in map(int, entries.sorted()):
            name = entries.raw(place)
            path = folder + b"/" + name
            if is_folder[place]:
                yield from self._names(path, prefix=prefix + name + b"/")
            else:
                self.stamps.extend(stamp(path))
                self.parents.append(
                    self.parent_numbers.setdefault(parent, len(self.parent_numbers)) if parent else -1
                )
                yield prefix + name

    def _enter(self, folder: bytes, prefix: bytes) -> tuple[Names, bytearray]:
        """Return the images and folders in a folder not entered yet, and for each whether it is a folder."""
        try:
            status = try_again(lambda: os.stat(folder))
            if (status.st_dev, status.st_ino) in self._entered:
                return Names.of([]), bytearray()
            listed = try_again(lambda: self._list(folder, prefix))
        except OSError as error:
            if prefix and isinstance(error, FileNotFoundError):  # deleted since its parent was listed
                return Names.of([]), bytearray()
            raise DataError(f"{os.fsdecode(folder)}: cannot be read ({describe(error)})") from None
        self._entered.add((status.st_dev, status.st_ino))
        names, is_folder, passed_by = listed
        for name, kind in passed_by:
            self._count(name, kind)
        return names, is_folder

    def _list(self, folder: bytes, prefix: bytes) -> tuple[Names, bytearray, list[tuple[bytes, str]]]:
        is_folder, passed_by = bytearray(), list[tuple[bytes, str]]()

        def choose() -> Iterator[bytes]:
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = entry.name
                    inside = _is_folder(entry)
                    is_image = inside or self._has_image_suffix(name)
                    if name.startswith(b".") or ((inside or not is_image) and name.lower() in _SYSTEM):
                        passed_by.append((prefix + name, "hidden"))
                        continue
                    if not (inside or entry.is_file(follow_symlinks=False) or _leads_to_file(entry)):
                        kind = "special"
                    else:
                        kind = "image" if is_image else self._judge(entry, suffix_of(os.fsdecode(name)))
                    if kind in ("image", "by content"):
                        is_folder.append(inside)
                        yield name
                    if kind != "image":
                        passed_by.append((prefix + name, kind))

        return Names.of(choose()), is_folder, passed_by

    def _has_image_suffix(self, name: bytes) -> bool:
        stem, _, last = name.rpartition(b".")
        if not stem or last.isdigit():
            return False
        if (known := self._suffixes.get(last)) is None:
            known = self._suffixes[last] = is_image_suffix(suffix_of(os.fsdecode(name)))
        return known

    def _judge(self, entry: os.DirEntry[bytes], suffix: str) -> str:
        """Read the first bytes: return "by content" for an image without a suffix, else its kind or ""."""
        if suffix:
            self._looks[suffix] = self._looks.get(suffix, 0) + 1
            if self._looks[suffix] > _LOOKS:
                return ""
        try:
            with open(entry.path, "rb", buffering=0) as file:
                kind = image_kind(file.read(HEAD_BYTES))
        except OSError as error:
            if is_of_the_disk(error) and error.errno not in (errno.EACCES, errno.EPERM):
                raise
            return ""
        return "" if kind is None else kind if suffix else "by content"

    def _count(self, name: bytes, kind: str) -> None:
        text, left_out = os.fsdecode(name), self.left_out
        groups = {
            "hidden": left_out.hidden,
            "special": left_out.special,
            "by content": left_out.by_content,
        }
        if kind in groups:
            groups[kind].add(text)
            return
        suffix = suffix_of(text)
        left_out.suffixes.setdefault(suffix, Few()).add(text)
        if kind:
            left_out.disguised.setdefault(suffix, kind)


def is_hidden(name: bytes) -> bool:
    """Return whether a name is hidden, or one that systems, cameras and viewers use."""
    return name.startswith(b".") or name.lower() in _SYSTEM


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if is_of_the_disk(error):
            raise
        return False  # for example a link to itself


def _leads_to_file(entry: os.DirEntry[bytes]) -> bool:
    """Return whether it is a file, or a broken link: reading reports that. Reading a pipe would block."""
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        if is_of_the_disk(error) and error.errno not in (errno.EACCES, errno.EPERM):
            raise
        return True
    return stat.S_ISREG(mode)


def stamp(path: str | bytes | os.PathLike[str]) -> tuple[int, int]:
    """Return the size of a file in bytes, -1 if it is missing, and the time of its last change in ns.

    Raises:
        DataError: the disk has failed several times.
    """
    try:
        status = os.stat(path)
    except OSError as first:
        if not is_of_the_disk(first):
            return -1, 0
        try:
            status = try_again(lambda: os.stat(path))
        except DiskError as error:
            if error.for_good:  # opening the file reports it
                return -1, 0
            raise error.locate(os.fsdecode(path)) from None
        except OSError:
            return -1, 0
    return status.st_size, status.st_mtime_ns


def pairs(stamps: "array[int]") -> Int64[np.ndarray, "n 2"]:
    """Return sizes and times as an array with one row per file."""
    return np.frombuffer(stamps, dtype=np.int64).reshape(-1, 2)
