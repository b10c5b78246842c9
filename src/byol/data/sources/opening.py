"""Open a folder, a list, an array or a data set: read names and labels now, each image when it is needed."""

import os
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from byol.base.disk import DiskError, describe, try_again
from byol.base.errors import DataError
from byol.base.files import is_address
from byol.config import DataConfig
from byol.data.decode.arrays import find_layout
from byol.data.decode.content import HEAD_BYTES, IMAGE_SUFFIXES, image_kind, is_image_suffix
from byol.data.decode.formats import Layout
from byol.data.decode.index import Names, Source
from byol.data.decode.mapped import load_array
from byol.data.labels.label_file import LabelFile, encode_labels, read_list
from byol.data.sources.array_layout import TrainedLayout, resolve_layout, resolve_layout_of_files
from byol.data.sources.kinds import ArraySource, FileSource
from byol.data.sources.left_out import LeftOut
from byol.data.sources.misspelled import find_missing
from byol.data.sources.motifs import CLASS_NAMES, load_motifs
from byol.data.sources.official import Part, load_cifar10, load_cifar100, load_stl10
from byol.data.sources.summary import describe_passed_by
from byol.data.sources.tars import TarSource, find_tars, is_tar, open_tars, refuse_compressed, tars_of_list
from byol.data.sources.walk import Walk, pairs, stamp

_SPLITS: dict[str, tuple[str, ...]] = {  # the first is the default for training
    "stl10": ("train+unlabeled", "train", "unlabeled", "test"),
    "cifar10": ("train", "test"),
    "cifar100": ("train", "test"),
    "motifs": ("train", "test"),
}


def open_source(
    data: DataConfig,
    *,
    source: str | None = None,
    split: str | None = None,
    labels: LabelFile | None = None,
    trained: TrainedLayout | None = None,
) -> Source:
    """Open the images of `source`; default: `data.source`, and `data.split` unless `split` is given.

    `labels` replace the labels of the source. `trained` is the layout of the arrays that an encoder was
    trained on, used if `data.layout` is auto.

    Raises:
        DataError: the source is missing, empty, of a kind that is not read, or has no such split; or the
            channel axis of its arrays is ambiguous.
    """
    if source is None:
        source, split = data.source, split or data.split
    opened: FileSource | ArraySource | TarSource
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
        elif isinstance(opened, TarSource):
            opened = opened.with_layout(trained)
    if labels is not None:
        names = (opened.names(index) for index in range(len(opened)))
        folder = None if isinstance(opened, ArraySource) else opened.folder
        numbers, class_names = labels.match(names, folder=folder)["label"]
        opened = replace(opened, labels=numbers, class_names=class_names)
    return opened


def splits_of(source: str) -> tuple[str, ...]:
    """Return the splits of a built-in data set, the default for training first; () for a path."""
    return _SPLITS.get(source, ())


def folder_of(source: str) -> Path | None:
    """Return the folder to which the names of the images are relative; None if the images are no files."""
    path = Path(source)
    return path if path.is_dir() else path.parent if path.exists() and not splits_of(source) else None


# ---- Paths: a folder, a list, an array, one image


def left_out_of(source: Source) -> LeftOut:
    """Return what was skipped when a source was opened; empty if the source does not record it."""
    return source.left_out if isinstance(source, FileSource | ArraySource | TarSource) else LeftOut()


def describe_source(source: Source) -> Iterator[str]:
    """Describe what was skipped when a source was opened, and how its list was interpreted, one line each."""
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
) -> FileSource | ArraySource | TarSource:
    if is_address(source):
        raise DataError(
            f"{source}: only byol train, run, eval, report and explore read images at an address, and only "
            "packed ones; copy the images to a local disk and give their folder"
        )
    path = Path(source)
    suffix = path.suffix.lower()
    if path.is_dir():
        return open_folder(path, layout, skip_unreadable=skip_unreadable)
    if not path.exists():
        raise DataError(
            f"{source}: no such file or folder; a source is a folder, a .txt or .csv list, an .npy array, "
            f"a .tar file, or one of {', '.join(_SPLITS)}"
        )
    if suffix in (".txt", ".csv", ".tsv"):
        return open_list(path, layout, skip_unreadable=skip_unreadable)
    if is_tar(source):
        return open_tars(f"tar {path}", path.parent, [path.name], layout, skip_unreadable=skip_unreadable)
    refuse_compressed(source)
    if suffix == ".npy" and (opened := _open_array(path, layout, trained)) is not None:
        return opened
    if is_image_suffix(suffix) or _is_image(path):
        stamps = np.array([stamp(path)])
        return FileSource(
            f"image {path}", path.parent, Names.of([path.name]), stamps, np.array([-1]), (), layout
        )
    raise DataError(
        f"{source}: neither a folder, a list (.txt, .csv, .tsv), an array (.npy), a .tar nor an image"
    )


def _is_image(path: Path) -> bool:
    """Return whether the content of a file is an image; do not wait for a pipe."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return image_kind(file.read(HEAD_BYTES)) is not None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({describe(error)})") from None


def open_folder(
    path: Path, layout: Layout = "auto", *, skip_unreadable: bool = False
) -> FileSource | TarSource:
    """Open a folder and those in it: images sorted by path, or tar files if there are no others.

    Raises:
        DataError: there are no images, or the disk fails.
    """
    scan = Walk(skip_unreadable=skip_unreadable)
    files = Names.of(scan.names(os.fsencode(path)))
    if len(files) == 0 and (tars := find_tars(path)):
        return open_tars(f"folder {path}/", path, tars, layout, skip_unreadable=skip_unreadable)
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


def open_list(
    path: Path, layout: Layout = "auto", *, skip_unreadable: bool = False
) -> FileSource | TarSource:
    """Open a list of images or of tar files; its relative paths are relative to its own folder.

    Files that do not exist are searched in this folder, by the matching rules for labels.
    """
    listed = read_list(path)
    files, notes = listed.files, [*listed.notes]
    if (tars := tars_of_list(path, files)) is not None:
        return open_tars(f"list {path}", path.parent, tars, layout, skip_unreadable=skip_unreadable)
    stamps = _stamp_all(path.parent, files)
    if (missing := np.flatnonzero(stamps[:, 0] < 0)).size:
        files, found = find_missing(path, files, missing, is_legacy=listed.is_legacy)
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


def _open_array(path: Path, layout: Layout, trained: TrainedLayout | None) -> ArraySource | None:
    """Open an array (N, H, W), (N, H, W, C) or (N, C, H, W); labels are read from NAME_labels.npy beside it.

    None: the array is one image, which an array with three axes is if an encoder was trained on such images.
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
    """Load as a memory map; if the file system has none, into memory, with a note in `left_out`."""
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
