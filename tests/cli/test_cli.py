"""Every command end to end, and what each mistake of a user gets: one line, an exit code, nothing damaged."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import byol
from byol.auto import resolve
from byol.cli.main import main
from byol.config import Config
from byol.runfolder import checkpoint
from byol.training import loop, setup
from byol.training.step_benchmark import StepBenchmark

TINY = [
    "network.name=test_resnet",
    "network.projection_head.mlp_hidden_size=8",
    "network.projection_head.projection_size=4",
    "network.stem=standard",
    "data_transforms.domain=null",
    "data_transforms.input_shape=[16,16,null]",
    "trainer.batch_size=8",
    "trainer.accumulation_steps=1",
    "trainer.max_epochs=2",
    "trainer.precision=fp32",
    "trainer.num_workers=1",
    "evaluation.num_bootstrap=20",
]
COLOURS = {"dark": (40, 40, 40), "red": (200, 40, 40)}
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(byol.__file__).parents[1])}
COMMANDS = (
    "demo",
    "check",
    "train",
    "run",
    "eval",
    "compare",
    "card",
    "report",
    "explore",
    "embed",
    "finetune",
    "predict",
    "config",
)
Capture = pytest.CaptureFixture[str]


def write_images(folder: Path, *, num: int = 10, classes: tuple[str, ...] = ("dark", "red")) -> Path:
    """`num` images of 16 px of each class, in class folders."""
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(num):
            image = np.array(COLOURS[name]) + rng.normal(0.0, 25.0, (16, 16, 3))
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / name / f"{index:02d}.png")
    return folder


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `images/` and a run of 4 steps on them, `runs/a`; tests that change it copy it."""
    folder = tmp_path_factory.mktemp("finished")
    write_images(folder / "images")
    assert main(["train", str(folder / "images"), "-o", str(folder / "runs" / "a"), *TINY]) == 0
    return folder


@pytest.fixture
def copied(finished: Path, place: Path) -> Path:
    """A run of the test's own, on the same images."""
    subprocess.run(["cp", "-a", f"{finished}/images", f"{finished}/runs", str(place)], check=True)
    assert main(["train", "images", "-o", "runs/b", *TINY, "trainer.checkpoint_interval=1"]) == 0
    return place / "runs" / "b"


def succeed(capsys: Capture, *arguments: str | Path) -> str:
    """What the command prints; nothing on stderr, no empty line first, nothing wider than need be."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    said = capsys.readouterr()
    assert said.err == "" and not said.out.startswith("\n")
    return said.out


def fail(capsys: Capture, *arguments: str | Path, code: int = 1, lines: int = 1) -> str:
    """What the command says on stderr: so many lines, each of the program's, and no traceback."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err and said.err.count("\n") == lines, said.err
    assert all(line.startswith("byol: ") for line in said.err.splitlines())
    return said.err.removeprefix("byol: ")


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, by checksum."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ---- Every command


