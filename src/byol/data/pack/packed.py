"""The packed copy of a source: all images at one size, in one memory-mapped array file.

    images.npy        (N, P, P, C) uint8, uint16 or float32
    sizes.npy         (N, 2) int32: height and width before packing, px; P and P for canvases (data.geometry)
    kept.npy          (N,) int64: index of the image in the source
    labels.npy        (N,) int64: index into the class names, -1 if not known
    row_checksums.npy (N,) uint32: the CRC-32 of each image's bytes, compared when it is first read
    names.npy, name_offsets.npy      the names as one block of UTF-8, and the offset of each
    bad_files.csv     file, reason: the images that could not be read and are left out
    pack.json         format, counts, recipe, statistics, checksums

It is written in a folder `NAME.partial`, which is renamed when it is complete; a start after an interruption
continues it: see `packing.py`.
"""

import hashlib
import json
import struct
import tokenize
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, Real

from byol.base.errors import DataError
from byol.base.records import take_checksum
from byol.data.decode.disk import DiskError, is_of_the_disk, try_again
from byol.data.decode.formats import Bits, Layout, bits_of_dtype
from byol.data.decode.index import Names
from byol.data.decode.mapped import load_array
from byol.data.pack.partial import (
    BAD_FILES,
    read_notes,
)
from byol.data.pack.rows import RowFile
from byol.data.sources.left_out import Few
from byol.method.views import Pixels

FORMAT = 1

ARRAYS = ("sizes.npy", "kept.npy", "labels.npy", "names.npy", "name_offsets.npy")
CHECKSUMS = "row_checksums.npy"  # packs of before have none
FILES = ("pack.json", "images.npy", *ARRAYS, CHECKSUMS, BAD_FILES)
# Errors that the content of a pack can raise if byol did not write it. Those of the disk are others.
_UNFIT = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,  # of a header that NumPy parses
    zipfile.BadZipFile,
)


@dataclass(frozen=True, eq=False)
class Packed:
    """Images of one size, their original sizes, names and labels, in the order of the source."""

    folder: Path
    file: RowFile
    sizes: Int32[np.ndarray, "n 2"]  # height, width in px
    names: Names
    labels: Int64[np.ndarray, " n"]  # -1: not known. Training uses them for its report only.
    class_names: tuple[str, ...]
    pixels: Pixels
    fingerprint: str  # of the packed pixel values only: does not depend on the folder
    num_bad: int
    num_shrunk: int  # canvases only: images that were larger and were shrunk, so their scale is lost
    note: str  # "packed", "found", or "packed again" with the reason
    clipped: float = 0.0  # fraction of the values that are below low or above high of their channel
    source_notes: tuple[str, ...] = ()  # how the list of the images was interpreted
    changed: dict[str, Few] = field(default_factory=dict)  # changes to images, see `reading.py`
    unmapped: str | None = None  # why its files cannot be memory-mapped; None: they can
    array_layout: Layout = "auto"  # of the arrays with three axes in the source, if there are any
    is_source_gone: bool = False

    def __len__(self) -> int:
        return len(self.file)

    @property
    def images(self) -> Real[np.ndarray, "n px px channels"]:
        """All images as a memory map. To get a few of many, use `read`: they do not stay in memory."""
        return self.file.map

    def read(self, rows: Int64[np.ndarray, " batch"]) -> Real[np.ndarray, "batch px px channels"]:
        """Return copies of these images."""
        return self.file.read(rows)

    @property
    def stored_px(self) -> int:
        return self.file.shape[1]

    @property
    def channels(self) -> int:
        return self.file.shape[3]

    @property
    def bits(self) -> Bits:
        return bits_of_dtype(self.file.dtype)


def open_pack(folder: Path) -> Packed:
    """Open the pack in a folder; check the sizes of all files, and all checksums but that of the images.

    Raises:
        DataError: the pack is missing, damaged, or of another format; or the disk fails.
    """
    try:
        return try_again(lambda: read_pack(folder))
    except DiskError as error:
        raise error.locate(str(folder)) from None


