"""Open a folder, a list, an array or a data set: names and labels now, each image when it is asked for."""

import hashlib
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from byol.base.errors import DataError
from byol.config import DataConfig
from byol.data.decode.arrays import as_given, find_layout
from byol.data.decode.content import HEAD_BYTES, IMAGE_SUFFIXES, image_kind, is_image_suffix
from byol.data.decode.disk import DiskError, describe, try_again
from byol.data.decode.formats import ImageArray, LaidFile, Layout
from byol.data.decode.index import Names, Source
from byol.data.decode.mapped import load_array
from byol.data.labels.explaining import explain
from byol.data.labels.label_file import LabelFile, encode_labels, read_list
from byol.data.labels.matching import describe_rules, match_files
from byol.data.labels.spelling import Spelled
from byol.data.sources.array_layout import TrainedLayout, resolve_layout, resolve_layout_of_files
from byol.data.sources.left_out import LeftOut
from byol.data.sources.motifs import CLASS_NAMES, load_motifs
from byol.data.sources.official import Part, load_cifar10, load_cifar100, load_stl10
from byol.data.sources.summary import describe_passed_by
from byol.data.sources.walk import Walk, pairs, stamp

_SPLITS: dict[str, tuple[str, ...]] = {  # the first is the usual one for training
    "stl10": ("train+unlabeled", "train", "unlabeled", "test"),
    "cifar10": ("train", "test"),
    "cifar100": ("train", "test"),
    "motifs": ("train", "test"),
}
_MOST_SEARCHED = 300_000  # images below a list's folder, to find those that it spells otherwise; 3 s


def open_source(
    data: DataConfig,
    *,
    source: str | None = None,
    split: str | None = None,
    labels: LabelFile | None = None,
    trained: TrainedLayout | None = None,
) -> Source:
    """The images of `source`, by default of `data.source`; then `data.split` counts unless `split` is given.

    `labels` are those that take the place of the source's own. `trained` is the layout of the arrays that an
    encoder knows, which counts where `data.layout` is auto.

    Raises:
        DataError: it is missing, empty, of a kind that is not read, or has no such split; or its arrays do
            not tell which axis is the channels.
    """
    if source is None:
        source, split = data.source, split or data.split
    opened: FileSource | ArraySource
    if source in _SPLITS:
        opened = _open_set(source, split or _SPLITS[source][0], data=data)
    elif split is not None:
        raise DataError(
            f"{source}: has no split {split}; give the folder or list of that split as the source instead"
        )
    else:
        opened = _open_path(source, data.layout, skip_unreadable=data.skip_unreadable, trained=trained)
        if isinstance(opened, FileSource):
            opened = replace(opened, array_layout=_resolve_layout(opened, trained))
    if labels is not None:
        names = (opened.names(index) for index in range(len(opened)))
        folder = opened.folder if isinstance(opened, FileSource) else None
        numbers, class_names = labels.match(names, folder=folder)["label"]
        opened = replace(opened, labels=numbers, class_names=class_names)
    return opened


def splits_of(source: str) -> tuple[str, ...]:
    """The splits that a built-in data set comes in, the usual one for training first; () for a path."""
    return _SPLITS.get(source, ())


