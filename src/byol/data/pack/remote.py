"""A pack in object storage: its index is fetched when it is opened, its shards when they are needed."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from math import ceil
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from jaxtyping import Int64, Real, UInt32

from byol.base.errors import ConfigError, DataError
from byol.base.files import write_atomically
from byol.base.locks import hold
from byol.base.records import take_checksum
from byol.config import DataConfig, write_override
from byol.data.pack.fetching import FetchError, Store
from byol.data.pack.packed import (
    FILES,
    SHARDED_FORMAT,
    Packed,
    digest_file,
    make_rows,
    read_index,
    read_json,
    read_shards,
)
from byol.data.pack.rows import RowFile
from byol.data.pack.shard_cache import ShardCache
from byol.data.pack.shards import Shard, ShardedRows
from byol.method.order import WINDOW

_MOST_JSON_BYTES = 2**27  # of pack.json: a million shards have 100 MB
_FETCHERS = 4  # shards that are fetched at once


class RemoteRows(ShardedRows):
    """The images of shards in object storage; a shard is fetched into the cache when it is first read."""

    def __init__(self, rows: ShardedRows, cache: ShardCache) -> None:
        super().__init__(
            rows.shards,
            shape=rows.shape,
            dtype=rows.dtype,
            checksums=rows.checksums,
            locate=self._fetch,
            most_open=2 * WINDOW,
        )
        self._cache, self._numbers = cache, {shard: number for number, shard in enumerate(rows.shards)}
        self._ahead: tuple[int, ...] = ()
        self._futures: dict[int, Future[Path]] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._futures_lock = Lock()

    def prefetch(self, numbers: Sequence[int]) -> None:
        """Fetch these shards in threads, in this order; reads wait for them. They stay in the cache."""
        if tuple(numbers) == self._ahead:
            return
        with self._futures_lock:
            self._ahead = tuple(numbers)
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="byol-fetch")
            keep = [self.shards[number] for number in numbers]
            self._futures = {
                number: self._futures.get(number)
                or self._pool.submit(self._cache.get, self.shards[number], keep=keep)
                for number in numbers
            }

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """End the threads of `prefetch`. While the block runs, reads that have to fetch fail at once."""
        with self._futures_lock:
            pool, self._pool, self._futures, self._ahead = self._pool, None, {}, ()
        self._cache.store.stop()
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
        try:
            yield
        finally:
            self._cache.store.resume()

    def _fetch(self, shard: Shard) -> Path:
        number = self._numbers[shard]
        with self._futures_lock:
            future = self._futures.get(number)
            keep = [self.shards[one] for one in self._ahead]
        if future is not None:
            try:
                future.result()
            except (FetchError, CancelledError):  # it was tried several times; the next read tries again
                with self._futures_lock:
                    self._futures.pop(number, None)
                raise
        return self._cache.get(shard, keep=keep)

    def _open(self, number: int) -> RowFile:
        try:
            return super()._open(number)
        except FetchError:
            raise
        except DataError:  # the copy in the cache is damaged, or another process has just deleted it
            self._cache.drop(self.shards[number])
            return super()._open(number)

    def _read_shard(
        self,
        number: int,
        rows: Int64[np.ndarray, " some"],
        *,
        out: Real[np.ndarray, "batch px px channels"],
        places: Int64[np.ndarray, " some"],
    ) -> None:
        file = self.file(number)
        try:
            file.read(rows, out=out, places=places)
        except DataError:  # the copy in the cache has been damaged since it was fetched
            self._cache.drop(self.shards[number])
            self.forget(number)
            self.file(number).read(rows, out=out, places=places)


def open_remote(address: str, packs: Path, *, cache_gb: float) -> Packed:
    """Open the pack of many shards at an address; its index and shards are cached below `packs`/remote.

    Raises:
        FetchError: a file cannot be fetched.
        DataError: there is no pack of shards, or it is damaged, or the cache cannot be written.
        ConfigError: the cache is too small for two windows of shards.
    """
    store = Store(address)
    content = store.read("pack.json", most=_MOST_JSON_BYTES, check=_parse)
    try:
        if content["format"] != SHARDED_FORMAT:
            raise DataError(
                f"{address}: is a pack of one file; pack the images in parts (byol pack IMAGES/ --part K/N), "
                "join them and copy that folder there"
            )
        if not set(content["files"]) <= set(FILES):
            raise ValueError("pack.json names other files")
        limit_bytes = _check_limit(read_shards(content), address, cache_gb=cache_gb)
        folder = packs / "remote" / hashlib.blake2b(store.address.encode(), digest_size=8).hexdigest()
        _fetch_index(store, folder, content)
        cache = ShardCache(packs / "remote" / "shards", store=store, limit_bytes=limit_bytes)

        def open_rows(checksums: UInt32[np.ndarray, " n"] | None) -> RemoteRows:
            return RemoteRows(make_rows(content, checksums, locate=_nowhere), cache)

        packed = read_index(folder, content, open_rows=open_rows)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{address}: is no pack of byol, or a damaged one ({type(error).__name__}); copy the folder of "
            "the joined pack there again"
        ) from None
    return replace(packed, is_remote=True)


def check_settings(packed: Packed, config: DataConfig, *, stored_px: int | None) -> None:
    """Refuse settings with which the pack in object storage was not made.

    Raises:
        ConfigError: a setting differs.
    """
    made = _settings(read_json(packed.folder))
    wanted = {key: getattr(config, key.removeprefix("data.")) for key in made} | {"data.stored_px": stored_px}
    for key, value in made.items():
        if wanted[key] != value and not (key == "data.stored_px" and wanted[key] is None):
            raise ConfigError(
                f"{key}: is {write_override(key, wanted[key]).partition('=')[2]}, but the images of "
                f"{config.source} were packed with {write_override(key, value)}; set that"
            )


def settings_of(address: str) -> dict[str, Any]:
    """Return the settings with which the pack at an address was made, by their keys.

    `data.stored_px` is None if the images were smaller than byol would have stored them.

    Raises:
        FetchError: its `pack.json` cannot be fetched.
        DataError: it is damaged.
    """
    content = Store(address).read("pack.json", most=_MOST_JSON_BYTES, check=_parse)
    try:
        made = _settings(content)
        is_small = content["recipe"]["stored_px"] is None and (
            made["data.stored_px"] < int(content["recipe"]["limit_px"])
        )
        return made | ({"data.stored_px": None} if is_small else {})
    except (LookupError, TypeError, ValueError) as error:
        raise DataError(f"{address}: is no pack of shards of byol ({type(error).__name__})") from None


def _settings(content: dict[str, Any]) -> dict[str, Any]:
    recipe = content["recipe"]
    values = {f"data.{name}": recipe[name] for name in ("channels", "geometry", "alpha", "clip")}
    return values | {"data.stored_px": int(content["shape"][0])}


def _parse(data: bytes) -> dict[str, Any]:
    content = json.loads(data)
    if not isinstance(content, dict):
        raise ValueError("it is no record")
    take_checksum(content)
    return content


def _check_limit(shards: Sequence[Shard], address: str, *, cache_gb: float) -> int:
    """Return the largest size of the cache in bytes; refuse one that does not hold two windows."""
    needed = sum(sorted((shard.bytes for shard in shards), reverse=True)[: 2 * WINDOW])
    limit = int(cache_gb * 1e9)
    if limit < needed:
        least = ceil(needed / 1e7) / 100
        raise ConfigError(
            f"data.cache_gb: {cache_gb:g} GB do not hold {2 * WINDOW} shards of {address}; set "
            f"data.cache_gb={least:g} or more"
        )
    return limit


def _fetch_index(store: Store, folder: Path, content: dict[str, Any]) -> None:
    """Write the files beside the shards into `folder`, those that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    with hold(folder / ".lock", while_busy=lambda holder: None):
        for name, entry in content["files"].items():
            path, size = folder / name, int(entry["bytes"])
            if path.is_file() and path.stat().st_size == size and digest_file(path) == entry["blake2b"]:
                continue
            store.fetch(name, path, num_bytes=size, blake2b=str(entry["blake2b"]))
        write_atomically(folder / "pack.json", json.dumps(content, indent=1).encode())


def _nowhere(shard: Shard) -> Path:
    raise AssertionError(f"{shard.name} is not local")