def read_pack(folder: Path) -> Packed:
    """Same as `open_pack`, but if the disk fails, raise a `DiskError` that does not name the folder."""
    content = read_json(folder)
    try:
        return _read(folder, content)
    except _UNFIT as error:
        raise DataError(
            f"{folder / 'pack.json'}: does not fit to the files beside it ({type(error).__name__}); delete "
            f"{folder} to pack again"
        ) from None


def _read(folder: Path, content: dict[str, Any]) -> Packed:
    for name, entry in content["files"].items():
        path = folder / name
        if name not in FILES:
            raise ValueError(f"{name} is no file of a pack")
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise DataError(f"{path}: is missing or cut short; delete {folder} to pack again")
        if name in (*ARRAYS, CHECKSUMS) and digest_file(path) != entry["blake2b"]:
            raise DataError(f"{path}: is damaged (its checksum differs); delete {folder} to pack again")
    # Memory maps: these are 60 MB for a million images, of which hardly anything is read.
    loaded = [load_array(folder / name) for name in ARRAYS]
    sizes, kept, labels, blob, offsets = (np.asarray(array) for array, _ in loaded)
    has_checksums = CHECKSUMS in content["files"]
    checksums = np.load(folder / CHECKSUMS, allow_pickle=False) if has_checksums else None
    try:
        images = RowFile(folder / "images.npy", checksums=checksums)
        if images.shape[0] != content["num_images"]:
            raise ValueError(f"{images.shape[0]} images, pack.json says {content['num_images']}")
    except _UNFIT as error:
        raise DataError(
            f"{folder / 'images.npy'}: is damaged ({type(error).__name__}); delete {folder} to pack again"
        ) from None
    pixels = Pixels(**{key: tuple(map(float, values)) for key, values in content["pixels"].items()})
    class_names = tuple(map(str, content["class_names"]))
    _check_arrays(len(images), sizes, kept, labels, blob, offsets)
    if any(len(values) not in (0, images.shape[3]) for values in vars(pixels).values()):
        raise ValueError("the scaling is of other channels")
    if labels.size and not -1 <= labels.min() <= labels.max() < len(class_names):
        raise ValueError("there are labels without a class")
    return Packed(
        folder=folder,
        file=images,
        sizes=sizes,
        names=Names(blob, offsets),
        labels=labels,
        class_names=class_names,
        pixels=pixels,
        fingerprint=str(content["files"]["images.npy"]["blake2b"]),
        num_bad=int(content["num_bad"]),
        num_shrunk=int(content.get("num_shrunk", 0)),  # early versions did not write it
        note="found",
        changed=read_notes(content.get("notes", {})),
        unmapped=loaded[0][1],
        clipped=float(content.get("clipped", 0.0)),  # early versions did not write it
    )


def _check_arrays(num: int, *arrays: np.ndarray) -> None:
    """Refuse arrays of other types and lengths, as a pack that byol did not write may have."""
    blob, offsets = arrays[3:]
    wanted = ((num, 2), np.int32), ((num,), np.int64), ((num,), np.int64), (blob.shape[:1], np.uint8)
    for array, (shape, dtype) in zip(arrays, (*wanted, ((num + 1,), np.int64)), strict=True):
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(f"an array is {array.dtype} of shape {array.shape}")
    if offsets[0] != 0 or offsets[-1] != len(blob) or bool((offsets[1:] < offsets[:-1]).any()):
        raise ValueError("the names are not one after the other")


def read_json(folder: Path) -> dict[str, Any]:
    """Return the content of `pack.json`; raises the same errors as `read_pack`."""
    path = folder / "pack.json"
    try:
        content = json.loads(path.read_bytes())
        take_checksum(content)
        version = content["format"]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; {folder} is not a pack") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, OSError) and is_of_the_disk(error):
            raise
        raise DataError(
            f"{path}: is damaged ({type(error).__name__}); delete {folder} to pack again"
        ) from None
    if version != FORMAT:
        raise DataError(
            f"{path}: has format {version}, this version reads {FORMAT}; delete {folder} to pack again"
        )
    return dict(content)


def digest_file(path: Path) -> str:
    """Return the checksum of a file as `pack.json` stores it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
