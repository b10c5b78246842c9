"""The artefact is plain, whole and safe; every form of an image gives the same features."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import tifffile
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import byol
from byol.base.errors import ByolError, CheckpointError, ConfigError, DataError, ValueRangeWarning
from byol.config import Config, load_config
from byol.data.decode.fitting import fit
from byol.data.decode.formats import Geometry
from byol.data.pack.images import open_images
from byol.data.pack.packing import pack
from byol.data.sources.opening import ArraySource, Part, open_source
from byol.device.devices import find_gpus
from byol.encoder import encoder as encoder_file
from byol.encoder.encoder import Encoder, load, save_encoder
from byol.encoder.spec import EncoderSpec, choose_whole_px
from byol.method.networks import build_encoder, count_features
from byol.method.views import Pixels, chooses_mirrored, whole_view
from edits import edit_json

STORED_PX, VIEW_PX = 28, 24


FULL_SCALES = {8: 255.0, 16: 65535.0, 32: 1.0}


def make_spec(channels: int = 3, name: str = "test_resnet", bits: int = 8) -> EncoderSpec:
    ones = (1.0,) * channels
    return EncoderSpec(
        name=name,
        stem="standard",
        channels=channels,
        view_px=VIEW_PX,
        stored_px=STORED_PX,
        num_features=96,
        pixels=Pixels((0.0,) * channels, (FULL_SCALES[bits],) * channels, (0.4,) * channels, ones),
        which="online",
        done=7,
        byol_version="0.1.0",
        data_fingerprint="abc",
        data_name="cells",
        bits=bits,
    )


def make_encoder(spec: EncoderSpec, *, seed: int = 0) -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = build_encoder(spec.name, channels=spec.channels, view_px=spec.view_px, stem=spec.stem)
        # BatchNorm statistics other than 0 and 1, so that they count.
        module.train()(torch.randn(8, spec.channels, spec.view_px, spec.view_px))
    return Encoder(spec, module)


def draw_images(
    num: int, *, channels: int = 3, dtype: type = np.uint8, px: tuple[int, int] = (40, 33)
) -> NDArray:  # type: ignore[type-arg]
    """Smooth patterns, so that resizing keeps something."""
    rng = np.random.default_rng(0)
    small = rng.random((num, 5, 4, channels))
    large = np.kron(small, np.ones((1, 8, 9, 1)))[:, : px[0], : px[1]]
    return (large * FULL_SCALES[8 * np.dtype(dtype).itemsize]).astype(dtype)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return make_encoder(make_spec())


@pytest.fixture
def saved(tmp_path: Path, encoder: Encoder) -> Path:
    save_encoder(tmp_path / "run", encoder.module, encoder.spec)
    return tmp_path / "run"


# ---- Files


def test_weights_load_in_plain_timm(tmp_path: Path) -> None:
    spec = replace(make_spec(name="resnet18"), num_features=512)
    module = build_encoder("resnet18", channels=3, view_px=VIEW_PX, stem="standard")
    save_encoder(tmp_path, module, spec)
    plain = timm.create_model("resnet18", num_classes=0)
    plain.load_state_dict(load_file(tmp_path / "encoder.safetensors"), strict=True)
    views = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(plain.eval()(views), module.eval()(views))


def test_json_says_how_to_use_the_weights(saved: Path, encoder: Encoder) -> None:
    content = json.loads((saved / "encoder.json").read_text())
    assert content["format"] == 2
    assert content["pixels"]["mean"] == [0.4, 0.4, 0.4]
    assert {key: content[key] for key in ("name", "channels", "view_px", "done")} == {
        "name": "test_resnet",
        "channels": 3,
        "view_px": VIEW_PX,
        "done": 7,
    }
    assert content.keys() == {"format", "sha256", *asdict(encoder.spec)}
    assert sorted(path.name for path in saved.iterdir()) == ["encoder.json", "encoder.safetensors"]


@pytest.mark.parametrize("entry", [".", "encoder.json", "encoder.safetensors"])
def test_loaded_is_what_was_saved(saved: Path, encoder: Encoder, entry: str) -> None:
    before = torch.random.get_rng_state()
    loaded = load(saved / entry, device="cpu")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert loaded.spec == encoder.spec
    images = draw_images(2)
    np.testing.assert_array_equal(loaded.embed(images), encoder.embed(images))
    assert not any(module.training for module in loaded.module.modules())
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())


def test_a_photograph_has_the_same_features_from_its_file_and_from_a_pack(
    tmp_path: Path, encoder: Encoder
) -> None:
    """Files much larger than the stored size are decoded at a fraction of it, in both places."""
    folder = Path(sklearn.datasets.__file__).parent / "images"
    (tmp_path / "list.txt").write_text("\n".join(map(str, sorted(folder.glob("*.jpg")))))
    source = open_source(load_config(None, [], preset="default").data, source=str(tmp_path / "list.txt"))
    packed = pack(
        source,
        folder=tmp_path / "pack",
        stored_px=STORED_PX,
        view_px=VIEW_PX,
        channels=None,
        max_bad=0.0,
        num_workers=2,
    )
    assert packed.sizes.tolist() == [[427, 640]] * 2
    np.testing.assert_array_equal(encoder.embed(tmp_path / "list.txt"), encoder.embed_packed(packed))


@pytest.mark.parametrize("select", ["grey", (0, 2), None])
def test_the_choice_of_channels_comes_back(tmp_path: Path, select: str | tuple[int, ...] | None) -> None:
    spec = replace(make_spec(), select=select)  # type: ignore[arg-type]
    save_encoder(tmp_path, make_encoder(spec).module, spec)
    assert load(tmp_path).spec == spec


def test_whole_images_are_seen_at_their_own_size() -> None:
    small = make_encoder(make_spec())
    large = make_encoder(replace(make_spec(), whole_px=40))
    images = draw_images(2)
    squares = torch.from_numpy(np.stack([fit(image, STORED_PX) for image in images])).permute(0, 3, 1, 2)
    views = whole_view(squares, 40, pixels=large.spec.pixels)
    with torch.no_grad():
        expected = large.module(views).numpy()
    np.testing.assert_allclose(large.embed(images), expected, atol=1e-5)
    assert np.abs(small.embed(images) - expected).max() > 1e-3


def test_features_of_an_image_and_its_mirror_image(tmp_path: Path) -> None:
    spec = replace(make_spec(), whole_px=40, mirrored=True)
    encoder = make_encoder(spec)
    images = draw_images(3)
    alone = make_encoder(replace(spec, mirrored=False))
    expected = (alone.embed(images) + alone.embed(images[:, :, ::-1])) / 2.0
    np.testing.assert_allclose(encoder.embed(images), expected, atol=1e-5)
    np.testing.assert_allclose(encoder.embed(images[:, :, ::-1]), expected, atol=1e-5)
    assert np.abs(alone.embed(images) - expected).max() > 1e-3
    # Views of the training have no mirror image.
    views = torch.randn(2, 3, VIEW_PX, VIEW_PX)
    assert torch.equal(encoder.encode_views(views), alone.encode_views(views))
    save_encoder(tmp_path, encoder.module, spec)
    assert load(tmp_path).spec.mirrored
    content = json.loads((tmp_path / "encoder.json").read_bytes())
    del content["mirrored"], content["sha256"]  # as an earlier version wrote it
    (tmp_path / "encoder.json").write_text(json.dumps(content))
    assert not load(tmp_path).spec.mirrored


@pytest.mark.parametrize(
    ("wanted", "flips", "expected"),
    [
        ("auto", (0.5, 0.1), True),
        ("auto", (0.5, 0.0), False),
        ("true", (0.0, 0.0), True),
        ("false", (0.5, 0.5), False),
    ],
)
def test_whether_mirror_images_take_part(wanted: str, flips: tuple[float, float], expected: bool) -> None:
    keys = [f"data_transforms.view{number}.flip={flip}" for number, flip in enumerate(flips, 1)]
    config = load_config(None, [*keys, f"data_transforms.whole_mirrored={wanted}"], preset="default")
    assert chooses_mirrored(config.data_transforms) is expected


@pytest.mark.parametrize(
    "name, wanted, expected",
    [
        ("test_resnet", "auto", 32),
        ("test_resnet", "null", None),
        ("test_resnet", "30", 30),
        ("test_vit", "auto", None),
    ],
)
def test_size_of_whole_images(name: str, wanted: str, expected: int | None) -> None:
    config = size_config(name, wanted)
    assert choose_whole_px(config, channels=3, stem="standard") == expected


def test_a_model_of_one_size_refuses_another() -> None:
    with pytest.raises(ConfigError, match=r"whole_px: test_vit does not accept images of 72 px"):
        choose_whole_px(size_config("test_vit", "72"), channels=3, stem="standard")


def size_config(name: str, wanted: str) -> Config:
    side = 64 if "vit" in name else VIEW_PX  # 64 x 1.382 is 88, which patches of 16 px do not fill
    keys = (f"network.name={name}", f"data_transforms.input_shape=[{side},{side},3]")
    return load_config(None, [*keys, f"data_transforms.whole_px={wanted}"], preset="default")


def test_spec_of_a_configuration(tmp_path: Path) -> None:
    config = load_config(
        None,
        ["network.name=test_resnet", "data_transforms.input_shape=[24, 24, 3]", f"data.source={tmp_path}"],
        preset="default",
    )
    np.save(tmp_path / "images.npy", draw_images(4))
    source = open_source(config.data, source=str(tmp_path / "images.npy"))
    packed = pack(
        source,
        folder=tmp_path / "pack",
        stored_px=STORED_PX,
        view_px=VIEW_PX,
        channels=None,
        max_bad=0.0,
        num_workers=1,
        progress=None,
    )
    before = torch.random.get_rng_state()
    spec = EncoderSpec.of(config, packed, which="target", done=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (spec.name, spec.stem, spec.which, spec.done) == ("test_resnet", "small", "target", 3)
    assert (spec.channels, spec.view_px, spec.stored_px) == (3, VIEW_PX, STORED_PX)
    assert spec.seen_px == spec.whole_px == 32  # 24 x 1.382, to a multiple of 8
    module = build_encoder(spec.name, channels=3, view_px=VIEW_PX, stem=spec.stem)
    assert spec.num_features == count_features(module, channels=3, view_px=VIEW_PX) == 96
    # Packed images give the features of the images they were packed from.
    encoder = make_encoder(make_spec())
    images = draw_images(4)
    np.testing.assert_allclose(encoder.embed_packed(packed), encoder.embed(images), atol=1e-6)
    heard: list[tuple[int, int]] = []
    some = encoder.embed_packed(
        packed,
        rows=np.array([3, 0, 2]),
        batch_size=2,
        progress=lambda done, total: heard.append((done, total)),
    )
    np.testing.assert_allclose(some, encoder.embed(images[[3, 0, 2]]), atol=1e-5)
    assert heard == [(2, 3), (3, 3)]


# ---- Every form of an image


def test_every_form_of_8_bit_images_gives_the_same_features(tmp_path: Path, encoder: Encoder) -> None:
    images = draw_images(3)
    folder = tmp_path / "images"
    folder.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index}.png")
    np.save(tmp_path / "all.npy", images)
    (tmp_path / "list.txt").write_text("".join(f"images/{index}.png\n" for index in range(3)))
    paths = sorted(folder.iterdir())
    expected = encoder.embed(images)
    assert expected.shape == (3, 96) and expected.dtype == np.float32
    assert np.abs(expected[0] - expected[1]).max() > 1e-3
    forms = {
        "folder": folder,
        "folder as text": str(folder),
        "list of paths": paths,
        "list of texts": [str(path) for path in paths],
        "list file": tmp_path / "list.txt",
        "array file": tmp_path / "all.npy",
        "Pillow images": [Image.open(path) for path in paths],
        "arrays": list(images),
        "tensor": torch.from_numpy(images).permute(0, 3, 1, 2),
        "tensors": list(torch.from_numpy(images).permute(0, 3, 1, 2)),
        "a mixture": [paths[0], images[1], Image.open(paths[2])],
    }
    for name, form in forms.items():
        np.testing.assert_allclose(encoder(form), expected, atol=1e-6, err_msg=name)  # type: ignore[arg-type]
    for single in (
        paths[1],
        str(paths[1]),
        images[1],
        Image.open(paths[1]),
        torch.from_numpy(images[1]).permute(2, 0, 1),
    ):
        np.testing.assert_allclose(encoder.embed(single), expected[1:2], atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_form_of_deep_images_gives_the_same_features(
    tmp_path: Path, dtype: type, channels: int
) -> None:
    bits = 8 * np.dtype(dtype).itemsize
    encoder = make_encoder(make_spec(channels=channels, bits=bits))
    images = draw_images(3, channels=channels, dtype=dtype)
    folder = tmp_path / "images"
    folder.mkdir()
    for index, image in enumerate(images):
        tifffile.imwrite(folder / f"{index}.tif", np.moveaxis(image, 2, 0), photometric="minisblack")
        np.save(tmp_path / f"{index}.npy", image)
    np.save(tmp_path / "all.npy", images)
    (tmp_path / "list.txt").write_text("".join(f"images/{index}.tif\n" for index in range(3)))
    expected = encoder.embed(images)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    forms = {
        "folder": folder,
        "list of paths": sorted(folder.iterdir()),
        "list file": tmp_path / "list.txt",
        "array files": [tmp_path / f"{index}.npy" for index in range(3)],
        "array file": tmp_path / "all.npy",
        "arrays": list(images),
        "tensor": tensor,
        "tensors": list(tensor),
    }
    if channels == 1:
        forms["Pillow images"] = [Image.fromarray(image[..., 0]) for image in images]
        forms["flat arrays"] = [image[..., 0] for image in images]
    if dtype is np.float32:
        forms["doubles"] = images.astype(np.float64)
        forms["double tensor"] = tensor.double()
        np.save(tmp_path / "doubles.npy", images.astype(np.float64))
        forms["array file of doubles"] = tmp_path / "doubles.npy"
    for name, form in forms.items():
        np.testing.assert_allclose(encoder(form), expected, atol=1e-6, err_msg=name)  # type: ignore[arg-type]


def test_tensors_of_half_precision_are_floats() -> None:
    encoder = make_encoder(make_spec(bits=32))
    tensor = torch.from_numpy(draw_images(2, dtype=np.float32)).permute(0, 3, 1, 2)
    for half in (tensor.bfloat16(), tensor.half()):
        np.testing.assert_array_equal(encoder.embed(half), encoder.embed(half.float()))


def test_the_scale_of_the_features_does_not_depend_on_the_depth() -> None:
    deep = draw_images(2, dtype=np.uint16)
    expected = make_encoder(make_spec(bits=16)).embed(deep)
    for bits, images, atol in ((8, (deep >> 8).astype(np.uint8), 0.02), (32, deep / 65535, 1e-4)):
        np.testing.assert_allclose(make_encoder(make_spec(bits=bits)).embed(images), expected, atol=atol)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("geometry", ["square", "scale"])
def test_inference_is_evaluation(tmp_path: Path, dtype: type, geometry: Geometry) -> None:
    """Features of files are those of the pack that the encoder was trained on, scaled as that is."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index, px in enumerate([(40, 33), (24, 24), (28, 9), (1, 2), (31, 36)]):
        image = (draw_images(1, channels=2, dtype=dtype, px=px)[0] / 3).astype(dtype)
        tifffile.imwrite(folder / f"{index}.tif", np.moveaxis(image, 2, 0), photometric="minisblack")
    overrides = ["network.name=test_resnet", "network.stem=standard", "data_transforms.input_shape=[24,24,2]"]
    overrides += [f"data.source={folder}", f"data.geometry={geometry}"]
    config = load_config(None, overrides, preset="default")
    packed = open_images(config, tmp_path / "runs" / "a", console=None)
    spec = EncoderSpec.of(config, packed, which="online", done=1)
    assert (spec.bits, spec.geometry) == (8 * np.dtype(dtype).itemsize, geometry)
    encoder = make_encoder(spec)
    save_encoder(tmp_path / "run", encoder.module, spec)
    loaded = load(tmp_path / "run", device="cpu")
    assert loaded.spec == spec and len(spec.pixels.largest) == 2
    np.testing.assert_allclose(loaded.embed(folder), encoder.embed_packed(packed), atol=1e-6)
    other = make_encoder(replace(spec, geometry="square" if geometry == "scale" else "scale"))
    assert np.abs(other.embed(folder) - loaded.embed(folder)).max() > 1e-3


