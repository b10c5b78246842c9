"""Results that took long are cached in a folder, under a hash of everything they depend on.

The folder may be deleted at any time.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from byol.base.errors import CheckpointError
from byol.base.files import write_atomically

_DIGEST_BYTES, _CHUNK_BYTES = 32, 2**20
FORMAT = 3  # a change of any classifier needs another: what it predicted before is then made anew

Array = NDArray[np.generic]
Arrays = Mapping[str, Array]


def cache_key(*parts: str | int | float | Array | None) -> str:
    """A hash of values and of the contents of arrays."""
    digest = hashlib.sha256(str(FORMAT).encode())
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"\0{part.dtype} {part.shape}\0".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(f"\0{part!r}".encode())
    return digest.hexdigest()[:32]


def load_or_make(path: Path, make: Callable[[], Arrays]) -> tuple[Arrays, bool]:
    """What `path` (.npz) holds and True, or if it is missing or damaged what `make` makes, and False.

    What cannot be written is not cached: that is no error.
    """
    with suppress(OSError, ValueError):
        return _load(path), True
    made = make()
    with suppress(CheckpointError):  # a full or a read-only disk: it is made again next time
        write_atomically(path, partial(_save, made))
    return made, False


def _load(path: Path) -> Arrays:
    """Raises OSError or ValueError: the file is missing or damaged."""
    with path.open("rb") as file:
        end = file.seek(-_DIGEST_BYTES, os.SEEK_END)
        expected = file.read()
        file.seek(0)
        if _digest(file, end) != expected:
            raise ValueError("its checksum differs")
        file.seek(0)
        with np.load(file, allow_pickle=False) as loaded:
            return dict(loaded)


def _save(arrays: Arrays, file: BinaryIO) -> None:
    """The arrays as .npz, then a checksum of that: .npz does not check all of its own."""
    np.savez(file, allow_pickle=False, **arrays)
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    digest = _digest(file, end)
    file.seek(end)
    file.write(digest)


def _digest(file: BinaryIO, num_bytes: int) -> bytes:
    """The checksum of so many bytes, from where the file stands."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for first in range(0, num_bytes, _CHUNK_BYTES):
        digest.update(file.read(min(_CHUNK_BYTES, num_bytes - first)))
    return digest.digest()
