"""`byol pack`: in one go, and in parts that a training joins."""

from pathlib import Path

import pytest

from byol.cli.main import main
from command_line import TINY, Capture, contents, cut_in_half, fail, succeed, write_images


@pytest.fixture
def images(place: Path) -> Path:
    return write_images(Path("images"))


def test_in_one_go_and_again(capsys: Capture, images: Path) -> None:
    said = succeed(capsys, "pack", images, "-o", "packs")
    assert "packed: 20 images at 16 px, in packs/folder-images-auto-32px-" in said
    assert (
        "to train on them: byol train images data.packs=packs 'data_transforms.input_shape=[32,32,null]'"
        in said
    )
    before = contents(Path("packs"))
    assert "already packed: 20 images" in succeed(capsys, "pack", images, "-o", "packs")
    assert "already packed: 20 images" in succeed(capsys, "pack", images, "-o", "packs", "--part", "1/2")
    assert contents(Path("packs")) == before
    said = succeed(capsys, "pack", images, *TINY)
    assert "in runs/packs/" in said and said.endswith("to train on them: byol train images\n")


def test_a_part_of_a_set_whose_pack_is_stale(capsys: Capture, images: Path) -> None:
    """It is packed as a part, and not the whole set by each of the tasks."""
    succeed(capsys, "pack", images, "-o", "packs", *TINY)
    (pack,) = Path("packs").glob("folder-*")
    cut_in_half(pack / "names.npy")
    for number in (1, 2):
        said = succeed(capsys, "pack", images, "-o", "packs", "--part", f"{number}/2", *TINY)
        assert f"packed: 10 images at 16 px, in {pack}.2-parts/shard-0000{number}" in said
    assert "joined the 2 parts" in succeed(capsys, "pack", images, "-o", "packs", *TINY)
    assert sorted(path.name for path in Path("packs").glob("folder-*")) == [pack.name]


@pytest.mark.slow
def test_a_training_on_joined_parts_is_the_training_on_one_pack(capsys: Capture, images: Path) -> None:
    succeed(capsys, "train", images, "-o", "one/run", *TINY)
    for number in (3, 1):
        said = succeed(capsys, "pack", images, "--part", f"{number}/3", "-o", "parts/packs", *TINY)
        assert "when all parts are packed, join them: byol pack images " in said
        assert said.endswith(" -o parts/packs\n")
    said = fail(capsys, "pack", images, "-o", "parts/packs", *TINY)
    assert (
        ".3-parts: parts 2 of 3 are not packed; pack each with byol pack ... --part K/3 and the same" in said
    )
    assert "parts 2 of 3" in (main(["train", "images", "-o", "parts/run", *TINY]) and capsys.readouterr().err)
    succeed(capsys, "pack", images, "--part", "2/3", "-o", "parts/packs", *TINY)
    assert "joined the 3 parts of folder images/" in succeed(
        capsys, "train", images, "-o", "parts/run", *TINY
    )
    for name in ("encoder.safetensors", "target/encoder.safetensors"):
        one, parts = (Path(folder, "run", name).read_bytes() for folder in ("one", "parts"))
        assert one == parts
    assert "byol online" in succeed(capsys, "eval", "parts/run")
    Path("images").rename("gone")
    assert "images is gone: byol takes the images from the pack " in succeed(capsys, "eval", "parts/run")


@pytest.mark.parametrize("part", ["0/3", "4/3", "1", "a/b", "1/3/5", "-1/3", "1/0"])
def test_impossible_parts(capsys: Capture, images: Path, part: str) -> None:
    said = fail(capsys, "pack", images, f"--part={part}", code=2)
    assert said == f"--part {part}: must be K/N with K from 1 to N, such as 3/64\n"


def test_more_parts_than_images(capsys: Capture, images: Path) -> None:
    assert "has only 20 images; use fewer parts" in fail(capsys, "pack", images, "--part", "2/21", *TINY)
