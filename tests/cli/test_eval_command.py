"""`byol eval`: labels, folds, groups and metadata; what it refuses to measure."""

import json
from pathlib import Path

import pytest
from PIL import Image

from command_line import TINY, Capture, fail, succeed, write_images


def write_labels(path: str, labels: dict[str, str]) -> None:
    Path(path).write_text("file,label\n" + "".join(f"{file},{label}\n" for file, label in labels.items()))


@pytest.mark.slow
def test_labels(capsys: Capture, finished: Path) -> None:
    """None, of one class, of nothing here, too few; then some, of which some are of other images."""
    write_images(Path("images"), classes=("dark",))
    succeed(capsys, "train", "images", "-o", "runs/a", *TINY, "trainer.max_epochs=1")
    said = succeed(capsys, "eval", "runs/a")
    assert said.startswith("without labels, on the 10 training images")
    assert said.endswith(
        "\n\nno accuracy: no image has a label; give --labels FILE.csv with the columns file,label\n\n"
        "saved in runs/a: measures.json, neighbours.png, prototypes.csv\n"
    )

    def refused(labels: dict[str, str]) -> str:
        write_labels("labels.csv", labels)
        return fail(capsys, "eval", "runs/a", "--labels", "labels.csv")

    names = [f"{index:02d}.png" for index in range(10)]
    assert "one class only ('x', 10 images)" in refused(dict.fromkeys(names, "x"))
    assert "none of its 2 files is among the images; it names no.png" in refused(
        {"no.png": "x", "n.png": "y"}
    )
    said = refused(dict(zip(names[:6], "xxyxyy", strict=True)))
    assert "images: no class has 5 labelled images" in said and "--test" in said
    said = fail(capsys, "eval", "runs/a", "--labels", "missing.csv")
    assert "missing.csv: cannot be opened" in said
    Path("other.csv").write_text("name,class\na,b\n")
    said = fail(capsys, "eval", "runs/a", "--labels", "other.csv")
    assert "but no column `file`" in said
    assert not Path("runs/a/eval.json").exists()

    partial = {name: "xy"[index % 2] for index, name in enumerate(names)}
    Image.new("RGB", (16, 16)).save("images/dark/unlabelled.png")
    write_labels("labels.csv", partial | {"nowhere.png": "x"})
    said = succeed(capsys, "eval", "runs/a", "--labels", "labels.csv")
    assert "\n1 of 11 images have no label and are left out\n" in said
    assert (
        "\nleft out, because no image matches: 1 of the 11 labels in labels.csv; it names nowhere.png" in said
    )
    assert "classifiers trained on 8 images and tested on 2; 2 classes" in said

    lines = [f"{name},{label},{index % 3}" for index, (name, label) in enumerate(partial.items())]
    Path("plates.csv").write_text("\n".join(["file,label,plate", *lines]) + "\n")
    said = succeed(capsys, "eval", "runs/a", "--labels", "plates.csv", "--groups", "plate", "--folds", "3")
    assert "'images': 3 folds by plate; 10 images, each tested once; 2 classes" in said
    table = json.loads(Path("runs/a/eval.json").read_text())
    assert table["protocol"] == "3 folds by plate"
    options = "--labels plates.csv --folds 3 --groups plate"  # what a card repeats it with
    assert f"&& byol eval runs/again {options}\n" in succeed(capsys, "card", "runs/a")
    succeed(capsys, "eval", "runs/a", *options.split())
    again = json.loads(Path("runs/a/eval.json").read_text())
    timed = {"seconds": 0.0, "sha256": ""}
    assert again | timed == table | timed
    for folds in ("1", "x", "null"):
        said = fail(capsys, "eval", "runs/a", "--labels", "plates.csv", "--folds", folds, code=2)
        assert "evaluation.folds" in said and "allowed: an integer from 2" in said
    said = succeed(capsys, "eval", "runs/a", "--labels", "plates.csv", "--weights", "runs/a/target")
    assert "\nweights target  none " in said


@pytest.mark.parametrize("name", ["#x.csv", "null", "a: b.csv", "[x].csv", "*s.csv", "3"])
def test_arguments_are_text_whatever_yaml_would_read(capsys: Capture, finished: Path, name: str) -> None:
    """A missing file of that name is told as such; nothing is evaluated without it."""
    run = finished / "runs" / "a"
    for command in (["eval", run], ["finetune", run, "-o", "out"], ["report", run]):
        assert f"{name}: cannot be opened" in fail(capsys, *command, "--labels", name)
    assert f"{name}: " in fail(capsys, "eval", run, "--test", name)
    assert not (run / "eval.json").exists()


def test_metadata(capsys: Capture, copied: Path) -> None:
    """The colours are told by features; that one of them was made on another plate is a warning."""
    lines = [f"{label}/{index:02d}.png,{label}" for label in ("dark", "red") for index in range(10)]
    Path("plates.csv").write_text("\n".join(["file,plate", *lines]) + "\n")
    said = succeed(capsys, "eval", "runs/a", "--metadata", "plates.csv")
    assert "\nplate " in said and "WARNING: the features predict 'plate'" in said
    columns = json.loads(Path("runs/a/measures.json").read_text())["metadata"]
    assert [(one["column"], one["warning"]) for one in columns] == [("folder", False), ("plate", True)]
    assert "missing.csv: cannot be opened" in fail(capsys, "eval", "runs/a", "--metadata", "missing.csv")


def test_evaluation_that_would_mean_nothing(capsys: Capture, finished: Path) -> None:
    run, images = finished / "runs" / "a", finished / "images"
    said = fail(capsys, "eval", run, "--train", images, "--test", images)
    assert "images: the test images are the training images" in said
    assert "no test image has a label" in fail(capsys, "eval", run, "--test", images / "red")
    said = fail(capsys, "eval", run, "trainer.max_epochs=7", code=2)
    assert "evaluation cannot change these settings (trainer.max_epochs: 2 -> 7)" in said


def test_folders_that_are_no_run(capsys: Capture, finished: Path) -> None:
    images = finished / "images"
    said = fail(capsys, "eval", images)
    assert "holds no run (no config.yaml); name the folder of a run, or train one: byol train IMAGES/" in said
    for arguments in (["card", images], ["compare", images, finished / "runs" / "a"]):
        assert "holds no run (no config.yaml); name the folder of a run" in fail(capsys, *arguments)
    assert "has no encoder.json; name a run folder" in fail(capsys, "embed", images, images, "-o", "f.csv")
    assert "nowhere: no such folder" in fail(capsys, "embed", "nowhere", images, "-o", "f.csv")
    for folder in ("nowhere", str(images)):
        said = fail(capsys, "train", images, "-o", "run", *TINY, f"network.fine_tune_from={folder}")
        assert said.startswith("network.fine_tune_from: ") and "give a run folder" in said