def test_a_dry_run_then_the_run(capsys: Capture, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody says anything but the folder (and sizes, to be fast): all is chosen, told, kept."""

    def probe(config: Config, *, wanted: int = 0, **images: int) -> StepBenchmark:
        return StepBenchmark(config.batch_size, 1, 100.0, 10**9, 2 * 10**9)

    monkeypatch.setattr(resolve, "choose_batch", probe)
    monkeypatch.setattr(resolve, "benchmark_step", probe)
    write_images(Path("images"))
    few = [*TINY[:4], "trainer.device=cpu", "trainer.num_workers=1"]
    said = succeed(capsys, "train", "images", "-o", "runs/a", *few, "-n")
    assert [path.name for path in place.iterdir()] == ["images"]
    lines = said.splitlines()
    assert lines[0] == "views: photo (8 bit, 3 channels)"
    for line in (
        "view size 32 px (median image side 16 px; at least 32)",
        "batch 8 (at most half of the 20 images)",
    ):
        assert line in lines
    assert lines[-2].startswith("about 50 min: 30 steps of 100 s")

    trained = succeed(capsys, "train", "images", "-o", "runs/a", *few, "trainer.max_epochs=1").splitlines()
    assert trained[:4] == lines[:4]
    assert any(line.startswith("batch size 8, 2 steps per epoch, 2 steps in total") for line in trained)
    said = succeed(capsys, "train", "images", "-o", "runs/a", *few)
    assert said.splitlines()[0].startswith("20 images, 3 channels, stored at")
    assert "this run is already finished: all 2 steps are done" in said
    said = fail(capsys, "train", "images", "-o", "runs/a", *few, "trainer.batch_size=4")
    assert "holds a run of another configuration (trainer.batch_size: 8 -> 4)" in said
    written = yaml.safe_load(Path("runs/a/config.yaml").read_text())
    assert written["data_transforms"]["domain"] == "photo"
    assert written["data_transforms"]["input_shape"] == [32, 32, None]


def test_an_open_configuration_is_printed_as_such(capsys: Capture) -> None:
    printed = yaml.safe_load(succeed(capsys, "config", "--preset", "default"))
    assert printed["network"]["name"] == printed["data_transforms"]["domain"] == "auto"
    assert printed["trainer"]["batch_size"] is None and "view1" not in printed["data_transforms"]


def test_train_eval_embed_load(capsys: Capture) -> None:
    write_images(Path("images"))
    said = succeed(capsys, "train", "images", "-o", "runs/a", *TINY)
    assert said.startswith("20 images, 3 channels, stored at 16 px, views of 16 px")
    assert "batch size 8, 2 steps per epoch, 4 steps in total" in said and "step 4/4" in said
    assert "learning rate 0.0075 (min(0.06 * batch size 8 / 64, 0.4))" in said
    assert 'features = byol.load("runs/a").embed("IMAGES/")' in said
    assert max(map(len, said.splitlines())) <= 110

    before = contents(Path("runs/a/checkpoints"))
    said = succeed(capsys, "train", "images", "-o", "runs/a", *TINY)
    assert "this run is already finished: all 4 steps are done" in said
    assert contents(Path("runs/a/checkpoints")) == before

    said = succeed(capsys, "eval", "runs/a")
    assert (
        "images: every fifth image of each class held out for testing; 16 training and 4 test images" in said
    )
    assert "\n\n\n" not in said and "saved in runs/a/eval.json and measures.json" in said
    assert said.startswith("without labels, on 20 training images")
    assert "\nBy measures without labels " in said and "\noutliers " in said
    assert max(map(len, said.splitlines())) <= 130
    assert len(json.loads(Path("runs/a/eval.json").read_text())["rows"]) == 8
    assert "logistic regression with few labels: top-1, mean ± std over 5 random draws" in said
    again = succeed(capsys, "eval", "runs/a")
    assert "8 of 8 rows come from the cache in runs/a/features" in again
    tables = [text[text.index("images: every fifth") :] for text in (said, again)]
    assert tables[0] == tables[1]
    assert said.partition("\npixels: ")[0] == again.partition("\npixels: ")[0]

    for name in ("f.csv", "f.npz", "f.parquet"):
        said = succeed(capsys, "embed", "runs/a", "images", "-o", name)
        assert said == f"20 images x 96 features in {name}\n"
    names = [f"{label}/{index:02d}.png" for label in ("dark", "red") for index in range(10)]
    features = byol.load("runs/a").embed("images")
    assert features.shape == (20, 96) and features.dtype == np.float32
    with open("f.csv", newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert [row[0] for row in rows] == names
    np.testing.assert_array_equal(np.array([row[1:] for row in rows], dtype=np.float32), features)
    saved = np.load("f.npz")
    np.testing.assert_array_equal(saved["features"], features)
    table = pyarrow.parquet.read_table("f.parquet")
    assert table["file"].to_pylist() == names == saved["names"].tolist()


def test_compare_and_card(capsys: Capture, copied: Path) -> None:
    """Of two finished runs, and the best of one is an encoder like any other."""
    said = succeed(capsys, "compare", "runs/a", "runs/b").splitlines()
    assert said[0].split() == ["a", "b"] and any(line.startswith("fixed images: alignment") for line in said)
    assert said[-2:] == [f"runs/{name} has not been evaluated: byol eval runs/{name}" for name in "ab"]
    said = succeed(capsys, "card", "runs/b")
    assert said.startswith("# b\n") and said.endswith("\nsaved in runs/b/card.md\n")
    assert said.startswith(Path("runs/b/card.md").read_text())
    best = json.loads(Path("runs/b/best.json").read_text())
    encoder = byol.load("runs/b/best")
    assert encoder.spec.done == best["done"] and encoder.embed("images").shape == (20, 96)


@pytest.mark.slow
def test_demo_and_run(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both train and print the table; the demo's own images would take minutes, so it gets a folder."""
    write_images(Path("images"))
    said = succeed(capsys, "demo", "data.source=images", "data.stored_px=16", *TINY)
    assert "byol online" in said and "saved in runs/demo/eval.json" in said
    Path("mine.yaml").write_text("preset: default\ndata:\n  source: images\n  packs: runs/packs\n")
    said = succeed(capsys, "run", "mine.yaml", *TINY)
    assert "byol online" in said and "saved in runs/mine/eval.json" in said


def test_the_printed_configuration_can_be_run_again(capsys: Capture) -> None:
    first = succeed(capsys, "config", "--preset", "paper", "trainer.max_epochs=7", "data.source=here")
    Path("again.yaml").write_text(first)
    assert succeed(capsys, "config", "again.yaml") == first
    assert yaml.safe_load(first)["trainer"]["max_epochs"] == 7


def test_three_ways_to_write_an_override(capsys: Capture) -> None:
    printed = {
        succeed(capsys, "config", *override)
        for override in (
            ["trainer.max_epochs=7", "data_transforms.input_shape=(32,32,3)"],
            ["--trainer.max_epochs=7", "--data_transforms.input_shape=(32,32,3)"],
            ["--trainer.max_epochs", "7", "--data_transforms.input_shape", "(32,32,3)"],
            ["--trainer.max-epochs", "7", "data_transforms.input_shape=[32, 32, 3]"],
        )
    }
    assert len(printed) == 1 and "max_epochs: 7" in printed.pop()


def test_schema_version_and_help(capsys: Capture) -> None:
    assert json.loads(succeed(capsys, "config", "--schema"))["title"] == "byol configuration"
    for arguments in (["--version"], ["--help"], *([command, "--help"] for command in COMMANDS)):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        said = capsys.readouterr().out
        assert left.value.code == 0
        if "--version" in arguments:
            assert said == f"byol {byol.__version__}\n"
        else:
            assert "example" in said and f"  byol {arguments[0].strip('-') * (len(arguments) > 1)}" in said
            assert max(map(len, said.splitlines())) <= 100
    command = [sys.executable, "-c", "import sys, byol.cli.main; print('torch' in sys.modules)"]
    assert subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT).stdout == "False\n"


