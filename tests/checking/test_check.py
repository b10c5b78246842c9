"""`byol check` through the command: exit codes, what is said, what is written and where."""

import csv
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
import timm
import torch
from PIL import Image

from byol.auto import resolve
from byol.cli.main import main
from byol.config import Config
from byol.training.step_benchmark import StepBenchmark
from html_reader import read

LISTS, PICTURES = (
    {"bad_files.csv", "blank_files.csv", "duplicates.csv"},
    {"contact.png", "hist.png", "views.png"},
)
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder; steps are not measured."""

    def benchmark(config: Config, **images: object) -> StepBenchmark:
        return StepBenchmark(config.batch_size, config.accumulation_steps, 0.5, 10**9, 2 * 10**9)

    monkeypatch.setattr(resolve, "choose_batch", benchmark)
    monkeypatch.setattr(resolve, "benchmark_step", benchmark)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def draw(seed: int, *, channels: int = 3) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, channels)).astype(np.uint8)
    planes = [Image.fromarray(coarse[..., at]).resize((40, 40)) for at in range(channels)]
    return np.stack([np.asarray(plane) for plane in planes], axis=2)


def write(folder: str, num: int = 20, *, first: int = 0) -> Path:
    Path(folder).mkdir(exist_ok=True)
    for number in range(first, first + num):
        Image.fromarray(draw(number)).save(Path(folder) / f"{number:03d}.png")
    return Path(folder)


def check(capsys: Capture, *arguments: str, code: int = 0) -> list[str]:
    assert main(["check", *arguments, "trainer.num_workers=1", "trainer.device=cpu"]) == code
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    lines = (said.out + said.err).splitlines()
    assert len(lines) < 24 and (code == 0) == (lines[-1] == "ready: training may start")
    return lines


def rows(path: str) -> list[list[str]]:
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.reader(file))


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def check_page(path: str) -> str:
    """The page is whole and asks for nothing elsewhere; its text."""
    content = Path(path).read_bytes()
    assert b"http:" not in content and b"https:" not in content and b"prefers-color-scheme" in content
    reader = read(content)
    assert "script" not in reader.tags and "link" not in reader.tags
    assert all(value.startswith("data:") for name, value in reader.attributes if name == "src" and value)
    return reader.text


def test_images_that_are_fit(capsys: Capture, place: Path) -> None:
    before = contents(write("images"))
    lines = check(capsys, "images")
    assert lines[:4] == [
        "20 .png files; byol can read all of them",
        lines[1],
        "size 40 x 40 px",
        "exact duplicates 0, near duplicates 0, blank images 0",
    ]
    assert lines[1].startswith("3 channels, 8 bit, values ")
    assert lines[4] == "random changes (views) as for photos (the images have 8 bits and 3 channels)"
    assert lines[-3].endswith("1.0 GB of memory, and 1 MB of disk for the pack (a copy of the images)")
    assert lines[-2] == "report: check/images/report.html (images, views, histograms)"
    assert {path.name for path in Path("check/images").iterdir()} == LISTS | PICTURES | {"report.html"}
    assert {path.name for path in place.iterdir()} == {"images", "check"} and contents(place / "images")
    assert contents(Path("images")) == before
    text = check_page("check/images/report.html")
    assert "Training may start." in text and "crop_area" in text and "learning rate" in text
    Image.open("check/images/views.png").verify()


def test_overrides_count_as_in_training(capsys: Capture) -> None:
    write("images")
    lines = check(
        capsys, "images", "data.channels=[0,2]", "data_transforms.view.crop_area=[0.5,1]", "-o", "out"
    )
    assert lines[1].startswith("2 channels, 8 bit")
    assert lines[4] == "random changes (views) as for microscopy (the images have 8 bits and 2 channels)"
    text = check_page("out/report.html")
    assert "crop_area0.5 .. 10.5 .. 1" in text and "side by side in reading order" in text


def test_deep_images(capsys: Capture) -> None:
    Path("deep").mkdir()
    for number in range(16):
        tifffile.imwrite(f"deep/{number}.tif", draw(number, channels=1)[..., 0].astype(np.uint16) * 16 + 15)
    assert "12-bit data in 16-bit files" in check(capsys, "deep")[1]


def test_names_duplicates_blanks_and_what_cannot_be_read(capsys: Capture) -> None:
    write("images")
    evil = "a<script>'\"&\n.png"
    Image.fromarray(draw(3)).save(Path("images") / evil)
    Image.fromarray(draw(4)).save("images/b.jpg", quality=70)
    Image.fromarray(np.full((40, 40, 3), 9, np.uint8)).save("images/c.png")
    (Path("images") / os.fsdecode(b"\xff.png")).write_text("not an image")
    lines = check(capsys, "images", "data.max_bad=0.1")
    assert lines[0].endswith("; byol cannot read 1 of them")
    assert lines[3] == "exact duplicates 1, near duplicates 1 (4.3 %), blank images 1 (4.3 %)"
    head, (name, reason) = rows("check/images/bad_files.csv")
    assert head == ["file", "reason"] and name == os.fsdecode(b"\xff.png")
    assert reason.startswith("is text, not an image of a known format")
    assert rows("check/images/blank_files.csv") == [["file"], ["c.png"]]
    assert rows("check/images/duplicates.csv") == [
        ["file", "same as", "kind"],
        [evil, "003.png", "exact"],
        ["b.jpg", "004.png", "near"],
    ]
    assert "a<script>" in check_page("check/images/report.html")
    lines = check(capsys, "images", code=1)  # more than 1 %
    assert any(line.startswith("problem: ") and "1 of 24 files" in line for line in lines)


def test_a_test_part_that_holds_training_images(capsys: Capture) -> None:
    write("train")
    write("test", 3, first=50)
    Image.fromarray(draw(7)).save("test/a.bmp")
    Image.fromarray(draw(8)).save("test/b.jpg", quality=70)
    lines = check(capsys, "train", "--test", "test")
    assert any(line.startswith("1 of 5 test images are exact duplicates") for line in lines)
    assert any(line.startswith("warning: 2 of 5 test images") and "leaks.csv" in line for line in lines)
    assert rows("check/train/leaks.csv")[1:] == [["a.bmp", "007.png", "exact"], ["b.jpg", "008.png", "near"]]
    check(capsys, "train")
    assert not Path("check/train/leaks.csv").exists()


def test_views_that_are_mostly_blank(capsys: Capture) -> None:
    Path("images").mkdir()
    for number in range(20):
        image = np.full((60, 60, 3), 255, np.uint8)
        image[:20, :20] = draw(number)[:20, :20]
        Image.fromarray(image).save(f"images/{number:02d}.png")
    large = "data_transforms.view1.crop_area=[0.9,1]"
    lines = check(capsys, "images", large, "data_transforms.view2.crop_area=[0.05,0.1]", code=1)
    (line,) = (line for line in lines if line.startswith("problem"))
    assert line.startswith("problem: data_transforms.view2: ") and "views are blank" in line
    lines = check(capsys, "images", large, "data_transforms.view2.crop_area=[0.3,0.4]")
    (line,) = (line for line in lines if line.startswith("warning: data_transforms"))
    assert "data_transforms.view2.crop_area=[0.6,1.0] (views.png)" in line


@pytest.mark.parametrize("kind", ["few", "blank", "mixed", "unreadable"])
def test_images_that_are_not_fit(kind: str, capsys: Capture) -> None:
    folder = write("images", 12 if kind == "few" else 20)
    if kind == "mixed":
        Image.fromarray(draw(0)[..., 0]).save(folder / "grey.png")
    for path in folder.iterdir():
        if kind == "blank":
            Image.new("RGB", (40, 40), (9, 9, 9)).save(path)
        elif kind == "unreadable":
            path.write_text("not an image")
    lines = check(capsys, "images", code=1)
    said = {
        "few": "problem: 12 images are too few to learn from; give at least 16",
        "blank": "problem: all 20 images are blank",
        "mixed": "problem: the images differ: 20 of 3 channels, 1 of 1 channel",
        "unreadable": "problem: byol cannot read 20 of 20 files",
    }[kind]
    assert sum(line.startswith("problem") for line in lines) == 1
    assert any(line.startswith(said) for line in lines)
    assert lines[-1] == "not ready: fix the problems above before training"
    assert "may not start" in check_page("check/images/report.html")
    assert Path("check/images/contact.png").exists() == (kind != "unreadable")


def test_nothing_to_look_at(capsys: Capture, place: Path) -> None:
    (place / "empty").mkdir()
    assert check(capsys, "empty", code=1)[0].startswith("byol: empty: the folder is empty")
    assert check(capsys, "nowhere", code=1)[0].startswith("byol: nowhere: no such file or folder")
    assert not (place / "check").exists()


def test_settings_and_folders_that_are_refused(
    capsys: Capture, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("images")
    assert "data_transforms.view.crop" in check(capsys, "images", "data_transforms.view.crop=1", code=2)[0]
    assert check(capsys, "images", "network.name=nonsense", code=2)[-3].startswith("problem: network.name")
    (place / "mine").mkdir()
    (place / "mine" / "notes.txt").write_text("x")
    assert "holds files that are not from a report" in check(capsys, "images", "-o", "mine", code=2)[0]
    assert "lies inside the image folder" in check(capsys, "images", "-o", "images/report", code=2)[0]
    monkeypatch.chdir("images")
    assert "lies inside the image folder" in check(capsys, ".", code=2)[0]
    assert len(list((place / "images").iterdir())) == 20


def test_weights_that_training_would_refuse(capsys: Capture, place: Path) -> None:
    images = write("images")
    (place / "page.pth").write_text("<html>")
    lines = check(capsys, str(images), "network.fine_tune_from=page.pth", code=1)
    assert any("page.pth is a web page" in line for line in lines)


def test_weights_are_described_as_the_dry_run_describes_them(capsys: Capture, place: Path) -> None:
    images = write("images")
    state = timm.create_model("test_resnet", num_classes=0).state_dict()
    torch.save({"teacher": {f"backbone.{name}": value for name, value in state.items()}}, "dino.pth")
    settings = ("network.fine_tune_from=dino.pth", "network.name=test_resnet", "network.stem=standard")
    lines = check(capsys, str(images), *settings)
    said = [line for line in lines if "encoder" in line]
    assert len(said) == 2 and "prefix 'teacher.backbone.'" in said[1]
    assert main(["train", str(images), "-n", *settings]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if "encoder" in line] == said
