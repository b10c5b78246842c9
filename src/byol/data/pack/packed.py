"""The packed copy of a source: all images at one size, in one array file or in many shards.

    images.npy        (N, P, P, C) uint8, uint16 or float32
    sizes.npy         (N, 2) int32: height and width before packing, px; P and P for canvases (data.geometry)
    kept.npy          (N,) int64: index of the image in the source
    labels.npy        (N,) int64: index into the class names, -1 if not known
    row_checksums.npy (N,) uint32: the CRC-32 of each image's bytes, compared when it is first read
    names.npy, name_offsets.npy      the names as one block of UTF-8, and the offset of each
    counts.npy        (C, levels) int64: how often each value occurs, see `statistics.py`
    bad_files.csv     file, reason: the images that could not be read and are left out
    pack.json         format, counts, recipe, statistics, checksums

A pack of many shards has the same files except `images.npy`, for all its images. `pack.json` has format 2 and
lists the shards: folders beside it, each of which is a pack of its own. See `joining.py`.

It is written in a folder `NAME.partial`, which is renamed when it is complete; a start after an interruption
continues it: see `packing.py`.
"""

import hashlib
import json
import re
import struct
import tokenize
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, Real, UInt32

from byol.base.disk import DiskError, is_of_the_disk, try_again
from byol.base.errors import DataError
from byol.base.records import take_checksum
from byol.data.decode.formats import Bits, Layout, bits_of_dtype
from byol.data.decode.index import Names
from byol.data.decode.mapped import load_array
from byol.data.pack.partial import (
    BAD_FILES,
    read_notes,
)
from byol.data.pack.rows import RowFile
from byol.data.pack.shards import Rows, Shard, ShardedRows
from byol.data.sources.left_out import Few
from byol.method.views import Pixels

FORMAT, SHARDED_FORMAT = 1, 2

ARRAYS = ("sizes.npy", "kept.npy", "labels.npy", "names.npy", "name_offsets.npy")
CHECKSUMS = "row_checksums.npy"  # packs of before have none
COUNTS = "counts.npy"  # packs of before have none
FILES = ("pack.json", "images.npy", *ARRAYS, CHECKSUMS, COUNTS, BAD_FILES)
_MOST_HEADER_BYTES = 4096  # of images.npy
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
    file: Rows
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
    is_remote: bool = False  # its shards lie in object storage and are fetched when they are needed

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
    def shards(self) -> tuple[Shard, ...]:
        """The shards in the order of their images; (): all images are in one file."""
        return self.file.shards if isinstance(self.file, ShardedRows) else ()

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
        return read_index(folder, content)
    except _UNFIT as error:
        raise DataError(
            f"{folder / 'pack.json'}: does not fit to the files beside it ({type(error).__name__}); delete "
            f"{folder} to pack again"
        ) from None


def read_index(
    folder: Path,
    content: dict[str, Any],
    *,
    open_rows: Callable[[UInt32[np.ndarray, " n"] | None], Rows] | None = None,
) -> Packed:
    """Open the pack in a folder whose `pack.json` has this `content`.

    `open_rows` returns the reader of the images, for their checksums; by default they lie in the folder.

    Raises:
        DataError: a file is missing or damaged.
        ValueError, KeyError and others: the content is not that of a pack.
    """
    for name, entry in content["files"].items():
        path = folder / name
        if name not in FILES:
            raise ValueError(f"{name} is no file of a pack")
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise DataError(f"{path}: is missing or cut short; delete {folder} to pack again")
        if name in (*ARRAYS, CHECKSUMS, COUNTS) and digest_file(path) != entry["blake2b"]:
            raise DataError(f"{path}: is damaged (its checksum differs); delete {folder} to pack again")
    # Memory maps: these are 60 MB for a million images, of which hardly anything is read.
    loaded = [load_array(folder / name) for name in ARRAYS]
    sizes, kept, labels, blob, offsets = (np.asarray(array) for array, _ in loaded)
    has_checksums = CHECKSUMS in content["files"]
    checksums = np.load(folder / CHECKSUMS, allow_pickle=False) if has_checksums else None
    if content["format"] != SHARDED_FORMAT and "images.npy" not in content["files"]:
        raise ValueError("there are no images")
    if open_rows is not None:
        images = open_rows(checksums)
    elif content["format"] == SHARDED_FORMAT:
        images = _open_shards(folder, content, checksums)
    else:
        images = _open_images(folder, checksums)
    if images.shape[0] != content["num_images"]:
        raise ValueError(f"{images.shape[0]} images, pack.json says {content['num_images']}")
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
        fingerprint=fingerprint_of(content),
        num_bad=int(content["num_bad"]),
        num_shrunk=int(content.get("num_shrunk", 0)),  # early versions did not write it
        note="found",
        changed=read_notes(content.get("notes", {})),
        unmapped=loaded[0][1],
        clipped=float(content.get("clipped", 0.0)),  # early versions did not write it
    )