@pytest.mark.parametrize("arguments", [[], ["trian"], ["train"], ["embed", "runs/a", "images"]])
def test_a_command_that_is_not_whole(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2 and "usage: byol" in capsys.readouterr().err


def test_output_that_nobody_reads_to_its_end() -> None:
    command = f"{sys.executable} -m byol config --schema | head -c 10; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.stderr == "" and done.returncode in (0, 141)


# ---- Images


def test_places_without_images(capsys: Capture) -> None:
    said = fail(capsys, "train", "nowhere", *TINY)
    assert said.startswith("nowhere: no such file or folder; a source is a folder")
    Path("empty").mkdir()
    assert "empty: the folder is empty; images end in .apng" in fail(capsys, "train", "empty", *TINY)
    Path("notes.docx").write_text("x")
    assert "notes.docx: neither a folder, a list" in fail(capsys, "train", "notes.docx", *TINY)
    said = fail(capsys, "train", "stl10", *TINY)
    assert "datasets/stl10_binary/train_X.bin: no such file; set data.root" in said
    assert "data.download=true" in said


def test_too_few_images(capsys: Capture) -> None:
    Path("one").mkdir()
    Image.new("RGB", (20, 20)).save("one/a.png")
    said = fail(capsys, "train", "one", *TINY)
    assert said == "one image is fewer than a batch of 8; give more images\n"
    write_images(Path("few"), num=3)
    said = fail(capsys, "train", "few", *TINY)
    assert said == "6 images are fewer than a batch of 8; give more images, or trainer.batch_size=3\n"
    assert "step 4/4" in succeed(capsys, "train", "few", *TINY, "trainer.batch_size=3")


def write_text(path: Path) -> None:
    path.write_text("not an image")


def write_half(path: Path) -> None:
    noise = Image.effect_noise((64, 64), 50).convert("RGB")
    noise.save(path.with_suffix(".whole"), format="JPEG")
    data = path.with_suffix(".whole").read_bytes()
    path.write_bytes(data[: len(data) // 2])
    path.with_suffix(".whole").unlink()


@pytest.mark.parametrize(
    ("write", "name", "reason"),
    [
        (write_text, "red/z.png", "is not an image of a known format"),
        (write_half, "red/z.jpg", "is damaged or cut short (image file is truncated"),
        (Path.touch, "red/z.tif", "the file is empty"),
    ],
)
def test_files_that_cannot_be_read(
    write: Callable[[Path], None], name: str, reason: str, capsys: Capture
) -> None:
    write_images(Path("images"))
    write(Path("images") / name)
    said = fail(capsys, "train", "images", "-o", "runs/a", *TINY)
    assert f"1 of 21 images cannot be read (data.max_bad is 0.01), the first is '{name}': {reason}" in said
    (listed,) = Path("runs/packs").rglob("bad_files.csv")
    assert str(listed) in said
    with listed.open(newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["file", name]
    said = succeed(capsys, "train", "images", "-o", "runs/a", *TINY, "data.max_bad=1")
    assert (
        said.startswith("unreadable and left out: 1 of 21 images, listed in runs/packs/")
        and "20 images" in said
    )

    assert main(["embed", "runs/a", "images", "-o", "f.csv"]) == 0
    out, err = capsys.readouterr()
    assert out == "20 images x 96 features in f.csv, 1 left out\n"
    told, grouped, *_ = err.splitlines()
    assert told == "unreadable and left out: 1 of 21 images, listed in f.left_out.csv"
    assert grouped.startswith(f"  1 ({name}): {reason}")
    with open("f.left_out.csv", newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["file", name]
    Path("images/dark").rename("dark")
    for path in Path("images/red").glob("[0-9]*"):
        path.unlink()
    assert main(["embed", "runs/a", "images", "-o", "g.csv"]) == 1
    assert (
        "images: none of its 1 images can be used" in capsys.readouterr().err and not Path("g.csv").exists()
    )


def test_mixed_sizes_and_modes(capsys: Capture) -> None:
    """Palette, RGBA, CMYK and RGB of any size are colour; grey among them is a decision of the user."""
    rng = np.random.default_rng(0)
    Path("images").mkdir()
    for index, mode in enumerate(["P", "RGBA", "CMYK", "RGB"] * 2):
        image = Image.fromarray(rng.integers(0, 255, (16 + index, 20, 3), dtype=np.uint8)).convert(mode)
        image.save(f"images/{index}.{'tif' if mode == 'CMYK' else 'png'}")
    said = succeed(capsys, "train", "images", "-o", "runs/a", *TINY)
    assert said.startswith("8 images, 3 channels, stored at 19 px")  # 1.15 views
    Image.effect_noise((18, 18), 50).save("images/grey.png")
    said = fail(capsys, "train", "images", "-o", "runs/b", *TINY)
    assert "the images differ: 8 of 3 channels, 1 of 1 channel, of these the first is 'grey.png'" in said
    assert "set data.channels=rgb (grey three times) or data.channels=grey" in said
    said = succeed(capsys, "train", "images", "-o", "runs/b", *TINY, "data.channels=rgb")
    assert said.startswith("9 images, 3 channels")
    assert "9 images" in succeed(capsys, "embed", "runs/b", "images", "-o", "f.csv")
    said = succeed(capsys, "train", "images", "-o", "runs/c", *TINY, "data.channels=grey")
    assert said.startswith("9 images, 1 channel,")


def test_deep_images_and_others_that_are_embedded_by_their_encoder(capsys: Capture) -> None:
    """Floats in two channels; then a file of another depth, one of another scale, and one of NaN."""
    rng = np.random.default_rng(0)
    Path("images").mkdir()
    for index in range(12):
        np.save(f"images/{index:02d}.npy", rng.normal(300.0, 10.0, (16, 16, 2)))
    assert "12 images, 2 channels" in succeed(capsys, "train", "images", "-o", "runs/a", *TINY)
    np.save("images/celsius.npy", rng.normal(27.0, 10.0, (16, 16, 2)))
    np.save("images/counts.npy", rng.integers(250, 350, (16, 16, 2), dtype=np.uint16))
    np.save("images/gaps.npy", np.full((16, 16, 2), np.nan))
    assert main(["embed", "runs/a", "images", "-o", "f.csv"]) == 0
    out, err = capsys.readouterr()
    assert out == "13 images x 96 features in f.csv, 2 left out\n"
    lines = err.splitlines()
    assert lines[0].startswith("byol: celsius.npy: channel 0: the values lie in ")
    assert lines[1] == "unreadable and left out: 2 of 15 images, listed in f.left_out.csv"
    assert lines[2].startswith("  1 (counts.npy): holds 16-bit values, the encoder was trained on floating")
    assert lines[3].startswith("  1 (gaps.npy): holds no measured value") and "leave it out" in lines[3]
    assert len(lines) == 4


def test_images_at_their_own_scale(capsys: Capture) -> None:
    rng = np.random.default_rng(0)
    Path("images").mkdir()
    for index in range(9):
        image = rng.integers(0, 255, (6 + 2 * index, 8, 3), dtype=np.uint8)
        Image.fromarray(image).save(f"images/{index}.png")
    said = succeed(capsys, "train", "images", "-o", "runs/a", *TINY, "data.geometry=scale")
    assert "9 images, 3 channels, stored at 19 px" in said
    assert "no image is resized but 2 of 9, which are larger than the canvas of 19 px and shrunk" in said
    larger = [*TINY, "data.geometry=scale", "data.stored_px=22"]
    said = succeed(capsys, "train", "images", "-o", "runs/b", *larger)
    assert "no image is resized: each lies on a canvas of that side" in said
    assert json.loads(Path("runs/b/encoder.json").read_text())["geometry"] == "scale"


# ---- Labels


def write_labels(path: str, labels: dict[str, str]) -> None:
    Path(path).write_text("file,label\n" + "".join(f"{file},{label}\n" for file, label in labels.items()))


@pytest.mark.slow
def test_labels(capsys: Capture, finished: Path) -> None:
    """None, of one class, of nothing here, too few; then some, of which some are of other images."""
    write_images(Path("images"), classes=("dark",))
    succeed(capsys, "train", "images", "-o", "runs/a", *TINY, "trainer.max_epochs=1")
    said = succeed(capsys, "eval", "runs/a")
    assert said.startswith("without labels, on 10 training images")
    assert said.endswith(
        "\n\nno table: no image has a label; give --labels FILE.csv with the columns file,label\n\n"
        "saved in runs/a/measures.json\n"
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
    assert "a column `file` is needed" in said
    assert not Path("runs/a/eval.json").exists()

    partial = {name: "xy"[index % 2] for index, name in enumerate(names)}
    Image.new("RGB", (16, 16)).save("images/dark/unlabelled.png")
    write_labels("labels.csv", partial | {"nowhere.png": "x"})
    said = succeed(capsys, "eval", "runs/a", "--labels", "labels.csv")
    assert "\n1 of 11 images have no label and are left out\n" in said
    assert "\nleft out, of no image here: 1 of the 11 labels in labels.csv; it names nowhere.png" in said
    assert "8 training and 2 test images, 2 classes" in said

    lines = [f"{name},{label},{index % 3}" for index, (name, label) in enumerate(partial.items())]
    Path("plates.csv").write_text("\n".join(["file,label,plate", *lines]) + "\n")
    said = succeed(capsys, "eval", "runs/a", "--labels", "plates.csv", "--groups", "plate", "--folds", "3")
    assert "images: 3 folds by plate; 10 images, each tested once, 2 classes" in said
    table = json.loads(Path("runs/a/eval.json").read_text())
    assert table["protocol"] == "3 folds by plate"
    options = "--labels plates.csv --folds 3 --groups plate"  # what a card repeats it with
    assert f"&& byol eval runs/again {options}\n" in succeed(capsys, "card", "runs/a")
    succeed(capsys, "eval", "runs/a", *options.split())
    again = json.loads(Path("runs/a/eval.json").read_text())
    assert again | {"seconds": 0.0} == table | {"seconds": 0.0}
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


@pytest.mark.parametrize("command", ["report", "explore"])
def test_metadata_of_other_images_is_refused_for_a_map(capsys: Capture, copied: Path, command: str) -> None:
    lines = [f"dark/{index:02d}.png,one" for index in range(10)]
    lines += [f"other/{index:02d}.tif,two" for index in range(10, 14)]
    Path("plates.csv").write_text("\n".join(["file,plate", *lines]) + "\n")
    arguments = (command, "runs/b", "--metadata", "plates.csv")
    said = fail(capsys, *arguments)
    assert said.startswith("plates.csv: 4 of its 14 files") and "evaluation.max_unmatched=1" in said
    if command == "report":
        said = succeed(capsys, *arguments, "evaluation.max_unmatched=0.5")
        assert "4 of the 14 rows in plates.csv" in said


def test_a_list_of_other_spelling_is_explained_wherever_it_is_read(capsys: Capture, copied: Path) -> None:
    names = [f"images/{label}/{index:02d}.PNG" for label in ("dark", "red") for index in range(10)]
    Path("list.csv").write_text("\n".join(["file;label", *(f"{name};a" for name in names)]) + "\n")
    capsys.readouterr()
    assert main(["embed", "runs/b", "list.csv", "-o", "features.csv"]) == 0
    embedded = capsys.readouterr().err.splitlines()
    main(["check", "list.csv", *TINY])
    checked = capsys.readouterr().out.splitlines()
    notes = [line for line in embedded if line.startswith("list.csv") and "20" in line]
    assert notes and all(note in checked for note in notes)


def test_prototypes(capsys: Capture, finished: Path) -> None:
    run, images = finished / "runs" / "a", finished / "images"
    said = succeed(capsys, "embed", run, images, "-o", "f.csv", "--prototypes", "3")
    assert said == ("20 images x 96 features in f.csv\n3 images that stand for all in f.prototypes.csv\n")
    with open("f.prototypes.csv", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["file", "images"] and len(rows) == 3
    assert all((images / name).is_file() for name, _ in rows)
    sizes = [int(size) for _, size in rows]
    assert sum(sizes) == 20 and sizes == sorted(sizes, reverse=True)
    Path("f.csv").unlink()
    said = fail(capsys, "embed", run, images, "-o", "f.csv", "--prototypes", "0", code=2)
    assert said == "--prototypes 0: give a number of images, 1 or more\n"
    picture = images / "red" / "00.png"
    said = succeed(capsys, "embed", run, picture, "-o", "f.csv", "--prototypes", "2")
    told = "no prototypes: they cannot be chosen from one distinct image"
    assert said == f"1 images x 96 features in f.csv\n{told}\n" and Path("f.csv").exists()
    Path("copies").mkdir()
    for name in "ab":
        Path("copies", f"{name}.png").write_bytes(picture.read_bytes())
    said = succeed(capsys, "embed", run, "copies", "-o", "g.csv", "--prototypes", "2")
    assert f"{told} (all 2 have the same features: copies, or the encoder has" in said


def test_of_many_images_that_are_left_out_some_are_named_and_all_are_listed(
    capsys: Capture, finished: Path
) -> None:
    write_images(Path("images"), num=1, classes=("red",))
    for index in range(25):
        Path("images", f"{index:02d}.png").write_bytes(b"broken")
    assert main(["embed", str(finished / "runs" / "a"), "images", "-o", "f.csv"]) == 0
    said = capsys.readouterr()
    assert said.out == "1 images x 96 features in f.csv, 25 left out\n"
    assert "unreadable and left out: 25 of 26 images, listed in f.left_out.csv" in said.err
    assert "  25 (00.png, 01.png, 02.png, ...): " in said.err
    with open("f.left_out.csv", newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["file", *(f"{index:02d}.png" for index in range(25))]


def test_evaluation_that_would_mean_nothing(capsys: Capture, finished: Path) -> None:
    run, images = finished / "runs" / "a", finished / "images"
    said = fail(capsys, "eval", run, "--train", images, "--test", images)
    assert "images: the test images are the training images" in said
    assert "no test image has a label" in fail(capsys, "eval", run, "--test", images / "red")
    said = fail(capsys, "eval", run, "trainer.max_epochs=7", code=2)
    assert "evaluation cannot change what the run was (trainer.max_epochs: 2 -> 7)" in said


# ---- Folders


def test_output_folders_that_cannot_be_used(capsys: Capture, finished: Path) -> None:
    images = finished / "images"
    Path("file").write_text("mine")
    said = fail(capsys, "train", images, "-o", "file", *TINY)
    assert said == "file: is a file, a run is a folder; choose another name with -o\n"
    said = fail(capsys, "train", images, "-o", "file/run", *TINY)
    assert "file/run/config.yaml: cannot be written (a file is where a folder must be)" in said
    said = fail(capsys, "train", images, "-o", "run", *TINY, "data.packs=file")
    assert "cannot be written (a file is where a folder must be)" in said and "data.packs=FOLDER" in said
    said = fail(capsys, "embed", finished / "runs" / "a", images, "-o", "file/f.csv")
    assert said.startswith("file/f.csv: cannot be written (a file is where a folder must be)")
    for command in ("embed", "predict"):  # the place is looked at before anything is read
        assert fail(capsys, command, "nowhere", images, "-o", "file/f.csv") == said
        assert "nowhere: no such folder" in fail(capsys, command, "nowhere", images, "-o", "new/place/f.csv")
    assert not Path("new").exists()
    Path("f.csv").mkdir()
    said = fail(capsys, "embed", "nowhere", images, "-o", "f.csv")
    assert said.startswith("f.csv: cannot be written (Is a directory)")
    assert Path("file").read_text() == "mine"


@pytest.mark.parametrize("name", ["thesis.txt", "config.yaml"])
def test_an_output_folder_of_other_things_is_left_alone(
    name: str, capsys: Capture, finished: Path, place: Path
) -> None:
    """Also one with a configuration that somebody has written by hand."""
    Path("mine").mkdir()
    Path("mine", name).write_text("trainer:\n  max_epochs: 3 # enough\n")
    before = contents(place)
    said = fail(capsys, "train", finished / "images", "-o", "mine", *TINY)
    assert said == "mine: is not empty and not a run; choose another folder with -o\n"
    assert contents(place) == before


def test_folders_that_are_no_run(capsys: Capture, finished: Path) -> None:
    images = finished / "images"
    said = fail(capsys, "eval", images)
    assert "holds no run (no config.yaml); name a run's folder, or train one: byol train IMAGES/" in said
    for arguments in (["card", images], ["compare", images, finished / "runs" / "a"]):
        assert "holds no run (no config.yaml); name a run's folder" in fail(capsys, *arguments)
    assert "has no encoder.json; name a run's folder" in fail(capsys, "embed", images, images, "-o", "f.csv")
    assert "nowhere: no such folder" in fail(capsys, "embed", "nowhere", images, "-o", "f.csv")
    for folder in ("nowhere", str(images)):
        said = fail(capsys, "train", images, "-o", "run", *TINY, f"network.fine_tune_from={folder}")
        assert said.startswith("network.fine_tune_from: ") and "name an earlier run's folder" in said


def test_features_that_are_not_numbers_are_never_written(capsys: Capture, copied: Path) -> None:
    weights = load_file(copied / "encoder.safetensors")
    spoilt = {name: one * float("nan") if one.is_floating_point() else one for name, one in weights.items()}
    save_file(spoilt, copied / "encoder.safetensors")
    said = fail(capsys, "embed", copied, "images", "-o", "f.csv")
    assert "the encoder's features of this image are not finite (20 such images in all)" in said
    assert not Path("f.csv").exists()


def test_a_run_of_another_configuration_or_of_other_images(capsys: Capture, copied: Path) -> None:
    before = contents(copied)
    said = fail(capsys, "train", "images", "-o", copied, *TINY, "trainer.seed=3", "trainer.m=0.5")
    assert "holds a run of another configuration (" in said and "choose another folder with -o" in said
    assert "trainer.seed: 0 -> 3" in said and "trainer.m: null -> 0.5" in said
    Path("images/red/00.png").unlink()
    said = fail(capsys, "train", "images", "-o", copied, *TINY)
    assert f"{copied}: its images have changed since it started; put the old ones back" in said
    assert contents(copied) == before


# ---- From existing weights, and alarms


def test_init_is_short_for_fine_tune_from(capsys: Capture, finished: Path) -> None:
    weights = finished / "runs" / "a" / "encoder.safetensors"
    said = succeed(capsys, "train", finished / "images", "-o", "run", *TINY, "--init", weights)
    assert f"starting from the encoder of {weights}, with new heads" in said
    assert "step 0 -> now: view-retrieval accuracy " in said
    assert f"fine_tune_from: {weights}" in Path("run/config.yaml").read_text()
    said = fail(capsys, "train", finished / "images", "-o", "b", *TINY, "--init", "timm:test_vit")
    assert "network.fine_tune_from: " in said and "test_vit" in said


def write_array(images: np.ndarray) -> str:
    np.save("images.npy", images.astype(np.uint8))
    return "images.npy"


def test_alarms_name_the_cause_and_one_setting(capsys: Capture) -> None:
    rng = np.random.default_rng(0)
    grey = write_array(np.full((32, 16, 16, 3), 128))
    assert "there is nothing to learn" in fail(capsys, "train", grey, "-o", "a", *TINY)

    objects = np.full((32, 32, 32, 1), 20)
    objects[:, 4:10, 4:10] = rng.integers(100, 255, (32, 6, 6, 1))
    crop = "data_transforms.view1.crop_area=[0.001,0.01]"
    said = fail(capsys, "train", write_array(objects), "-o", "b", *TINY, crop)
    assert "of its views are blank because of crop_area=[0.001,0.01]" in said
    assert said.endswith("set data_transforms.view1.crop_area=[0.2,1.0]\n")

    noise = write_array(rng.integers(0, 256, (64, 16, 16, 3)))
    capsys.readouterr()
    overrides = [*TINY, "optimizer.params.lr=7.5", "trainer.max_epochs=25"]
    assert main(["train", noise, "-o", "c", *overrides]) == 1
    said = capsys.readouterr().err
    assert said.startswith(("byol: collapsed at step ", "byol: loss or gradient is not"))
    assert (
        "times the value that suits this optimizer and batch size" in said
        and "optimizer.params.lr=0.0075\n" in said
    )


# ---- Configuration


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n- b\n", "c.yaml: holds a list; expected sections such as 'trainer:'"),
        ("", "c.yaml: is empty; expected sections such as 'trainer:'"),
        ("trainer:\n\tm: 0.9\n", "c.yaml:2: not valid YAML: a tab; indent with spaces"),
        ("trainer: {m: 0.9}\ntrainer: {m: 0.8}\n", "c.yaml:2: trainer: given twice, first in line 1"),
        ("trainer:\n  batchsize: 4\n", "c.yaml:2: trainer.batchsize: unknown key; did you mean"),
        ("trainer:\n  m: high\n", "c.yaml:2: trainer.m: got 'high', allowed: "),
        ("preset: papre\n", "c.yaml:1: preset: got 'papre', allowed: one of classic, paper, default, demo"),
    ],
)
def test_configurations_that_are_refused(text: str, said: str, capsys: Capture, place: Path) -> None:
    Path("c.yaml").write_text(text)
    for command in ("train", "run", "config"):
        assert said in fail(capsys, command, "c.yaml", code=2)
    assert [path.name for path in place.iterdir()] == ["c.yaml"]


def test_all_problems_are_told_at_once(capsys: Capture) -> None:
    Path("c.yaml").write_text(
        "trainer:\n  batchsize: 4\n  max_epochs: many\noptimizer:\n  params: {lr: -1}\n"
    )
    said = fail(capsys, "run", "c.yaml", "data.memory=disk", code=2, lines=4)
    for part in ("trainer.batchsize", "trainer.max_epochs", "optimizer.params.lr", "data.memory=disk"):
        assert part in said


def test_arguments_that_are_refused(capsys: Capture, finished: Path, place: Path) -> None:
    images, run = finished / "images", finished / "runs" / "a"
    assert "nowhere.yaml: no such file; `byol config" in fail(capsys, "run", "nowhere.yaml", code=2)
    assert "a value must follow" in fail(capsys, "train", images, "--trainer.max_epochs", code=2)
    assert "did you mean 'trainer.max_epochs'?" in fail(capsys, "train", images, "max_epochs=3", code=2)
    said = fail(capsys, "train", images, *TINY, "network.name=resnet19", code=2)
    assert "'resnet19' is unknown to timm and torchvision; did you mean 'resnet18'?" in said
    said = fail(capsys, "embed", run, images, "-o", "f.xyz", code=2)
    assert "f.xyz: features are written as .parquet, .npz, .csv" in said
    said = fail(capsys, "embed", run, images, "-o", "f.csv", "trainer.m=1", code=2)
    assert "override 'trainer.m=1': embedding has no settings" in said
    for command in (["card", run], ["compare", run, run]):
        assert "has no settings; leave it out" in fail(capsys, *command, "trainer.m=1", code=2)
    assert "compare: name two or more different runs" in fail(capsys, "compare", run, code=2)
    assert list(place.iterdir()) == []


# ---- Damage


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_checkpoints_cut_in_half(capsys: Capture, copied: Path) -> None:
    """The one before is used, and gives the same end; without any the run is refused."""
    arguments = ["train", "images", "-o", "runs/b", *TINY, "trainer.checkpoint_interval=1"]
    before = (copied / "encoder.safetensors").read_bytes()
    newest = checkpoint.list_checkpoints(copied)[0]
    cut_in_half(newest)
    said = succeed(capsys, *arguments)
    assert said.startswith("runs/b/checkpoints/step-00000004.pt: is damaged (its checksum differs); going on")
    assert "resuming at step 3 of 4" in said
    assert (copied / "encoder.safetensors").read_bytes() == before
    for path in checkpoint.list_checkpoints(copied):
        cut_in_half(path)
    whole = contents(copied)
    said = fail(capsys, *arguments)
    assert "step-00000003.pt: is damaged" in said and "start again in another folder with -o" in said
    assert contents(copied) == whole


def test_encoder_files_that_are_damaged(capsys: Capture, copied: Path) -> None:
    """Each is told by its name, and the same `byol train` command mends them, as the message says."""
    weights, spec = copied / "encoder.safetensors", copied / "encoder.json"
    before = weights.read_bytes(), spec.read_bytes()
    mend = "the same `byol train` command writes it anew"

    def refused() -> str:
        said = fail(capsys, "embed", "runs/b", "images", "-o", "f.csv")
        assert said == fail(capsys, "eval", "runs/b") and not Path("f.csv").exists()
        return said

    given = load_file(weights)
    missing = sorted(given)[0]
    save_file({key: value for key, value in given.items() if key != missing}, weights)
    assert f"encoder.safetensors: the key '{missing}' is missing; {mend}" in refused()
    weights.write_bytes(before[0][:1000])
    assert "encoder.safetensors: is damaged or cut short" in refused()
    spec.write_text("{")
    assert "encoder.json: cannot be read" in refused()
    succeed(capsys, "train", "images", "-o", "runs/b", *TINY)
    assert (weights.read_bytes(), spec.read_bytes()) == before


def test_a_full_disk(capsys: Capture, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the second checkpoint is written: the first stays, and the same command finishes later."""
    arguments = ["train", str(finished / "images"), "-o", "runs/c", *TINY, "trainer.checkpoint_interval=2"]
    original = checkpoint.save

    def fill_the_disk(file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:

        def save(run_dir: Path, done: int, **others: object) -> Path:
            if done == 4:
                patch.setattr(os, "fsync", fill_the_disk)
            return original(run_dir, done, **others)  # type: ignore[arg-type]

        patch.setattr(checkpoint, "save", save)
        assert main(arguments) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "cannot be written (No space left on device); free space" in err
    assert [path.name for path in checkpoint.list_checkpoints(Path("runs/c"))] == ["step-00000002.pt"]
    assert not [path for path in Path("runs").rglob(".*") if path.suffix != ".lock"]
    assert "resuming at step 2 of 4" in succeed(capsys, *arguments)


def test_a_number_of_hours(capsys: Capture, finished: Path) -> None:
    """An override like any other: a mistake is told as one; epochs on the same line are one too many."""
    images = str(finished / "images")
    said = fail(capsys, "train", images, "--hours", "two", code=2)
    assert said.startswith("override 'trainer.max_hours=two': got 'two', allowed: a number above 0")
    said = fail(capsys, "train", images, "--hours", "2", "trainer.max_epochs=3", code=2)
    assert "trainer.max_hours 2 and trainer.max_epochs 3 are two lengths of one run; leave one out" in said


@pytest.mark.slow
def test_training_for_a_second(capsys: Capture, finished: Path) -> None:
    """With the real clock and the real probe; how long it takes is not judged."""
    settings = [setting for setting in TINY if "max_epochs" not in setting]
    said = succeed(capsys, "train", finished / "images", "-o", "runs/c", "--hours", "0.0003", *settings)
    assert "measuring how long a step takes" in said and "in 0:01 at" in said and "0:00 left" in said
    config = yaml.safe_load(Path("runs/c/config.yaml").read_text())
    assert (config["trainer"]["max_hours"], config["trainer"]["max_epochs"]) == (0.0003, None)


# ---- Stopping


def test_ctrl_c_while_training(capsys: Capture, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["train", str(finished / "images"), "-o", "runs/c", *TINY]
    make_views = loop.make_views
    calls = 0

    def press(*arguments: object, **others: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return make_views(*arguments, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "make_views", press)
    assert main(arguments) == 130
    said = capsys.readouterr()
    assert said.err == "" and said.out.splitlines()[-1] == (
        "stopped by SIGINT after step 2 of 4, saved in runs/c; same command again to resume"
    )
    assert "resuming at step 2 of 4" in succeed(capsys, *arguments)
    weights = Path("runs/c/encoder.safetensors").read_bytes()
    assert weights == (finished / "runs" / "a" / "encoder.safetensors").read_bytes()


def test_ctrl_c_while_packing(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packing can take an hour: it is left at once, and continued by the same command."""
    write_images(Path("images"))
    pack = setup.open_images

    def press(*arguments: object, **others: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        return pack(*arguments, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(setup, "open_images", press)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        said = fail(capsys, "train", "images", "-o", "runs/c", *TINY, code=130)
    finally:
        signal.signal(signal.SIGINT, before)
    assert said.count("\n") == 1 and "same command again" in said
    monkeypatch.setattr(setup, "open_images", pack)
    assert "step 4/4" in succeed(capsys, "train", "images", "-o", "runs/c", *TINY)
