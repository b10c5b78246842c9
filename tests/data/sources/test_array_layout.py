"""The layout of a set's arrays: told by all shapes together, or refused; a run keeps it."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import byol
from byol.base.errors import DataError
from byol.cli.main import main
from byol.config import load_config
from byol.data.decode.image import decode
from byol.data.sources import array_layout
from byol.data.sources.array_layout import TrainedLayout, resolve_layout
from byol.data.sources.in_memory import in_memory
from byol.data.sources.opening import open_source
from runs import make_spec

Shape = tuple[int, ...]


def named(*shapes: Shape) -> list[tuple[str, Shape]]:
    return [(f"{number:02d}.npy", shape) for number, shape in enumerate(shapes)]


def draw(shape: Shape, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, shape).astype(np.uint8)


def save(folder: Path, *shapes: Shape) -> Path:
    folder.mkdir()
    for seed, (name, shape) in enumerate(named(*shapes)):
        np.save(folder / name, draw(shape, seed))
    return folder


@pytest.mark.parametrize(
    ("shapes", "layout"),
    [
        ([], "auto"),
        ([(64, 64), (40, 64)], "auto"),
        ([(64, 64, 13), (64, 64, 13)], "hwc"),
        ([(13, 64, 64), (13, 20, 24)], "chw"),
        # What a shape alone does not tell, others of the set do.
        ([(4, 64, 4), (64, 64, 4)], "hwc"),
        ([(4, 64, 4), (4, 64, 64)], "chw"),
        ([(3, 3, 3), (64, 48, 3)], "hwc"),
        ([(3, 3, 3), (3, 64, 48)], "chw"),
        ([(64, 64, 64), (64, 80, 72)], "chw"),
        ([(64, 64, 64), (80, 72, 64)], "hwc"),
        ([(13, 33, 47), (13, 40, 24)], "chw"),
        # Grey, RGB and RGBA in one set, of one size.
        ([(64, 64, 3), (64, 64, 1), (64, 64, 4)], "hwc"),
        ([(64, 64), (64, 64, 3)], "hwc"),
    ],
)
def test_all_shapes_of_a_set_resolve_its_layout(shapes: list[Shape], layout: str) -> None:
    assert resolve_layout(named(*shapes)) == layout
    assert resolve_layout(reversed(named(*shapes))) == layout


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        # Some look one way, some the other; both are named.
        ([(64, 64, 13), (64, 64, 13), (13, 64, 64)], ["0.npy", "(64, 64, 13)", "2.npy", "(13, 64, 64)"]),
        ([(3, 64, 64), (64, 64, 3)], ["0.npy", "1.npy"]),
        # Nothing tells.
        ([(4, 64, 4)] * 3, ["0.npy", "(4, 64, 4)"]),
        ([(3, 3, 3)], ["0.npy", "(3, 3, 3)"]),
        ([(64, 64, 64), (64, 64, 64)], ["0.npy", "(64, 64, 64)"]),
        ([(4, 64, 4), (4, 48, 4)], ["0.npy"]),
        ([(9, 10, 11), (12, 13, 14)], ["0.npy"]),
        # One is unlike the clear ones in either layout.
        ([(64, 64, 13), (64, 64, 64)], ["1.npy", "(64, 64, 64)", "0.npy", "(64, 64, 13)"]),
        # As channels last, as they look, they would differ; as channels first all have 64.
        ([(64, 64, 13), (64, 60, 25)], ["0.npy", "1.npy", "64"]),
    ],
)
def test_shapes_that_do_not_tell_are_refused_by_name(shapes: list[Shape], said: list[str]) -> None:
    with pytest.raises(DataError, match=r"data\.layout=hwc .*data\.layout=chw") as caught:
        resolve_layout(named(*shapes))
    for part in said:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("trained", "shapes", "layout"),
    [
        (TrainedLayout("chw", 13), [(13, 20, 3)], "chw"),  # alone it looks like RGB
        (TrainedLayout("chw", 4), [(4, 64, 4)], "chw"),
        (TrainedLayout("hwc", 4), [(4, 64, 4)], "hwc"),
        (TrainedLayout("hwc", 64), [(64, 64, 64)], "hwc"),
        (TrainedLayout("hwc", 3), [(3, 64, 48)], "chw"),  # what else has three channels?
        (TrainedLayout("hwc", 13), [(64, 64, 5)], "hwc"),  # reading it says that the channels differ
        (TrainedLayout("chw", None), [(64, 64, 3)], "chw"),
        (TrainedLayout("hwc", 13), [(64, 64)], "auto"),
    ],
)
def test_new_images_have_the_layout_of_the_training(
    trained: TrainedLayout, shapes: list[Shape], layout: str
) -> None:
    assert resolve_layout(named(*shapes), trained) == layout


def test_the_files_of_a_folder_are_read_in_its_layout(tmp_path: Path) -> None:
    folder = save(tmp_path / "set", (13, 64, 64), (13, 13, 13), (13, 14, 20))
    np.savez(folder / "03.npz", draw((13, 13, 13), 3))
    (folder / "broken.npy").write_bytes(b"\x93NUMPY")
    (folder / "objects.npy").write_bytes(b"")
    source = open_source(load_config(None, [f"data.source={folder}"], preset="default").data)
    for index in range(3):
        expected = np.moveaxis(draw(np.load(folder / f"{index:02d}.npy").shape, index), 0, -1)
        np.testing.assert_array_equal(decode(source.item(index)), expected)
    np.testing.assert_array_equal(decode(source.item(3)), np.moveaxis(draw((13, 13, 13), 3), 0, -1))
    assert source.array_layout == "chw"  # type: ignore[attr-defined]


def test_pages_of_a_tiff_keep_their_own_rule(tmp_path: Path) -> None:
    """Arrays with their channels last do not turn the pages of a TIFF beside them into rows."""
    import tifffile

    folder = save(tmp_path / "set", (64, 64, 5))
    pages = draw((5, 64, 64))
    tifffile.imwrite(folder / "pages.tif", pages, photometric="minisblack")
    source = open_source(load_config(None, [f"data.source={folder}"], preset="default").data)
    np.testing.assert_array_equal(decode(source.item(1)), np.moveaxis(pages, 0, -1))


def test_headers_are_read_once_in_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path / "set", (64, 64, 5), (64, 64, 5))
    data = load_config(None, [f"data.source={folder}"], preset="default").data
    opened, find = [], array_layout.find_shape
    monkeypatch.setattr(array_layout, "find_shape", lambda path: opened.append(path) or find(path))
    assert open_source(data).fingerprint() == open_source(data).fingerprint()
    assert len(opened) == 2
    np.save(folder / "00.npy", draw((5, 64, 64)))
    with pytest.raises(DataError, match="channels first"):
        open_source(data)


def test_arrays_in_memory_are_judged_together(tmp_path: Path) -> None:
    thin, whole = draw((4, 64, 4)), draw((4, 64, 64))
    images = in_memory([thin, whole], "auto")
    np.testing.assert_array_equal(images.item(0), np.moveaxis(thin, 0, -1))
    np.save(tmp_path / "whole.npy", whole)
    images = in_memory([tmp_path / "whole.npy", thin], "auto")
    np.testing.assert_array_equal(images.item(1), np.moveaxis(thin, 0, -1))
    np.testing.assert_array_equal(decode(images.item(0)), np.moveaxis(whole, 0, -1))  # type: ignore[arg-type]
    for items in ([thin], [whole, draw((64, 64, 4))]):
        with pytest.raises(DataError, match=r"image 0.*data\.layout=chw.*tensors"):
            in_memory(items, "auto")


def test_check_and_train_refuse_what_contradicts_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(tmp_path / "set", *[(32, 32, 5)] * 20, *[(5, 32, 32)] * 20)
    for command in (
        ["check", str(folder), "-o", str(tmp_path / "c")],
        ["train", str(folder), "-o", str(tmp_path / "r")],
    ):
        assert main(command) == 1
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1
        for part in ("0.npy", "(32, 32, 5)", "20.npy", "(5, 32, 32)", "data.layout=hwc", "data.layout=chw"):
            assert part in said[0]


@pytest.mark.slow
def test_a_run_keeps_the_layout_of_its_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Thin patches, (4, 20, 4), tell no layout alone; those of a run are read as in its training."""
    tiny = ["network.name=resnet10t", "data_transforms.input_shape=[8,8,null]", "trainer.batch_size=8"]
    tiny += ["network.projection_head.mlp_hidden_size=16", "network.projection_head.projection_size=8"]
    tiny += ["trainer.max_epochs=1", "trainer.device=cpu", "trainer.precision=fp32", "trainer.num_workers=1"]
    folder = save(tmp_path / "set", *[(4, 20, 20)] * 15, (4, 20, 4))
    run = tmp_path / "runs" / "a"
    assert main(["train", str(folder), "-o", str(run), *tiny]) == 0
    encoder = byol.load(run, device="cpu")
    assert (encoder.spec.layout, encoder.spec.array_layout) == ("auto", "chw")
    alone = tmp_path / "alone.npy"
    np.save(alone, np.load(folder / "15.npy"))
    expected = encoder.embed(folder)[-1:]
    np.testing.assert_allclose(encoder.embed(alone), expected, atol=1e-5)
    np.testing.assert_allclose(encoder.embed(np.load(alone)), expected, atol=1e-5)
    capsys.readouterr()
    assert main(["embed", str(run), str(alone), "-o", str(tmp_path / "f.npz")]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "f.npz")["features"], expected, atol=1e-5)
    # One file of three axes is an image for this encoder, not a stack of grey ones.
    np.save(alone, np.load(folder / "00.npy"))
    assert encoder.embed(alone).shape == (1, encoder.spec.num_features)


def test_embedding_takes_the_layout_from_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of an encoder that was trained on no arrays."""
    from byol.encoder.encoder import save_encoder
    from byol.method.networks import build_encoder

    spec = replace(make_spec(), stem="standard")
    save_encoder(tmp_path / "run", build_encoder(spec.name, channels=3, view_px=16, stem="standard"), spec)
    folder = save(tmp_path / "set", (3, 20, 3), (3, 24, 3))
    command = ["embed", str(tmp_path / "run"), str(folder), "-o", str(tmp_path / "f.npz")]
    assert main(command) == 1
    assert "data.layout=chw" in capsys.readouterr().err
    for layout in ("hwc", "chw"):
        assert main([*command, f"data.layout={layout}"]) == 0
    assert io.BytesIO((tmp_path / "f.npz").read_bytes()).getbuffer().nbytes > 0
