"""Which labelled images are trained and tested on; what cannot be evaluated is said in one line."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from byol.base.console import silent
from byol.base.errors import ConfigError, DataError
from byol.data.pack.packed import Packed
from byol.evaluation import duplicate_groups
from byol.evaluation.labelled import open_splits
from byol.evaluation.splits import Splits
from runs import PX, configure, make_spec, write_images


def open_in(folder: Path, source: Path | str, *overrides: str, said: list[str] | None = None) -> Splits:
    """With a packs folder of its own, so that nothing is shared between tests."""
    config = configure(source, f"data.packs={folder / 'packs'}", *overrides)
    return open_splits(config, folder / "run", spec=make_spec(), say=silent if said is None else said.append)


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
    assert splits.description == "images: every fifth image of each class held out for testing"
    assert splits.num_unlabelled == 0


def test_partial_labels_leave_the_other_images_out(tmp_path: Path) -> None:
    write_images(tmp_path / "images", num=8)
    lines = [f"{kind}/00{index}.png,{kind}\n" for kind in ("dark", "red") for index in range(5)]
    (tmp_path / "labels.csv").write_text("file,label\n" + "".join(lines))
    said: list[str] = []
    splits = open_in(tmp_path, tmp_path / "images", f"evaluation.labels={tmp_path / 'labels.csv'}", said=said)
    assert names_of(splits, "test") == ["dark/004.png", "red/004.png"]
    assert len(splits.train.rows) == 8 and splits.class_names == ("dark", "red")
    assert splits.num_unlabelled == 14 and said == ["14 of 24 images have no label and are left out"]


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
    from byol.data.sources import motifs

    monkeypatch.setattr(motifs, "NUM_TRAIN", 40)
    monkeypatch.setattr(motifs, "NUM_TEST", 20)
    splits = open_in(tmp_path, "motifs")
    assert (len(splits.train.rows), len(splits.test.rows)) == (40, 20)
    assert splits.description == "motifs: its own training and test images"
    assert splits.train.images.stored_px == PX


# ---- Folds


def write_table(folder: Path, lines: list[str], *, head: str = "file,label,plate") -> str:
    (folder / "labels.csv").write_text("\n".join([head, *lines]) + "\n")
    return f"evaluation.labels={folder / 'labels.csv'}"


def test_folds_predict_every_labelled_image(tmp_path: Path) -> None:
    write_images(tmp_path / "images", num=4)
    splits = open_in(tmp_path, tmp_path / "images", "evaluation.folds=4")
    assert splits.test is splits.train and (splits.protocol, splits.description) == (
        "4 folds", "images: 4 folds"
    )  # fmt: skip
    assert sorted(np.concatenate([fold.test for fold in splits.folds])) == list(range(12))
    assert [len(fold.test) for fold in splits.folds] == [3] * 4 and splits.num_train == 9


def test_groups_are_a_column_of_the_labels(tmp_path: Path) -> None:
    """Partial labels; five folds unless another number is given."""
    write_images(tmp_path / "images", num=10, classes=("dark", "red"))
    lines = [f"{kind}/00{i}.png,{kind},p{i // 2}" for kind in ("dark", "red") for i in range(10)]
    override = write_table(tmp_path, lines[:-1])
    said: list[str] = []
    splits = open_in(tmp_path, tmp_path / "images", override, "evaluation.groups=plate", said=said)
    assert splits.protocol == "5 folds by plate" and len(splits.folds) == 5
    assert splits.train.groups is not None and splits.train.groups.names == ("p0", "p1", "p2", "p3", "p4")
    for fold in splits.folds:
        assert {name.split("/")[1] for name in (splits.train.images.names[int(row)] for row in fold.test)}
        tested, known = (splits.train.take(places).group_numbers for places in (fold.test, fold.train))
        assert tested is not None and known is not None and not set(tested) & set(known)
    assert said == ["1 of 20 images have no label and are left out"]


def test_groups_are_folders(tmp_path: Path) -> None:
    write_images(tmp_path / "images", num=6)
    lines = [f"{folder}/00{i}.png,{'ab'[i % 2]}" for folder in ("dark", "light", "red") for i in range(6)]
    labels = write_table(tmp_path, lines, head="file,label")
    splits = open_in(tmp_path, tmp_path / "images", labels, "evaluation.groups=folder", "evaluation.folds=3")
    assert splits.protocol == "3 folds by folder"
    tested = [{names_of(splits, "test")[place].split("/")[0] for place in fold.test} for fold in splits.folds]
    assert sorted(map(len, tested)) == [1, 1, 1] and set.union(*tested) == {"dark", "light", "red"}


def test_classes_that_cannot_be_right_are_named(tmp_path: Path) -> None:
    write_images(tmp_path / "images", num=10, classes=("dark", "red"))
    lines = [f"{kind}/00{i}.png,{kind},p{i % 3}" for kind in ("dark", "red") for i in range(9)]
    override = write_table(tmp_path, [*lines, "dark/009.png,rare,p0"])
    said: list[str] = []
    open_in(tmp_path, tmp_path / "images", override, said=said)
    assert said[1:] == ["classes with one training image only: rare; label more of their images"]
    open_in(tmp_path, tmp_path / "images", override, "evaluation.folds=3", said=said)
    assert said[3] == (
        "classes with labels for one image only, which a classifier never sees "
        "before it is tested on them: rare; "
        "label more of their images"
    )
    open_in(
        tmp_path, tmp_path / "images", override, "evaluation.folds=3", "evaluation.groups=plate", said=said
    )
    assert "for images of one plate only" in said[5]


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
        message="no image has a label; give --labels FILE.csv with the columns file,label",
    )
    write_images(tmp_path / "train", num=2)
    check_refused(
        tmp_path,
        tmp_path / "train",
        f"evaluation.test={tmp_path / 'images'}",
        message="images: no test image has a label; give --labels FILE.csv",
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
        message="test: the test class 'blue' has no training image",
    )


def test_folds_beside_a_test_part_and_groups_that_are_none(tmp_path: Path) -> None:
    write_images(tmp_path / "images", num=5)
    images = tmp_path / "images"
    for key in ("folds=3", "groups=folder"):
        name = key.partition("=")[0]
        with pytest.raises(ConfigError, match=f"{name}: .* test split .*--{name}"):
            open_in(tmp_path, images, f"evaluation.{key}", f"evaluation.test={images}")
    with pytest.raises(ConfigError, match=r"evaluation\.groups: .*'plate' .*--groups folder"):
        open_in(tmp_path, images, "evaluation.groups=plate")
    check_refused(tmp_path, images, "evaluation.groups=folder", message="folder: 3 group.* --folds 3")
    check_refused(
        tmp_path,
        images,
        *("evaluation.groups=folder", "evaluation.folds=3"),
        message="folder: every class lies within one group",
    )
    labels = write_table(tmp_path, [f"dark/00{i}.png,{'ab'[i % 2]},{'p' if i else ''}" for i in range(5)])
    check_refused(
        tmp_path,
        images,
        labels,
        "evaluation.groups=day",
        message=r"evaluation.groups: .* no column 'day'; .*label, plate",
    )
    check_refused(
        tmp_path,
        images,
        labels,
        "evaluation.groups=plate",
        message=r"1 labelled images have no plate, .*dark/000\.png; fill in the column 'plate'",
    )


def test_rows_are_indices_and_labels_whole_numbers(tmp_path: Path) -> None:
    write_images(tmp_path / "images", num=5)
    splits = open_in(tmp_path, tmp_path / "images")
    for split in (splits.train, splits.test):
        assert split.rows.dtype == split.labels.dtype == np.int64
        np.testing.assert_array_equal(split.images.labels[split.rows], split.labels)


# ---- Copies


def repeat_images(folder: Path, *, times: int) -> None:
    for path in sorted(folder.rglob("*.png")):
        for number in range(1, times):
            shutil.copy(path, path.with_name(f"copy{number}_{path.name}"))


def contents_of(splits: Splits, part: str, places: "np.ndarray | None" = None) -> set[bytes]:  # type: ignore[type-arg]
    split = getattr(splits, part)
    rows = split.rows if places is None else split.rows[places]
    return {image.tobytes() for image in split.images.read(rows)}


def test_copies_stay_on_one_side(tmp_path: Path) -> None:
    """Of the fifth that is held out, of folds, and of folds by group where the copies are in other groups."""
    images = tmp_path / "images"
    write_images(images, num=10)
    repeat_images(images, times=3)
    shutil.copy(images / "dark" / "004.png", images / "red" / "other.png")  # contradicts the other labels
    said: list[str] = []
    splits = open_in(tmp_path, images, said=said)
    assert said == [
        "61 of 91 labelled images are exact duplicates of others (1 have labels that contradict each other); "
        "duplicates never lie on both sides of a split"
    ]
    assert not contents_of(splits, "train") & contents_of(splits, "test")
    assert (len(splits.train.rows), len(splits.test.rows)) == (72, 19) and "red/other.png" in names_of(
        splits, "test"
    )
    lines = [
        f"{k}/{c}00{i}.png,{k},p{i % 4}" for k in ("dark", "red") for c in ("", "copy1_") for i in range(10)
    ]
    lines += [f"{k}/copy2_00{i}.png,{k},p{(i + 1) % 4}" for k in ("dark", "red") for i in range(10)]
    labels = write_table(tmp_path, lines)
    for settings in (["folds=5"], ["folds=4", "groups=plate"]):
        overrides = [labels, *(f"evaluation.{setting}" for setting in settings)]
        splits = open_in(tmp_path, images, *overrides)
        assert sorted(np.concatenate([fold.test for fold in splits.folds])) == list(range(60))
        for fold in splits.folds:
            assert len(fold.train) > 10
            tested = contents_of(splits, "test", fold.test)
            assert not tested & contents_of(splits, "train", fold.train)
    write_images(tmp_path / "few", num=4)
    repeat_images(tmp_path / "few", times=3)
    check_refused(tmp_path, tmp_path / "few", message="no class has 5 different labelled images")
    write_images(tmp_path / "one", num=1)
    repeat_images(tmp_path / "one", times=5)
    check_refused(tmp_path, tmp_path / "one", message="one image of each of 3 classes")


def test_copies_of_training_images_are_not_tested_on(tmp_path: Path) -> None:
    write_images(tmp_path / "train", num=6)
    write_images(tmp_path / "test", num=7)
    train, test = tmp_path / "train", tmp_path / "test"
    said: list[str] = []
    splits = open_in(tmp_path, train, f"evaluation.test={test}", said=said)
    (line,) = said
    num = int(line.split()[0])
    assert (
        line == f"{num} of 21 test images are exact duplicates of training images: left out" and 6 <= num < 21
    )
    assert len(splits.test.rows) == 21 - num
    assert not contents_of(splits, "train") & contents_of(splits, "test")
    shutil.rmtree(test / "red")
    (test / "dark" / "006.png").unlink()
    for name in ("005", "006"):
        (test / "light" / f"{name}.png").unlink()
    check_refused(
        tmp_path, train, f"evaluation.test={test}", message="all 11 test images are exact duplicates"
    )


def test_official_splits_count_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from byol.data.sources import motifs, opening

    monkeypatch.setattr(motifs, "NUM_TRAIN", 40)
    monkeypatch.setattr(motifs, "NUM_TEST", 20)
    load = motifs.load_motifs

    def leak(split: str) -> object:
        images, labels = load(split)  # type: ignore[arg-type]
        if split == "test":
            images, labels = images.copy(), labels.copy()
            images[0], labels[0] = (part[0] for part in load("train"))
        return images, labels

    monkeypatch.setattr(opening, "load_motifs", leak)
    said: list[str] = []
    splits = open_in(tmp_path, "motifs", said=said)
    assert said[0] == (
        "1 of 20 test images are exact duplicates of training images: counted, as the official split has them"
    )
    assert len(splits.test.rows) == 20 and not splits.seen


def test_digests_are_made_once_and_by_size_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "images", num=5)
    images = open_in(tmp_path, tmp_path / "images").train.images
    rows = np.arange(len(images))
    digests = duplicate_groups.digest_images(images, rows)
    assert len(np.unique(digests, axis=0)) == len(rows) and duplicate_groups.find_groups(digests) is None
    sizes = np.array(images.sizes)
    sizes[0] += 1
    other = duplicate_groups.digest_images(replace(images, sizes=sizes), rows)
    assert (other != digests).any(axis=1).tolist() == [True] + [False] * (len(rows) - 1)
    monkeypatch.setattr(Packed, "read", None)  # would fail if it were called
    np.testing.assert_array_equal(duplicate_groups.digest_images(images, rows), digests)


# ---- One training, and whether the encoder has seen the test images


def test_of_folds_one_training_holds_out_the_first(tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_images(images, num=10, classes=("dark", "red"))
    lines = [f"{kind}/00{i}.png,{kind},p{i // 2}" for kind in ("dark", "red") for i in range(10)]
    labels = write_table(tmp_path, lines)
    config = configure(images, f"data.packs={tmp_path / 'packs'}", labels, "evaluation.groups=plate")
    splits = open_splits(config, tmp_path / "run", spec=make_spec(), is_single=True)
    assert (len(splits.train.rows), len(splits.test.rows), splits.protocol) == (16, 4, "test part")
    assert not set(splits.train.rows) & set(splits.test.rows)
    assert splits.train.units is not None and splits.test.units is not None
    assert not set(splits.train.units) & set(splits.test.units)
    assert (
        splits.description == "images: 5 folds by plate, the first held out, together with every plate in it"
    )
    with pytest.raises(AssertionError, match="trained and tested on"):
        replace(splits, test=splits.train)


def test_whether_the_encoder_has_seen_the_test_images(tmp_path: Path) -> None:
    images, other = tmp_path / "images", tmp_path / "other"
    write_images(images, num=5)
    write_images(other, num=9, classes=("dark", "light"))
    assert open_in(tmp_path, images).seen and open_in(tmp_path, images, "evaluation.folds=2").seen
    assert not open_in(tmp_path, images, f"evaluation.train={other}").seen
    assert not open_in(tmp_path, images, f"evaluation.test={other}").seen
    assert open_in(tmp_path, tmp_path, f"evaluation.train={images}").seen  # a folder in the run's


def test_a_label_given_twice_is_not_lost(tmp_path: Path) -> None:
    write_images(tmp_path / "images", num=5, classes=("dark", "red"))
    lines = [f"{kind}/00{i}.png,{kind}" for kind in ("dark", "red") for i in range(5)]
    said: list[str] = []
    labels = write_table(tmp_path, [*lines, lines[0]], head="file,label")
    open_in(tmp_path, tmp_path / "images", labels, said=said)
    assert said == []
    labels = write_table(tmp_path, [*lines, "gone.png,red", "gone.png,red", lines[0]], head="file,label")
    open_in(tmp_path, tmp_path / "images", labels, said=said)
    (line,) = said
    assert line.startswith(
        f"left out, because no image matches: 1 of the 11 labels in {tmp_path}/labels.csv; it names gone.png"
    )
