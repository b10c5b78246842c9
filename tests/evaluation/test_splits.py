"""Which labelled images are trained and tested on; what cannot be evaluated is said in one line."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from runs import PX, configure, make_spec, write_images

from byol.errors import DataError
from byol.evaluation.splits import Splits, open_splits


def open_in(folder: Path, source: Path | str, *overrides: str, said: list[str] | None = None) -> Splits:
    """With a packs folder of its own, so that nothing is shared between tests."""
    config = configure(source, f"data.packs={folder / 'packs'}", *overrides)
    return open_splits(config, folder / "run", spec=make_spec(), say=None if said is None else said.append)


def names_of(splits: Splits, part: str) -> list[str]:
    split = getattr(splits, part)
    return [split.images.names[int(row)] for row in split.rows]


def test_every_fifth_image_of_a_class_is_held_out(tmp_path: Path) -> None:
    write_images(tmp_path / "images", num=12)
    splits = open_in(tmp_path, tmp_path / "images")
    held_out = [f"{name}/{index:03d}.png" for name in ("dark", "light", "red") for index in (4, 9)]
    assert names_of(splits, "test") == held_out
    assert len(splits.train.rows) == 30 and not set(splits.train.rows) & set(splits.test.rows)
    assert [splits.class_names[label] for label in splits.test.labels] == [n.split("/")[0] for n in held_out]
    assert splits.description == "images: every fifth image of a class is held out"
    assert splits.num_unlabelled == 0


def test_partial_labels_leave_the_other_images_out(tmp_path: Path) -> None:
    write_images(tmp_path / "images", num=8)
    lines = [f"{kind}/00{index}.png,{kind}\n" for kind in ("dark", "red") for index in range(5)]
    (tmp_path / "labels.csv").write_text("file,label\n" + "".join(lines))
    said: list[str] = []
    splits = open_in(tmp_path, tmp_path / "images", f"evaluation.labels={tmp_path / 'labels.csv'}", said=said)
    assert names_of(splits, "test") == ["dark/004.png", "red/004.png"]
    assert len(splits.train.rows) == 8 and splits.class_names == ("dark", "red")
    assert splits.num_unlabelled == 14 and said == ["left out, without a label: 14 of 24 images"]


def test_other_labels_for_the_same_images_are_taken(tmp_path: Path) -> None:
    """Also where the images were packed before, with the labels of their folders."""
    write_images(tmp_path / "images", num=5)
    assert open_in(tmp_path, tmp_path / "images").class_names == ("dark", "light", "red")
    for first, second in (("a", "b"), ("b", "c")):
        lines = [f"dark/00{i}.png,{first}\nred/00{i}.png,{second}\n" for i in range(5)]
        (tmp_path / "labels.csv").write_text("file,label\n" + "".join(lines))
        splits = open_in(tmp_path, tmp_path / "images", f"evaluation.labels={tmp_path / 'labels.csv'}")
        assert splits.class_names == (first, second)
        assert [splits.class_names[label] for label in splits.test.labels] == [first, second]


def test_a_test_folder_of_its_own(tmp_path: Path) -> None:
    """Its class numbers differ from those of the training folder; the names decide."""
    write_images(tmp_path / "train", num=3)
    write_images(tmp_path / "test", num=2, classes=("light", "red"))
    splits = open_in(tmp_path, tmp_path / "train", f"evaluation.test={tmp_path / 'test'}")
    assert len(splits.train.rows) == 9 and len(splits.test.rows) == 4
    assert [splits.class_names[label] for label in splits.test.labels] == ["light"] * 2 + ["red"] * 2
    assert splits.description == "train / test"


def test_other_training_images_than_those_of_the_run(tmp_path: Path) -> None:
    write_images(tmp_path / "images", num=2)
    write_images(tmp_path / "labelled", num=5, classes=("dark", "light"))
    splits = open_in(tmp_path, tmp_path / "images", f"evaluation.train={tmp_path / 'labelled'}")
    assert splits.class_names == ("dark", "light") and len(splits.test.rows) == 2


def test_a_set_with_splits_is_tested_on_its_test_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from byol.data import motifs

    monkeypatch.setattr(motifs, "NUM_TRAIN", 40)
    monkeypatch.setattr(motifs, "NUM_TEST", 20)
    splits = open_in(tmp_path, "motifs")
    assert (len(splits.train.rows), len(splits.test.rows)) == (40, 20)
    assert splits.description == "motifs: its training and test split"
    assert splits.train.images.stored_px == PX


# ---- What cannot be evaluated


def check_refused(folder: Path, source: Path, *overrides: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_in(folder, source, *overrides)
    assert "\n" not in str(caught.value)


def test_no_labels_at_all(tmp_path: Path) -> None:
    write_images(tmp_path / "images", num=4, classes=("dark",))
    for path in (tmp_path / "images" / "dark").iterdir():
        shutil.move(path, tmp_path / "images" / path.name)
    (tmp_path / "images" / "dark").rmdir()
    check_refused(
        tmp_path,
        tmp_path / "images",
        message="no image has a label: give them by --labels FILE.csv with the columns file,label",
    )
    write_images(tmp_path / "train", num=2)
    check_refused(
        tmp_path,
        tmp_path / "train",
        f"evaluation.test={tmp_path / 'images'}",
        message="images: no test image has a label; give them by --labels FILE.csv",
    )


def test_one_class_and_too_few_images(tmp_path: Path) -> None:
    write_images(tmp_path / "images", num=4)
    labels = tmp_path / "labels.csv"
    override = f"evaluation.labels={labels}"
    labels.write_text("file,label\n" + "".join(f"dark/00{i}.png,dim\n" for i in range(4)))
    check_refused(tmp_path, tmp_path / "images", override, message=r"one class only \('dim', 4 images\)")
    labels.write_text("file,label\ndark/000.png,a\nred/000.png,b\n")
    check_refused(tmp_path, tmp_path / "images", override, message="one image of each of 2 classes")
    labels.unlink()
    check_refused(tmp_path, tmp_path / "images", message="images: no class has 5 labelled images")


def test_test_classes_must_be_known_from_training(tmp_path: Path) -> None:
    write_images(tmp_path / "train", num=2)
    write_images(tmp_path / "test", num=1, classes=("dark", "blue"))
    check_refused(
        tmp_path,
        tmp_path / "train",
        f"evaluation.test={tmp_path / 'test'}",
        message="test: no training image is of the test class 'blue'; give both splits the same class names",
    )


def test_rows_are_indices_and_labels_whole_numbers(tmp_path: Path) -> None:
    write_images(tmp_path / "images", num=5)
    splits = open_in(tmp_path, tmp_path / "images")
    for split in (splits.train, splits.test):
        assert split.rows.dtype == split.labels.dtype == np.int64
        np.testing.assert_array_equal(split.images.labels[split.rows], split.labels)
