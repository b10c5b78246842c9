"""Each format reads back to the same names and the same float32 values, in the programs that people use."""

import csv
import sys
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from byol.base.errors import CheckpointError, ConfigError
from byol.encoder import feature_file
from byol.encoder.feature_file import About, choose_format, feature_columns, write_features
from byol.encoder.known import Known

NAMES = ["b/ä 1.png", 'a,"2".png', "c.png"]
FEATURES = np.array([[0.1, 1e-30, -7.0], [np.pi, 3.4e38, 0.0], [1 / 3, -0.0, 2.0]], dtype=np.float32)
COLUMNS = ["f000", "f001", "f002"]
KNOWN = (
    Known("label", np.array([1, -1, 0]), ("dark", "größe, 2")),
    Known("dose", np.array([0, 1, -1]), ("0.5", "10")),
    Known("well", np.array([-1, 0, 0]), ("7",)),
)
ABOUT = About(
    known=KNOWN,
    paths=lambda rows: [f"/data/{name}" for name in NAMES[rows]],
    encoder={"network": "resnet10t", "steps": 5},
)


def import_quietly(name: str) -> ModuleType:
    """A library of others, which may warn of its own dependencies; without it the test is skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: ModuleType = pytest.importorskip(name)
        return found


def write(path: Path, **options: object) -> Path:
    write_features(path, NAMES, features=FEATURES, **options)  # type: ignore[arg-type]
    return path


# ---- As the libraries that write them see them


def test_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(write(tmp_path / "f.parquet"))
    assert table.column_names == ["file", *COLUMNS]
    assert table["file"].to_pylist() == NAMES
    read = np.stack([table[name].to_numpy() for name in table.column_names[1:]], axis=1)
    np.testing.assert_array_equal(read, FEATURES)
    assert read.dtype == np.float32


def test_npz(tmp_path: Path) -> None:
    with np.load(write(tmp_path / "f.npz"), allow_pickle=False) as content:
        assert content["names"].tolist() == NAMES
        np.testing.assert_array_equal(content["features"], FEATURES)
        assert content["features"].dtype == np.float32


def test_csv(tmp_path: Path) -> None:
    with write(tmp_path / "f.CSV").open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["file", *COLUMNS]
    assert [row[0] for row in rows] == NAMES
    np.testing.assert_array_equal(np.array([row[1:] for row in rows]).astype(np.float32), FEATURES)


def test_no_rows(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for suffix in ("parquet", "csv", "npz"):
        write_features(tmp_path / f"f.{suffix}", [], features=FEATURES[:0])
    assert parquet.read_table(tmp_path / "f.parquet").shape == (0, 4)
    with np.load(tmp_path / "f.npz", allow_pickle=False) as content:
        assert content["features"].shape == (0, 3)


def test_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many rows are written in several groups, whichever format; each is told."""
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(feature_file, "GROUP_VALUES", 30)
    names = [f"{index:03d}.png" for index in range(25)]
    features = np.random.default_rng(0).normal(size=(25, 3)).astype(np.float32)
    for suffix in ("parquet", "csv", "npz"):
        told: dict[int, int] = {}
        write_features(tmp_path / f"f.{suffix}", names, features=features, progress=told.__setitem__)
        assert told == {10: 25, 20: 25, 25: 25}
    file = parquet.ParquetFile(tmp_path / "f.parquet")
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [10, 10, 5]
    assert file.read(["file"])["file"].to_pylist() == names
    with np.load(tmp_path / "f.npz", allow_pickle=False) as content:
        assert content["names"].tolist() == names
        np.testing.assert_array_equal(content["features"], features)


def test_columns_sort_as_they_count() -> None:
    names = feature_columns(1001)
    assert (names[0], names[-1]) == ("f0000", "f1000") and sorted(names) == names
    assert feature_columns(3) == COLUMNS


def test_names_that_are_not_utf8_are_kept_where_they_can_be(tmp_path: Path) -> None:
    name = b"\xff.png".decode("utf-8", "surrogateescape")
    one = np.zeros((1, 2), dtype=np.float32)
    write_features(tmp_path / "f.csv", [name], features=one)
    assert b"\xff.png" in (tmp_path / "f.csv").read_bytes()
    parquet = pytest.importorskip("pyarrow.parquet")
    write_features(tmp_path / "f.parquet", [name], features=one)
    assert parquet.read_table(tmp_path / "f.parquet")["file"].to_pylist() == ["\ufffd.png"]


# ---- As other programs see them


def check_frame(columns: dict[str, list[object]]) -> None:
    """A table with what is known beside the features, whoever has read it."""
    assert list(columns) == ["file", "label", "dose", "well", *COLUMNS]
    assert columns["file"] == NAMES
    assert columns["label"] == ["größe, 2", None, "dark"]
    assert columns["dose"] == [0.5, 10.0, None] and columns["well"] == [None, 7, 7]
    features = np.array([columns[name] for name in COLUMNS], dtype=np.float32).T
    np.testing.assert_array_equal(features, FEATURES)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_pandas(tmp_path: Path, suffix: str) -> None:
    pandas = import_quietly("pandas")
    path = write(tmp_path / f"f.{suffix}", about=ABOUT)
    read = pandas.read_parquet if suffix == "parquet" else pandas.read_csv
    frame = read(path)
    if suffix == "parquet":
        assert set(frame[COLUMNS].dtypes) == {np.dtype("float32")}
        assert str(frame["label"].dtype) == "category" and frame["dose"].dtype == np.float64
    check_frame(frame.astype(object).where(frame.notna(), None).to_dict("list"))


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_polars(tmp_path: Path, suffix: str) -> None:
    polars = import_quietly("polars")
    path = write(tmp_path / f"f.{suffix}", about=ABOUT)
    read = polars.read_parquet if suffix == "parquet" else polars.read_csv
    frame = read(path)
    if suffix == "parquet":
        assert {str(frame.schema[name]) for name in COLUMNS} == {"Float32"}
        assert polars.scan_parquet(path).select("f001").collect()["f001"].to_numpy().dtype == np.float32
    check_frame(frame.to_dict(as_series=False))


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_duckdb(tmp_path: Path, suffix: str) -> None:
    duckdb = import_quietly("duckdb")
    path = write(tmp_path / f"f.{suffix}", about=ABOUT)
    with duckdb.connect() as connection:
        found = connection.execute(f"select * from '{path}'")
        names = [column[0] for column in found.description]
        check_frame(dict(zip(names, map(list, zip(*found.fetchall(), strict=True)), strict=True)))


