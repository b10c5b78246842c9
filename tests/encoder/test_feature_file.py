"""Each format reads back to the same names and the same float32 values."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

from byol.base.errors import CheckpointError, ConfigError
from byol.encoder.feature_file import check_feature_path, write_features

NAMES = ["b/ä 1.png", 'a,"2".png', "c.png"]
FEATURES = np.array([[0.1, 1e-30, -7.0], [np.pi, 3.4e38, 0.0], [1 / 3, -0.0, 2.0]], dtype=np.float32)


def test_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    write_features(tmp_path / "f.parquet", NAMES, features=FEATURES)
    table = parquet.read_table(tmp_path / "f.parquet")
    assert table.column_names == ["file", "f000", "f001", "f002"]
    assert table["file"].to_pylist() == NAMES
    read = np.stack([table[name].to_numpy() for name in table.column_names[1:]], axis=1)
    np.testing.assert_array_equal(read, FEATURES)
    assert read.dtype == np.float32


def test_npz(tmp_path: Path) -> None:
    write_features(tmp_path / "f.npz", NAMES, features=FEATURES)
    with np.load(tmp_path / "f.npz", allow_pickle=False) as content:
        assert content["names"].tolist() == NAMES
        np.testing.assert_array_equal(content["features"], FEATURES)


def test_csv(tmp_path: Path) -> None:
    write_features(tmp_path / "f.CSV", NAMES, features=FEATURES)
    with (tmp_path / "f.CSV").open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["file", "f000", "f001", "f002"]
    assert [row[0] for row in rows] == NAMES
    np.testing.assert_array_equal(np.array([row[1:] for row in rows]).astype(np.float32), FEATURES)


def test_columns_sort_as_they_count(tmp_path: Path) -> None:
    write_features(tmp_path / "f.csv", ["a"], features=np.zeros((1, 1001), dtype=np.float32))
    head = (tmp_path / "f.csv").read_text().splitlines()[0].split(",")
    assert head[1] == "f0000" and head[-1] == "f1000" and sorted(head[1:]) == head[1:]


def test_names_that_are_not_utf8_are_kept_where_they_can_be(tmp_path: Path) -> None:
    name = b"\xff.png".decode("utf-8", "surrogateescape")
    one = np.zeros((1, 2), dtype=np.float32)
    write_features(tmp_path / "f.csv", [name], features=one)
    assert b"\xff.png" in (tmp_path / "f.csv").read_bytes()
    parquet = pytest.importorskip("pyarrow.parquet")
    write_features(tmp_path / "f.parquet", [name], features=one)
    assert parquet.read_table(tmp_path / "f.parquet")["file"].to_pylist() == ["\ufffd.png"]


def test_refusals_come_before_the_work_and_damage_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"f\.xlsx: features are written as \.parquet, \.npz, \.csv"):
        check_feature_path(tmp_path / "f.xlsx")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match="needs pyarrow: pip install pyarrow"):
        write_features(tmp_path / "f.parquet", NAMES, features=FEATURES)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_features(tmp_path / "file" / "f.csv", NAMES, features=FEATURES)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
