"""Open arrays in files as memory maps, or read them if the file system has no maps (FUSE, some networks)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from byol.base.disk import describe
from byol.base.errors import DataError


def load_array(path: Path) -> tuple[NDArray[Any], str | None]:
    """Map the array in an `.npy` file or, if that is refused, read it; return it, and the refusal in words.

    Raises:
        OSError, ValueError, EOFError: the file cannot be read, or holds no array.
        DataError: the file cannot be mapped and does not fit into memory.
    """
    try:
        with _as_value_errors():
            return _only_array(np.load(path, mmap_mode="r", allow_pickle=False)), None
    except OSError as refusal:  # of the map, or of the file itself; then reading fails too
        return _read(path, refusal), f"this file system has no memory maps ({describe(refusal)})"


def _read(path: Path, refusal: OSError) -> NDArray[Any]:
    try:
        with _as_value_errors():
            return _only_array(np.load(path, allow_pickle=False))
    except MemoryError:
        raise DataError(
            f"{path}: cannot be memory-mapped ({describe(refusal)}) and does not fit into memory; "
            "copy it to a local disk"
        ) from None


@contextmanager
def _as_value_errors() -> Iterator[None]:
    """Turn what NumPy raises for a damaged header, which may be anything, into a ValueError."""
    try:
        yield
    except (OSError, ValueError, EOFError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(f"its header is damaged ({type(error).__name__})") from None


def _only_array(loaded: Any) -> NDArray[Any]:
    """NumPy also opens zip files (.npz), by their content."""
    if not isinstance(loaded, np.ndarray):
        loaded.close()
        raise ValueError("it holds an archive, not an array")
    return loaded
