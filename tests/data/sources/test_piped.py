"""Lists of files on standard input: however they are separated, names are taken as they are."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from byol.base.errors import DataError
from byol.data.decode.image import read_square
from byol.data.sources import piped
from byol.data.sources.piped import open_piped


def names_of(content: bytes) -> list[str]:
    return list(open_piped(io.BytesIO(content).read).files)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"a.png\nb c.png\n", ["a.png", "b c.png"]),
        (b"a.png\r\n\r\nb.png", ["a.png", "b.png"]),
        (b"\xef\xbb\xbfa.png\n", ["a.png"]),
        (b"./a\nb.png\0/c.png\0", ["./a\nb.png", "/c.png"]),
        (b"\xff.png\n", ["\udcff.png"]),
        ("größe.png\n".encode(), ["größe.png"]),
    ],
)
def test_names(content: bytes, names: list[str]) -> None:
    assert names_of(content) == names


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    content = "".join(f"folder {index}/é{index}.png\n" for index in range(50)).encode()
    names = names_of(content)
    monkeypatch.setattr(piped, "BLOCK_BYTES", 7)
    assert names_of(content) == names and len(names) == 50
    assert names_of(content.replace(b"\n", b"\0")) == names


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\0"])
def test_nothing(content: bytes) -> None:
    with pytest.raises(DataError, match="standard input names no file; write one per line"):
        open_piped(io.BytesIO(content).read)


def test_files_are_found_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (4, 4), (1, 2, 3)).save("sub/a.png")
    absolute = tmp_path / "sub" / "a.png"
    source = open_piped(io.BytesIO(f"sub/a.png\n{absolute}\nmissing.png\n".encode()).read)
    for index in (0, 1):
        assert np.array_equal(read_square(source.item(index), px=4, channels=None).pixels[0, 0], [1, 2, 3])
    assert source.stamps[:, 0].tolist() == [os.path.getsize("sub/a.png")] * 2 + [-1]
    assert (source.labels == -1).all() and source.names(2) == "missing.png"
    with pytest.raises(DataError, match="no such file"):
        read_square(source.item(2), px=4, channels=None)
    before = source.fingerprint()
    Image.new("RGB", (5, 5)).save("sub/a.png")
    assert (
        open_piped(io.BytesIO(f"sub/a.png\n{absolute}\nmissing.png\n".encode()).read).fingerprint() != before
    )
