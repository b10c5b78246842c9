"""`byol embed`: features of new images, what it leaves out and warns of, damaged encoders."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from byol.cli.main import main
from command_line import TINY, Capture, fail, succeed, write_images


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
        (write_text, "red/z.png", "is text, not an image of a known format"),
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
    assert out == "wrote 20 rows (images) with 96 features each to f.csv, 1 left out\n"
    told, grouped, *_ = err.splitlines()
    assert told == "unreadable and left out: 1 of 21 images, listed in f.left_out.csv"
    assert grouped.startswith(f"  1 file ({name}): {reason}")
    with open("f.left_out.csv", newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["file", name]
    Path("images/dark").rename("dark")
    for path in Path("images/red").glob("[0-9]*"):
        path.unlink()
    assert main(["embed", "runs/a", "images", "-o", "g.csv"]) == 1
    assert (
        "images/: byol cannot use any of the 1 images" in capsys.readouterr().err
        and not Path("g.csv").exists()
    )


def test_deep_images_and_others_that_are_embedded_by_their_encoder(capsys: Capture) -> None:
    """Floats in two channels; then a file of another depth, one of another scale, and one of NaN."""
    rng = np.random.default_rng(0)
    Path("images").mkdir()
    for index in range(12):
        np.save(f"images/{index:02d}.npy", rng.normal(300.0, 10.0, (16, 16, 2)))
    assert "12 images with 2 channels" in succeed(capsys, "train", "images", "-o", "runs/a", *TINY)
    np.save("images/celsius.npy", rng.normal(27.0, 10.0, (16, 16, 2)))
    np.save("images/counts.npy", rng.integers(250, 350, (16, 16, 2), dtype=np.uint16))
    np.save("images/gaps.npy", np.full((16, 16, 2), np.nan))
    assert main(["embed", "runs/a", "images", "-o", "f.csv"]) == 0
    out, err = capsys.readouterr()
    assert out == "wrote 13 rows (images) with 96 features each to f.csv, 2 left out\n"
    lines = err.splitlines()
    assert lines[0].startswith("byol: celsius.npy: channel 0: the values lie in ")
    assert lines[1] == "unreadable and left out: 2 of 15 images, listed in f.left_out.csv"
    assert lines[2].startswith(
        "  1 file (counts.npy): holds 16-bit values, but the encoder was trained on floating"
    )
    assert lines[3].startswith("  1 file (gaps.npy): has no measured value") and "leave it out" in lines[3]
    assert "data.clip=0" in lines[4] and len(lines) == 5


def test_prototypes(capsys: Capture, finished: Path) -> None:
    run, images = finished / "runs" / "a", finished / "images"
    said = succeed(capsys, "embed", run, images, "-o", "f.csv", "--prototypes", "3")
    assert (
        "20 rows (images) with 96 features each to f.csv" in said
        and " 3 " in said
        and "f.prototypes.csv" in said
    )
    with open("f.prototypes.csv", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["file", "images"] and len(rows) == 3
    assert all((images / name).is_file() for name, _ in rows)
    sizes = [int(size) for _, size in rows]
    assert sum(sizes) == 20 and sizes == sorted(sizes, reverse=True)
    Path("f.csv").unlink()
    said = fail(capsys, "embed", run, images, "-o", "f.csv", "--prototypes", "0", code=2)
    assert said == "--prototypes 0: give a number of images, at least 1\n"
    picture = images / "red" / "00.png"
    said = succeed(capsys, "embed", run, picture, "-o", "f.csv", "--prototypes", "2")
    told = "no prototypes: "
    assert (
        "wrote 1 rows (images) with 96 features each to f.csv" in said
        and told in said
        and Path("f.csv").exists()
    )
    Path("copies").mkdir()
    for name in "ab":
        Path("copies", f"{name}.png").write_bytes(picture.read_bytes())
    said = succeed(capsys, "embed", run, "copies", "-o", "g.csv", "--prototypes", "2")
    assert told in said and "all 2 have the same features" in said


def test_of_many_images_that_are_left_out_some_are_named_and_all_are_listed(
    capsys: Capture, finished: Path
) -> None:
    write_images(Path("images"), num=1, classes=("red",))
    for index in range(25):
        Path("images", f"{index:02d}.png").write_bytes(b"broken")
    assert main(["embed", str(finished / "runs" / "a"), "images", "-o", "f.csv"]) == 0
    said = capsys.readouterr()
    assert said.out == "wrote 1 rows (images) with 96 features each to f.csv, 25 left out\n"
    assert "unreadable and left out: 25 of 26 images, listed in f.left_out.csv" in said.err
    assert "  25 files (00.png, 01.png, 02.png, ...): " in said.err
    with open("f.left_out.csv", newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["file", *(f"{index:02d}.png" for index in range(25))]


def test_features_that_are_not_numbers_are_never_written(capsys: Capture, copied: Path) -> None:
    weights = load_file(copied / "encoder.safetensors")
    spoilt = {name: one * float("nan") if one.is_floating_point() else one for name, one in weights.items()}
    save_file(spoilt, copied / "encoder.safetensors")
    said = fail(capsys, "embed", copied, "images", "-o", "f.csv")
    assert "the features of this image are not finite (20 such images so far)" in said
    assert not Path("f.csv").exists()


def test_encoder_files_that_are_damaged(capsys: Capture, copied: Path) -> None:
    """Each is told by its name, and the same `byol train` command mends them, as the message says."""
    weights, spec = copied / "encoder.safetensors", copied / "encoder.json"
    before = weights.read_bytes(), spec.read_bytes()
    mend = "repeat the `byol train` command to write it again"

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
