"""Arrays in files as memory maps, or in memory where the file system has none (FUSE, some network ones)."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from byol.base.errors import DataError
from byol.data.decode.disk import describe


def load_array(path: Path) -> tuple[NDArray[Any], str | None]:
    """The array in an `.npy` file as a map; or, where that is refused, in memory, and the refusal in words.

    Raises:
        OSError, ValueError, EOFError: the file cannot be read, or holds no array.
        DataError: it has no map and does not fit into memory.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False), None
    except OSError as refusal:  # of the map, or of the file itself: reading tells
        return _read(path, refusal), f"this file system has no memory maps ({describe(refusal)})"


def _read(path: Path, refusal: OSError) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except MemoryError:
        raise DataError(
            f"{path}: cannot be memory-mapped ({describe(refusal)}) and does not fit into memory; "
            "copy it to a local disk"
        ) from None
    return array
