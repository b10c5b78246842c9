"""Files are written whole or not at all."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from byol.errors import CheckpointError


def write_atomically(path: Path, content: bytes | Callable[[BinaryIO], None]) -> None:
    """Write `path` whole or leave it as it was: temporary name in the same folder, sync, rename.

    `content` is the bytes, or a function that writes them to an open file.

    Raises:
        CheckpointError: the folder cannot be written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    content(file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be written ({reason_of(error)}); free space or choose another place"
        ) from None


def reason_of(error: OSError) -> str:
    """Why a file cannot be written, in words."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "a file is where a folder must be"
    return error.strerror or str(error)
