"""Find the channel axis of the arrays of a set if `data.layout` is auto, from the shapes of all arrays.

A single shape looks like channels last, like channels first, or is ambiguous (`arrays.look_of`). All images
of a set have one layout, and nearly always one number of channels, so the shapes are judged together:

    some look like channels last, some like channels first: error
    some look like one layout, others are ambiguous: that layout, if the others then have as many channels
    all are ambiguous: the layout in which all have the same number of channels
    the layout that they look like gives several numbers of channels, other than 1, 3 and 4, and the other
        layout gives the same number for all: error

If no rule applies, the error names the setting to choose. For an encoder, new images have the layout of its
training, unless only the other layout gives them the number of channels of the encoder.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from byol.base.errors import DataError
from byol.data.decode.arrays import COLOURS, find_shape, look_of
from byol.data.decode.formats import Layout, Member
from byol.data.decode.index import Names

Shape = tuple[int, ...]

ARRAY_SUFFIXES = (".npy", ".npz")
_READERS, _CHUNK = 8, 128  # threads, because network disks have a high latency; files per task
_MOST_KEPT = 8  # sets whose layout is remembered
_IN_WORDS: dict[Layout, str] = {"hwc": "channels last", "chw": "channels first"}
_CHOICE = "data.layout=hwc (channels last) or data.layout=chw (channels first)"
_UNCLEAR = "has the shape {}, whose channel axis is ambiguous"


@dataclass(frozen=True)
class TrainedLayout:
    """The layout and channels of the arrays that an encoder was trained on."""

    layout: Layout  # hwc or chw
    channels: int | None  # in a file; None: unknown, because training used only some of them

    def may_be_image(self, shape: Shape) -> bool:
        """Return whether an array with three axes can be one image for the encoder, not several grey ones."""
        return self.channels is None or self.channels in (shape[0], shape[-1])


_Key = tuple[str, str, TrainedLayout | None]
_resolved: dict[_Key, Layout] = {}  # by folder and fingerprint: a command opens a source repeatedly


def resolve_layout_of_files(
    folder: Path,
    files: Names,
    *,
    fingerprint: str,
    trained: TrainedLayout | None = None,
    item: Callable[[int], Member] | None = None,
) -> Layout:
    """Return the layout of the arrays among these files; auto: none has three axes. Reads only the headers.

    `fingerprint` changes when the files change; `item` gives files that are in tar files.
    Files that cannot be read are ignored here: reading the images reports them.

    Raises:
        DataError: same as `resolve_layout`.
    """
    if b".np" not in files.blob.tobytes().lower():
        return "auto"
    key = os.fspath(folder), fingerprint, trained
    if key not in _resolved:
        places = (place for place, name in enumerate(files) if name.lower().endswith(ARRAY_SUFFIXES))
        paths: Iterator[str | Member]
        paths = (os.path.join(folder, files[place]) if item is None else item(place) for place in places)
        found = resolve_layout(_read_shapes(paths), trained)
        while len(_resolved) >= _MOST_KEPT:
            del _resolved[next(iter(_resolved))]
        _resolved[key] = found
    return _resolved[key]


def _read_shapes(paths: Iterator[str | Member]) -> Iterator[tuple[str, Shape]]:
    with ThreadPoolExecutor(_READERS) as pool:
        while block := list(islice(paths, _READERS * _CHUNK)):  # a million paths at once would take 100 MB
            chunks = [block[first : first + _CHUNK] for first in range(0, len(block), _CHUNK)]
            for found in pool.map(_find_shapes, chunks):
                yield from found


def _find_shapes(paths: list[str | Member]) -> list[tuple[str, Shape]]:
    return [(str(path), shape) for path in paths if (shape := find_shape(path)) is not None]


def resolve_layout(shapes: Iterable[tuple[str, Shape]], trained: TrainedLayout | None = None) -> Layout:
    """Return the layout of arrays with these names and shapes, by the rules above; auto: none has three axes.

    Raises:
        DataError: the shapes contradict each other or are ambiguous; the message names one or two arrays,
            their shapes and the setting. Never raised if `trained` is given.
    """
    names: dict[Shape, str] = {}  # name of the first array of each shape
    for name, shape in shapes:
        if len(shape) == 3:
            names.setdefault(shape, name)
    if trained is None or not names:
        return _judge(names)
    for layout in (trained.layout, *(one for one in _IN_WORDS if one != trained.layout)):
        if trained.channels is None or {_count(shape, layout) for shape in names} == {trained.channels}:
            return layout
    return trained.layout  # the number of channels does not fit; reading the images reports it


def _judge(names: dict[Shape, str]) -> Layout:
    last, first, unclear = (
        [shape for shape in names if look_of(shape) == one] for one in ("hwc", "chw", None)
    )
    if last and first:
        raise DataError(
            f"{names[last[0]]} has the shape {last[0]}, which looks like channels last, but "
            f"{names[first[0]]} has {first[0]}, which looks like channels first; set {_CHOICE} if all files "
            "are alike, otherwise convert those of one kind"
        )
    if last or first:
        return _follow("hwc" if last else "chw", last or first, unclear, names)
    return _compare(unclear, names) if unclear else "auto"


def _follow(layout: Layout, clear: list[Shape], unclear: list[Shape], names: dict[Shape, str]) -> Layout:
    """Return the layout that the `clear` shapes look like, if it fits all shapes."""
    numbers = {_count(shape, layout) for shape in clear}
    for shape in unclear:
        if _count(shape, layout) not in numbers:
            raise DataError(
                f"{names[shape]}: {_UNCLEAR.format(shape)}; with {_IN_WORDS[layout]}, as in "
                f"{names[clear[0]]} ({clear[0]}), it would have another number of channels; set {_CHOICE}"
            )
    other: Layout = "chw" if layout == "hwc" else "hwc"
    if (
        len(numbers) > 1
        and not numbers.issubset(COLOURS)
        and len({_count(shape, other) for shape in names}) == 1
    ):
        a, b = clear[0], next(shape for shape in clear if _count(shape, layout) != _count(clear[0], layout))
        raise DataError(
            f"{names[a]} has the shape {a}, {names[b]} has {b}: these look like {_IN_WORDS[layout]} with "
            f"different numbers of channels, but with {_IN_WORDS[other]} all have {_count(a, other)}; set "
            f"{_CHOICE}"
        )
    return layout


def _compare(unclear: list[Shape], names: dict[Shape, str]) -> Layout:
    """Return the layout in which all have the same number of channels, if only one of the two does that."""
    fitting: list[Layout] = [
        layout for layout in _IN_WORDS if len({_count(shape, layout) for shape in unclear}) == 1
    ]
    if len(fitting) == 1:
        return fitting[0]
    raise DataError(f"{names[unclear[0]]}: {_UNCLEAR.format(unclear[0])}; set {_CHOICE}")


def _count(shape: Shape, layout: Layout) -> int:
    """Return the number of channels of an array in this layout."""
    return shape[-1] if layout == "hwc" else shape[0]
