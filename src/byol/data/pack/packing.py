"""Make the packed copy of a source, continue an interrupted packing, or find an existing copy."""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial as partial_function
from pathlib import Path

import numpy as np

from byol.base.console import Count, Say, silent
from byol.base.disk import is_of_the_system
from byol.base.errors import DataError
from byol.base.files import write_atomically
from byol.base.locks import Holder
from byol.base.records import add_checksum
from byol.data.decode.formats import Channels, Geometry
from byol.data.decode.image import DECODER, Square, read_square
from byol.data.decode.index import Names, Source, array_layout_of, skips_unreadable
from byol.data.decode.mapped import load_array
from byol.data.decode.reading import Alpha
from byol.data.pack.finding import count_back, find_pack
from byol.data.pack.growing import grow
from byol.data.pack.joining import join_parts
from byol.data.pack.packed import (
    ARRAYS,
    CHECKSUMS,
    COUNTS,
    FILES,
    FORMAT,
    Packed,
    digest_file,
    open_pack,
)
from byol.data.pack.partial import (
    BAD_FILES,
    MARK_FILES,
    Mark,
    PartialPack,
    Recipe,
    read_bad,
    read_mark,
)
from byol.data.pack.parts import Added, Part, find_parts
from byol.data.pack.place import check_space, locked, move_into_place, remove_files, writing
from byol.data.pack.running_statistics import RunningStatistics
from byol.data.pack.statistics import CLIP
from byol.data.sources.parallel import read_ahead
from byol.data.sources.summary import describe_bad, round_up
from byol.data.sources.survey import describe_mixture, find_largest_side

SAMPLE = 500  # images whose sizes are read before packing


