"""A disk that does not give byol's own files for a while, or at all."""

import errno
import os
from pathlib import Path

import pytest

from byol.base import disk


def fail_reading(
    monkeypatch: pytest.MonkeyPatch, *, times: int, number: int = errno.EIO, name: str = ""
) -> list[Path]:
    """Make the first readings of files with this name fail; the list of all readings of them."""
    real, readings = Path.read_bytes, list[Path]()

    def read(path: Path) -> bytes:
        if name not in ("", path.name):
            return real(path)
        readings.append(path)
        if len(readings) <= times:
            raise OSError(number, os.strerror(number), str(path))
        return real(path)

    monkeypatch.setattr(disk, "PAUSES_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(Path, "read_bytes", read)
    return readings
