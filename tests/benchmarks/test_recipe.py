"""The bench of accuracy per minute: which images it may see, its rows, and its picture."""

import csv
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
import recipe

from runs import write_images

ROW = recipe.Row(
    commit="abc", change="default", set="cells", seed=0, passes=640, minutes=5.0, logistic=50.0, knn=40.0,
    labels5=20.0, labels50=30.0, rank=99.0, whitened_knn=45.0,
)  # fmt: skip


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["recipe.py", *map(str, arguments)])
    recipe.main()


def pack_archive(folder: Path, name: str, *, num: int) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    write_images(folder / "images", num=num)
    with tarfile.open(folder / name, "w:gz") as file:
        for images in sorted((folder / "images").iterdir()):
            file.add(images, arcname=images.name)


def list_places(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("dark/*.png"))


def test_the_test_part_is_never_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack_archive(tmp_path, "plankton/train.tar.gz", num=11)
    (tmp_path / "sets").mkdir()
    call(monkeypatch, "prepare", "plankton", tmp_path, tmp_path / "sets")
    folder = tmp_path / "sets" / "plankton"
    assert {path.name for path in folder.iterdir()} == {"train", "validation"}
    # 000, 005 and 010 are the test part. Of the others every fifth is held out.
    assert list_places(folder / "validation") == ["001.png", "007.png"]
    assert list_places(folder / "train") == [f"{place:03d}.png" for place in (2, 3, 4, 6, 8, 9)]
    assert [path.name for path in (tmp_path / "sets").iterdir()] == ["plankton"]


def test_a_set_with_a_test_part_of_its_own_is_used_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_archive(tmp_path, "cifar10/train.tar.gz", num=6)
    (tmp_path / "sets").mkdir()
    call(monkeypatch, "prepare", "cifar10", tmp_path, tmp_path / "sets")
    folder = tmp_path / "sets" / "cifar10"
    assert list_places(folder / "validation") == ["000.png", "005.png"]
    assert list_places(folder / "train") == ["001.png", "002.png", "003.png", "004.png"]


def test_rows_are_added_below_one_heading(tmp_path: Path) -> None:
    for _ in range(2):
        recipe.append(ROW, tmp_path / "results" / "trials.csv")
    with (tmp_path / "results" / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 and rows[0] == rows[1] == {key: str(value) for key, value in vars(ROW).items()}


def test_a_change_measured_at_two_times_is_a_curve_of_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "trials.csv"
    for minutes, knn in ((5.0, 40.0), (5.0, 42.0), (15.0, 60.0)):
        recipe.append(replace(ROW, minutes=minutes, knn=knn), out)
    recipe.append(replace(ROW, change="once"), out)
    recipe.append(replace(ROW, set="plankton"), out)
    capsys.readouterr()
    call(monkeypatch, "draw", "--out", out)
    picture = (tmp_path / "cells.svg").read_text()
    labels = [text for text in ElementTree.fromstring(picture).itertext() if text.startswith("default")]
    assert labels == ["default, knn 60", "default, logistic 50"]
    assert "once" not in picture and not (tmp_path / "plankton.svg").exists()
    assert capsys.readouterr().out.splitlines() == [
        str(tmp_path / "cells.svg"),
        "plankton: no change was measured at two times, so nothing is drawn",
    ]
    # The mean of 40 and 42 and the logistic regression's 50, 50: the same picture as of the means.
    means = tmp_path / "means" / "trials.csv"
    for minutes, knn in ((5.0, 41.0), (15.0, 60.0)):
        recipe.append(replace(ROW, minutes=minutes, knn=knn), means)
    call(monkeypatch, "draw", "--out", means)
    assert (means.parent / "cells.svg").read_text() == picture


def test_a_trial_and_the_patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in this process: a trial replaces the clock."""
    import os
    import subprocess

    pack_archive(tmp_path, "plankton/train.tar.gz", num=40)
    (tmp_path / "sets").mkdir()
    call(monkeypatch, "prepare", "plankton", tmp_path, tmp_path / "sets")
    small = ["network.name=test_resnet", "data_transforms.input_shape=[16,16,3]", "trainer.batch_size=8"]
    for arguments in (
        ["trial", "plankton", str(tmp_path / "sets"), *small, "--minutes", "0.05", "--change", "small"],
        ["trial", "plankton", str(tmp_path / "sets"), *small, "--epochs", "2", "--change", "two epochs"],
        ["patches", "plankton", str(tmp_path / "sets")],
    ):
        subprocess.run(
            [sys.executable, recipe.__file__, *arguments, "--out", str(tmp_path / "trials.csv")],
            env=os.environ | {"PYTHONPATH": str(recipe.HERE.parent / "src"), "OMP_NUM_THREADS": "1"},
            check=True,
            timeout=300,
        )
    with (tmp_path / "trials.csv").open(newline="") as file:
        trial, epochs, patches = list(csv.DictReader(file))
    assert (trial["change"], patches["change"]) == ("small", "patches, 400 centroids")
    assert int(trial["passes"]) >= 8 and int(patches["passes"]) == 0
    num_images = len([path for path in (tmp_path / "sets/plankton/train").rglob("*") if path.is_file()])
    assert int(epochs["passes"]) == 2 * (num_images // 8) * 8 and float(epochs["minutes"]) > 0.0
    assert float(patches["knn"]) > 100.0 / 3.0 and float(patches["minutes"]) > 0.0
