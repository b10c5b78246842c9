"""Cache slow results in a folder, under a hash of everything they depend on.

The folder may be deleted at any time. A file is an .npy or .npz file with a checksum of 32 bytes behind it,
which NumPy passes over. Files of earlier versions, which have none, are read as they are.
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

FORMAT = 3  # increase it when any classifier changes, so that cached predictions are computed again
_DIGEST_BYTES, _CHUNK_BYTES = 32, 2**20
_ZIP_END_BYTES, _ZIP_END = 22, b"PK\5\6"  # the last record of a zip file without a comment

Array = NDArray[np.generic]
Arrays = Mapping[str, Array]


def cache_key(*parts: str | int | float | Array | None) -> str:
    """Return a hash of values and of the contents of arrays."""
    digest = hashlib.sha256(str(FORMAT).encode())
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"\0{part.dtype} {part.shape}\0".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(f"\0{part!r}".encode())
    return digest.hexdigest()[:32]


def load_or_make(path: Path, make: Callable[[], Arrays]) -> tuple[Arrays, bool]:
    """Return the arrays in `path` (.npz) and True; if it is missing or damaged, those of `make` and False.

    If the file cannot be written, the result is not cached: that is no error.
    """
    if (cached := read_arrays(path)) is not None:
        return cached, True
    made = make()
    with suppress(CheckpointError):  # a full or a read-only disk
        write_arrays(path, made)
    return made, False


def load_or_make_array(path: Path, make: Callable[[], Array]) -> Array:
    """As `load_or_make`, with one array in an .npy file."""
    cached = _read(path)
    if isinstance(cached, np.ndarray):
        return cached
    made = make()
    with suppress(CheckpointError):
        write_atomically(path, partial(_write_sealed, partial(np.save, arr=made, allow_pickle=False)))
    return made


def read_arrays(path: Path) -> dict[str, Array] | None:
    """The arrays in an .npz file of `write_arrays`; None: it is missing or damaged."""
    cached = _read(path)
    return cached if isinstance(cached, dict) else None


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write an .npz file with a checksum.

    Raises:
        CheckpointError: it cannot be written.
    """

    def write(file: BinaryIO) -> None:
        np.savez(file, allow_pickle=False, **arrays)

    write_atomically(path, partial(_write_sealed, write))


def _read(path: Path) -> Array | dict[str, Array] | None:
    try:
        with path.open("rb") as file:
            if not (_is_sealed(file) or _is_of_an_earlier_version(file)):
                return None
            file.seek(0)
            loaded = np.load(file, allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else dict(loaded)
    except Exception:  # without a checksum anything may be damaged, and NumPy and zipfile raise anything
        return None


def _write_sealed(write: Callable[[BinaryIO], None], file: BinaryIO) -> None:
    write(file)
    digest = _digest(file, file.seek(0, os.SEEK_END))
    file.seek(0, os.SEEK_END)
    file.write(digest)


def _is_sealed(file: BinaryIO) -> bool:
    end = file.seek(0, os.SEEK_END) - _DIGEST_BYTES
    if end < 0:
        return False
    digest = _digest(file, end)
    return file.read() == digest


def _is_of_an_earlier_version(file: BinaryIO) -> bool:
    """Whether it ends where an .npy or .npz file ends."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _ZIP_END_BYTES))
    if file.read(len(_ZIP_END)) == _ZIP_END:
        return True
    file.seek(0)
    np.load(file, allow_pickle=False)
    return file.tell() == size


def _digest(file: BinaryIO, num_bytes: int) -> bytes:
    """The checksum of the first bytes; the file is left behind them."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    file.seek(0)
    for first in range(0, num_bytes, _CHUNK_BYTES):
        digest.update(file.read(min(_CHUNK_BYTES, num_bytes - first)))
    return digest.digest()
