"""Write features and the names of their images to one file for other programs: .parquet, .csv, .npz, .h5ad.

docs/features.md shows how R, pandas, polars, DuckDB, scanpy and others open these files.
"""

import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from byol.base.console import Count
from byol.base.errors import ConfigError
from byol.base.files import check_writable, write_atomically
from byol.base.packages import install_command
from byol.encoder.known import Known

Format = Literal["parquet", "csv", "npz", "h5ad"]
Columns = Literal["wide", "vector"]

FORMATS: tuple[Format, ...] = ("parquet", "npz", "csv", "h5ad")

GROUP_VALUES = 2**23  # values per row group of a Parquet file: 32 MB
_MOST_GROUP_ROWS = 122_880  # as in the row groups of DuckDB, each of which is read by one thread
_LIBRARIES = {"parquet": ("pyarrow.parquet", "pyarrow"), "h5ad": ("anndata", "anndata")}

Features = Float32[np.ndarray, "image feature"]


@runtime_checkable
class FeatureRows(Protocol):
    """Features of all images, in memory or on disk; a slice of them is an array."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice) -> Features: ...


@dataclass(frozen=True)
class About:
    """Further columns about the images, and a description of the encoder."""

    known: Sequence[Known] = ()  # columns of labels and metadata
    paths: Callable[[slice], list[str]] | None = None  # absolute paths of rows; None: images are no files
    encoder: Mapping[str, str | int] = field(default_factory=dict)


def choose_format(path: Path, given: str | None = None, *, columns: Columns = "wide") -> Format:
    """Return the format of a file of features: `given`, or that of the suffix.

    Raises:
        ConfigError: the format is unknown, or a library for it is missing.
        CheckpointError: the file cannot be written.
    """
    name = (path.suffix.removeprefix(".") if given is None else given).lower()
    found = next((one for one in FORMATS if one == name), None)
    if found is None:
        raise ConfigError(
            f"{path}: byol writes features as {', '.join(f'.{one}' for one in FORMATS)}; use one of these "
            "suffixes, or one of these formats with --format"
        )
    if columns == "vector" and found != "parquet":
        raise ConfigError(f"{path}: --columns vector needs .parquet; a .{found} file has no columns of lists")
    if found in _LIBRARIES:
        module, package = _LIBRARIES[found]
        try:
            __import__(module)
        except ImportError:
            raise ConfigError(
                f"{path}: .{found} needs {package}: {install_command(package)}, or write .csv"
            ) from None
    check_writable(path)
    return found


def write_prototypes(path: Path, names: Sequence[str], *, sizes: Sequence[int]) -> None:
    """Write a CSV file `file,images`: one image for each cluster, and the number of images in the cluster.

    Raises:
        CheckpointError: the file cannot be written.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerows([("file", "images"), *zip(names, sizes, strict=True)])
    write_atomically(path, text.getvalue().encode(errors="surrogateescape"))


def write_features(
    path: Path,
    names: Sequence[str],
    *,
    features: FeatureRows,
    file_format: str | None = None,
    columns: Columns = "wide",
    about: About | None = None,
    progress: Count | None = None,
) -> None:
    """Write names and features in their order, atomically.

        parquet, csv     columns `file`, labels and metadata, `f000`, `f001`, ...
        parquet, vector  columns `file`, `filepath`, labels and metadata, `embedding` (a list of float32)
        npz              arrays `names` (text) and `features` (image, feature)
        h5ad             AnnData: features in X; `file`, labels and metadata in obs

    Values keep all their digits. Names and features are read in chunks, so memory does not grow with their
    number, except for the names in h5ad. `progress` is called with (rows written, rows in total).

    Raises:
        ConfigError: see `choose_format`.
        CheckpointError: the file cannot be written.
    """
    assert len(names) == len(features)
    chosen = choose_format(path, file_format, columns=columns)
    table = _Table(names, features, about or About(), progress)
    match chosen:
        case "parquet":
            write_atomically(path, lambda file: _write_parquet(file, table, columns))
        case "npz":
            write_atomically(path, lambda file: _write_npz(file, table))
        case "csv":
            write_atomically(path, lambda file: _write_csv(file, table))
        case "h5ad":
            write_atomically(path, lambda file: _write_h5ad(file, table))


def feature_columns(num_features: int) -> list[str]:
    """Return `f000`, `f001`, ...: names whose alphabetical order is the order of the features."""
    digits = max(3, len(str(num_features - 1)))
    return [f"f{index:0{digits}}" for index in range(num_features)]


