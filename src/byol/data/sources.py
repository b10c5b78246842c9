"""Where images come from: a folder of any shape, a list, an array, STL-10, CIFAR, the generated set.

A source knows the names and labels of its images and reads each when asked. Nothing is copied or cached here.
"""

import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from byol.config import DataConfig
from byol.data.arrays import as_given, find_layout
from byol.data.decode import IMAGE_SUFFIXES
from byol.data.formats import ImageArray, LaidFile, Layout
from byol.data.index import Names, Source
from byol.data.labels import encode_labels, match_labels, read_list
from byol.data.motifs import CLASS_NAMES, load_motifs
from byol.data.official import Part, load_cifar10, load_cifar100, load_stl10
from byol.errors import DataError

_SPLITS: dict[str, tuple[str, ...]] = {  # the first is the usual one for training
    "stl10": ("train+unlabeled", "train", "unlabeled", "test"),
    "cifar10": ("train", "test"),
    "cifar100": ("train", "test"),
    "motifs": ("train", "test"),
}


def open_source(
    data: DataConfig, *, source: str | None = None, split: str | None = None, labels: str | None = None
) -> Source:
    """The images of `source`, by default of `data.source`; then `data.split` counts unless `split` is given.

    `labels` is a CSV file (columns `file`, `label`) whose labels take the place of the source's own.

    Raises:
        DataError: it is missing, empty, of a kind that is not read, or has no such split.
    """
    if source is None:
        source, split = data.source, split or data.split
    opened: FileSource | ArraySource
    if source in _SPLITS:
        opened = _open_set(source, split or _SPLITS[source][0], data=data)
    elif split is not None:
        raise DataError(
            f"{source}: has no split {split}; name the folder or list of that part as the source instead"
        )
    else:
        opened = _open_path(source, data.layout)
    if labels is not None:
        numbers, class_names = match_labels(
            Path(labels), (opened.names(index) for index in range(len(opened)))
        )
        opened = replace(opened, labels=numbers, class_names=class_names)
    return opened


def splits_of(source: str) -> tuple[str, ...]:
    """The splits that a built-in data set comes in, the usual one for training first; () for a path."""
    return _SPLITS.get(source, ())


# ---- The two kinds of source


@dataclass(frozen=True, eq=False)
class FileSource:
    """Image files; those of relative names lie below `folder`."""

    name: str
    folder: Path
    files: Names
    stamps: Int64[np.ndarray, "n 2"]  # size in bytes (-1: missing), time of the last change in ns
    labels: Int64[np.ndarray, " n"]
    class_names: tuple[str, ...]
    layout: Layout = "auto"  # of arrays, as data.layout

    def __len__(self) -> int:
        return len(self.files)

    def names(self, index: int) -> str:
        return self.files[index]

    def item(self, index: int) -> str | LaidFile:
        path = os.path.join(self.folder, self.files[index])
        return path if self.layout == "auto" else LaidFile(path, self.layout)

    @property
    def file_bytes(self) -> float:
        return float(self.stamps[:, 0].clip(min=0).mean())

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(self.files.blob.data, digest_size=16)
        digest.update(self.files.offsets.data)
        digest.update(self.stamps.data)
        digest.update(b"" if self.layout == "auto" else self.layout.encode())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Images of one size in memory, or in a memory map."""

    name: str
    parts: tuple[Part, ...]
    labels: Int64[np.ndarray, " n"]
    class_names: tuple[str, ...]
    files: tuple[Path, ...] = ()  # where the arrays are maps: the files behind them
    stored_layout: Layout = "hwc"  # in these files

    def __len__(self) -> int:
        return sum(len(part.images) for part in self.parts)

    def names(self, index: int) -> str:
        part, row = self._find(index)
        return f"{part.prefix}{row:06d}"

    def item(self, index: int) -> ImageArray:
        part, row = self._find(index)
        return as_given(part.images[row].reshape(*part.images.shape[1:3], -1), "hwc")

    @property
    def file_bytes(self) -> float:
        return 0.0

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(self.name.encode(), digest_size=16)
        if self.files:
            digest.update(
                b"".join(os.fsencode(path.name) + np.array(_stamp(path)).tobytes() for path in self.files)
            )
            digest.update(b"" if self.stored_layout == "hwc" else self.stored_layout.encode())
        else:
            for part in self.parts:
                digest.update(np.ascontiguousarray(part.images).data)
        return digest.hexdigest()

    def _find(self, index: int) -> tuple[Part, int]:
        for part in self.parts:
            if index < len(part.images):
                return part, index
            index -= len(part.images)
        raise IndexError(f"image {index} beyond the end of {self.name}")


def _stamp(path: str | bytes | Path) -> tuple[int, int]:
    """A file's size in bytes, -1 if it is missing, and the time of its last change in ns."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, 0
    return status.st_size, status.st_mtime_ns


