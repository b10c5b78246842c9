"""`byol train`: what it chooses, packs, prints, refuses and resumes."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import yaml
from PIL import Image

import byol
from byol.auto import resolve
from byol.cli.main import main
from byol.config import Config
from byol.training.step_benchmark import StepBenchmark
from command_line import TINY, Capture, contents, fail, succeed, write_images


def test_a_dry_run_then_the_run(capsys: Capture, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody says anything but the folder (and sizes, to be fast): all is chosen, told, kept."""

    def benchmark(config: Config, *, wanted: int = 0, **images: int) -> StepBenchmark:
        return StepBenchmark(config.batch_size, 1, 100.0, 10**9, 2 * 10**9)

    monkeypatch.setattr(resolve, "choose_batch", benchmark)
    monkeypatch.setattr(resolve, "benchmark_step", benchmark)
    write_images(Path("images"))
    few = [*TINY[:4], "trainer.device=cpu", "trainer.num_workers=1"]
    said = succeed(capsys, "train", "images", "-o", "runs/a", *few, "-n")
    assert [path.name for path in place.iterdir()] == ["images"]
    lines = said.splitlines()
    assert lines[:3] == [
        "looking at the images (at most 2,000 of them)",
        "timing a few training steps",
        "random changes (views) as for photos (the images have 8 bits and 3 channels)",
    ]
    for line in (
        "view size 32 px (longest side of a typical image 16 px; at least 32)",
        "batch size 8 (at most half of the 20 images)",
    ):
        assert line in lines
    assert "about 50 min: 30 steps of 100 s" in lines[-2]

    trained = succeed(capsys, "train", "images", "-o", "runs/a", *few, "trainer.max_epochs=1").splitlines()
    assert trained[:6] == lines[:6]
    assert any(
        line.startswith("batch size 8, 2 steps (full batches) per epoch, 2 steps in total")
        for line in trained
    )
    said = succeed(capsys, "train", "images", "-o", "runs/a", *few)
    assert said.splitlines()[0].startswith("20 images with 3 channels, stored at")
    assert "this run is already finished: all 2 steps are done" in said
    said = fail(capsys, "train", "images", "-o", "runs/a", *few, "trainer.batch_size=4")
    assert "holds a run with another configuration (trainer.batch_size: 8 -> 4)" in said
    written = yaml.safe_load(Path("runs/a/config.yaml").read_text())
    assert written["data_transforms"]["domain"] == "photo"
    assert written["data_transforms"]["input_shape"] == [32, 32, None]


def test_train_eval_embed_load(capsys: Capture) -> None:
    write_images(Path("images"))
    said = succeed(capsys, "train", "images", "-o", "runs/a", *TINY)
    assert said.startswith("20 images with 3 channels, stored at 16 px; views of 16 px")
    assert "batch size 8, 2 steps (full batches) per epoch, 4 steps in total" in said and "step 4/4" in said
    assert "learning rate 0.0075 (0.06 x batch size / 64, at most 0.4)" in said
    assert "    byol embed runs/a images -o features.csv\n" in said
    assert '    features = byol.load("runs/a").embed("images")' in said
    assert max(map(len, said.splitlines())) <= 110

    before = contents(Path("runs/a/checkpoints"))
    said = succeed(capsys, "train", "images", "-o", "runs/a", *TINY)
    assert "this run is already finished: all 4 steps are done" in said
    assert contents(Path("runs/a/checkpoints")) == before

    said = succeed(capsys, "eval", "runs/a")
    assert (
        "'images': every fifth image of each class held out for testing; classifiers trained on 16 images "
        "and tested on 4; " in said
    )
    assert "\n\n\n" not in said and "saved in runs/a: eval.json, measures.json, neighbours.png, " in said
    assert said.startswith("without labels, on the 20 training images")
    assert "\nJudged without labels, " in said and "\nmost unusual images (" in said
    assert max(map(len, said.splitlines())) <= 130
    assert "\nk-means on patches left out (" in said  # this network computes less than they would
    assert len(json.loads(Path("runs/a/eval.json").read_text())["rows"]) == 12
    assert "logistic regression with few labels: top-1, mean ± std over 5 random draws" in said
    again = succeed(capsys, "eval", "runs/a")
    assert "12 of 12 rows below were computed earlier and come from runs/a/features" in again
    tables = [text[text.index("'images': every fifth") :] for text in (said, again)]
    assert tables[0] == tables[1]
    assert said.partition("\npixels: ")[0] == again.partition("\npixels: ")[0]

    for name in ("f.csv", "f.npz", "f.parquet"):
        said = succeed(capsys, "embed", "runs/a", "images", "-o", name)
        assert said == f"wrote 20 rows (images) with 96 features each to {name}\n"
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
    assert said == "6 images are fewer than a batch of 8; give more images, or set trainer.batch_size=3\n"
    assert "step 4/4" in succeed(capsys, "train", "few", *TINY, "trainer.batch_size=3")


