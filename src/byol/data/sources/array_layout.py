"""Which axis of a set's arrays is the channels, where `data.layout` is auto: judged by all their shapes.

A shape alone looks like channels last, like channels first, or like neither (`arrays.look_of`). The images of
a set have one layout, and nearly always one number of channels, so their shapes resolve each other:

    some look like last, some like first    refused
    some look like one, others like neither    the others follow if they have as many channels as the first
    all look like neither                   the layout in which all have the same number of channels
    what they look like gives several numbers of channels, other than 1, 3 and 4, and the other layout one
                                            refused

What stays open is refused with the setting that says it. New images for an encoder have the layout of its
training, unless only the other one gives them the encoder's channels.
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from byol.base.errors import DataError
from byol.data.decode.arrays import COLOURS, find_shape, look_of
from byol.data.decode.formats import Layout
from byol.data.decode.index import Names

Shape = tuple[int, ...]

ARRAY_SUFFIXES = (".npy", ".npz")
_READERS, _CHUNK = 8, 128  # threads, since a network disk answers late; files of a task
_MOST_KEPT = 8  # sets whose layout is remembered
_IN_WORDS: dict[Layout, str] = {"hwc": "channels last", "chw": "channels first"}
_CHOICE = "data.layout=hwc (channels last) or data.layout=chw (channels first)"
_UNCLEAR = "has the shape {}, whose channel axis is ambiguous"


@dataclass(frozen=True)
class TrainedLayout:
    """The arrays that an encoder was trained on."""

    layout: Layout  # hwc or chw
    channels: int | None  # of a file; None: some of them were chosen, so how many there are is not known

    def may_be_image(self, shape: Shape) -> bool:
        """Whether one array of three axes is an image for the encoder, not a stack of grey ones."""
        return self.channels is None or self.channels in (shape[0], shape[-1])


_Key = tuple[str, str, TrainedLayout | None]
_resolved: dict[_Key, Layout] = {}  # by folder and fingerprint: a command opens a source repeatedly


def resolve_layout_of_files(
    folder: Path, files: Names, *, fingerprint: str, trained: TrainedLayout | None = None
) -> Layout:
    """The layout of the arrays among these files; auto: none has three axes. Only their headers are read.

    `fingerprint` changes when the files do. Files that cannot be read are passed by: whoever reads them says
    so.

    Raises:
        DataError: as `resolve_layout`.
    """
    if b".np" not in files.blob.tobytes().lower():
        return "auto"
    key = os.fspath(folder), fingerprint, trained
    if key not in _resolved:
        found = resolve_layout(_read_shapes(folder, files), trained)
        while len(_resolved) >= _MOST_KEPT:
            del _resolved[next(iter(_resolved))]
        _resolved[key] = found
    return _resolved[key]


def _read_shapes(folder: Path, files: Names) -> Iterator[tuple[str, Shape]]:
    paths = (os.path.join(folder, name) for name in files if name.lower().endswith(ARRAY_SUFFIXES))
    with ThreadPoolExecutor(_READERS) as pool:
        while block := list(islice(paths, _READERS * _CHUNK)):  # all paths at once would be 100 MB a million
            chunks = [block[first : first + _CHUNK] for first in range(0, len(block), _CHUNK)]
            for found in pool.map(_find_shapes, chunks):
                yield from found


def _find_shapes(paths: list[str]) -> list[tuple[str, Shape]]:
    return [(path, shape) for path in paths if (shape := find_shape(path)) is not None]


def resolve_layout(shapes: Iterable[tuple[str, Shape]], trained: TrainedLayout | None = None) -> Layout:
    """The layout of arrays with these names and shapes, by the rules above; auto: none has three axes.

    Raises:
        DataError: they contradict each other, or do not tell; the line names one or two of them, their shapes
            and the setting. Not where a `trained` layout is known.
    """
    names: dict[Shape, str] = {}  # of the first array of each shape
    for name, shape in shapes:
        if len(shape) == 3:
            names.setdefault(shape, name)
    if trained is None or not names:
        return _judge(names)
    for layout in (trained.layout, *(one for one in _IN_WORDS if one != trained.layout)):
        if trained.channels is None or {_count(shape, layout) for shape in names} == {trained.channels}:
            return layout
    return trained.layout  # the channels do not fit, which is said where they are read


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
    """The layout that some shapes look like, if it fits all."""
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
    """The layout in which all have the same number of channels, if it is one of the two."""
    fitting: list[Layout] = [
        layout for layout in _IN_WORDS if len({_count(shape, layout) for shape in unclear}) == 1
    ]
    if len(fitting) == 1:
        return fitting[0]
    raise DataError(f"{names[unclear[0]]}: {_UNCLEAR.format(unclear[0])}; set {_CHOICE}")


def _count(shape: Shape, layout: Layout) -> int:
    """Channels of an array in this layout."""
    return shape[-1] if layout == "hwc" else shape[0]