def folder_of(source: str) -> Path | None:
    """The folder that the names of a source's images are relative to; None where they are no files."""
    path = Path(source)
    return path if path.is_dir() else path.parent if path.exists() and not splits_of(source) else None


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
    layout: Layout = "auto"  # as data.layout
    left_out: LeftOut = field(default_factory=LeftOut)
    skip_unreadable: bool = False  # as data.skip_unreadable
    notes: tuple[str, ...] = ()  # how a list was understood, one line each
    array_layout: Layout = "auto"  # of the arrays among the files, which all of them together tell

    def __len__(self) -> int:
        return len(self.files)

    def names(self, index: int) -> str:
        return self.files[index]

    def item(self, index: int) -> str | LaidFile:
        path = os.path.join(self.folder, self.files[index])
        if self.layout == self.array_layout == "auto":
            return path
        return LaidFile(path, self.array_layout, self.layout)

    @property
    def file_bytes(self) -> float:
        return float(self.stamps[:, 0].clip(min=0).mean())

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(self.files.blob.data, digest_size=16)
        digest.update(self.files.offsets.data)
        digest.update(self.stamps.data)
        digest.update(b"" if self.layout == "auto" else self.layout.encode())
        if self.array_layout != self.layout:
            digest.update(b"arrays " + self.array_layout.encode())
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
    left_out: LeftOut = field(default_factory=LeftOut)
    notes: tuple[str, ...] = ()
    array_layout: Layout = "auto"  # as of `FileSource`; auto: there is no axis of channels

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
        digest = hashlib.blake2b(self.name.encode(errors="surrogateescape"), digest_size=16)
        if self.files:
            digest.update(
                b"".join(os.fsencode(path.name) + np.array(stamp(path)).tobytes() for path in self.files)
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


# ---- Paths: a folder, a list, an array, one image


def left_out_of(source: Source) -> LeftOut:
    """What was passed by when a source was opened; nothing, where it does not tell."""
    return source.left_out if isinstance(source, FileSource | ArraySource) else LeftOut()


def describe_source(source: Source) -> Iterator[str]:
    """What was passed by when a source was opened, and how its list was understood, one line each."""
    yield from describe_passed_by(left_out_of(source))
    yield from source.notes


def _resolve_layout(source: FileSource, trained: TrainedLayout | None) -> Layout:
    if source.layout != "auto":
        return source.layout
    return resolve_layout_of_files(
        source.folder, source.files, fingerprint=source.fingerprint(), trained=trained
    )


def _open_path(
    source: str, layout: Layout, *, skip_unreadable: bool, trained: TrainedLayout | None
) -> FileSource | ArraySource:
    path = Path(source)
    suffix = path.suffix.lower()
    if path.is_dir():
        return _open_folder(path, layout, skip_unreadable=skip_unreadable)
    if not path.exists():
        raise DataError(
            f"{source}: no such file or folder; a source is a folder, a .txt or .csv list, an .npy array, "
            f"or one of {', '.join(_SPLITS)}"
        )
    if suffix in (".txt", ".csv", ".tsv"):
        return _open_list(path, layout, skip_unreadable=skip_unreadable)
    if suffix == ".npy" and (opened := _open_array(path, layout, trained)) is not None:
        return opened
    if is_image_suffix(suffix) or _is_image(path):
        stamps = np.array([stamp(path)])
        return FileSource(
            f"image {path}", path.parent, Names.of([path.name]), stamps, np.array([-1]), (), layout
        )
    raise DataError(f"{source}: neither a folder, a list (.txt, .csv, .tsv), an array (.npy) nor an image")


def _is_image(path: Path) -> bool:
    """By content; a pipe is not waited for."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return image_kind(file.read(HEAD_BYTES)) is not None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({describe(error)})") from None


def _open_folder(path: Path, layout: Layout = "auto", *, skip_unreadable: bool = False) -> FileSource:
    scan = Walk(skip_unreadable=skip_unreadable)
    files = Names.of(scan.names(os.fsencode(path)))
    if len(files) == 0:
        seen = scan.left_out.describe_suffixes()
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
    stamps = pairs(scan.stamps)
    return FileSource(
        f"folder {path}/", path, files, stamps, numbers, class_names, layout, scan.left_out, skip_unreadable
    )


def _open_list(path: Path, layout: Layout = "auto", *, skip_unreadable: bool = False) -> FileSource:
    """Paths in a list that are not absolute are relative to the list's own folder.

    What is not there is looked for in this folder, by the rules for labels.
    """
    listed = read_list(path)
    files, notes = listed.files, [*listed.notes]
    stamps = _stamp_all(path.parent, files)
    if (missing := np.flatnonzero(stamps[:, 0] < 0)).size:
        files, found = _find_missing(path, files, missing, is_legacy=listed.is_legacy)
        notes += found
        stamps = _stamp_all(path.parent, files)
    return FileSource(
        f"list {path}",
        path.parent,
        files,
        stamps,
        listed.labels,
        listed.class_names,
        layout,
        skip_unreadable=skip_unreadable,
        notes=tuple(notes),
    )


def _stamp_all(folder: Path, files: Names) -> Int64[np.ndarray, "n 2"]:
    stamps = array("q")
    for file in files:
        stamps.extend(stamp(os.path.join(folder, file)))
    return pairs(stamps)


def _find_missing(
    path: Path, files: Names, missing: Int64[np.ndarray, " m"], *, is_legacy: bool
) -> tuple[Names, list[str]]:
    """The list with the names of the files that are meant, and what to say of that."""
    images = Names.of(islice(Walk(skip_unreadable=True).names(os.fsencode(path.parent)), _MOST_SEARCHED + 1))
    if len(images) > _MOST_SEARCHED:
        return files, []
    sought = Names.of(files.raw(place) for place in missing.tolist())
    match = match_files(
        path,
        sought,
        images,
        plain=Spelled.plain(sought),
        codes=np.arange(len(sought)),
        is_legacy=is_legacy,
    )
    meant = {
        int(missing[row]): images.raw(image) for image, row in enumerate(match.rows.tolist()) if row >= 0
    }
    mended = Names.of(meant.get(place) or files.raw(place) for place in range(len(files)))
    notes = list(describe_rules(path, match.rules, match.examples))
    if len(lost := np.flatnonzero(~match.is_used)):
        example = explain(sought[int(lost[0])], images, is_legacy=is_legacy)
        notes.append(f"{path}: {len(lost)} of its {len(files)} files do not exist; {example}")
    return mended, notes


def _open_array(path: Path, layout: Layout, trained: TrainedLayout | None) -> ArraySource | None:
    """(N, H, W) or (N, H, W, C) or (N, C, H, W), with the labels of NAME_labels.npy if it lies beside.

    None: it is one image; of three axes so where the encoder was trained on such.
    """
    left_out = LeftOut()
    images = _load_map(path, left_out)
    if images.ndim == 2 or (images.ndim == 3 and images.shape[2] <= 4 < images.shape[0]):
        return None
    if images.ndim == 3 and trained is not None and trained.may_be_image(images.shape):
        return None
    if images.ndim not in (3, 4) or images.dtype.kind not in "buif" or images.size == 0:
        raise DataError(
            f"{path}: holds {images.dtype} of shape {images.shape}; "
            "byol reads numbers of shape (N, height, width) or (N, height, width, channels)"
        )
    found: Layout = "hwc"
    if images.ndim == 4:
        if layout == "auto" and trained is not None:
            layout = resolve_layout([(str(path), images.shape[1:])], trained)
        try:
            found = find_layout(images.shape[1:], layout)
        except DataError as error:
            raise DataError(f"{path}: holds {len(images)} images, each {error}") from None
        images = np.moveaxis(images, 1, -1) if found == "chw" else images
    labels, class_names = np.full(len(images), -1), tuple[str, ...]()
    labels_path = path.with_name(f"{path.stem}_labels.npy")
    if labels_path.exists():
        loaded = _load_map(labels_path, left_out)
        if loaded.shape != (len(images),) or loaded.dtype.kind not in "iu" or loaded.min() < -1:
            raise DataError(f"{labels_path}: must hold one integer from -1 per image, {len(images)} in total")
        labels = loaded.astype(np.int64)
        class_names = tuple(str(number) for number in range(labels.max() + 1))
    return ArraySource(
        f"array {path}",
        (Part("", images),),
        labels,
        class_names,
        (path,),
        found,
        left_out,
        array_layout=found if images.ndim == 4 else "auto",
    )


def _load_map(path: Path, left_out: LeftOut) -> np.ndarray:
    """As a map, or in memory where the file system has none: then `left_out` is told."""
    try:
        array, refusal = try_again(lambda: load_array(path))
    except DiskError as error:
        raise error.locate(str(path)) from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as a NumPy array ({' '.join(str(error).split())})") from None
    if refusal is not None:
        left_out.notes.append(
            f"{path}: {refusal}, so it is read into memory, {array.nbytes / 1e6:.3g} MB; copy it to a local "
            "disk if that is too much"
        )
    return array


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
