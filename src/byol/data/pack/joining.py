"""Join packs to one pack of many shards: only the arrays beside the images and the statistics are merged."""

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial as partial_function
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from byol.base.disk import DiskError, try_again
from byol.base.errors import DataError
from byol.base.files import write_atomically
from byol.base.records import add_checksum
from byol.data.decode.index import Names, Source
from byol.data.decode.mapped import load_array
from byol.data.pack.packed import (
    ARRAYS,
    CHECKSUMS,
    COUNTS,
    SHARDED_FORMAT,
    Packed,
    digest_file,
    read_json,
    read_pack,
)
from byol.data.pack.partial import BAD_FILES, Recipe
from byol.data.pack.parts import Part, shard_name
from byol.data.pack.place import writing
from byol.data.pack.shards import Shard
from byol.data.pack.statistics import find_clipped, no_counts, summarise
from byol.data.sources.left_out import Few


@dataclass(frozen=True, eq=False)
class Member:
    """A pack that becomes one shard or, if it already consists of shards, several."""

    packed: Packed
    content: dict[str, Any]  # of its pack.json
    kept: Int64[np.ndarray, " n"]  # index of each image in the source of the joined pack

    @property
    def recipe(self) -> Recipe:
        return Recipe(**self.content["recipe"])

    @property
    def kind(self) -> str:
        """The kind of the images, in words."""
        packed = self.packed
        channels = f"{packed.channels} channel{'s' if packed.channels > 1 else ''}"
        return f"{channels} of {packed.bits} bit at {packed.stored_px} px"

    def shards(self) -> list[Shard]:
        """Return its images as shards; the name of a pack that is no shard yet is still empty."""
        if self.packed.shards:
            return list(self.packed.shards)
        entry = self.content["files"]["images.npy"]
        return [Shard("", len(self.packed), entry["bytes"], entry["blake2b"])]


def open_member(folder: Path) -> Member:
    """Open a pack to join it; `kept` is its own.

    Raises:
        DataError: it is missing or damaged, or the disk fails.
    """
    try:
        packed = try_again(lambda: read_pack(folder))
        content = try_again(lambda: read_json(folder))
        kept, _ = try_again(lambda: load_array(folder / "kept.npy"))
    except DiskError as error:
        raise error.locate(str(folder)) from None
    return Member(packed, content, np.asarray(kept))


def join_parts(parts: Path, count: int, *, source: Source, recipe: Recipe) -> None:
    """Complete the folder `parts` to a pack of `count` shards; `recipe` is that of the whole source.

    It writes `pack.json` last, so after a kill the parts are as they were, and the next process repeats it.

    Raises:
        DataError: a part is damaged or was packed with other settings, or the parts differ in channels, bit
            depth or size; or the folder cannot be written.
    """
    members = []
    for number in range(1, count + 1):
        part, folder = Part(source, number, count), parts / shard_name(number)
        member = open_member(folder)
        if member.recipe != replace(recipe, source_fingerprint=part.fingerprint()):
            raise DataError(
                f"{folder}: was packed with other settings or another version of byol; delete it and repeat "
                f"byol pack ... --part {number}/{count} with the settings of the other parts"
            )
        members.append(replace(member, kept=member.kept + part.start))
    shards = [
        replace(member.shards()[0], name=shard_name(number)) for number, member in enumerate(members, start=1)
    ]
    with writing(parts):
        write_index(parts, members, shards, source=source, recipe=recipe)
        for lock in parts.glob(".shard-*.lock*"):
            with suppress(OSError):  # nobody packs these parts any more
                lock.unlink()