# ---- Paths: a folder, a list, an array, one image


def _open_path(source: str, layout: Layout) -> FileSource | ArraySource:
    path = Path(source)
    suffix = path.suffix.lower()
    if path.is_dir():
        return _open_folder(path, layout)
    if not path.exists():
        raise DataError(
            f"{source}: no such file or folder; a source is a folder, a .txt or .csv list, an .npy array, "
            f"or one of {', '.join(_SPLITS)}"
        )
    if suffix in (".txt", ".csv"):
        return _open_list(path, layout)
    if suffix == ".npy" and (opened := _open_array(path, layout)) is not None:
        return opened
    if suffix in IMAGE_SUFFIXES:
        stamps = np.array([_stamp(path)])
        return FileSource(
            f"image {path}", path.parent, Names.of([path.name]), stamps, np.array([-1]), (), layout
        )
    raise DataError(f"{source}: neither a folder, a list (.txt, .csv), an array (.npy) nor an image")


class _Scan:
    """One pass through a folder and all below it: the images' names in sorted order, and more about them.

    Hidden files and folders are left out. A folder that links make reachable twice is entered once, so that
    loops of links end. Paths are bytes: names in any encoding are kept as they are. Of a million files in one
    folder no object each is held, only their names in one block.
    """

    def __init__(self) -> None:
        self.stamps, self.parents = array("q"), array("i")
        self.parent_numbers: dict[bytes, int] = {}  # name of a subfolder -> its number; the top has -1
        self.other_suffixes: Counter[str] = Counter()
        self._entered: set[tuple[int, int]] = set()

    def names(self, folder: bytes, *, prefix: bytes = b"") -> Iterator[bytes]:
        entries, is_folder = self._list(folder)
        parent = prefix[:-1].rpartition(b"/")[2]
        for place in map(int, entries.sorted()):
            name = entries.raw(place)
            path = folder + b"/" + name
            if is_folder[place]:
                yield from self.names(path, prefix=prefix + name + b"/")
            else:
                self.stamps.extend(_stamp(path))
                self.parents.append(
                    self.parent_numbers.setdefault(parent, len(self.parent_numbers)) if parent else -1
                )
                yield prefix + name

    def _list(self, folder: bytes) -> tuple[Names, bytearray]:
        """The images and folders in a folder that has not been entered, and for each whether it is one."""
        is_folder = bytearray()

        def choose(entries: Iterable[os.DirEntry[bytes]]) -> Iterator[bytes]:
            for entry in entries:
                if entry.name.startswith(b"."):
                    continue
                inside = _is_folder(entry)
                stem, dot, last = entry.name.rpartition(b".")
                suffix = os.fsdecode(dot + last).lower() if stem else ""
                if inside or suffix in IMAGE_SUFFIXES:
                    is_folder.append(inside)
                    yield entry.name
                else:
                    self.other_suffixes[suffix] += 1

        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in self._entered:
                return Names.of([]), is_folder
            self._entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                return Names.of(choose(entries)), is_folder
        except OSError as error:
            raise DataError(f"{os.fsdecode(folder)}: cannot be read ({error.strerror})") from None


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _open_folder(path: Path, layout: Layout = "auto") -> FileSource:
    scan = _Scan()
    files = Names.of(scan.names(os.fsencode(path)))
    if len(files) == 0:
        seen = ", ".join(
            f"{count} {suffix or 'without suffix'}" for suffix, count in scan.other_suffixes.most_common(5)
        )
        raise DataError(
            f"{path}: {'the folder holds no image, only ' + seen if seen else 'the folder is empty'}; "
            f"images end in {' '.join(IMAGE_SUFFIXES)}"
        )
    numbers, class_names = np.frombuffer(scan.parents, dtype=np.int32), tuple[str, ...]()
    if numbers.min() < 0 or len(scan.parent_numbers) < 2:
        numbers = np.full(len(files), -1)
    else:
        parents = [parent.decode("utf-8", "surrogateescape") for parent in scan.parent_numbers]
        ranks, class_names = encode_labels(parents)
        numbers = ranks[numbers]
    return FileSource(f"folder {path}/", path, files, _pairs(scan.stamps), numbers, class_names, layout)


