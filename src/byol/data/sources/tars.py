"""Images in tar files, such as the shards of WebDataset: indexed first, then read like files.

The name of an image is the path of its tar file, relative to the folder, and its own: `shard-0.tar/a.jpg`.
Its label is that of its sample: files whose names are equal up to the first dot of the last part. There

    a.cls     a number or the name of a class
    a.json    an object with a key of _LABEL_KEYS

are labels. If there are none, folders in the tar files are classes, as those of a folder of images are.
"""

import hashlib
import json
import os
from array import array
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Int32, Int64

from byol.base.disk import SKIP_KEY, DiskError, describe, try_again
from byol.base.errors import DataError
from byol.data.decode.content import HEAD_BYTES, image_kind, is_image_suffix, suffix_of
from byol.data.decode.formats import Layout, Member
from byol.data.decode.index import Names, NamesBuilder
from byol.data.labels.label_file import encode_labels
from byol.data.sources.array_layout import TrainedLayout, resolve_layout_of_files
from byol.data.sources.left_out import Few, LeftOut
from byol.data.sources.tar_index import Entry, TarDamageError, read_entries
from byol.data.sources.walk import is_hidden, pairs, stamp

_SUFFIX = ".tar"
_LABEL_SUFFIXES, _LABEL_KEYS = (b".cls", b".json"), ("label", "class", "cls")
_LABEL_BYTES = 2**20  # larger files are no labels
# Magic numbers of compressed files, and the command that unpacks each.
_COMPRESSED: tuple[tuple[bytes, tuple[str, ...], str, str], ...] = (
    (b"\x1f\x8b", (".tar.gz", ".tgz"), "gzip", "gunzip"),
    (b"BZh", (".tar.bz2", ".tbz", ".tbz2"), "bzip2", "bunzip2"),
    (b"\xfd7zXZ\0", (".tar.xz", ".txz"), "xz", "unxz"),
    (b"\x28\xb5\x2f\xfd", (".tar.zst", ".tzst"), "zstd", "unzstd"),
)


@dataclass(frozen=True, eq=False)
class TarSource:
    """Images in tar files, whose paths are relative to `folder`."""

    name: str
    folder: Path
    files: Names
    tars: tuple[str, ...]
    tar_stamps: Int64[np.ndarray, "tars 2"]  # size in bytes, time of the last change in ns
    shards: Int32[np.ndarray, " n"]  # the tar file of each image
    places: Int64[np.ndarray, "n 2"]  # of each image in its tar file: first byte, number of bytes
    labels: Int64[np.ndarray, " n"]
    class_names: tuple[str, ...]
    layout: Layout = "auto"  # data.layout
    left_out: LeftOut = field(default_factory=LeftOut)
    skip_unreadable: bool = False  # data.skip_unreadable
    notes: tuple[str, ...] = ()
    array_layout: Layout = "auto"  # as in `FileSource`

    def __len__(self) -> int:
        return len(self.files)

    def names(self, index: int) -> str:
        return self.files[index]

    def item(self, index: int) -> Member:
        tar = self.tars[int(self.shards[index])]
        start, size = self.places[index].tolist()
        name = self.files[index][len(tar) + 1 :]
        pages = None if self.layout == self.array_layout else self.layout
        return Member(os.path.join(self.folder, tar), self.array_layout, pages, name, start, size)

    @property
    def file_bytes(self) -> float:
        return float(self.places[:, 1].mean())

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(self.files.blob.data, digest_size=16)
        for values in (self.files.offsets, self.places, self.shards, self.tar_stamps):
            digest.update(np.ascontiguousarray(values).data)
        digest.update(f"tars {self.layout} {self.array_layout}".encode())
        return digest.hexdigest()

    def with_layout(self, trained: TrainedLayout | None) -> "TarSource":
        """Return the source with the layout of its arrays, found from all their shapes.

        Raises:
            DataError: the shapes are ambiguous.
        """
        if self.layout != "auto":
            return replace(self, array_layout=self.layout)
        found = resolve_layout_of_files(
            self.folder, self.files, fingerprint=self.fingerprint(), trained=trained, item=self.item
        )
        return replace(self, array_layout=found)


# ---- What is a tar file


def is_tar(name: str) -> bool:
    """Return whether a file is a tar file by its name."""
    return name.lower().endswith(_SUFFIX)


def refuse_compressed(path: str, *, in_folder: Path | None = None) -> None:
    """Refuse a tar file that is compressed, by its name.

    Raises:
        DataError: it is; the message has the command that unpacks it.
    """
    for _, suffixes, kind, command in _COMPRESSED:
        if path.lower().endswith(suffixes):
            raise _compressed(path if in_folder is None else str(in_folder / path), kind, command)


