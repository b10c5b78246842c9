"""`byol finetune`, `byol predict`: files, rows, words; test labels change nothing; mistakes are one line."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import byol
from byol.cli.main import main
from byol.evaluation.labelled import LEARNED, SEEN
from byol.evaluation.table import evaluate
from byol.finetuning import finetune as finetune_file
from byol.finetuning import tuning
from byol.finetuning.finetune import FinetuneResult, FinetuneRow, finetune
from byol.metrics.folds import Labels, Validation
from runs import PX, make_run, write_images

Capture = pytest.CaptureFixture[str]
QUICK = ["--epochs", "2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images` of three classes, `test` images, `runs/one`; not to be changed."""
    folder = tmp_path_factory.mktemp("finetune")
    write_images(folder / "images", num=10)
    write_images(folder / "test", num=12)
    make_run(folder / "runs" / "one", folder / "images", "trainer.precision=fp32")
    return folder


def fail(capsys: Capture, *arguments: str | Path, code: int = 1) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == code
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("byol: ") and said.err.count("\n") == 1, said
    return said.err


def test_finetune_then_predict(place: Path, capsys: Capture, tmp_path: Path) -> None:
    run, output = place / "runs" / "one", tmp_path / "out"
    command = ["finetune", str(run), "--fraction", "0.5", "--scratch", "-o", str(output), *QUICK]
    assert main(command) == 0
    said = capsys.readouterr()
    assert said.err == "" and "12 of 24 labels, 3 classes\n" in said.out
    assert "scratch: " in said.out and f"byol predict {output} IMAGES/" in said.out
    assert {path.name for path in output.iterdir()} == {
        "encoder.safetensors", "encoder.json", "classifier.safetensors", "classifier.json", "finetune.json",
        "finetune.jsonl", ".lock",
    }  # fmt: skip
    content = json.loads((output / "finetune.json").read_text())
    assert content.keys() == {"format", "split", "num_test", "num_classes", "rows", "sha256"}
    assert content["format"] == 1
    assert [row["start"] for row in content["rows"]] == ["byol online", "scratch", "byol online, frozen"]
    row = content["rows"][0]
    assert row.keys() == {
        "start", "fraction", "num_labels", "top1", "low95", "high95", "balanced", "epochs", "chosen",
        "seconds",
    }  # fmt: skip
    assert (row["fraction"], row["num_labels"]) == (0.5, 12)
    assert content["num_test"] == 6
    lines = [json.loads(line) for line in (output / "finetune.jsonl").read_text().splitlines()]
    assert {line["start"] for line in lines} == {"byol online", "scratch"} and lines[0]["epoch"] == 1
    assert lines[0].keys() == {
        "format", "start", "stage", "lr", "epoch", "loss", "logistic", "trained"
    }  # fmt: skip

    # The classifier of the file says what the row says.
    classifier = byol.load_classifier(output, device="cpu")
    assert classifier.class_names == ("dark", "light", "red") and classifier.spec.num_labels == 12
    held_out = [place / "images" / name / f"{at:03d}.png" for name in classifier.class_names for at in (4, 9)]
    right = [
        path.parent.name == label for path, label in zip(held_out, classifier(held_out).labels, strict=True)
    ]
    assert np.mean(right) == pytest.approx(row["top1"])
    predictions = classifier.predict(place / "test")
    assert byol.load(output, device="cpu").embed(place / "test").shape == (36, 96)

    # The command: the same, a broken file told and left out.
    shutil.copytree(place / "test", tmp_path / "new")
    (tmp_path / "new" / "broken.png").write_bytes(b"")
    assert main(["predict", str(output), str(tmp_path / "new"), "-o", str(tmp_path / "p.csv")]) == 0
    said = capsys.readouterr()
    assert "wrote 36 rows" in said.out and str(tmp_path / "p.csv") in said.out and "1 left out" in said.out
    assert (
        "unreadable and left out: 1 of 37 images" in said.err
        and "1 file (broken.png): the file is" in said.err
    )
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == predictions.labels
    assert [row["file"] for row in rows] == predictions.names
    assert all(0.3 < float(row["probability"]) <= 1.0 for row in rows)

    # The same again gives the same, in the place of the first.
    weights = (output / "encoder.safetensors").read_bytes()
    assert main(command) == 0
    assert (output / "encoder.safetensors").read_bytes() == weights


