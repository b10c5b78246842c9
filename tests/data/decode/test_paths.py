"""Lists and tables that another system has written: backslashes and drives."""

import ntpath
import os
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
from PIL import Image

from byol.base.errors import DataError
from byol.data.labels.label_file import match_columns, match_labels
from byol.data.sources.opening import open_list

NAMES = ["sub/img.png", "sub/deep/other.png", "top.png"]
posix_only = pytest.mark.skipif(os.sep == "\\", reason="a backslash always separates on Windows")


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def as_windows(name: str, folder: str = "") -> str:
    """The name as Windows has it, below `folder`."""
    return str(PureWindowsPath(folder, *name.split("/")))


@pytest.mark.parametrize(
    "folder", ["", "C:\\data", "C:/data", "\\\\server\\share\\set", "..\\images", ".\\x"]
)
def test_tables_from_windows_fit(tmp_path: Path, folder: str) -> None:
    lines = [f"{as_windows(name, folder)},{label}" for name, label in zip(NAMES, "abc", strict=True)]
    table = write(tmp_path / "labels.csv", "file,label", *lines)
    numbers, class_names = match_labels(table, NAMES)
    assert [class_names[number] for number in numbers] == ["a", "b", "c"]
    assert match_columns(table, NAMES, max_unmatched=0.0)[0]["label"][1] == ("a", "b", "c")


@pytest.mark.parametrize(
    "written",
    ["sub\\img.png", "sub\\.\\img.png", "sub\\deep\\..\\img.png", "sub/deep\\..\\img.png", "sub\\\\img.png"],
)
def test_names_are_compared_as_windows_compares_them(tmp_path: Path, written: str) -> None:
    assert ntpath.normpath(written).replace("\\", "/") == "sub/img.png"
    table = write(tmp_path / "labels.csv", "file,label", f"{written},a")
    assert match_labels(table, ["sub/img.png"])[0].tolist() == [0]


def make_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(path)


def test_lists_from_windows_find_their_files(tmp_path: Path) -> None:
    for name in NAMES:
        make_image(tmp_path / name)
    text = write(tmp_path / "list.txt", *map(as_windows, NAMES))
    table = write(tmp_path / "list.csv", "file,label", *(f"{as_windows(name)},{name[:1]}" for name in NAMES))
    for source in (open_list(text, skip_unreadable=False), open_list(table, skip_unreadable=False)):
        assert [source.names(index) for index in range(3)] == NAMES
        assert (source.stamps[:, 0] > 0).all() and all(os.path.isfile(source.item(at)) for at in range(3))


def test_a_drive_that_is_not_here_stays_a_missing_file(tmp_path: Path) -> None:
    source = open_list(write(tmp_path / "list.txt", "Q:\\data\\img.png"), skip_unreadable=False)
    assert source.names(0) in ("Q:/data/img.png", "Q:\\data\\img.png") and source.stamps[0, 0] == -1


@posix_only
def test_elsewhere_a_backslash_may_be_part_of_a_name(tmp_path: Path) -> None:
    for name in ("a\\b.png", "a/b.png"):
        make_image(tmp_path / name)
    source = open_list(write(tmp_path / "list.txt", "a\\b.png", "a/b.png"), skip_unreadable=False)
    assert [source.names(0), source.names(1)] == ["a\\b.png", "a/b.png"]
    table = write(tmp_path / "labels.csv", "file,label", "a\\b.png,one", "a/b.png,two")
    with pytest.raises(
        DataError, match=r"labels\.csv: .*a/b\.png"
    ):  # of another system one name could be both
        match_labels(table, ["a/b.png", "a\\b.png"])
    deep = write(tmp_path / "deep.csv", "file,label", "/data/a\\b.png,one")
    assert match_labels(deep, ["a\\b.png"])[0].tolist() == [0]
