"""Sources that become shards: a part that one of several processes or machines packs, and added images.

Part K of N holds the images from (K - 1) x n // N up to K x n // N of the n images of the source, in their
order. So the joined pack has the images in the order of the source.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from byol.base.errors import DataError
from byol.data.decode.formats import ImageArray, LaidFile, Layout
from byol.data.decode.index import Source, array_layout_of, skips_unreadable

_PARTS = r"\.([1-9][0-9]{0,4})-parts"
_MOST_NAMED = 10  # ranges of missing parts in a message


@dataclass(frozen=True, eq=False)
class _FromSource:
    """What a source that is made from another one has in common with it."""

    whole: Source

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.whole.class_names

    @property
    def notes(self) -> tuple[str, ...]:
        return self.whole.notes

    @property
    def file_bytes(self) -> float:
        return self.whole.file_bytes

    @property
    def array_layout(self) -> Layout:
        return array_layout_of(self.whole)

    @property
    def skip_unreadable(self) -> bool:
        return skips_unreadable(self.whole)


@dataclass(frozen=True, eq=False)
class Part(_FromSource):
    """Part `number` (from 1) of `count` of the source `whole`, itself a source."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if self.count > len(self.whole):
            raise DataError(
                f"part {self.number}/{self.count}: {self.whole.name} has only {len(self.whole)} images; use "
                "fewer parts"
            )

    @property
    def start(self) -> int:
        """The first image of the part, as an index in the whole source."""
        return (self.number - 1) * len(self.whole) // self.count

    def __len__(self) -> int:
        return self.number * len(self.whole) // self.count - self.start

    @property
    def name(self) -> str:
        return f"part {self.number}/{self.count} of {self.whole.name}"

    @property
    def labels(self) -> Int64[np.ndarray, " n"]:
        return self.whole.labels[self.start : self.start + len(self)]

    def names(self, index: int) -> str:
        return self.whole.names(self.start + index)

    def item(self, index: int) -> str | LaidFile | ImageArray:
        return self.whole.item(self.start + index)

    def fingerprint(self) -> str:
        text = f"{self.whole.fingerprint()} {self.number}/{self.count}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, eq=False)
class Added(_FromSource):
    """The images `whole` by which a set has grown since it was packed at `px`, itself a source."""

    px: int

    def __len__(self) -> int:
        return len(self.whole)

    @property
    def name(self) -> str:
        return f"new images of {self.whole.name}"

    @property
    def labels(self) -> Int64[np.ndarray, " n"]:
        return self.whole.labels

    def names(self, index: int) -> str:
        return self.whole.names(index)

    def item(self, index: int) -> str | LaidFile | ImageArray:
        return self.whole.item(index)

    def fingerprint(self) -> str:
        return self.whole.fingerprint()


def shard_name(number: int) -> str:
    """Return the name of the folder of a shard; `number` counts from 1."""
    return f"shard-{number:05d}"


def folder_of_parts(folder: Path, count: int) -> Path:
    """Return the folder in which the parts of the pack `folder` lie until they are joined."""
    return folder.with_name(f"{folder.name}.{count}-parts")


def find_parts(folder: Path) -> tuple[Path, int] | None:
    """Return the folder of all parts of the pack `folder`, and their number; None: nobody packs parts of it.

    Raises:
        DataError: parts are missing; the message has their numbers.
    """
    beside = folder.parent.iterdir() if folder.parent.is_dir() else ()
    names = [path.name for path in beside]
    found = [re.fullmatch(re.escape(folder.name) + _PARTS, name) for name in names]
    missing: dict[int, list[int]] = {}
    for count in sorted(int(match[1]) for match in found if match is not None):
        parts = folder_of_parts(folder, count)
        missing[count] = [
            number
            for number in range(1, count + 1)
            if not (parts / shard_name(number) / "pack.json").is_file()
        ]
        if not missing[count]:
            return parts, count
    if not missing:
        return None
    count = min(missing, key=lambda count: len(missing[count]) / count)  # the most complete
    raise DataError(
        f"{folder_of_parts(folder, count)}: parts {_in_words(missing[count])} of {count} are not packed; "
        f"pack each with byol pack ... --part K/{count} and the same settings, or delete this folder to pack "
        "all images in one go"
    )


def _in_words(numbers: list[int]) -> str:
    """Return numbers as ranges: 3, 7-9, 12."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    words = [f"{first}" if first == last else f"{first}-{last}" for first, last in ranges[:_MOST_NAMED]]
    return ", ".join(words) + (", ..." if len(ranges) > _MOST_NAMED else "")
