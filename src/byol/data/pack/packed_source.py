"""Images that are packed already, as a source: to look at some of them before training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from byol.base.files import is_address
from byol.config import DataConfig
from byol.data.decode.formats import ImageArray
from byol.data.decode.index import Source
from byol.data.pack.packed import Packed
from byol.data.pack.remote import open_remote
from byol.data.sources.opening import open_source
from byol.method.order import WINDOW


@dataclass(frozen=True, eq=False)
class PackedSource:
    """The images of a pack, each as it was packed."""

    name: str
    packed: Packed
    notes: tuple[str, ...] = ()
    file_bytes: float = 0.0

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def labels(self) -> Int64[np.ndarray, " n"]:
        return self.packed.labels

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.packed.class_names

    def names(self, index: int) -> str:
        return self.packed.names[index]

    def item(self, index: int) -> ImageArray:
        image: ImageArray = self.packed.read(np.array([index]))[0]
        return image

    def fingerprint(self) -> str:
        return self.packed.fingerprint

    def sample(self, most: int) -> Sequence[int]:
        """Return at most `most` images at equal distances in a few shards, so that few are fetched."""
        shards = self.packed.shards
        ends = np.cumsum([shard.num_images for shard in shards])
        chosen = np.unique(np.linspace(0, len(shards) - 1, min(WINDOW, len(shards))).astype(np.int64))
        rows = np.concatenate(
            [np.arange(ends[shard] - shards[shard].num_images, ends[shard]) for shard in chosen.tolist()]
        )
        found: list[int] = rows[:: -(-len(rows) // most)].tolist()
        return found


def open_any_source(data: DataConfig, packs: Path) -> Source:
    """Same as `open_source`, also for the address of a pack; `packs` is the folder with its cache.

    Raises:
        DataError: as `open_source` and `open_remote`.
        ConfigError: as `open_remote`.
    """
    if not is_address(data.source):
        return open_source(data)
    return PackedSource(data.source, open_remote(data.source, packs, cache_gb=data.cache_gb))