def _compressed(path: str, kind: str, command: str) -> DataError:
    return DataError(
        f"{path}: is a tar file compressed with {kind}, in which byol would read all to find one image; "
        f"unpack it once: {command} --keep {path} (the images in it are compressed already)"
    )


def find_tars(folder: Path) -> list[str]:
    """Return the tar files in a folder and those in it, sorted, relative to it; hidden ones are left out.

    Raises:
        DataError: there are none, but compressed ones.
    """
    found: list[str] = []
    compressed: list[str] = []
    for where, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_hidden(os.fsencode(name)))
        for name in sorted(files):
            if not is_hidden(os.fsencode(name)):
                path = os.path.relpath(os.path.join(where, name), folder)
                (found if is_tar(name) else compressed).append(path)
    for path in compressed if not found else ():
        refuse_compressed(path, in_folder=folder)
    return sorted(found)


# ---- Opening


def open_tars(
    name: str, folder: Path, tars: list[str], layout: Layout = "auto", *, skip_unreadable: bool = False
) -> TarSource:
    """Index tar files; `tars` are their paths relative to `folder`, and `name` is for messages.

    Raises:
        DataError: a tar file is compressed; or it is missing or damaged, or the disk fails, and unreadable
            files are not skipped; or there is no image in them.
    """
    index = _Index(skip_unreadable=skip_unreadable)
    for number, tar in enumerate(tars):
        index.add(folder, tar, number)
    if not len(index.names):
        seen = index.left_out.describe_suffixes()
        lost = "; ".join(index.left_out.notes)
        held = f"hold no image, only {seen}" if seen else f"are empty{f' ({lost})' if lost else ''}"
        raise DataError(f"{name}: its tar files {held}; the name of an image has a suffix, such as .jpg")
    index.add_notes()
    numbers, class_names = encode_labels(index.labels)
    if not class_names:
        numbers, class_names = encode_labels(index.parents)
        if numbers.min() < 0 or len(class_names) < 2:
            numbers, class_names = np.full(len(index.labels), -1), ()
    return TarSource(
        name,
        folder,
        index.names.build(),
        tuple(tars),
        np.array([stamp(os.path.join(folder, tar)) for tar in tars], dtype=np.int64),
        np.frombuffer(index.shards, dtype=np.int32),
        pairs(index.places),
        numbers,
        class_names,
        layout,
        index.left_out,
        skip_unreadable,
    )


