"""STL-10, CIFAR-10 and CIFAR-100 from their official files; torchvision names, fetches and checks them."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Real, UInt8

from byol.base.errors import DataError

_STL10_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
_STL10_PX = 96


@dataclass(frozen=True)
class Part:
    """Images that are named `prefix` and their number."""

    prefix: str
    images: Real[np.ndarray, "n height width *channels"]


@dataclass(frozen=True)
class Collection:
    """The images of a split, one part after the other."""

    parts: tuple[Part, ...]
    labels: Int64[np.ndarray, " n"]  # -1: not known
    class_names: tuple[str, ...]
    files: tuple[Path, ...]  # behind arrays that are memory maps


def load_stl10(split: str, root: Path, *, download: bool) -> Collection:
    """The split "train", "unlabeled", "train+unlabeled" or "test" of the binary files in `root`/stl10_binary.

    The files stay on disk as memory maps: torchvision would read 2.6 GB into memory, twice for a moment.
    They hold no code, so copies that somebody has cut smaller or packed anew are read like the original.

    Raises:
        DataError: a file is missing, cut short, or could not be fetched.
    """
    from torchvision.datasets import STL10

    folder = root / STL10.base_folder
    parts = split.split("+")
    needed = [
        folder / f"{part}_{kind}.bin" for part in parts for kind in "Xy" if (part, kind) != ("unlabeled", "y")
    ]
    missing = [path for path in needed if not path.is_file()]
    if missing and download:
        _fetch(lambda: STL10(root, split="test", download=True), name="STL-10", root=root)
    elif missing:
        raise DataError(f"{missing[0]}: no such file; {_advice('STL-10, 2.6 GB', STL10.base_folder)}")
    images = [Part(f"{part}/", _map_stl10_images(folder / f"{part}_X.bin")) for part in parts]
    labels = [
        _read_stl10_labels(folder, part, num_images=len(part_images.images))
        for part, part_images in zip(parts, images, strict=True)
    ]
    return Collection(tuple(images), np.concatenate(labels), _STL10_CLASSES, tuple(needed))


def load_cifar10(split: str, root: Path, *, download: bool) -> Collection:
    """The split "train" or "test" of the files in `root`/cifar-10-batches-py, as arrays in memory.

    The files are pickles, which could run code: they are read only if they are the official ones (MD5).

    Raises:
        DataError: a file is missing or not the official one, or could not be fetched.
    """
    from torchvision.datasets import CIFAR10

    return _load_cifar(CIFAR10, "CIFAR-10", split, root, download=download)


def load_cifar100(split: str, root: Path, *, download: bool) -> Collection:
    """As `load_cifar10`, from `root`/cifar-100-python, with the 100 fine labels."""
    from torchvision.datasets import CIFAR100

    return _load_cifar(CIFAR100, "CIFAR-100", split, root, download=download)


def _load_cifar(dataset: Any, name: str, split: str, root: Path, *, download: bool) -> Collection:
    if download:
        _fetch(lambda: dataset(root, train=split == "train", download=True), name=name, root=root)
    try:
        with warnings.catch_warnings():
            # numpy 2.4 complains about how the official pickles describe their arrays.
            warnings.filterwarnings(
                "ignore", message=".*align", category=np.exceptions.VisibleDeprecationWarning
            )
            loaded = dataset(root, train=split == "train")
    except RuntimeError:
        raise DataError(
            f"{root / dataset.base_folder}: files are missing or are not the official ones; "
            f"{_advice(f'{name}, 0.2 GB', dataset.base_folder)}"
        ) from None
    labels = np.array(loaded.targets, dtype=np.int64)
    return Collection((Part(f"{split}/", loaded.data),), labels, tuple(loaded.classes), ())


def _map_stl10_images(path: Path) -> UInt8[np.ndarray, "n 96 96 3"]:
    size_bytes = path.stat().st_size
    if size_bytes == 0 or size_bytes % (3 * _STL10_PX * _STL10_PX):
        raise DataError(
            f"{path}: its {size_bytes} bytes are not complete images of 96 x 96; download the file again"
        )
    try:
        values: UInt8[np.ndarray, " bytes"] = np.memmap(path, dtype=np.uint8, mode="r")
    except OSError:  # a file system without maps
        values = np.fromfile(path, dtype=np.uint8)
    columns = values.reshape(-1, 3, _STL10_PX, _STL10_PX)
    return np.asarray(columns.transpose(0, 3, 2, 1))  # stored channel by channel, column by column


def _read_stl10_labels(folder: Path, part: str, *, num_images: int) -> Int64[np.ndarray, " n"]:
    if part == "unlabeled":
        return np.full(num_images, -1)
    path = folder / f"{part}_y.bin"
    labels = np.fromfile(path, dtype=np.uint8).astype(np.int64)
    if len(labels) != num_images or labels.min() < 1 or labels.max() > len(_STL10_CLASSES):
        raise DataError(f"{path}: should hold {num_images} labels from 1 to 10; download the file again")
    return labels - 1


def _fetch(download: Callable[[], object], *, name: str, root: Path) -> None:
    try:
        download()
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{name} could not be downloaded to {root} ({reason}); download it yourself and set data.root"
        ) from None


def _advice(what: str, folder: str) -> str:
    return f"set data.root to the folder that holds {folder}, or data.download=true to download it ({what})"
