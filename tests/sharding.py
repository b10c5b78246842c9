"""Shared by the tests of packs of many shards: pack a source in parts, and join them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from byol.base.errors import DataError
from byol.data.decode.formats import ImageArray
from byol.data.decode.index import Source
from byol.data.pack.packed import Packed
from byol.data.pack.packing import pack
from byol.data.pack.parts import Part, folder_of_parts, shard_name


@dataclass
class Images:
    """A source of arrays and of reasons why there is none."""

    items: Sequence[ImageArray | str]
    name: str = "set"
    class_names: tuple[str, ...] = ("a", "b", "c")
    file_bytes: float = 0.0
    notes: tuple[str, ...] = ()
    was_read: list[int] = field(default_factory=list)

    @property
    def labels(self) -> np.ndarray:
        return np.arange(len(self.items)) % 3

    def __len__(self) -> int:
        return len(self.items)

    def names(self, index: int) -> str:
        return f"日本/{index}\udce9.png"

    def fingerprint(self) -> str:
        return f"{len(self.items)}"

    def item(self, index: int) -> ImageArray:
        self.was_read.append(index)
        item = self.items[index]
        if isinstance(item, str):
            raise DataError(item)
        return item


def draw(num: int, *, dtype: type = np.uint8, shape: tuple[int, ...] = (9, 12, 3)) -> list[ImageArray | str]:
    rng = np.random.default_rng(num)
    return [(rng.normal(0.4, 0.1, shape) * 250).astype(dtype) for _ in range(num)]


def pack_all(source: Source, folder: Path, *, max_bad: float = 0.5, stored_px: int | None = None) -> Packed:
    return pack(
        source,
        folder=folder,
        stored_px=stored_px,
        view_px=8,
        channels=None,
        max_bad=max_bad,
        num_workers=1,
    )


def pack_part(source: Source, folder: Path, number: int, count: int, *, max_bad: float = 0.5) -> Packed:
    place = folder_of_parts(folder, count) / shard_name(number)
    return pack_all(Part(source, number, count), place, max_bad=max_bad)


def pack_in_parts(source: Source, folder: Path, count: int, *, max_bad: float = 0.5) -> Packed:
    for number in range(1, count + 1):
        pack_part(source, folder, number, count, max_bad=max_bad)
    return pack_all(source, folder, max_bad=max_bad)
