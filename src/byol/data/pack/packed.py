"""The packed copy of a source: every image once at one size, in one array that is mapped, not read.

    images.npy        (N, P, P, C) uint8, uint16 or float32
    sizes.npy         (N, 2) int32: height and width before packing, px; P and P on canvases (data.geometry)
    kept.npy          (N,) int64: the place in the source
    labels.npy        (N,) int64: index into the class names, -1 where not known
    names.npy, name_offsets.npy      the names as one block of UTF-8, and where each begins
    bad_files.csv     file, reason: the images that could not be read and are left out
    pack.json         format, counts, recipe, statistics, checksums

It is written in a folder `NAME.partial`, which a second start continues, and renamed when it is whole.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial as partial_function
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, Real

from byol.base.errors import DataError
from byol.base.files import write_atomically
from byol.data.decode.disk import DiskError, is_of_the_disk, is_of_the_system, is_worth_a_try, try_again
from byol.data.decode.formats import Bits, Channels, Geometry, bits_of_dtype, path_of
from byol.data.decode.image import DECODER, Square, peek, read_square
from byol.data.decode.index import Names, Source, skips_unreadable
from byol.data.decode.mapped import load_array
from byol.data.decode.reading import Alpha
from byol.data.pack.partial import (
    BAD_FILES,
    MARK_FILES,
    Mark,
    PartialPack,
    Recipe,
    read_bad,
    read_mark,
    read_notes,
)
from byol.data.pack.place import check_space, locked, move_into_place, remove_files, writing
from byol.data.pack.rows import RowFile
from byol.data.pack.running_statistics import Tally
from byol.data.sources.left_out import Few
from byol.data.sources.parallel import read_ahead
from byol.data.sources.summary import describe_bad, round_up
from byol.data.sources.survey import describe_mixture, find_largest_side
from byol.method.views import Pixels

FORMAT = 1

_ARRAYS = ("sizes.npy", "kept.npy", "labels.npy", "names.npy", "name_offsets.npy")
_FILES = ("pack.json", "images.npy", *_ARRAYS, BAD_FILES)

_SAMPLE = 500  # images whose sizes are looked at before packing

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Packed:
    """Images of one size, their sizes before, names and labels; all in the order of the source."""

    folder: Path
    file: RowFile
    sizes: Int32[np.ndarray, "n 2"]  # height, width in px
    names: Names
    labels: Int64[np.ndarray, " n"]  # -1: not known. Training reports on them only.
    class_names: tuple[str, ...]
    pixels: Pixels
    fingerprint: str  # of the packed values alone: the same wherever the files lie
    num_bad: int
    num_shrunk: int  # on canvases: images that were larger, and have lost their scale
    note: str  # "packed", "found", or "packed again" with the reason
    source_notes: tuple[str, ...] = ()  # how the list of the images was understood
    changed: dict[str, Few] = field(default_factory=dict)  # what was changed in images, see `reading.py`
    unmapped: str | None = None  # why its files are read without maps, if so

    def __len__(self) -> int:
        return len(self.file)

    @property
    def images(self) -> Real[np.ndarray, "n px px channels"]:
        """As a map. Few images of many are better had by `read`: they do not stay in memory."""
        return self.file.map

    def read(self, rows: Int64[np.ndarray, " batch"]) -> Real[np.ndarray, "batch px px channels"]:
        """Copies of these images."""
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


def find_limit_px(view_px: int) -> int:
    """The stored side, px, where images are large enough: 1.15 x `view_px`, rounded up."""
    return -(-115 * view_px // 100)


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
    progress: Progress | None = None,
) -> Packed:
    """Pack `source` into `folder`, or continue a packing that was stopped, or find the pack that is there.

    The side P of the packed images is `stored_px`; without it 1.15 x `view_px`, rounded up, but not more
    than the largest side in the source: a set of one square size up to that is kept exactly. Images are
    squashed to P x P, or put on a canvas of that side (`geometry`, see `image.read_square`). A pack is found
    if its source has not changed and P, `channels`, `geometry` and `alpha` are the same; labels are the
    source's of now. Images that the disk did not give to an earlier start are tried again.

    `num_workers` threads or processes read. If another process is packing into the folder, this one waits
    and reports that one's progress (images done, images in all).

    Raises:
        DataError: the disk fails, and what is unreadable is not to be left out; more than the share `max_bad`
            of the images, or all, cannot be read; they differ in channels or depth; the folder cannot be
            written, or holds something else.
    """
    limit_px = find_limit_px(view_px) if stored_px is None else None
    recipe = Recipe(source.fingerprint(), stored_px, limit_px, channels, geometry, DECODER, alpha)
    partial = folder.with_name(f"{folder.name}.partial")
    with locked(folder, while_waiting=lambda: _report_other(partial, progress)):
        packed, note = _find(folder, recipe)
        if packed is not None and packed.num_bad and (num := _count_back(packed, source)):
            packed, note = None, f"packed again: {num} images that could not be read before can be now"
        if packed is None:
            _write(
                source, recipe, partial=partial, max_bad=max_bad, num_workers=num_workers, progress=progress
            )
            move_into_place(partial, folder, files=_FILES)
            remove_files(folder, MARK_FILES)
            packed = open_pack(folder)
        kept, _ = load_array(folder / "kept.npy")
    _check_bad(folder, source, num_bad=packed.num_bad, max_bad=max_bad)
    return replace(
        packed,
        labels=source.labels[kept],
        class_names=source.class_names,
        note=note,
        source_notes=source.notes,
    )


def open_pack(folder: Path) -> Packed:
    """The pack in a folder. Sizes of all files are checked, and the checksums of all but the images.

    Raises:
        DataError: it is missing, damaged, or of another format; or the disk fails.
    """
    try:
        return try_again(lambda: _open(folder))
    except DiskError as error:
        raise error.locate(str(folder)) from None


def _open(folder: Path) -> Packed:
    content = _read_json(folder)
    for name, entry in content["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise DataError(f"{path}: is missing or cut short; delete {folder} to pack again")
        if name in _ARRAYS and _digest(path) != entry["blake2b"]:
            raise DataError(f"{path}: is damaged (its checksum differs); delete {folder} to pack again")
    # Maps: of a million images these are 60 MB, of which hardly anything is looked at.
    loaded = [load_array(folder / name) for name in _ARRAYS]
    sizes, _, labels, blob, offsets = (np.asarray(array) for array, _ in loaded)
    return Packed(
        folder=folder,
        file=RowFile(folder / "images.npy"),
        sizes=sizes,
        names=Names(blob, offsets),
        labels=labels,
        class_names=tuple(content["class_names"]),
        pixels=Pixels(**{key: tuple(values) for key, values in content["pixels"].items()}),
        fingerprint=content["files"]["images.npy"]["blake2b"],
        num_bad=content["num_bad"],
        num_shrunk=content.get("num_shrunk", 0),  # before there were canvases it was not written
        note="found",
        changed=read_notes(content.get("notes", {})),
        unmapped=loaded[0][1],
    )


def verify(packed: Packed) -> None:
    """Read all images and compare them with their checksum; about 1 s a GB.

    Raises:
        DataError: they have changed since they were packed.
    """
    if _digest(packed.folder / "images.npy") != packed.fingerprint:
        raise DataError(
            f"{packed.folder}/images.npy: is damaged (its checksum differs); delete {packed.folder}"
        )


# ---- Finding a pack


def _find(folder: Path, recipe: Recipe) -> tuple[Packed | None, str]:
    """The pack, if it is whole and of this recipe; and in words what is the case."""
    if not folder.exists() or not any(folder.iterdir()):
        return None, "packed"
    if not (folder / "pack.json").exists():
        raise DataError(f"{folder}: holds files but no pack; choose another place with data.packs=FOLDER")
    try:
        packed = try_again(lambda: _open(folder))
        before = Recipe(**_read_json(folder)["recipe"])
    except DiskError as error:  # the pack may be whole
        raise error.locate(str(folder)) from None
    except (DataError, TypeError) as error:
        return None, f"packed again: {error}"
    if before.source_fingerprint != recipe.source_fingerprint:
        return None, "packed again: the source has changed"
    if before.decoder != recipe.decoder:
        return None, "packed again: an earlier version of byol decoded the images in another way"
    if before != recipe:
        return None, "packed again: data.stored_px, data.channels, data.geometry or data.alpha differ"
    return packed, "found"


def _count_back(packed: Packed, source: Source) -> int:
    """Of the images that the disk did not give when the pack was made, those that it gives now.

    Raises:
        DataError: the disk still fails, and what is unreadable is not to be left out.
    """
    names = {name for name, reason in read_bad(packed.folder) if is_worth_a_try(reason)}
    found = 0
    for index in range(len(source)) if names else ():
        if source.names(index) not in names:
            continue
        item = source.item(index)
        try:
            peek(item)
            found += 1
        except DiskError as error:
            if not skips_unreadable(source):
                raise error.locate(path_of(item) or source.names(index)) from None
        except DataError as error:
            found += not is_worth_a_try(str(error))  # it is there, and what is wrong with it is another thing
    return found


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / "pack.json"
    try:
        content = json.loads(path.read_bytes())
        version = content["format"]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; {folder} is not a pack") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
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


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _report_other(partial: Path, progress: Progress | None) -> None:
    mark = read_mark(partial)
    if mark is not None and progress is not None:
        progress(mark.done, mark.num_images)


def _check_bad(folder: Path, source: Source, *, num_bad: int, max_bad: float) -> None:
    if num_bad <= max_bad * len(source) and num_bad < len(source):
        return
    if skips_unreadable(source):  # these were allowed by another key
        num_bad -= sum(is_of_the_system(reason) for _, reason in read_bad(folder))
    if num_bad > max_bad * len(source) or num_bad == len(source):
        allow = f", or allow them with data.max_bad={round_up(num_bad / len(source)):g}"
        raise DataError(
            f"{source.name}: {num_bad} of {len(source)} images cannot be read (data.max_bad is {max_bad:g}), "
            f"{describe_bad(read_bad(folder))}; {folder / BAD_FILES} lists all, mend or remove them"
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
    progress: Progress | None,
) -> None:
    """Everything that a pack holds, into the folder `partial`."""
    mark = read_mark(partial)
    write = partial_function(
        _write_at, source=source, max_bad=max_bad, num_workers=num_workers, progress=progress, partial=partial
    )
    if mark is None or mark.recipe != recipe:
        px = recipe.stored_px or _choose_px(source, recipe, most=_SAMPLE, num_workers=num_workers)
        mark = Mark(recipe, px, 0, 0, num_images=len(source), done=0, num_rows=0, num_bad=0, bad_bytes=0)
    try:
        write(mark)
    except _LargerImageError:  # looking at all first would take a third of the time of packing small images
        px = _choose_px(source, recipe, most=len(source), num_workers=num_workers)
        write(replace(mark, px=px, done=0, num_rows=0, num_bad=0, notes={}))


class _LargerImageError(Exception):
    """An image is larger than those that the stored size was chosen by."""


def _write_at(
    mark: Mark,
    *,
    source: Source,
    partial: Path,
    max_bad: float,
    num_workers: int,
    progress: Progress | None,
) -> None:
    recipe = mark.recipe
    with writing(partial):
        writer = PartialPack(partial, mark)
    try:
        with Tally(writer) as tally:
            _append_all(writer, source, recipe, tally=tally, num_workers=num_workers, progress=progress)
            _check_bad(partial, source, num_bad=writer.num_bad, max_bad=max_bad)
            with writing(partial):
                _complete(writer, source, recipe, tally=tally)
    finally:  # also when stopped: what has been read need not be read again
        with writing(partial):
            writer.close()


def _append_all(
    writer: PartialPack,
    source: Source,
    recipe: Recipe,
    *,
    tally: Tally,
    num_workers: int,
    progress: Progress | None,
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
                tally.follow()
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


def _complete(writer: PartialPack, source: Source, recipe: Recipe, *, tally: Tally) -> None:
    """The head of the images, the small arrays and `pack.json`."""
    partial = writer.folder
    places, sizes = writer.complete_images()
    num_shrunk = 0
    if recipe.geometry == "scale":  # crops are drawn on the canvas
        num_shrunk = int((sizes > writer.mark.px).any(axis=1).sum())
        sizes = np.full_like(sizes, writer.mark.px)
    names = Names.of(source.names(int(place)) for place in places)
    arrays = (sizes.astype(np.int32), places, source.labels[places], names.blob, names.offsets)
    for name, array in zip(_ARRAYS, arrays, strict=True):
        write_atomically(partial / name, partial_function(np.save, arr=array))
    statistics, images_digest = tally.finish()
    digests = {name: _digest(partial / name) for name in (*_ARRAYS, BAD_FILES)} | {
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
        "files": {
            name: {"bytes": (partial / name).stat().st_size, "blake2b": digest}
            for name, digest in digests.items()
        },
    }
    write_atomically(partial / "pack.json", json.dumps(content, indent=1).encode())
