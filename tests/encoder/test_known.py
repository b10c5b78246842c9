"""Columns that stand beside features: the images' own labels, and those of a table."""

from pathlib import Path

import numpy as np
import pytest

from byol.base.errors import ConfigError, DataError
from byol.config import load_config
from byol.data.sources.opening import open_source
from byol.encoder.known import Known, find_known
from runs import write_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", num=2, classes=("dark", "red"))
    return tmp_path / "images"


def find(folder: Path, table: str | None, *, labels: bool = True) -> list[Known]:
    path = folder.parent / "table.csv"
    if table is not None:
        path.write_text(table)
    images = open_source(load_config(None, [], preset="default").data, source=str(folder))
    metadata = None if table is None else path
    return find_known(images, labels=labels, metadata=metadata, taken=["file", "f000"], folder=folder)[0]


def test_labels_are_those_of_the_folders(folder: Path) -> None:
    (label,) = find(folder, None)
    assert label.name == "label" and label.texts(slice(None)) == ["dark", "dark", "red", "red"]
    assert label.pick([3, 0]).texts(slice(None)) == ["red", "dark"]
    assert find(folder, None, labels=False) == []


def test_a_table_adds_columns_in_their_order(folder: Path) -> None:
    table = "file,plate,dose,n\nred/000.png,p1,0.5,1\ndark/001.png,p2,10,\n"
    label, plate, dose, count = find(folder, table)
    assert [column.name for column in (label, plate, dose, count)] == ["label", "plate", "dose", "n"]
    assert plate.texts(slice(None)) == ["", "p2", "p1", ""] and plate.numbers is None
    assert dose.texts(slice(None)) == ["", "10", "0.5", ""] and not dose.is_whole
    assert dose.numbers is not None and dose.numbers[dose.codes[1:3]].tolist() == [10.0, 0.5]
    assert count.is_whole and count.numbers is not None and count.numbers.tolist() == [1]


def test_a_label_in_the_table_takes_the_place_of_the_folders(folder: Path) -> None:
    (label,) = find(folder, "file,label\nred/000.png,cell\n")
    assert label.texts(slice(None)) == ["", "", "cell", ""]


@pytest.mark.parametrize(
    "words",
    [
        ("1", "x"),
        ("nan", "1.5"),
        ("1e999", "2"),
        (),
        ("007", "008"),
        ("12345678901234567", "12345678901234568"),
    ],
)
def test_words_that_are_no_numbers(words: tuple[str, ...]) -> None:
    """Identifiers among them: a number would lose leading zeros or the last digits."""
    assert Known("a", np.array([-1]), words).numbers is None


@pytest.mark.parametrize("words", [("1", "-2"), ("0.5", "10"), ("1e-3", "0")])
def test_words_that_are_numbers(words: tuple[str, ...]) -> None:
    numbers = Known("a", np.array([-1]), words).numbers
    assert numbers is not None and numbers.tolist() == [float(word) for word in words]


def test_refusals(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"table\.csv: .*f000.*rename"):
        find(folder, "file,f000\nred/000.png,1\n")
    with pytest.raises(DataError, match="none of its 1 files is among the images"):
        find(folder, "file,plate\nblue.tif,1\n")