def test_test_labels_change_nothing_but_the_accuracies(place: Path, tmp_path: Path) -> None:
    """Two test folders of the same images, whose classes have changed their names."""
    names = ["dark", "light", "red"]
    for name, other in zip(names, np.roll(names, 1), strict=True):
        shutil.copytree(place / "test" / name, tmp_path / "turned" / other)
    outcomes = {}
    for test in (place / "test", tmp_path / "turned"):
        overrides = [f"evaluation.test={test}"]
        output = tmp_path / f"out-{test.name}"
        outcomes[test.name] = finetune(
            place / "runs" / "one", output, overrides=overrides, epochs=2, fraction=0.3
        )
    same = ("encoder.safetensors", "classifier.safetensors", "classifier.json", "finetune.jsonl")
    for name in same:
        one, other = ((tmp_path / f"out-{test}" / name).read_bytes() for test in ("test", "turned"))
        assert one == other, name
    assert outcomes["test"].rows[0].top1 == 1.0 and outcomes["turned"].rows[0].top1 == 0.0


def test_labels_of_a_csv_and_the_target_encoder(place: Path, capsys: Capture, tmp_path: Path) -> None:
    files = [f"{name}/{index:03d}.png" for name in ("dark", "red") for index in range(10)]
    lines = ["file,label", *(f"{file},{file.split('/')[0]}s" for file in files), "elsewhere.png,reds"]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    source, output = place / "runs" / "one" / "target", tmp_path / "out"
    assert (
        main(["finetune", str(source), "--labels", f"{tmp_path}/labels.csv", "-o", str(output), *QUICK]) == 0
    )
    said = capsys.readouterr().out
    assert (
        "left out, because no image matches: 1 of the 21 labels" in said
        and "16 of 16 labels, 2 classes" in said
    )
    assert byol.load_classifier(output, device="cpu").class_names == ("darks", "reds")
    rows = json.loads((output / "finetune.json").read_text())["rows"]
    assert [row["start"] for row in rows] == ["byol target", "byol target, frozen"]