def test_mixed_sizes_and_modes(capsys: Capture) -> None:
    """Palette, RGBA, CMYK and RGB of any size are colour; grey among them is a decision of the user."""
    rng = np.random.default_rng(0)
    Path("images").mkdir()
    for index, mode in enumerate(["P", "RGBA", "CMYK", "RGB"] * 2):
        image = Image.fromarray(rng.integers(0, 255, (16 + index, 20, 3), dtype=np.uint8)).convert(mode)
        image.save(f"images/{index}.{'tif' if mode == 'CMYK' else 'png'}")
    said = succeed(capsys, "train", "images", "-o", "runs/a", *TINY)
    assert said.startswith("8 images with 3 channels, stored at 19 px")  # 1.15 views
    Image.effect_noise((18, 18), 50).save("images/grey.png")
    said = fail(capsys, "train", "images", "-o", "runs/b", *TINY)
    assert "the images differ: 8 of 3 channels, 1 of 1 channel (the first of these is 'grey.png')" in said
    assert "set data.channels=rgb (grey three times) or data.channels=grey" in said
    said = succeed(capsys, "train", "images", "-o", "runs/b", *TINY, "data.channels=rgb")
    assert said.startswith("9 images with 3 channels")
    assert "wrote 9 rows" in succeed(capsys, "embed", "runs/b", "images", "-o", "f.csv")
    said = succeed(capsys, "train", "images", "-o", "runs/c", *TINY, "data.channels=grey")
    assert said.startswith("9 images with 1 channel,")


def test_images_at_their_own_scale(capsys: Capture) -> None:
    rng = np.random.default_rng(0)
    Path("images").mkdir()
    for index in range(9):
        image = rng.integers(0, 255, (6 + 2 * index, 8, 3), dtype=np.uint8)
        Image.fromarray(image).save(f"images/{index}.png")
    said = succeed(capsys, "train", "images", "-o", "runs/a", *TINY, "data.geometry=scale")
    assert "9 images with 3 channels, stored at 19 px" in said
    assert "2 of 9" in said and "19 px" in said
    larger = [*TINY, "data.geometry=scale", "data.stored_px=22"]
    said = succeed(capsys, "train", "images", "-o", "runs/b", *larger)
    assert "shrinks" not in said
    assert json.loads(Path("runs/b/encoder.json").read_text())["geometry"] == "scale"


def test_a_number_of_hours(capsys: Capture, finished: Path) -> None:
    """An override like any other: a mistake is told as one; epochs on the same line are one too many."""
    images = str(finished / "images")
    said = fail(capsys, "train", images, "--hours", "two", code=2)
    assert said.startswith("override 'trainer.max_hours=two': got 'two', allowed: a number above 0")
    said = fail(capsys, "train", images, "--hours", "2", "trainer.max_epochs=3", code=2)
    assert (
        "trainer.max_hours 2 and trainer.max_epochs 3 both set the length of the run; leave one out" in said
    )


@pytest.mark.slow
def test_training_for_a_second(capsys: Capture, finished: Path) -> None:
    """With the real clock and the real benchmark; how long it takes is not judged."""
    settings = [setting for setting in TINY if "max_epochs" not in setting]
    said = succeed(capsys, "train", finished / "images", "-o", "runs/c", "--hours", "0.0003", *settings)
    assert (
        "timing a few training steps" in said and " fit into 0:01 (min:s) at " in said and "0:00 left" in said
    )
    config = yaml.safe_load(Path("runs/c/config.yaml").read_text())
    assert (config["trainer"]["max_hours"], config["trainer"]["max_epochs"]) == (0.0003, None)


def test_init_is_short_for_fine_tune_from(capsys: Capture, finished: Path) -> None:
    weights = finished / "runs" / "a" / "encoder.safetensors"
    said = succeed(capsys, "train", finished / "images", "-o", "run", *TINY, "--init", weights)
    assert f"starting from the encoder of {weights}, with new heads" in said
    assert "run byol eval):\nview-retr" in said
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