def test_vectors(tmp_path: Path) -> None:
    """One column of lists, and absolute paths: what FiftyOne and embedding-atlas ask for."""
    pandas, polars, duckdb = map(import_quietly, ("pandas", "polars", "duckdb"))
    path = write(tmp_path / "f.parquet", columns="vector", about=ABOUT)
    frame = pandas.read_parquet(path)
    assert list(frame) == ["file", "filepath", "label", "dose", "well", "embedding"]
    assert frame["filepath"].tolist() == [f"/data/{name}" for name in NAMES]
    np.testing.assert_array_equal(np.stack(frame["embedding"]), FEATURES)
    read = polars.read_parquet(path)
    np.testing.assert_array_equal(read["embedding"].to_numpy(), FEATURES)
    query = f"select array_cosine_similarity(embedding::float[3], embedding::float[3]) from '{path}'"
    with duckdb.connect() as connection:
        assert [row[0] for row in connection.execute(query).fetchall()] == pytest.approx([1.0] * 3)
    write(tmp_path / "arrays.parquet", columns="vector", about=About(known=KNOWN[:1]))
    assert list(pandas.read_parquet(tmp_path / "arrays.parquet")) == ["file", "label", "embedding"]


@pytest.mark.filterwarnings("ignore")  # those of AnnData's own dependencies
def test_anndata(tmp_path: Path) -> None:
    anndata = import_quietly("anndata")
    found = anndata.read_h5ad(write(tmp_path / "f.h5ad", about=ABOUT))
    assert found.X.dtype == np.float32 and found.var_names.tolist() == COLUMNS
    np.testing.assert_array_equal(found.X, FEATURES)
    assert found.obs_names.tolist() == found.obs["file"].tolist() == NAMES
    assert found.obs["label"].tolist()[::2] == ["größe, 2", "dark"] and found.obs["label"].isna().sum() == 1
    assert found.obs["dose"].tolist()[:2] == [0.5, 10.0] and np.isnan(found.obs["dose"].iloc[2])
    assert found.obs["well"].tolist()[1:] == [7, 7] and found.obs["well"].isna().tolist() == [
        True,
        False,
        False,
    ]
    assert found.uns["byol"]["network"] == "resnet10t" and found.uns["byol"]["steps"] == 5
    subset = found[found.obs["label"] == "dark"].copy()  # what scanpy does with it
    subset.write_h5ad(tmp_path / "subset.h5ad")
    assert anndata.read_h5ad(tmp_path / "subset.h5ad").shape == (1, 3)
    backed = anndata.read_h5ad(tmp_path / "f.h5ad", backed="r")
    np.testing.assert_array_equal(backed.X[1:2], FEATURES[1:2])
    backed.file.close()


@pytest.mark.filterwarnings("ignore")
def test_names_in_anndata_are_made_unique(tmp_path: Path) -> None:
    anndata = import_quietly("anndata")
    write_features(tmp_path / "f.h5ad", ["a", "a", "b"], features=FEATURES)
    found = anndata.read_h5ad(tmp_path / "f.h5ad")
    assert found.obs["file"].tolist() == ["a", "a", "b"] and found.obs_names.is_unique


def test_what_made_the_features_is_in_the_file(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    found = parquet.read_schema(write(tmp_path / "f.parquet", about=ABOUT)).metadata[b"byol"]
    assert b'"network": "resnet10t"' in found


# ---- Refusals


def test_the_format_is_the_suffix_or_what_is_asked_for(tmp_path: Path) -> None:
    assert choose_format(tmp_path / "f.CSV") == "csv"
    assert choose_format(tmp_path / "f.out", "npz") == "npz"
    assert choose_format(tmp_path / "f.csv", "npz") == "npz"
    with pytest.raises(ConfigError, match=r"f\.csv: --columns vector needs \.parquet"):
        choose_format(tmp_path / "f.csv", columns="vector")


@pytest.mark.parametrize(
    ("suffix", "module", "package"),
    [("parquet", "pyarrow.parquet", "pyarrow"), ("h5ad", "anndata", "anndata")],
)
def test_refusals_come_before_the_work_and_damage_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, module: str, package: str
) -> None:
    with pytest.raises(ConfigError, match=r"f\.xlsx: .*\.parquet, \.npz, \.csv, \.h5ad.*--format"):
        choose_format(tmp_path / "f.xlsx")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=f"needs {package}: pip install {package}"):
        write(tmp_path / f"f.{suffix}")
    (tmp_path / "file").write_text("kept")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write(tmp_path / "file" / "f.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