@dataclass(frozen=True)
class _Table:
    names: Sequence[str]
    features: FeatureRows
    about: About
    progress: Count | None

    @property
    def group_rows(self) -> int:
        """Number of rows that are read and written at once."""
        return max(1, min(_MOST_GROUP_ROWS, GROUP_VALUES // max(1, self.features.shape[1])))

    def groups(self) -> Iterator[tuple[slice, Features]]:
        for first in range(0, len(self.names), self.group_rows):
            rows = slice(first, min(first + self.group_rows, len(self.names)))
            yield rows, self.features[rows]
            if self.progress is not None:
                self.progress(rows.stop, len(self.names))


def _as_utf8(names: Sequence[str]) -> list[str]:
    """Make names valid UTF-8 for Parquet and HDF5: replace bytes that are not."""
    return [name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for name in names]


# ---- Parquet


def _write_parquet(file: BinaryIO, table: _Table, columns: Columns) -> None:
    import pyarrow
    import pyarrow.parquet

    known = table.about.known
    fields = [pyarrow.field("file", pyarrow.string())]
    paths = table.about.paths if columns == "vector" else None
    if paths is not None:
        fields.append(pyarrow.field("filepath", pyarrow.string()))
    fields += [pyarrow.field(column.name, _arrow_type(column)) for column in known]
    num_features = table.features.shape[1]
    if columns == "vector":
        fields.append(pyarrow.field("embedding", pyarrow.list_(pyarrow.float32(), num_features)))
    else:
        fields += [pyarrow.field(name, pyarrow.float32()) for name in feature_columns(num_features)]
    schema = pyarrow.schema(fields, metadata={"byol": json.dumps(dict(table.about.encoder))})
    repeated = [column.name for column in known if column.numbers is None]
    with pyarrow.parquet.ParquetWriter(file, schema, use_dictionary=repeated) as writer:
        for rows, features in table.groups():
            values: list[Any] = [pyarrow.array(_as_utf8(table.names[rows]), pyarrow.string())]
            if paths is not None:
                values.append(pyarrow.array(_as_utf8(paths(rows)), pyarrow.string()))
            values += [_arrow_column(column, rows) for column in known]
            if columns == "vector":
                flat = pyarrow.array(np.ascontiguousarray(features).reshape(-1))
                values.append(pyarrow.FixedSizeListArray.from_arrays(flat, num_features))
            else:
                values += map(pyarrow.array, np.ascontiguousarray(features.T))
            writer.write_table(pyarrow.table(values, schema=schema), row_group_size=table.group_rows)


def _arrow_type(column: Known) -> Any:
    import pyarrow

    if column.numbers is None:
        return pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    return pyarrow.int64() if column.is_whole else pyarrow.float64()


def _arrow_column(column: Known, rows: slice) -> Any:
    import pyarrow

    codes = column.codes[rows]
    if column.numbers is None:
        indices = pyarrow.array(codes.astype(np.int32), mask=codes < 0)
        return pyarrow.DictionaryArray.from_arrays(indices, _as_utf8(column.words))
    return pyarrow.array(column.numbers[codes], mask=codes < 0, type=_arrow_type(column))


# ---- CSV and NumPy


def _write_csv(file: BinaryIO, table: _Table) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
    writer = csv.writer(text, lineterminator="\n")
    known = table.about.known
    writer.writerow(["file", *(column.name for column in known), *feature_columns(table.features.shape[1])])
    for rows, features in table.groups():
        texts = [column.texts(rows) for column in known]
        for name, row, *cells in zip(table.names[rows], features, *texts, strict=True):
            # `str` of a float32 gives the shortest digits that are read back as the same value.
            writer.writerow([name, *cells, *map(str, row)])
    text.flush()
    text.detach()


def _write_npz(file: BinaryIO, table: _Table) -> None:
    longest = max(map(len, table.names), default=0)
    dtype = np.dtype(f"<U{max(1, longest)}")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("names.npy", "w", force_zip64=True) as member:
            _write_head(member, dtype, (len(table.names),))
            for first in range(0, len(table.names), table.group_rows):
                names = table.names[first : first + table.group_rows]
                member.write(np.array(names, dtype=dtype).tobytes())
        with archive.open("features.npy", "w", force_zip64=True) as member:
            _write_head(member, np.dtype("<f4"), table.features.shape)
            for _, features in table.groups():
                member.write(np.ascontiguousarray(features, dtype="<f4").tobytes())


def _write_head(file: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Write the header of an .npy file."""
    np.lib.format.write_array_header_1_0(file, {"descr": dtype.str, "fortran_order": False, "shape": shape})


# ---- AnnData


def _write_h5ad(file: BinaryIO, table: _Table) -> None:
    """Write each element in the on-disk format of AnnData, so that X is never completely in memory."""
    import anndata
    import h5py
    import pandas

    names = _as_utf8(table.names[:])
    known = {column.name: column.to_pandas() for column in table.about.known}
    index = anndata.utils.make_index_unique(pandas.Index(names, dtype=object))
    obs = pandas.DataFrame({"file": names, **known}, index=index)
    var = pandas.DataFrame(index=feature_columns(table.features.shape[1]))
    with h5py.File(file, "w") as store:
        store.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        elements = {"obs": obs, "var": var, "uns": {"byol": dict(table.about.encoder)}}
        empty = {name: dict[str, Any]() for name in ("layers", "obsm", "obsp", "varm", "varp")}
        for name, value in (elements | empty).items():
            anndata.io.write_elem(store, name, value)
        matrix = store.create_dataset("X", shape=table.features.shape, dtype="float32")
        matrix.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        for rows, features in table.groups():
            matrix[rows] = features
