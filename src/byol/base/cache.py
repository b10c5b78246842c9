"""Cache slow results in a folder, under a hash of everything they depend on.

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

FORMAT = 3  # increase it when any classifier changes, so that cached predictions are computed again

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
