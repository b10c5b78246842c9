"""Rows of an array file: the same as its map's, from several threads; one line when the file is damaged."""

import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from byol.base.errors import DataError
from byol.data.pack.rows import RowFile

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_rows_are_those_of_the_map(tmp_path: Path, dtype: type) -> None:
    images = RNG.integers(0, 250, (40, 5, 5, 3)).astype(dtype)
    np.save(tmp_path / "x.npy", images)
    file = RowFile(tmp_path / "x.npy")
    rows = RNG.permutation(40)[:17]
    np.testing.assert_array_equal(file.map, images)
    np.testing.assert_array_equal(file.read(rows), images[rows])
    assert file.read(rows).dtype == dtype and file.read(rows[:0]).shape == (0, 5, 5, 3)
    out = np.zeros((17, 5, 5, 3), dtype=dtype)
    assert file.read(rows, out=out) is out
    np.testing.assert_array_equal(out, images[rows])
    with ThreadPoolExecutor(4) as pool:
        for found, row in zip(
            pool.map(lambda row: file.read(np.array([row])), range(40)), images, strict=True
        ):
            np.testing.assert_array_equal(found[0], row)


def test_a_file_that_is_replaced_keeps_its_rows_and_one_that_is_cut_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.full((6, 4, 4, 1), 7, dtype=np.uint8))
    file = RowFile(path)
    path.rename(tmp_path / "old.npy")
    np.save(path, np.zeros((6, 4, 4, 1), dtype=np.uint8))
    assert (file.read(np.arange(6)) == 7).all()
    with (tmp_path / "old.npy").open("r+b") as stream:
        stream.truncate(128 + 3 * 16 + 5)
    assert (file.read(np.arange(3)) == 7).all()
    with pytest.raises(DataError, match=r"x\.npy: is cut short at image 3; delete its folder to pack again"):
        file.read(np.arange(6))


def test_a_damaged_row_is_found_when_it_is_first_read(tmp_path: Path) -> None:
    images = RNG.integers(0, 250, (6, 4, 4, 1)).astype(np.uint8)
    np.save(tmp_path / "x.npy", images)
    checksums = np.array([zlib.crc32(image.tobytes()) for image in images], dtype=np.uint32)
    with (tmp_path / "x.npy").open("r+b") as stream:
        stream.seek(128 + 3 * 16 + 5)
        stream.write(b"\xff")
    file = RowFile(tmp_path / "x.npy", checksums=checksums)
    np.testing.assert_array_equal(file.read(np.array([5, 2])), images[[5, 2]])
    with pytest.raises(DataError, match=r"x\.npy: is damaged at image 3 .*delete .* to pack again"):
        file.read(np.arange(6))
    with pytest.raises(ValueError, match="6 rows, 5 checksums"):
        RowFile(tmp_path / "x.npy", checksums=checksums[:5])
