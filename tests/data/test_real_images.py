"""A few real images of each set beside the repository, from their archive to a pack."""

import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import tifffile

from byol.data.decode.image import decode
from byol.data.pack.packed import Packed
from byol.data.pack.packing import pack
from byol.data.sources.opening import open_folder


def unpack(archive: Path, folder: Path, *, num_images: int) -> Path:
    if not archive.is_file():
        pytest.skip(f"{archive.name} is not beside this checkout")
    with tarfile.open(archive, "r:gz") as tar:
        for member in islice((member for member in tar if member.isfile()), num_images):
            tar.extract(member, folder, filter="data")
    return folder


def pack_folder(folder: Path, *, view_px: int) -> Packed:
    return pack(
        open_folder(folder),
        folder=folder.with_name("pack"),
        stored_px=None,
        view_px=view_px,
        channels=None,
        max_bad=0.0,
        num_workers=2,
    )


def test_16_bit_stacks_keep_every_value(real_data: Path, tmp_path: Path) -> None:
    folder = unpack(real_data / "cellcycle16" / "labelled.tar.gz", tmp_path / "cells", num_images=12)
    packed = pack_folder(folder, view_px=40)
    assert packed.images.shape == (12, 40, 40, 3) and packed.images.dtype == np.uint16
    for row, name in enumerate(packed.names):
        np.testing.assert_array_equal(np.moveaxis(packed.images[row], 2, 0), tifffile.imread(folder / name))
    # Bright field lies near 677 of 65,535: the range is measured, not assumed.
    assert packed.pixels.high[0] < 3000 and 0.1 < packed.pixels.mean[0] < 0.9


def test_ragged_images_keep_their_sizes(real_data: Path, tmp_path: Path) -> None:
    folder = unpack(real_data / "plankton" / "train.tar.gz", tmp_path / "plankton", num_images=12)
    packed = pack_folder(folder, view_px=48)
    assert packed.images.shape == (12, 56, 56, 3)
    assert packed.sizes.tolist() == [list(decode(folder / name).shape[:2]) for name in packed.names]
    assert len(np.unique(packed.sizes, axis=0)) > 5


def test_images_of_one_small_size_are_packed_exactly(real_data: Path, tmp_path: Path) -> None:
    folder = unpack(real_data / "cifar10" / "test.tar.gz", tmp_path / "cifar", num_images=12)
    packed = pack_folder(folder, view_px=32)
    np.testing.assert_array_equal(packed.images, np.stack([decode(folder / name) for name in packed.names]))