def test_features_depend_neither_on_the_batch_nor_on_the_size_of_blocks(encoder: Encoder) -> None:
    images = draw_images(7)
    np.testing.assert_allclose(encoder.embed(images, batch_size=3), encoder.embed(images), atol=1e-5)
    assert encoder.embed(images[:0]).shape == (0, 96)
    assert encoder.embed([]).shape == (0, 96)


def relative_error(features: NDArray, expected: NDArray) -> float:  # type: ignore[type-arg]
    """The largest over images, as lengths of vectors."""
    return float(np.max(np.linalg.norm(features - expected, axis=1) / np.linalg.norm(expected, axis=1)))


def test_features_are_the_same_to_rounding_in_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a network whose layers are computed in every way that there is on CPU.

    Not bit by bit: PyTorch's strided convolutions add up a single image in another order.
    """
    encoder = make_encoder(replace(make_spec(name="resnet18"), num_features=512, stem="small"))
    images = draw_images(9)
    expected = encoder.embed(images)
    for batch_size in (1, 2, 4, 9):
        assert relative_error(encoder.embed(images, batch_size=batch_size), expected) < 3e-6
    sizes: list[int] = []
    encoder.module.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    monkeypatch.setattr(encoder_file, "CPU_IMAGES", 4)
    assert relative_error(encoder.embed(images), expected) < 3e-6
    assert sizes == [4, 4, 1]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_features_are_those_of_the_plain_network(name: str) -> None:
    """To rounding, however the layers are computed."""
    encoder = make_encoder(replace(make_spec(name=name), stem="small"))
    plain = build_encoder(name, channels=3, view_px=VIEW_PX, stem="small")
    plain.load_state_dict(encoder.module.state_dict())
    squares = torch.from_numpy(draw_images(5, px=(STORED_PX, STORED_PX))).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = plain.eval()(whole_view(squares, VIEW_PX, pixels=encoder.spec.pixels))
    assert relative_error(encoder.encode(squares).numpy(), expected.numpy()) < 1e-5


def test_autocast_around_changes_nothing(encoder: Encoder) -> None:
    images = draw_images(2)
    expected = encoder.embed(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(encoder.embed(images), expected)


def test_channels_are_chosen_as_in_training() -> None:
    grey = make_encoder(replace(make_spec(channels=1), select="grey"))
    images = draw_images(2)
    by_hand = np.rint(images @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)[..., None]
    np.testing.assert_allclose(grey.embed(images), grey.embed(by_hand), atol=1e-6)


# ---- Blocks and bad images


def test_bad_images_are_told_and_left_out(tmp_path: Path, encoder: Encoder) -> None:
    images = draw_images(4)
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    (tmp_path / "1.png").write_text("this is text")
    Image.fromarray(images[2][..., 0]).save(tmp_path / "2.png")
    source = encoder_file.gather(tmp_path, encoder.spec)
    bad: dict[str, str] = {}
    blocks = list(
        encoder.embed_source(source, batch_size=2, on_bad=lambda name, error: bad.update({name: str(error)}))
    )
    assert [len(block.names) for block in blocks] == [1, 1]
    np.testing.assert_allclose(
        np.concatenate([block.features for block in blocks]), encoder.embed(images[[0, 3]]), atol=1e-6
    )
    assert [Path(name).name for name in bad] == ["1.png", "2.png"]
    assert "has 1 channels, but the encoder was trained on 3" in list(bad.values())[1]
    with pytest.raises(DataError, match=r"1\.png: is text, not an image of a known format"):
        encoder.embed(tmp_path)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("missing.png", r"missing\.png"),
        (["missing.png"], r"missing\.png: no such file"),
        (
            np.zeros((2, 8, 8, 3)),
            "image 0: holds floating-point values, but the encoder was trained on 8-bit values; give",
        ),
        (torch.zeros(3, 8, 8), "image 0: holds floating-point values"),
        (np.zeros((8, 8, 4), dtype=np.uint8), "image 0: has 4 channels, but the encoder was trained on 3"),
        (np.zeros((1, 1, 1, 8, 8), dtype=np.uint8), "image 0: has the shape"),
        (torch.zeros(8, 8, dtype=torch.uint8), "image 0: has the shape"),
        (np.zeros((1, 0, 8, 3), dtype=np.uint8), "image 0: has no pixels"),
    ],
)
def test_images_that_cannot_be_embedded(encoder: Encoder, images: object, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        encoder.embed(images)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


# ---- Images unlike those of the training


def make_deep_encoder() -> Encoder:
    """Trained on 12-bit data in 16-bit files."""
    spec = make_spec(channels=1, bits=16)
    pixels = Pixels((104.0,), (2304.0,), (0.2,), (0.1,), smallest=(92.0,), largest=(4095.0,))
    return make_encoder(replace(spec, pixels=pixels))


def test_values_outside_of_the_training_are_a_warning_with_the_name(tmp_path: Path) -> None:
    encoder = make_deep_encoder()
    usual = np.linspace(100, 3000, 40 * 40).astype(np.uint16).reshape(40, 40)
    for name, values in (("usual", usual), ("shifted", usual * 16), ("dark", usual // 16)):
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    assert encoder.embed(tmp_path / "usual.png").shape == (1, 96)  # warnings are errors in tests
    for name, where in (("shifted", "the values lie in"), ("dark", "most values are clipped")):
        with pytest.warns(ValueRangeWarning, match=rf"{name}\.png: channel 0: {where}.* 92 \.\. 4095"):
            encoder.embed(tmp_path / f"{name}.png")
    with pytest.warns(byol.ValueRangeWarning, match=r"image 1: channel 0"):
        encoder.embed(np.stack([usual, usual * 16])[..., None])
    told: dict[str, str] = {}
    blocks = list(
        encoder.embed_source(encoder_file.gather(tmp_path, encoder.spec), on_outside=told.__setitem__)
    )
    assert len(blocks[0].names) == 3 and [Path(name).name for name in told] == ["dark.png", "shifted.png"]


def test_another_depth_is_refused_with_the_name(tmp_path: Path) -> None:
    """8-bit values would all be black to an encoder whose black is 104."""
    encoder, image = make_deep_encoder(), draw_images(1, channels=1)[0]
    Image.fromarray(image[..., 0]).save(tmp_path / "8bit.png")
    reason = "holds 8-bit values, but the encoder was trained on 16-bit values; give values as"
    with pytest.raises(DataError, match=rf"8bit\.png: {reason}"):
        encoder.embed(tmp_path / "8bit.png")
    for form in (image, torch.from_numpy(image).permute(2, 0, 1), Image.fromarray(image[..., 0])):
        with pytest.raises(DataError, match=f"image 0: {reason}"):
            encoder.embed(form)
    with pytest.raises(DataError, match="holds 16-bit values, but the encoder was trained on 8-bit values"):
        make_encoder(make_spec(channels=1)).embed(image.astype(np.uint16))


def test_packs_unlike_the_training_are_told_once_or_refused(tmp_path: Path) -> None:
    encoder = make_deep_encoder()
    packs = {}
    for name, factor, dtype in (("usual", 1, np.uint16), ("shifted", 16, np.uint16), ("8bit", 1, np.uint8)):
        images = (draw_images(3, channels=1)[..., 0].astype(dtype) * factor)[..., None]
        images += 92 if dtype is np.uint16 else 0
        source = ArraySource(name, (Part("", images),), np.full(3, -1), ())
        packs[name] = pack(
            source,
            folder=tmp_path / name,
            stored_px=STORED_PX,
            view_px=VIEW_PX,
            channels=None,
            max_bad=0.0,
            num_workers=1,
        )
    with pytest.warns(ValueRangeWarning, match="^2 of 3 images are outside .*, the first is 000000: chan"):
        encoder.embed_packed(packs["shifted"])
    with pytest.raises(
        DataError, match="8bit: holds 8-bit values, but the encoder was trained on 16-bit values"
    ):
        encoder.embed_packed(packs["8bit"])
    own = replace(encoder.spec, data_fingerprint=packs["shifted"].fingerprint)
    Encoder(own, encoder.module).embed_packed(packs["shifted"])  # what it was trained on is not outside


# ---- Damaged artefacts


def check_refused(folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_missing_folder_and_files_say_what_to_run(saved: Path, tmp_path: Path) -> None:
    check_refused(
        tmp_path / "none", r"none: no such folder; name that of a run.*train one: byol train IMAGES/"
    )
    (saved / "encoder.safetensors").unlink()
    check_refused(saved, r"run: has no encoder\.safetensors; .*repeat the `byol train` command")
    (saved / "encoder.json").unlink()
    check_refused(saved, r"run: has no encoder\.json; name a run")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"encoder\.json: cannot be read"),
        ("[]", r"encoder\.json: has format None, but this byol reads 1 and 2; update byol, or"),
        ('{"format": 3}', r"encoder\.json: has format 3"),
        ('{"format": 1}', r"encoder\.json: name: field required"),
    ],
)
def test_damaged_json(saved: Path, content: str, message: str) -> None:
    (saved / "encoder.json").write_text(content)
    check_refused(saved, message)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("view_px", "big", r"encoder\.json: view_px: input should be a valid integer"),
        ("channels", 1, r"pixels: needs a value for each of 1 channels"),
        (
            "pixels",
            asdict(Pixels((0.0,) * 3, (9.0,) * 3, (0.4,) * 3, (1.0,) * 3, (0.0,), (9.0,))),
            r"pixels: needs a value for each of 3 channels",
        ),
        ("bits", 12, r"encoder\.json: bits: input should be 8, 16 or 32"),
        ("geometry", "round", r"encoder\.json: geometry: input should be 'square' or 'scale'"),
        ("name", "resnet_of_tomorrow", r"encoder\.json: network\.name: 'resnet_of_tomorrow' is unknown"),
        ("which", "teacher", r"encoder\.json: which: input should be 'online', 'target' or 'finetuned'"),
    ],
)
def test_json_with_a_wrong_value(saved: Path, key: str, value: object, message: str) -> None:
    edit_json(saved / "encoder.json", **{key: value})
    check_refused(saved, message)


@pytest.mark.parametrize(("low", "high", "bits"), [(0.0, 255.0, 8), (483.0, 9000.0, 16)])
def test_encoders_of_the_first_format(saved: Path, low: float, high: float, bits: int) -> None:
    """Neither depth nor geometry was written, nor the extremes of the values: there was no choice of them."""
    pixels = {"low": [low] * 3, "high": [high] * 3, "mean": [0.4] * 3, "std": [0.2] * 3}
    edit_json(saved / "encoder.json", remove=("bits", "geometry"), format=1, pixels=pixels)
    spec = load(saved, device="cpu").spec
    assert (spec.bits, spec.geometry, spec.pixels.largest) == (bits, "square", ())


def test_weights_that_are_not_those_of_the_network(saved: Path) -> None:
    path = saved / "encoder.safetensors"
    weights = load_file(path)
    first = sorted(weights)[0]
    save_file({key: value for key, value in weights.items() if key != first}, path)
    check_refused(saved, rf"encoder\.safetensors: the key '{first}' is missing; repeat the `byol train`")
    save_file(weights | {"fc.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, path)
    check_refused(saved, r"the key 'fc\.bias' \(and 1 more\) is not part of test_resnet")
    save_file(weights | {first: torch.zeros(1)}, path)
    check_refused(saved, f"the key '{first}' has another shape than in test_resnet")


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.5])
def test_truncated_weights(saved: Path, share: float) -> None:
    path = saved / "encoder.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    check_refused(saved, r"encoder\.safetensors: is damaged or cut short")


def test_a_pickle_is_not_read(saved: Path) -> None:
    torch.save(nn.Linear(1, 1), saved / "encoder.safetensors")
    check_refused(saved, r"encoder\.safetensors: is damaged or cut short")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(saved: Path) -> None:
    for device in ("cuda", "cuda:1", "mps", "xpu"):
        if device[:3] in (name[:3] for name in find_gpus()):
            continue
        with pytest.raises(ConfigError, match=rf"^device: '{device}' is set, .* finds cpu"):
            load(saved, device=device)
    with pytest.raises(ConfigError, match=r"^device: 'gpu' is not a device .*use auto"):
        load(saved, device="gpu")


def test_unwritable_folder_leaves_what_was_there(saved: Path, encoder: Encoder) -> None:
    (saved.parent / "file").write_text("")
    with pytest.raises(ByolError, match="cannot be written"):
        save_encoder(saved.parent / "file", encoder.module, encoder.spec)
    assert load(saved).spec == encoder.spec


def test_arrays_have_the_layout_of_the_training(tmp_path: Path) -> None:
    """In memory and in files; without it, the same shape is refused."""
    spec = replace(make_spec(channels=9), layout="chw")
    images = draw_images(2, channels=9, px=(9, 9))
    first = np.moveaxis(images, -1, 1)
    (tmp_path / "set").mkdir()
    for number, image in enumerate(first):
        np.save(tmp_path / "set" / f"{number}.npy", image)
    expected = make_encoder(replace(spec, layout="hwc")).embed(images)
    encoder = make_encoder(spec)
    for given in (first, list(first), tmp_path / "set", sorted((tmp_path / "set").iterdir())):
        np.testing.assert_array_equal(encoder.embed(given), expected)
    with pytest.raises(DataError, match=r"image 0: has the shape \(9, 9, 9\).*data\.layout=chw"):
        make_encoder(replace(spec, layout="auto")).embed(images)