class _Index:
    """The images of tar files, and what is left out."""

    def __init__(self, *, skip_unreadable: bool) -> None:
        self.names, self.shards, self.places = NamesBuilder(), array("i"), array("q")
        self.labels: list[str] = []  # of each image, "" if there is none
        self.parents: list[str] = []  # the last folder in the tar file, likewise
        self.left_out = LeftOut()
        self._skip = skip_unreadable
        self._unsafe, self._special, self._replaced = Few(), Few(), Few()
        self._places_of: dict[bytes, int] = {}  # images of the current tar file
        self._labels_of: dict[bytes, str] = {}  # of the current tar file, by sample
        self._known: dict[str, str] = {}  # equal texts are kept once

    def add(self, folder: Path, tar: str, number: int) -> None:
        """Index one more tar file; `tar` is its path relative to `folder`, and `number` its place.

        Raises:
            DataError: it cannot be read or is damaged, and unreadable files are not skipped.
        """
        path, first = os.path.join(folder, tar), len(self.labels)
        self._places_of, self._labels_of = {}, {}
        samples: list[bytes] = []
        problem = None
        try:
            with try_again(lambda: open(path, "rb")) as file:
                steady = Steady(file)
                _refuse_compressed_content(path, steady.read(0, 8))
                for entry in read_entries(steady.read, os.fstat(file.fileno()).st_size):
                    if self._take(entry, steady, tar):
                        self.shards.append(number)
                        samples.append(_sample_of(entry.name))
        except (OSError, DiskError, TarDamageError) as error:
            if isinstance(error, DiskError) and not self._skip:
                raise error.locate(path) from None
            problem = f"cannot be read ({describe(error)})" if isinstance(error, OSError) else str(error)
        for place, sample in enumerate(samples, start=first):
            self.labels[place] = self._once(self._labels_of.get(sample, ""))
        if problem is None:
            return
        if not self._skip:
            raise DataError(
                f"{path}: {problem}; copy it again, or read only what comes before that (images: "
                f"{len(samples):,}) with {SKIP_KEY}=true"
            )
        self.left_out.notes.append(
            f"{path}: {problem}; byol reads what comes before that (images: {len(samples):,})"
        )

    def _take(self, entry: Entry, file: "Steady", tar: str) -> bool:
        """Take an entry of a tar file; return whether it is a new image."""
        shown = f"{tar}/{os.fsdecode(entry.name)}"
        if entry.kind != "file":
            if entry.kind != "folder":
                (self._unsafe if entry.kind == "unsafe" else self._special).add(shown)
            return False
        *folders, last = entry.name.split(b"/")
        suffix = suffix_of(os.fsdecode(last))
        if any(map(is_hidden, (*folders, last))):
            self.left_out.hidden.add(shown)
        elif last.lower().endswith(_LABEL_SUFFIXES):
            self._take_label(entry, file)
        elif not (is_image_suffix(suffix) or self._is_image(file, entry, suffix, shown)):
            self.left_out.suffixes.setdefault(suffix, Few()).add(shown)
        elif (place := self._places_of.get(entry.name)) is not None:
            self.places[2 * place : 2 * place + 2] = array("q", (entry.start, entry.size))
            self._replaced.add(shown)
        else:
            self._places_of[entry.name] = len(self.labels)
            self.names.append(os.fsencode(tar) + b"/" + entry.name)
            self.places.extend((entry.start, entry.size))
            self.labels.append("")
            self.parents.append(self._once(os.fsdecode(folders[-1]) if folders else ""))
            return True
        return False

    def _take_label(self, entry: Entry, file: "Steady") -> None:
        """Remember the label of a sample; one in a .cls file comes before one in a .json file."""
        sample, is_cls = _sample_of(entry.name), entry.name.lower().endswith(b".cls")
        if entry.size <= _LABEL_BYTES and (is_cls or sample not in self._labels_of):
            content = file.read(entry.start, entry.size)
            if text := _read_cls(content) if is_cls else _read_json(content):
                self._labels_of[sample] = text

    def _is_image(self, file: "Steady", entry: Entry, suffix: str, shown: str) -> bool:
        """Return whether a file without a suffix is an image by its content."""
        if suffix or image_kind(file.read(entry.start, min(entry.size, HEAD_BYTES))) is None:
            return False
        self.left_out.by_content.add(shown)
        return True

    def _once(self, text: str) -> str:
        return self._known.setdefault(text, text)

    def add_notes(self) -> None:
        """Add notes about entries that are no files, lead out of their tar file, or are there twice."""
        for few, what in (
            (self._special, "skipped links, devices and sparse files in tar files"),
            (self._unsafe, "skipped files whose names lead out of their tar file (absolute, or with ..)"),
            (self._replaced, "read only the last of files that are in a tar file more than once"),
        ):
            if few.count:
                self.left_out.notes.append(f"{what}: {few.count:,} ({few})")


class Steady:
    """A file that is read again after an error of the disk."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, start: int, size: int) -> bytes:
        """Return `size` bytes from `start` on; fewer at the end of the file.

        Raises:
            DiskError: the disk has failed several times.
        """
        return try_again(lambda: self.read_once(start, size))

    def read_once(self, start: int, size: int) -> bytes:
        self._file.seek(start)
        return self._file.read(size)


def _sample_of(name: bytes) -> bytes:
    """Return the name of the sample of a file: up to the first dot of the last part of its name."""
    folder, slash, last = name.rpartition(b"/")
    return folder + slash + last.partition(b".")[0]


def _read_cls(content: bytes) -> str:
    """Return the label in a .cls file; "": it holds none."""
    lines = content.decode("utf-8", "replace").strip().splitlines()
    return lines[0].strip() if len(lines) == 1 else ""


def _read_json(content: bytes) -> str:
    """Return the label in a .json file; "": it holds none."""
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        return ""
    for key in _LABEL_KEYS if isinstance(fields, dict) else ():
        value = fields.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool):
            return str(value).strip()
    return ""


def _refuse_compressed_content(path: str, head: bytes) -> None:
    for magic, _, kind, command in _COMPRESSED:
        if head.startswith(magic):
            raise _compressed(path, kind, command)


def tars_of_list(path: Path, files: Names) -> list[str] | None:
    """Return the tar files that a list names; None: it names none.

    Raises:
        DataError: it names both tar files and others, or compressed tar files.
    """
    first = files[0]
    if not is_tar(first):
        refuse_compressed(first)
        return None
    tars = list(dict.fromkeys(files))
    if others := [name for name in tars if not is_tar(name)]:
        raise DataError(
            f"{path}: names tar files ({first}) and others ({others[0]}); give each kind in a list of its own"
        )
    return tars
