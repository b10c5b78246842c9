"""Arrays: the axis of the channels is read off the shape, or said by data.layout, never guessed."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from byol.base.errors import DataError
from byol.config import load_config
from byol.data.decode.arrays import find_layout
from byol.data.decode.formats import LaidFile
from byol.data.decode.image import decode
from byol.data.sources.in_memory import InMemoryImages
from byol.data.sources.opening import open_source

RNG = np.random.default_rng(0)


def values(*shape: int) -> np.ndarray:
    return RNG.integers(0, 65536, shape).astype(np.uint16)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((64, 64, 3), "hwc"),
        ((7, 5, 3), "hwc"),
        ((64, 64, 13), "hwc"),
        ((40, 60, 13), "hwc"),
        ((64, 64, 40), "hwc"),
        ((500, 30, 1), "hwc"),
        ((2, 64, 3), "hwc"),
        ((13, 64, 64), "chw"),
        ((3, 64, 64), "chw"),
        ((3, 60, 80), "chw"),
        ((13, 60, 80), "chw"),
        ((1, 60, 80), "chw"),
        ((40, 64, 64), "chw"),
    ],
)
def test_a_clear_shape_tells_the_layout(shape: tuple[int, ...], layout: str, tmp_path: Path) -> None:
    assert find_layout(shape) == layout
    stored = values(*shape)
    np.save(tmp_path / "a.npy", stored)
    np.savez_compressed(tmp_path / "a.npz", stored)
    expected = stored if layout == "hwc" else np.moveaxis(stored, 0, -1)
    for name in ("a.npy", "a.npz"):
        np.testing.assert_array_equal(decode(tmp_path / name), expected)
    np.testing.assert_array_equal(InMemoryImages([stored]).item(0), expected)


@pytest.mark.parametrize(
    "shape", [(64, 64, 64), (20, 200, 64), (13, 33, 47), (8, 8, 13), (3, 3, 3), (40, 64, 32), (64, 3, 64)]
)
def test_a_shape_that_does_not_tell_is_refused_until_it_is_said(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    stored, path = values(*shape), tmp_path / "a.npy"
    np.save(path, stored)
    for read in (lambda: decode(path), lambda: InMemoryImages([stored]).item(0)):
        with pytest.raises(DataError, match=r"data\.layout=hwc .*data\.layout=chw") as caught:
            read()
        assert str(shape) in str(caught.value)
    np.testing.assert_array_equal(decode(LaidFile(str(path), "hwc")), stored)
    np.testing.assert_array_equal(decode(LaidFile(str(path), "chw")), np.moveaxis(stored, 0, -1))


def test_a_tensor_has_its_channels_first() -> None:
    stored = values(9, 5, 7)
    image = InMemoryImages([torch.from_numpy(stored.astype(np.float32))]).item(0)
    np.testing.assert_array_equal(image, np.moveaxis(stored, 0, -1))


def test_data_layout_reaches_the_files_of_a_folder_and_changes_the_pack(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    stored = values(9, 9, 9)
    np.save(tmp_path / "set" / "a.npy", stored)
    found = {}
    for layout in ("hwc", "chw"):
        config = load_config(
            None, [f"data.layout={layout}", f"data.source={tmp_path / 'set'}"], preset="default"
        )
        found[layout] = open_source(config.data)
    np.testing.assert_array_equal(decode(found["hwc"].item(0)), stored)
    np.testing.assert_array_equal(decode(found["chw"].item(0)), np.moveaxis(stored, 0, -1))
    assert len({source.fingerprint() for source in found.values()}) == 2


@pytest.mark.parametrize(("shape", "layout"), [((6, 13, 64, 64), "auto"), ((6, 9, 9, 9), "chw")])
def test_a_stack_of_images_with_their_channels_first(
    shape: tuple[int, ...], layout: str, tmp_path: Path
) -> None:
    stored = values(*shape)
    np.save(tmp_path / "stack.npy", stored)
    config = load_config(
        None, [f"data.layout={layout}", f"data.source={tmp_path / 'stack.npy'}"], preset="default"
    )
    source = open_source(config.data)
    np.testing.assert_array_equal(source.item(2), np.moveaxis(stored[2], 0, -1))
    np.save(tmp_path / "last.npy", np.moveaxis(stored, 1, -1))
    last = load_config(None, ["data.layout=hwc", f"data.source={tmp_path / 'last.npy'}"], preset="default")
    np.testing.assert_array_equal(open_source(last.data).item(2), source.item(2))


def test_an_npz_of_several_arrays_is_refused() -> None:
    stream = io.BytesIO()
    np.savez(stream, left=values(5, 7), right=values(5, 7))
    with pytest.raises(DataError, match=r"2 arrays \(left, right\).*as \.npy"):
        decode(stream.getvalue())
