"""A look at all images: what is counted, which range is found, what is blank; and what follows from it."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from byol.checking.doctor import Examined, examine, find_duplicates
from byol.checking.findings import (
    describe_duplicates,
    describe_files,
    describe_kinds,
    describe_sizes,
    find_problems,
)
from byol.config import load_partial
from byol.data.sources.opening import open_source


def look(source: Path | str, *overrides: str) -> Examined:
    data = load_partial(None, [f"data.source={source}", *overrides], preset="default").config.data
    return examine(open_source(data), channels=data.channels, num_workers=1)


def judge(found: Examined, *, max_bad: float = 0.01) -> list[tuple[str, bool]]:
    problems = find_problems(found, find_duplicates(found), max_bad=max_bad, fewest=4)
    return [(problem.text, problem.is_fatal) for problem in problems]


def noise(seed: int, *shape: int, most: int = 256, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(seed).integers(0, most, shape).astype(dtype)


def save(folder: Path, *images: np.ndarray, first: int = 0) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    for number, image in enumerate(images, start=first):
        if image.dtype == np.uint8:
            Image.fromarray(image).save(folder / f"{number:02d}.png")
        else:
            tifffile.imwrite(folder / f"{number:02d}.tif", image)
    return folder


def test_kinds_folders_and_sizes(tmp_path: Path) -> None:
    save(tmp_path / "x", *(noise(seed, 20, 10 * (seed + 1), 3) for seed in range(5)))
    save(tmp_path / "y", noise(9, 20, 20, 3))
    Image.fromarray(noise(8, 20, 20, 3)).save(tmp_path / "y" / "z.JPG")
    found = look(tmp_path)
    assert describe_files(found) == (
        "7 files: 6 .png, 1 .jpg in 2 folders (training does not use them as labels); byol can read all of "
        "them"
    )
    assert describe_kinds(found) == "3 channels, 8 bit, values 0..255"
    assert describe_sizes(found) == "longest side 20..50 px, median 20, 95 % up to 46"
    assert (
        describe_duplicates(found, find_duplicates(found))
        == "exact duplicates 0, near duplicates 0, blank images 0"
    )
    assert judge(found) == []


def test_twelve_bits_in_sixteen(tmp_path: Path) -> None:
    found = look(save(tmp_path, *(noise(seed, 30, 30, most=4096, dtype="uint16") | 2 for seed in range(4))))
    assert found.used_bits == 12
    assert describe_kinds(found) == "1 channel, 16 bit, values 3..4095 (12-bit data in 16-bit files)"
    assert describe_sizes(found) == "size 30 x 30 px"


def test_the_range_is_that_of_all_images(tmp_path: Path) -> None:
    images = [noise(seed, 30, 30, most=4096, dtype="uint16") for seed in range(30)]
    images[17][3, 4] = 60_000
    assert describe_kinds(look(save(tmp_path, *images))) == "1 channel, 16 bit, values 0..60000"


def test_ranges_of_channels_of_floats_and_of_chosen_channels(tmp_path: Path) -> None:
    images = np.zeros((4, 8, 8, 2), np.float32)
    images[..., 0] = np.random.default_rng(0).uniform(-1.5, 2.0, (4, 8, 8))
    images[0, 0, 0, 0], images[0, 0, 1, 0], images[..., 1] = -1.5, 2.0, 7.0
    np.save(tmp_path / "a.npy", images)
    found = look(tmp_path / "a.npy")
    assert describe_files(found) == f"4 images, array {tmp_path}/a.npy; byol can read all of them"
    assert (
        describe_kinds(found) == "2 channels, floating point, values -1.5..2 in channel 0, 7..7 in channel 1"
    )
    ((text, is_fatal),) = judge(found)
    assert text.startswith("channel 1 ") and text.endswith("data.channels=[0]") and not is_fatal
    assert look(tmp_path / "a.npy", "data.channels=[1,0]").smallest == (7.0, -1.5)


def test_grey_saved_as_rgb(tmp_path: Path) -> None:
    found = look(save(tmp_path, *(noise(seed, 9, 9, 1).repeat(3, axis=2) for seed in range(4))))
    assert describe_kinds(found).startswith("3 channels, all equal (grey saved as RGB), 8 bit")


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_blank_images(tmp_path: Path, dtype: str) -> None:
    images = [noise(seed, 20, 20, dtype=dtype) for seed in range(6)]
    images[2][:], images[4][:] = 77, 1
    images[3][0, 0] = 255 if dtype == "uint8" else 65_535  # one hot pixel makes the others not blank
    found = look(save(tmp_path, *images))
    assert np.flatnonzero(found.is_blank).tolist() == [2, 4]
    ((text, is_fatal),) = judge(found)
    assert text.startswith("33 % ") and "blank_files.csv" in text and not is_fatal


def test_nothing_but_blank_images(tmp_path: Path) -> None:
    found = look(save(tmp_path, *(np.full((9, 9), 40 + seed, np.uint8) for seed in range(5))))
    ((text, is_fatal),) = judge(found)
    assert text.startswith("all 5 images are blank") and "contact.png" in text and is_fatal


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    save(tmp_path, *(noise(seed, 20, 20) for seed in range(8)))
    (tmp_path / "a.png").write_text("not an image")
    (tmp_path / "b.png").write_bytes((tmp_path / "00.png").read_bytes()[:200])
    found = look(tmp_path)
    assert [name for name, _ in found.bad] == ["a.png", "b.png"]
    (text, is_fatal), *rest = judge(found)
    assert "2 of 10 files" in text and "bad_files.csv" in text and "'a.png': is text, not an image" in text
    assert text.endswith("data.max_bad=0.21")
    assert is_fatal and not rest
    (text, is_fatal), *rest = judge(found, max_bad=0.21)
    assert "leaves them out" in text and not is_fatal


def test_nothing_readable_and_too_few(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_text("not an image")
    (text, is_fatal), *_ = judge(look(tmp_path))
    assert "look at these files" in text and is_fatal
    found = look(save(tmp_path / "few", *(noise(seed, 9, 9) for seed in range(3))))
    assert judge(found) == [("3 images are too few to learn from; give at least 4", True)]


def test_images_of_different_kinds(tmp_path: Path) -> None:
    save(tmp_path, *(noise(seed, 9, 9, 3) for seed in range(4)), noise(9, 9, 9))
    save(tmp_path, noise(7, 9, 9, dtype="uint16"), first=7)
    found = look(tmp_path)
    assert found.kinds == {(3, 8): 4, (1, 8): 1, (1, 16): 1}
    (text, is_fatal), *_ = judge(found)
    assert text.startswith("the images differ: 4 of 3 channels 8 bit") and is_fatal
    assert describe_kinds(found).startswith("3 channels, 8 bit")


def test_duplicates_are_counted(tmp_path: Path) -> None:
    images = [np.asarray(Image.fromarray(noise(s, 6, 6)).resize((48, 48))) for s in range(5)]
    found = look(save(tmp_path, *images, images[0], np.minimum(images[1], 254) + 1))
    alike = find_duplicates(found)
    assert alike.same_as.tolist() == [-1] * 5 + [0, 1]
    assert (
        describe_duplicates(found, alike) == "exact duplicates 1, near duplicates 1 (14.3 %), blank images 0"
    )
    assert judge(found)[0][0].startswith("29 % of the images are duplicates")
