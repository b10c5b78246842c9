"""Results that took long are cached in a folder, under a hash of everything they depend on.

The folder may be deleted at any time.
"""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from byol.base.files import write_atomically

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

    Raises:
        CheckpointError: the folder cannot be written.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as loaded:
            return dict(loaded), True
    except (OSError, ValueError, EOFError, BadZipFile):
        made = make()
    write_atomically(path, partial(_save, made))
    return made, False


def _save(arrays: Arrays, file: BinaryIO) -> None:
    np.savez(file, allow_pickle=False, **arrays)