def _open_images(folder: Path, checksums: UInt32[np.ndarray, " n"] | None) -> RowFile:
    try:
        return RowFile(folder / "images.npy", checksums=checksums)
    except _UNFIT as error:
        raise DataError(
            f"{folder / 'images.npy'}: is damaged ({type(error).__name__}); delete {folder} to pack again"
        ) from None


def _open_shards(
    folder: Path, content: dict[str, Any], checksums: UInt32[np.ndarray, " n"] | None
) -> ShardedRows:
    shards = read_shards(content)
    for shard in shards:
        path = folder / shard.path
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise DataError(f"{path}: is missing or cut short; delete {folder} to pack again")
    return make_rows(content, checksums, locate=lambda shard: folder / shard.path)


def read_shards(content: dict[str, Any]) -> tuple[Shard, ...]:
    """Return the shards that `pack.json` lists. It raises ValueError for a name that leads elsewhere."""
    shards = tuple(
        Shard(str(entry["name"]), int(entry["num_images"]), int(entry["bytes"]), str(entry["blake2b"]))
        for entry in content["shards"]
    )
    for shard in shards:
        is_name = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", shard.name)
        if not is_name or not re.fullmatch(r"[0-9a-f]{32}", shard.blake2b) or shard.num_images < 0:
            raise ValueError(f"{shard.name} is no shard")
    return shards


def make_rows(
    content: dict[str, Any],
    checksums: UInt32[np.ndarray, " n"] | None,
    *,
    locate: Callable[[Shard], Path],
) -> ShardedRows:
    """Return the reader of the shards that `pack.json` lists. It raises ValueError if they do not fit."""
    shards, dtype = read_shards(content), np.dtype(str(content["dtype"]))
    num = sum(shard.num_images for shard in shards)
    shape = (num, *(int(side) for side in content["shape"]))
    if (
        dtype.kind not in "uf"
        or dtype.itemsize > 4
        or len(shape) != 4
        or min(shape) < 1
        or shape[1] != shape[2]
    ):
        raise ValueError(f"the shards hold {dtype} of shape {shape}")
    row_bytes = prod(shape[1:]) * dtype.itemsize
    if any(not 0 < one.bytes - one.num_images * row_bytes <= _MOST_HEADER_BYTES for one in shards):
        raise ValueError("the shards have other sizes than their images")
    if checksums is None or checksums.shape != (num,) or checksums.dtype != np.uint32:
        raise ValueError(f"{num} images, other checksums")
    return ShardedRows(shards, shape=shape, dtype=dtype, checksums=checksums, locate=locate)


def fingerprint_of(content: dict[str, Any]) -> str:
    """Return `Packed.fingerprint` of a pack from its `pack.json`.

    Of a pack of many shards it is the hash of the hashes of the shards, so the same images in another number
    of shards have another fingerprint.
    """
    if content["format"] != SHARDED_FORMAT:
        return str(content["files"]["images.npy"]["blake2b"])
    digests = "\n".join(shard.blake2b for shard in read_shards(content))
    return hashlib.blake2b(digests.encode(), digest_size=16).hexdigest()


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
    if version not in (FORMAT, SHARDED_FORMAT):
        raise DataError(
            f"{path}: has format {version}, this version reads {FORMAT} and {SHARDED_FORMAT}; delete "
            f"{folder} to pack again"
        )
    return dict(content)


def digest_file(path: Path) -> str:
    """Return the checksum of a file as `pack.json` stores it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
