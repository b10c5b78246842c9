"""Pack a set that has grown by adding a shard with the new images to the pack of the earlier set.

It applies if a pack of the same source with the same settings lies beside the new one, all its files are
still in the source, in the same order and with the same sizes and times, and no new image would change the
size at which images are stored. Otherwise, all images are packed anew.
"""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from byol.base.errors import DataError
from byol.data.decode.index import Source
from byol.data.pack.joining import Member, open_member, write_index
from byol.data.pack.packed import COUNTS, FILES, Packed, read_json
from byol.data.pack.partial import Recipe, read_bad
from byol.data.pack.parts import Added, shard_name
from byol.data.pack.place import remove_files, writing
from byol.data.sources.kinds import FileSource

_FINGERPRINT = r"-[0-9a-f]{8}$"  # at the end of the name of a pack


@dataclass(frozen=True, eq=False)
class _Base:
    """The pack of the earlier set, and where its images are in the set now."""

    member: Member
    added: Int64[np.ndarray, " added"]  # images of the source that are new


def grow(
    folder: Path,
    *,
    source: Source,
    recipe: Recipe,
    pack_added: Callable[[Added, Path], Packed | None],
    make_error: Callable[[], DataError],
) -> tuple[Path, str] | None:
    """Make the pack of `source` from that of an earlier set, beside `folder`; return its folder and a note.

    None: there is no pack to which images have been added. `pack_added` packs the new images into a folder;
    None: they do not fit. `make_error` describes images that differ in channels or bit depth. The files of
    the earlier pack are linked, not copied, if the file system can.

    Raises:
        DataError: the new images differ from the earlier ones in channels or bit depth, or cannot be packed.
    """
    if not isinstance(source, FileSource) or (base := _find_base(folder, source, recipe)) is None:
        return None
    member, place = base.member, folder.with_name(f"{folder.name}.added")
    shards = [replace(shard, name=shard_name(n)) for n, shard in enumerate(member.shards(), start=1)]
    last = shard_name(len(shards) + 1)
    added = Added(source.select(base.added), px=member.packed.stored_px)
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
    if pack_added(added, place / last) is None:
        shutil.rmtree(place, ignore_errors=True)
        return None
    with writing(place):
        sources = [member.packed.folder / shard.name for shard in member.shards()]
        for origin, shard in zip(sources, shards, strict=True):
            link_files(origin, place / shard.name)
        new = open_member(place / last)
        if len(new.packed) and new.kind != member.kind:
            raise make_error()
        new = replace(new, kept=base.added[new.kept])
        shards.append(replace(new.shards()[0], name=last))
        write_index(place, [member, new], shards, source=source, recipe=recipe)
        for lock in place.glob(".shard-*.lock*"):
            lock.unlink(missing_ok=True)
    earlier = len(member.packed) + member.packed.num_bad
    return (
        place,
        f"added {len(added):,} new images to the {earlier:,} of the pack {member.packed.folder.name}",
    )


def _find_base(folder: Path, source: FileSource, recipe: Recipe) -> _Base | None:
    """Return the largest pack beside `folder` to which images have been added."""
    prefix = re.sub(_FINGERPRINT, "", folder.name)
    if prefix == folder.name or not folder.parent.is_dir():
        return None
    found: list[tuple[int, Path]] = []
    for other in folder.parent.iterdir():
        if other == folder or re.sub(_FINGERPRINT, "", other.name) != prefix:
            continue
        try:
            content = read_json(other)
            fits = replace(Recipe(**content["recipe"]), source_fingerprint="") == replace(
                recipe, source_fingerprint=""
            )
            num = int(content["num_images"])
            if fits and num and COUNTS in content["files"] and num + content["num_bad"] < len(source):
                found.append((num, other))
        except (DataError, OSError, LookupError, TypeError, ValueError):
            continue  # no pack that can be read
    for _, other in sorted(found, reverse=True):
        try:
            base = _compare(open_member(other), source)
        except DataError:  # damaged
            continue
        if base is not None:
            return base
    return None


def _compare(member: Member, source: FileSource) -> _Base | None:
    """Return what has been added to the images of a pack; None: they have changed in other ways as well."""
    packed = member.packed
    bad = {name for name, _ in read_bad(packed.folder)}
    rows = np.argsort(member.kept)  # in the order of the earlier source
    places = np.full(len(packed), -1)
    earlier, added, next_row = list[int](), list[int](), 0
    for index, name in enumerate(source.files):
        if next_row < len(rows) and name == packed.names[int(rows[next_row])]:
            places[rows[next_row]] = index
            next_row += 1
        elif name not in bad:
            added.append(index)
            continue
        earlier.append(index)
    if next_row < len(rows) or not added:
        return None
    if source.select(np.array(earlier)).fingerprint() != member.recipe.source_fingerprint:
        return None
    return _Base(replace(member, kept=places), np.array(added))


def link_files(origin: Path, target: Path) -> None:
    """Give the files of a pack a second name in the folder `target`; copy them if there are no links."""
    target.mkdir(exist_ok=True)
    remove_files(target, FILES)
    for name in FILES:
        if not (origin / name).exists():
            continue
        try:
            os.link(origin / name, target / name)
        except OSError:
            shutil.copyfile(origin / name, target / name)