def test_an_encoder_without_its_run(place: Path, capsys: Capture, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("encoder.json", "encoder.safetensors"):
        shutil.copy(place / "runs" / "one" / name, alone)
    said = fail(capsys, "finetune", alone, "-o", tmp_path / "out", code=2)
    assert "--train: " in said and "no config.yaml" in said
    assert "(trainer.seed: " in fail(
        capsys, "finetune", alone, "-o", tmp_path / "o", "trainer.seed=9", code=2
    )
    overrides = [f"evaluation.train={place}/images", "data_transforms.view.vertical_flip=0.5"]
    heard: list[str] = []
    outcome = finetune(alone, tmp_path / "out", overrides=overrides, epochs=1, say=heard.append)
    assert heard[0].startswith("crops and flips are chosen for photographs")
    heard.clear()
    overrides.append("data_transforms.domain=microscopy")
    finetune(alone, tmp_path / "out", overrides=overrides, epochs=1, fraction=0.3, say=heard.append)
    assert heard[0] == "6 of 24 labels, 3 classes"
    assert outcome.rows[0].num_labels == 24 and (tmp_path / "packs").is_dir()


def test_the_folder_is_named_after_the_source(place: Path, capsys: Capture, tmp_path: Path) -> None:
    shutil.copytree(place / "runs" / "one", tmp_path / "mine")
    arguments = [f"data.packs={place}/runs/packs", "--fraction", "0.3"]
    assert main(["finetune", f"{tmp_path}/mine", *arguments, "--epochs", "1"]) == 0
    assert (tmp_path / "mine-finetuned" / "classifier.json").is_file()
    # From there once more: it is an encoder like any other, but is not replaced by what is made of it.
    source = tmp_path / "mine-finetuned"
    assert "is the encoder to start from" in fail(capsys, "finetune", source, "-o", source)


# ---- What is tested on


def write_noise(folder: Path, *, num: int) -> None:
    """Images of two classes that cannot be told apart."""
    rng = np.random.default_rng(1)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for index in range(num):
            Image.fromarray(rng.integers(0, 256, (PX, PX, 3), dtype=np.uint8)).save(
                folder / name / f"{index:03d}.png"
            )


def test_folds_of_the_run_never_test_on_what_was_trained_on(tmp_path: Path) -> None:
    """Noise cannot be told apart, unless it has been learnt by heart."""
    write_noise(tmp_path / "noise", num=30)
    run, out = tmp_path / "run", tmp_path / "out"
    make_run(run, tmp_path / "noise", "evaluation.folds=5", target=False)
    outcome = finetune(run, out, epochs=2)
    assert outcome.split == "noise: 5 folds, the first held out" and outcome.num_test == 12
    assert all(row.top1 < 0.95 and row.num_labels == 48 for row in outcome.rows)


def test_groups_lie_on_one_side_of_every_division(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of the validation part, and where a class lies within one group, so that it may not be known."""
    write_images(tmp_path / "images", num=8)
    plates = {"dark": "ppppqqrr", "light": "pqrspqrs", "red": "tttttttt"}
    lines = [f"{name}/{i:03d}.png,{name},{plate}" for name in plates for i, plate in enumerate(plates[name])]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,plate", *lines]))
    make_run(tmp_path / "run", tmp_path / "images", target=False)
    parts: list[tuple[set[int], set[int]]] = []
    of = Validation.of

    def listen(labels: Labels, *, seed: int, groups: Labels | None = None) -> Validation:
        assert groups is not None
        part = of(labels, seed=seed, groups=groups)
        parts.append((set(groups[part.fit]), set(groups[part.held_out])))
        return part

    monkeypatch.setattr(Validation, "of", listen)
    overrides = [f"evaluation.labels={tmp_path / 'labels.csv'}", "evaluation.groups=plate"]
    for seed in range(4):
        outcome = finetune(
            tmp_path / "run", tmp_path / "out", overrides=[*overrides, f"evaluation.seed={seed}"], epochs=1
        )
        assert outcome.split.endswith("5 folds by plate, the first held out, together with every plate in it")
    assert len(parts) > 8 and all(fit and held_out and not fit & held_out for fit, held_out in parts)


def test_what_has_learned_from_labels_is_named_so(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its own spec, as a start, and among the rows of a table."""
    monkeypatch.setattr(tuning.Candidate, "exceeds", lambda one, other: False)  # so the encoder changes
    first, said = tmp_path / "first", list[str]()
    finetune(place / "runs" / "one", first, epochs=1, say=said.append)
    assert byol.load(first, device="cpu").spec.which == "finetuned"
    assert SEEN in said and not any("learned from labels" in line for line in said)
    del said[:]
    overrides = [f"evaluation.train={place}/images", f"data.packs={tmp_path}/packs"]
    outcome = finetune(first, tmp_path / "second", overrides=overrides, epochs=1, say=said.append)
    assert [row.start for row in outcome.rows] == ["finetuned", "finetuned, frozen"]
    assert f"finetuned: {LEARNED}" in said
    shutil.copytree(place / "runs", tmp_path / "runs")
    del said[:]
    table = evaluate(tmp_path / "runs" / "one", overrides=[f"evaluation.weights={first}"], say=said.append)
    assert "weights first, finetuned" in {row.features for row in table.rows}
    assert f"weights first, finetuned: {LEARNED}" in said


# ---- Mistakes


def test_places_that_cannot_be_used(place: Path, capsys: Capture, tmp_path: Path) -> None:
    run, out = place / "runs" / "one", tmp_path / "out"
    assert "nowhere: no such folder" in fail(capsys, "finetune", "nowhere", "-o", out)
    (tmp_path / "empty").mkdir()
    assert "has no encoder.json" in fail(capsys, "finetune", tmp_path / "empty", "-o", out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    said = fail(capsys, "finetune", run, "-o", tmp_path / "full")
    assert "holds files that `byol finetune` did not write; choose another folder with -o" in said
    assert "holds files that `byol finetune` did not write" in fail(capsys, "finetune", run, "-o", run)
    assert "is a file" in fail(capsys, "finetune", run, "-o", tmp_path / "full" / "thesis.txt")
    said = fail(capsys, "finetune", run, "-o", tmp_path / "full" / "thesis.txt" / "out")
    assert "thesis.txt/out/finetune.json: cannot be written (a file is where a folder must be)" in said
    assert not out.exists() and (tmp_path / "full" / "thesis.txt").read_text() == "mine"


def test_numbers_and_settings_that_are_refused(place: Path, capsys: Capture, tmp_path: Path) -> None:
    run, out = place / "runs" / "one", tmp_path / "out"
    for value in ("0", "1.5", "nan"):
        assert "--fraction: " in fail(capsys, "finetune", run, "-o", out, "--fraction", value, code=2)
    assert "--epochs: 0" in fail(capsys, "finetune", run, "-o", out, "--epochs", "0", code=2)
    said = fail(capsys, "finetune", run, "-o", out, "network.name=resnet18", code=2)
    assert "cannot use these settings (network.name: " in said
    said = fail(capsys, "finetune", run, "-o", out, "data_transforms.view.jitter=0.5", code=2)
    assert "cannot use these settings (data_transforms.view1.jitter: " in said
    said = fail(capsys, "finetune", run, "-o", out, "--fraction", "0.01")
    assert "--fraction 0.01: selects one image of each of 3 classes" in said and not out.exists()


def test_labels_that_cannot_be_used(place: Path, capsys: Capture, tmp_path: Path) -> None:
    run, out = place / "runs" / "one", tmp_path / "out"

    def label(text: str) -> str:
        (tmp_path / "labels.csv").write_text(text)
        return fail(capsys, "finetune", run, "-o", out, "--labels", tmp_path / "labels.csv")

    ones = "\n".join(f"dark/{index:03d}.png,dark" for index in range(10))
    assert "labels have one class only ('dark', 10 images)" in label(f"file,label\n{ones}")
    assert "none of its 1 files is among the images" in label("file,label\nnowhere.png,dark")
    assert "has no labels" in label("file,label\ndark/000.png,")
    missing = fail(capsys, "finetune", run, "-o", out, "--labels", tmp_path / "missing.csv")
    assert "missing.csv: cannot be opened" in missing
    shutil.copytree(place / "images" / "dark", tmp_path / "flat")
    said = fail(
        capsys, "finetune", run, "-o", out, "--train", tmp_path / "flat", "data.packs=" + str(tmp_path)
    )
    assert "no image has a label; give --labels" in said and not out.exists()


def test_predictions_that_cannot_be_made(place: Path, capsys: Capture, tmp_path: Path) -> None:
    run, images = place / "runs" / "one", place / "test"
    to = tmp_path / "p.csv"
    assert "so it holds no classifier; train one: byol finetune" in fail(
        capsys, "predict", run, images, "-o", to
    )
    assert "as .csv" in fail(capsys, "predict", run, images, "-o", tmp_path / "p.txt", code=2)
    said = fail(capsys, "predict", run, images, "-o", to, "trainer.seed=1", code=2)
    assert "'trainer.seed=1'" in said


def test_ctrl_c(place: Path, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*arguments: object, **others: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(finetune_file, "train_classifier", press)
    capsys.readouterr()
    assert main(["finetune", str(place / "runs" / "one"), "-o", str(tmp_path / "out")]) == 130
    said = capsys.readouterr().err
    assert said.startswith("byol: interrupted") and "same command again" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


# ---- Words


def make_row(start: str, *, top1: float, epochs: int = 5) -> FinetuneRow:
    return FinetuneRow(start, 0.01, 500, top1, top1 - 0.02, top1 + 0.02, top1, epochs, {"lr": 1e-3}, 1.0)


def test_the_verdict_says_what_the_intervals_say() -> None:
    rows = [make_row("byol online", top1=0.5)]
    for top1, said in (
        (0.4, "Better than scratch; the intervals do not overlap"),
        (0.47, "the difference is not certain"),
        (0.53, "Not better than scratch; the intervals overlap"),
        (0.6, "Worse than scratch; the intervals do not overlap"),
    ):
        outcome = FinetuneResult("s", 100, 2, (*rows, make_row("scratch", top1=top1)))
        assert said in outcome.verdict() and "50.0 %" in outcome.render()
    kept = make_row("byol online", top1=0.5, epochs=0)
    frozen = make_row("byol online, frozen", top1=0.5, epochs=0)
    assert "Kept the frozen encoder" in FinetuneResult("s", 100, 2, (kept, frozen)).verdict()
