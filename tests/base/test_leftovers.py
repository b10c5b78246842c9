"""Temporary files that killed processes have left: removed, unless somebody is writing them."""

import sys
from pathlib import Path
from typing import BinaryIO

import pytest

from byol.base.files import remove_leftovers, write_atomically


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")
def test_only_what_a_living_process_writes_stays(tmp_path: Path) -> None:
    def count() -> int:
        return sum(path.name.startswith(".a.npy.") for path in tmp_path.iterdir())

    def write(file: BinaryIO) -> None:
        file.write(b"half")
        file.flush()
        assert count() == 3
        remove_leftovers(tmp_path, of=lambda name: name == "a.npy")
        assert count() == 2 and not (tmp_path / ".a.npy.abcd1234").exists()

    for name in (".a.npy.abcd1234", ".b.npy.abcd1234", ".a.npy.longer_than_that"):
        (tmp_path / name).write_bytes(b"left")
    write_atomically(tmp_path / "a.npy", write)
    assert (tmp_path / "a.npy").read_bytes() == b"half"
    assert (tmp_path / ".b.npy.abcd1234").exists() and (tmp_path / ".a.npy.longer_than_that").exists()
    remove_leftovers(tmp_path / "missing", of=lambda name: True)