def find_limit_px(view_px: int) -> int:
    """Return the stored side of images that are large enough, in px: 1.15 x `view_px`, rounded up."""
    return -(-115 * view_px // 100)


def make_recipe(
    source: Source,
    *,
    stored_px: int | None,
    view_px: int,
    channels: Channels,
    geometry: Geometry = "square",
    alpha: Alpha = "auto",
    clip: float = CLIP,
) -> Recipe:
    """Return the recipe by which `pack`, with the same arguments, packs `source`."""
    limit_px = find_limit_px(view_px) if stored_px is None else None
    return Recipe(source.fingerprint(), stored_px, limit_px, channels, geometry, DECODER, alpha, clip)


# Longer than 60 lines, because it takes and passes on many arguments.
def pack(
    source: Source,
    *,
    folder: Path,
    stored_px: int | None,
    view_px: int,
    channels: Channels,
    max_bad: float,
    num_workers: int,
    geometry: Geometry = "square",
    alpha: Alpha = "auto",
    clip: float = CLIP,
    progress: Count | None = None,
    say: Say = silent,
) -> Packed:
    """Pack `source` into `folder`, or continue an interrupted packing, or find the existing pack.

    The side P of the packed images is `stored_px`. If that is None, P is 1.15 x `view_px`, rounded up, but
    at most the largest side in the source: square images of one size up to that are stored unchanged. Images
    are resized to P x P, or put on a canvas of P x P (`geometry`, see `image.read_square`). An existing pack
    is used if its source has not changed and P, `channels`, `geometry`, `alpha` and `clip` are the same; the
    labels are those of the source now. Images that could not be read because the disk failed are tried again.

    `num_workers` threads or processes read images. If another process is packing into the folder, this one
    waits, says so, and reports the progress of the other (images done, number of images).

    A `Part` of a source is packed like a source, with the stored side of the whole source; how many of its
    images may be left out is only checked when all parts are joined. If all parts of `source` have been
    packed, they are joined instead of packing it. If images have been added to a source that is packed
    beside `folder`, only these are packed, see `growing.py`.

    Raises:
        DataError: the disk fails and the source does not skip unreadable files; more than a fraction
            `max_bad` of the images, or all, cannot be read; they differ in channels or bit depth; the folder
            cannot be written, or holds something else; some parts of the source have been packed, others not.
    """
    recipe = make_recipe(
        source,
        stored_px=stored_px,
        view_px=view_px,
        channels=channels,
        geometry=geometry,
        alpha=alpha,
        clip=clip,
    )
    pack_into = partial_function(
        pack,
        stored_px=stored_px,
        view_px=view_px,
        channels=channels,
        max_bad=max_bad,
        num_workers=num_workers,
        geometry=geometry,
        alpha=alpha,
        clip=clip,
        progress=progress,
        say=say,
    )
    partial = folder.with_name(f"{folder.name}.partial")
    with locked(folder, while_waiting=_Waiting(folder, partial, progress=progress, say=say), say=say):
        packed, note = find_pack(folder, recipe)
        if packed is not None and packed.num_bad and (num := count_back(packed, source)):
            if packed.shards:
                note = f"{num} images that were left out can be read now; delete {folder} to pack them too"
            else:
                packed, note = None, f"packed again: {num} images that could not be read can be read now"
        if packed is None:
            made = _make(
                folder,
                source,
                recipe,
                max_bad=max_bad,
                num_workers=num_workers,
                progress=progress,
                pack_into=pack_into,
            )
            packed, note = open_pack(folder), made or note
        kept, _ = load_array(folder / "kept.npy")
    _check_bad(folder, source, num_bad=packed.num_bad, max_bad=max_bad)
    return replace(
        packed,
        labels=source.labels[kept],
        class_names=source.class_names,
        note=note,
        source_notes=source.notes,
        array_layout=array_layout_of(source),
    )


def _make(
    folder: Path,
    source: Source,
    recipe: Recipe,
    *,
    max_bad: float,
    num_workers: int,
    progress: Count | None,
    pack_into: Callable[..., Packed],
) -> str:
    """Make the pack in `folder`: of its parts, of an earlier pack and added images, or of all images.

    Return a note, which is empty if all images are packed. `pack_into` is `pack` with all arguments but the
    source and `folder`.
    """

    def pack_added(added: Added, place: Path) -> Packed | None:
        try:
            return pack_into(added, folder=place)
        except _LargerImageError:
            return None

    def make_error() -> DataError:
        return _mixture(source, recipe, num_workers=num_workers)

    if (parts := find_parts(folder)) is not None:
        join_parts(*parts, source=source, recipe=recipe)
        plural = "s" if parts[1] > 1 else ""
        ready, note = parts[0], f"joined the {parts[1]} part{plural} of {source.name}"
    elif grown := grow(folder, source=source, recipe=recipe, pack_added=pack_added, make_error=make_error):
        ready, note = grown
    else:
        partial = folder.with_name(f"{folder.name}.partial")
        _write(source, recipe, partial=partial, max_bad=max_bad, num_workers=num_workers, progress=progress)
        move_into_place(partial, folder, files=FILES)
        remove_files(folder, MARK_FILES)
        return ""
    _check_bad(ready, source, num_bad=open_pack(ready).num_bad, max_bad=max_bad)
    move_into_place(ready, folder, files=FILES)
    return note


class _Waiting:
    """Called while another process packs into the same folder: say so once, and show its progress."""

    def __init__(self, folder: Path, partial: Path, *, progress: Count | None, say: Say) -> None:
        self._folder, self._partial, self._progress, self._say = folder, partial, progress, say
        self._num_calls = 0

    def __call__(self, holder: Holder | None) -> None:
        mark = read_mark(self._partial)
        self._num_calls += 1
        if self._num_calls == 2:  # not at the first call: the other process may only open an existing pack
            done = "" if mark is None else f", {mark.done} of {mark.num_images} images so far"
            self._say(
                f"{self._folder}: {holder or 'another process'} is packing these images{done}; "
                "waiting until it is done"
            )
        if mark is not None and self._progress is not None:
            self._progress(mark.done, mark.num_images)


def _check_bad(folder: Path, source: Source, *, num_bad: int, max_bad: float) -> None:
    if isinstance(source, Part | Added) or (num_bad <= max_bad * len(source) and num_bad < len(source)):
        return
    if skips_unreadable(source):  # data.skip_unreadable already allows files that the system refuses
        num_bad -= sum(is_of_the_system(reason) for _, reason in read_bad(folder))
    if num_bad > max_bad * len(source) or num_bad == len(source):
        allow = f", or allow them with data.max_bad={round_up(num_bad / len(source)):g}"
        raise DataError(
            f"{source.name}: {num_bad} of {len(source)} images cannot be read (data.max_bad is {max_bad:g}), "
            f"{describe_bad(read_bad(folder))}; {folder / BAD_FILES} lists them: repair or remove them"
            f"{allow if num_bad < len(source) else ''}"
        )


# ---- Writing a pack


def _write(
    source: Source,
    recipe: Recipe,
    *,
    partial: Path,
    max_bad: float,
    num_workers: int,
    progress: Count | None,
) -> None:
    """Write all files of a pack into the folder `partial`."""
    mark = read_mark(partial)
    write = partial_function(
        _write_at, source=source, max_bad=max_bad, num_workers=num_workers, progress=progress, partial=partial
    )
    if mark is None or mark.recipe != recipe:
        px = recipe.stored_px or _choose_px(source, recipe, most=SAMPLE, num_workers=num_workers)
        mark = Mark(recipe, px, 0, 0, num_images=len(source), done=0, num_rows=0, num_bad=0, bad_bytes=0)
    try:
        write(mark)
    except _LargerImageError:  # reading all sizes first would make packing small images a third slower
        if isinstance(source, Added):
            raise
        whole = source.whole if isinstance(source, Part) else source
        px = _choose_px(whole, recipe, most=len(whole), num_workers=num_workers)
        if whole is not source:
            raise DataError(
                f"{source.name}: an image is larger than those from which byol chose the size of all parts; "
                f"add data.stored_px={px} to the commands of all parts and of the training"
            ) from None
        write(replace(mark, px=px, done=0, num_rows=0, num_bad=0, notes={}))


class _LargerImageError(Exception):
    """An image is larger than all images from which the stored size was chosen."""


def _write_at(
    mark: Mark,
    *,
    source: Source,
    partial: Path,
    max_bad: float,
    num_workers: int,
    progress: Count | None,
) -> None:
    recipe = mark.recipe
    with writing(partial):
        writer = PartialPack(partial, mark)
    try:
        with RunningStatistics(writer) as running:
            _append_all(writer, source, recipe, running=running, num_workers=num_workers, progress=progress)
            _check_bad(partial, source, num_bad=writer.num_bad, max_bad=max_bad)
            with writing(partial):
                _complete(writer, source, recipe, running=running)
    finally:  # also after an interruption: the images that were read need not be read again
        with writing(partial):
            writer.close()


def _append_all(
    writer: PartialPack,
    source: Source,
    recipe: Recipe,
    *,
    running: RunningStatistics,
    num_workers: int,
    progress: Count | None,
) -> None:
    px = writer.mark.px
    read = partial_function(
        read_square, px=px, channels=recipe.channels, geometry=recipe.geometry, alpha=recipe.alpha
    )
    indices = range(writer.done, len(source))
    ahead = read_ahead(read, source, indices, num_workers=num_workers, result_bytes=3 * px * px)
    with closing(ahead) as images:
        for index, image in images:
            if isinstance(image, Square):
                if writer.num_rows and not writer.fits(image.pixels):
                    raise _mixture(source, recipe, num_workers=num_workers)
                if recipe.limit_px is not None and min(recipe.limit_px, max(image.height, image.width)) > px:
                    raise _LargerImageError
            with writing(writer.folder):
                _append(writer, source, index, image)
                running.follow()
            if progress is not None:
                progress(writer.done, len(source))
    with writing(writer.folder):
        writer.start_saving()


def _mixture(source: Source, recipe: Recipe, *, num_workers: int) -> DataError:
    found = describe_mixture(
        source, all_channels=recipe.channels is None, num_workers=num_workers, alpha=recipe.alpha
    )
    return DataError(f"{source.name}: {found}")


def _choose_px(source: Source, recipe: Recipe, *, most: int, num_workers: int) -> int:
    assert recipe.limit_px is not None
    if isinstance(source, Added):
        return source.px
    source = source.whole if isinstance(source, Part) else source  # all parts must have the same size
    largest = find_largest_side(source, limit_px=recipe.limit_px, most=most, num_workers=num_workers)
    return largest or recipe.limit_px


def _append(writer: PartialPack, source: Source, index: int, image: Square | DataError) -> None:
    if isinstance(image, DataError):
        writer.append_bad(source.names(index), str(image))
    else:
        if writer.num_rows == 0:
            check_space(writer.folder, image.pixels.nbytes * len(source))
        writer.append(index, image.pixels, height=image.height, width=image.width, filled=image.filled)
        if image.notes:
            writer.note(source.names(index), image.notes)
    writer.finish_image()


def _complete(writer: PartialPack, source: Source, recipe: Recipe, *, running: RunningStatistics) -> None:
    """Write the header of `images.npy`, the small arrays and `pack.json`."""
    partial = writer.folder
    places, sizes = writer.complete_images()
    num_shrunk = 0
    if recipe.geometry == "scale":  # crops are taken from the canvas
        num_shrunk = int((sizes > writer.mark.px).any(axis=1).sum())
        sizes = np.full_like(sizes, writer.mark.px)
    names = Names.of(source.names(int(place)) for place in places)
    arrays = (sizes.astype(np.int32), places, source.labels[places], names.blob, names.offsets)
    for name, array in zip(ARRAYS, arrays, strict=True):
        write_atomically(partial / name, partial_function(np.save, arr=array))
    statistics, clipped, images_digest = running.finish()
    write_atomically(partial / CHECKSUMS, partial_function(np.save, arr=running.checksums))
    write_atomically(partial / COUNTS, partial_function(np.save, arr=running.counts))
    digests = {name: digest_file(partial / name) for name in (*ARRAYS, CHECKSUMS, COUNTS, BAD_FILES)} | {
        "images.npy": images_digest
    }
    content = {
        "format": FORMAT,
        "source": source.name,
        "num_images": len(places),
        "num_bad": writer.num_bad,
        "num_shrunk": num_shrunk,
        "notes": {text: asdict(few) for text, few in writer.notes.items()},
        "recipe": asdict(recipe),
        "class_names": source.class_names,
        "pixels": asdict(statistics),
        "clipped": clipped,
        "files": {
            name: {"bytes": (partial / name).stat().st_size, "blake2b": digest}
            for name, digest in digests.items()
        },
    }
    write_atomically(partial / "pack.json", json.dumps(add_checksum(content), indent=1).encode())
