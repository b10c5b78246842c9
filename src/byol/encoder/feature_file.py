"""Features with the names of their images in one file, for other programs: .parquet, .npz or .csv."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Float32

from byol.base.errors import ConfigError
from byol.base.files import check_writable, write_atomically
from byol.base.packages import install_command

SUFFIXES = (".parquet", ".npz", ".csv")

Features = Float32[np.ndarray, "image feature"]


def check_feature_path(path: Path) -> None:
    """Refuse a file that `write_features` could not write, before the features are made.

    Raises:
        ConfigError: another suffix, or .parquet without pyarrow.
        CheckpointError: the place cannot be written.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"{path}: features are written as {', '.join(SUFFIXES)}; choose one of these suffixes"
        )
    if path.suffix.lower() == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise ConfigError(
                f"{path}: .parquet needs pyarrow: {install_command('pyarrow')}, or write .npz or .csv"
            ) from None
    check_writable(path)


def write_prototypes(path: Path, names: Sequence[str], *, sizes: Sequence[int]) -> None:
    """Write a CSV file `file,images`: images that stand for clusters, and how many images each stands for.

    Raises:
        CheckpointError: the file cannot be written.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerows([("file", "images"), *zip(names, sizes, strict=True)])
    write_atomically(path, text.getvalue().encode(errors="surrogateescape"))


def write_features(path: Path, names: Sequence[str], *, features: Features) -> None:
    """Write names and features in their order, whole or not at all; the suffix chooses the format.

        .parquet, .csv   columns `file`, `f000`, `f001`, ...
        .npz             arrays `names` (text) and `features` (image, feature)

    Values keep all their digits.

    Raises:
        ConfigError: see `check_feature_path`.
        CheckpointError: the file cannot be written.
    """
    assert len(names) == len(features)
    check_feature_path(path)

    def write(file: BinaryIO) -> None:
        match path.suffix.lower():
            case ".parquet":
                _write_parquet(file, names, features)
            case ".npz":
                np.savez(file, names=np.array(names, dtype=np.str_), features=features)
            case _:
                _write_csv(file, names, features)

    write_atomically(path, write)


def _columns(num_features: int) -> list[str]:
    digits = max(3, len(str(num_features - 1)))
    return [f"f{index:0{digits}}" for index in range(num_features)]


def _write_parquet(file: BinaryIO, names: Sequence[str], features: Features) -> None:
    import pyarrow
    import pyarrow.parquet

    # Parquet's text is UTF-8: a file name that is not gets replacement characters.
    texts = [name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for name in names]
    columns = [pyarrow.array(texts, type=pyarrow.string()), *np.ascontiguousarray(features.T)]
    table = pyarrow.table(columns, names=["file", *_columns(features.shape[1])])
    pyarrow.parquet.write_table(table, file)


def _write_csv(file: BinaryIO, names: Sequence[str], features: Features) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", *_columns(features.shape[1])])
    for name, row in zip(names, features, strict=True):
        writer.writerow(
            [name, *row.astype(np.str_)]
        )  # the shortest digits that read back to the same float32
    text.flush()
    text.detach()