def write_index(
    folder: Path, members: Sequence[Member], shards: Sequence[Shard], *, source: Source, recipe: Recipe
) -> None:
    """Write all files of a pack of many shards, except the shards themselves, into `folder`.

    Raises:
        DataError: the members differ in channels, bit depth or size.
        CheckpointError, OSError: the folder cannot be written.
    """
    filled = [member for member in members if len(member.packed)]
    for member in filled[1:]:
        if member.kind != filled[0].kind:
            raise DataError(
                f"{source.name}: the images differ: {filled[0].packed.folder.name} has {filled[0].kind}, "
                f"{member.packed.folder.name} has {member.kind}; set the same data.stored_px and "
                "data.channels=rgb or data.channels=grey for all of them and pack them again"
            )
    _write_arrays(folder, members, source=source)
    _join_lists(folder / BAD_FILES, [member.packed.folder / BAD_FILES for member in members])
    statistics = merge_statistics(folder, filled, clip=recipe.clip)
    names = (*ARRAYS, CHECKSUMS, COUNTS, BAD_FILES)
    content = {
        "format": SHARDED_FORMAT,
        "source": source.name,
        "num_images": sum(len(member.packed) for member in members),
        "num_bad": sum(member.packed.num_bad for member in members),
        "num_shrunk": sum(member.packed.num_shrunk for member in members),
        "notes": {text: asdict(few) for text, few in _merge_notes(members).items()},
        "recipe": asdict(recipe),
        "class_names": source.class_names,
        **statistics,
        "shape": filled[0].packed.file.shape[1:] if filled else (),
        "dtype": filled[0].packed.file.dtype.str if filled else "",
        "shards": [asdict(shard) for shard in shards],
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "blake2b": digest_file(folder / name)}
            for name in names
        },
    }
    write_atomically(folder / "pack.json", json.dumps(add_checksum(content), indent=1).encode())


def _write_arrays(folder: Path, members: Sequence[Member], *, source: Source) -> None:
    kept = np.concatenate([member.kept for member in members])
    names = _join_names([member.packed.names for member in members])
    arrays = {
        "sizes.npy": np.concatenate([member.packed.sizes for member in members]),
        "kept.npy": kept,
        "labels.npy": source.labels[kept],
        "names.npy": names.blob,
        "name_offsets.npy": names.offsets,
        CHECKSUMS: np.concatenate([_load(member, CHECKSUMS) for member in members]),
    }
    for name, array in arrays.items():
        write_atomically(folder / name, partial_function(np.save, arr=array))


def _load(member: Member, name: str) -> np.ndarray:
    array, _ = load_array(member.packed.folder / name)
    return np.asarray(array)


def _join_names(parts: Sequence[Names]) -> Names:
    ends = np.cumsum([0, *(len(names.blob) for names in parts)])
    offsets = [names.offsets[:-1] + end for names, end in zip(parts, ends[:-1].tolist(), strict=True)]
    return Names(
        np.concatenate([names.blob for names in parts]),
        np.concatenate([*offsets, ends[-1:].astype(np.int64)]),
    )


def _join_lists(path: Path, parts: Sequence[Path]) -> None:
    """Write the lines of all lists into one list; they have the same first line."""

    def write(file: Any) -> None:
        for place, part in enumerate(parts):
            with part.open("rb") as lines:
                if place:
                    lines.readline()
                shutil.copyfileobj(lines, file)

    write_atomically(path, write)


def merge_statistics(folder: Path, members: Sequence[Member], *, clip: float) -> dict[str, Any]:
    """Write the histograms of all values, and return what `pack.json` says of them."""
    if not members:
        write_atomically(folder / COUNTS, partial_function(np.save, arr=no_counts(0, np.dtype(np.uint8))))
        return {"pixels": {"low": (), "high": (), "mean": (), "std": ()}, "clipped": 0.0}
    counts = _load(members[0], COUNTS).copy()
    for member in members[1:]:
        counts += _load(member, COUNTS)
    write_atomically(folder / COUNTS, partial_function(np.save, arr=counts))
    pixels = [member.packed.pixels for member in members]
    extremes = np.stack(
        [np.min([one.smallest for one in pixels], axis=0), np.max([one.largest for one in pixels], axis=0)]
    )
    is_float = members[0].packed.bits == 32
    merged = summarise(counts, extremes if is_float else None, clip=clip)
    return {"pixels": asdict(merged), "clipped": find_clipped(counts, merged)}


def _merge_notes(members: Sequence[Member]) -> dict[str, Few]:
    merged: dict[str, Few] = {}
    for member in members:
        for text, few in member.packed.changed.items():
            one = merged.setdefault(text, Few())
            for name in few.names:
                one.add(name)
            one.count += few.count - len(few.names)
    return merged
