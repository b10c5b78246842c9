"""The images of the accuracy runs, made once.

python benchmarks/gpu/images.py cifar10 FOLDER --source GIVEN    # train/ and test/, unpacked if need be
python benchmarks/gpu/images.py cifar10 FOLDER                   # a few generated ones, for a smoke test
python benchmarks/gpu/images.py stl10 FILE.npy --count 105000 --px 96
"""

import argparse
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

_GRID = 8  # an image is a grid of so many coloured squares on a side
_CHUNK = 4096  # images drawn at once


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("cifar10", "stl10"))
    parser.add_argument("path", type=Path)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--px", type=int, default=16)
    options = parser.parse_args()
    if options.path.exists():
        return 0
    unfinished = options.path.with_name(f"{options.path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    options.path.parent.mkdir(parents=True, exist_ok=True)
    if options.what == "stl10":
        save_array(unfinished, count=options.count, px=options.px)
    elif options.source is not None:
        take_folder(options.source, unfinished)
    else:
        save_folder(unfinished, count=options.count, px=options.px)
    unfinished.rename(options.path)
    return 0


def take_folder(source: Path, folder: Path) -> None:
    """Link the given folder, or unpack its archives."""
    if all((source / split).is_dir() for split in ("train", "test")):
        folder.symlink_to(source)
        return
    for split in ("train", "test"):
        archive = source / f"{split}.tar.gz"
        if not archive.is_file():
            raise SystemExit(f"{source}: holds neither a folder {split} nor {archive.name}")
        with tarfile.open(archive) as tar:
            tar.extractall(folder / split, filter="data")


def save_folder(folder: Path, *, count: int, px: int) -> None:
    """Two classes of JPEG files, `count` to train on and half as many to test."""
    for split, number in (("train", count), ("test", count // 2)):
        for index, image in enumerate(draw(number, px, seed=number)):
            path = folder / split / f"class{index % 2}" / f"{index:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)


def save_array(path: Path, *, count: int, px: int) -> None:
    """`count` images in one (count, px, px, 3) array on disk."""
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, px, px, 3))
    for first in range(0, count, _CHUNK):
        last = min(first + _CHUNK, count)
        images[first:last] = draw(last - first, px, seed=first)
    images.flush()


def draw(count: int, px: int, *, seed: int) -> np.ndarray:
    """Random colours on a grid, no two images alike: pixels that cost what real ones cost."""
    grids = np.random.default_rng(seed).integers(0, 256, (count, _GRID, _GRID, 3), dtype=np.uint8)
    return grids.repeat(px // _GRID, axis=1).repeat(px // _GRID, axis=2)


if __name__ == "__main__":
    sys.exit(main())