def _open_list(path: Path, layout: Layout) -> FileSource:
    """Paths in a list that are not absolute are relative to the list's own folder."""
    files, labels = read_list(path)
    stamps = array("q")
    for file in files:
        stamps.extend(_stamp(os.path.join(path.parent, file)))
    numbers, class_names = encode_labels(labels)
    return FileSource(f"list {path}", path.parent, files, _pairs(stamps), numbers, class_names, layout)


def _pairs(stamps: "array[int]") -> Int64[np.ndarray, "n 2"]:
    return np.frombuffer(stamps, dtype=np.int64).reshape(-1, 2)


def _open_array(path: Path, layout: Layout) -> ArraySource | None:
    """(N, H, W) or (N, H, W, C) or (N, C, H, W), with the labels of NAME_labels.npy if it lies beside.

    None: it is one image.
    """
    images = _load_map(path)
    if images.ndim == 2 or (images.ndim == 3 and images.shape[2] <= 4 < images.shape[0]):
        return None
    if images.ndim not in (3, 4) or images.dtype.kind not in "buif" or images.size == 0:
        raise DataError(
            f"{path}: holds {images.dtype} of shape {images.shape}; "
            "numbers of shape (N, height, width) or (N, height, width, channels) are read"
        )
    found: Layout = "hwc"
    if images.ndim == 4:
        try:
            found = find_layout(images.shape[1:], layout)
        except DataError as error:
            raise DataError(f"{path}: holds {len(images)} images, each {error}") from None
        images = np.moveaxis(images, 1, -1) if found == "chw" else images
    labels, class_names = np.full(len(images), -1), tuple[str, ...]()
    labels_path = path.with_name(f"{path.stem}_labels.npy")
    if labels_path.exists():
        given = _load_map(labels_path)
        if given.shape != (len(images),) or given.dtype.kind not in "iu" or given.min() < -1:
            raise DataError(
                f"{labels_path}: one whole number from -1 an image is needed, {len(images)} in all"
            )
        labels = given.astype(np.int64)
        class_names = tuple(str(number) for number in range(labels.max() + 1))
    return ArraySource(f"array {path}", (Part("", images),), labels, class_names, (path,), found)


def _load_map(path: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as a NumPy array ({' '.join(str(error).split())})") from None


# ---- Built-in names


def _open_set(source: str, split: str, *, data: DataConfig) -> ArraySource:
    if split not in _SPLITS[source]:
        raise DataError(f"{source}: has no split {split}; it has {', '.join(_SPLITS[source])}")
    if source == "motifs":
        images, labels = load_motifs("test" if split == "test" else "train")
        return ArraySource(f"motifs, {split}", (Part(f"{split}/", images),), labels, CLASS_NAMES)
    load = load_stl10 if source == "stl10" else load_cifar10 if source == "cifar10" else load_cifar100
    found = load(split, Path(data.root), download=data.download)
    name = {"stl10": "STL-10", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}[source]
    return ArraySource(f"{name}, {split}", found.parts, found.labels, found.class_names, found.files)
