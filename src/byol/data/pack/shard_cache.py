"""A local cache of the shards of packs in object storage, bounded in size, shared by processes."""

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from threading import Lock

from byol.base.files import is_temporary, remove_leftovers
from byol.base.locks import Holder, hold
from byol.data.pack.fetching import Store
from byol.data.pack.shards import Shard

_SUFFIX = ".npy"


class ShardCache:
    """Fetches whole shards into `folder`, under the names of their checksums.

    A file is complete and checked, or absent. A lock for each shard keeps processes from fetching it twice.
    The least recently used shards are deleted when those in the folder, and the one that is fetched, would
    exceed `limit_bytes`. A process that reads a deleted shard keeps it until it closes it.
    """

    def __init__(self, folder: Path, *, store: Store, limit_bytes: int) -> None:
        self.folder, self.store, self.limit_bytes = folder, store, limit_bytes
        self._guard, self._locks = Lock(), dict[str, Lock]()
        self._fetching: dict[str, int] = {}  # bytes of the files that this process is fetching, by name
        remove_leftovers(folder, of=lambda name: name.endswith(_SUFFIX))

    def get(self, shard: Shard, *, keep: Collection[Shard] = ()) -> Path:
        """Return the path of a shard, after fetching it if needed. `keep`: shards that must stay for it.

        Raises:
            FetchError: it cannot be fetched.
            DataError: the folder cannot be written.
        """
        path = self._path(shard)
        if self._touch(path, shard):
            return path
        with self._guard:
            lock = self._locks.setdefault(shard.blake2b, Lock())
        self.folder.mkdir(parents=True, exist_ok=True)
        with lock, hold(path.with_name(f".{shard.blake2b}.lock"), while_busy=_wait):
            if self._touch(path, shard):  # another thread or process has fetched it meanwhile
                return path
            try:
                with self._guard:
                    self._fetching[path.name] = shard.bytes
                    self._make_room(keep={shard, *keep})
                self.store.fetch(shard.path, path, num_bytes=shard.bytes, blake2b=shard.blake2b)
            finally:
                with self._guard:
                    del self._fetching[path.name]
        return path

    def drop(self, shard: Shard) -> None:
        """Delete a shard whose copy has proved to be damaged."""
        with suppress(OSError):
            self._path(shard).unlink()

    def _path(self, shard: Shard) -> Path:
        return self.folder / f"{shard.blake2b}{_SUFFIX}"

    def _touch(self, path: Path, shard: Shard) -> bool:
        """Return whether the shard is there, and note that it has been used."""
        try:
            if path.stat().st_size != shard.bytes:
                return False
            os.utime(path)
        except PermissionError:  # a cache of another user: it can be read
            return True
        except OSError:
            return False
        return True

    def _make_room(self, *, keep: Collection[Shard]) -> None:
        """Delete the least recently used shards until those that are fetched fit, as far as possible."""
        kept = {self._path(shard).name for shard in keep}
        total, found = sum(self._fetching.values()), list[tuple[float, int, Path]]()
        for path in self.folder.iterdir():
            with suppress(OSError):
                status = path.stat()
                if is_temporary(path.name):
                    # Of another process, which fetches a shard that will be about as large as these.
                    if not is_temporary(path.name, of=tuple(self._fetching)):
                        total += max(*self._fetching.values(), status.st_size)
                elif path.name.endswith(_SUFFIX) and path.name not in self._fetching:
                    total += status.st_size
                    if path.name not in kept:
                        found.append((status.st_mtime, status.st_size, path))
        for _, size, path in sorted(found):
            if total <= self.limit_bytes:
                break
            with suppress(OSError):  # Windows does not delete a file that somebody reads
                path.unlink()
                total -= size


def _wait(holder: Holder | None) -> None:
    """Wait while another process fetches the same shard."""
