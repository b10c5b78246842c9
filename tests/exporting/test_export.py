"""`byol export`: what is written, what is refused, and that a wrong export is not left behind."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from torch import Tensor, nn

import byol
from byol.base.errors import CheckpointError, ConfigError
from byol.cli.main import main
from byol.encoder.encoder import load
from byol.exporting import export as exporting
from byol.exporting import onnx_file, parity, timm_folder, torch_file
from byol.exporting.export import export
from byol.exporting.network import make_plain
from byol.exporting.parity import TOLERANCE, draw_images, find_difference
from byol.exporting.preprocessing import WholeEncoder
from byol.method.views import whole_view
from exports import Case
from runs import make_run, write_images

TINY = Case("test_resnet", view_px=16, stored_px=16)


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return TINY.save(tmp_path)


def read_metadata(card: Path) -> dict[str, Any]:
    """As the Hub reads it."""
    text = card.read_text(encoding="utf-8")
    assert text.startswith("---\n")
    fields: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    assert ModelCard(text).data.to_dict() == fields or "model-index" in fields
    return fields


# ---- The formats, a short form of test_consumers.py


def test_a_timm_folder(encoder: Path, tmp_path: Path) -> None:
    exported = export(encoder, None, format="timm")
    assert exported.folder == tmp_path / f"{encoder.name}-timm" and exported.difference <= TOLERANCE
    assert sorted(path.name for path in exported.folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    model = timm.create_model(f"local-dir:{exported.folder}", pretrained=True).eval()
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    data = timm.data.resolve_model_data_config(model)
    assert data["input_size"] == (3, 16, 16) or data["input_size"] == [3, 16, 16]
    transform = timm.data.create_transform(**data)
    views = torch.stack([transform(byol_image) for byol_image in map(make_pillow, images)])
    with torch.no_grad():
        found = model(views).numpy()
    assert find_difference(found, load(encoder, device="cpu").embed(images)) <= TOLERANCE
    with_head = timm.create_model(f"local-dir:{exported.folder}", pretrained=True, num_classes=7)
    assert torch.equal(with_head.conv1[0].weight, model.conv1[0].weight)


def test_the_card_of_a_timm_folder_says_how_to_mirror(tmp_path: Path) -> None:
    encoder = Case("test_resnet", view_px=16, stored_px=16, mirrored=True).save(tmp_path)
    exported = export(encoder, None, format="timm")
    assert "`(model(views) + model(views.flip(3))) / 2`" in (exported.folder / "README.md").read_text()
    model = timm.create_model(f"local-dir:{exported.folder}", pretrained=True).eval()
    own = load(encoder, device="cpu")
    images = draw_images(own.spec, 3, 16, 16)
    views = whole_view(images, 16, pixels=own.spec.pixels)
    with torch.no_grad():
        found = ((model(views) + model(views.flip(3))) / 2).numpy()
    assert find_difference(found, own.embed(list(images))) <= TOLERANCE


def make_pillow(image: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(image)


@pytest.mark.parametrize("geometry", ["square", "scale"])
@pytest.mark.parametrize(("channels", "bits"), [(1, 8), (3, 16), (5, 32)])
@pytest.mark.parametrize("stem", ["standard", "small", "strided"])
def test_what_goes_into_files_of_onnx_and_torch(
    stem: str, channels: int, bits: Any, geometry: Any, tmp_path: Path
) -> None:
    """The module that both are made of, before anything records it."""
    sizes = {"view_px": 16, "stored_px": 19, "whole_px": 24}
    case = Case("test_resnet", stem, channels, bits, **sizes, mirrored=channels == 3)
    own = load(case.save(tmp_path), device="cpu")
    own.spec = replace(own.spec, geometry=geometry)
    whole = WholeEncoder(own.spec, make_plain(own))
    for size in ((1, 19, 19), (3, 64, 20), (2, 9, 100)):
        images = draw_images(own.spec, *size)
        assert find_difference(whole(images).numpy(), own.embed(list(images))) <= TOLERANCE


def test_a_torch_file_takes_any_number_and_size(encoder: Path) -> None:
    exported = export(encoder, None, format="torch")
    assert {path.name for path in exported.folder.iterdir()} == {"README.md", "model.pt2"}
    run, own = torch_file.open_torch(exported.folder), load(encoder, device="cpu")
    for size in ((1, 16, 16), (5, 64, 20), (2, 9, 100), (1, 1, 1)):
        images = draw_images(own.spec, *size)
        assert find_difference(run(images), own.embed(list(images))) <= TOLERANCE
    for wrong in (images.float(), images.permute(0, 2, 3, 1), images[:, :1], images[0]):
        with pytest.raises((RuntimeError, AssertionError)):
            run(wrong)
    extra = {"encoder.json": ""}
    torch.export.load(exported.folder / "model.pt2", extra_files=extra)
    assert json.loads(extra["encoder.json"]) == json.loads((encoder / "encoder.json").read_text())


@pytest.mark.slow  # onnxscript alone takes seconds to load
def test_an_onnx_file_takes_any_number_and_size(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    for name in ("onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    encoder = Case(
        "test_resnet", "strided", channels=2, bits=16, view_px=16, stored_px=19, mirrored=True
    ).save(tmp_path)
    exported = export(encoder, None, format="onnx")
    assert {path.name for path in exported.folder.iterdir()} == {"README.md", "model.onnx"}
    run, own = onnx_file.open_onnx(exported.folder), load(encoder, device="cpu")
    for size in ((1, 16, 16), (5, 64, 20), (2, 9, 100), (1, 1, 1)):
        images = draw_images(own.spec, *size)
        assert find_difference(run(images), own.embed(list(images))) <= TOLERANCE
    for wrong in (images.float(), images.permute(0, 2, 3, 1), images[:, :1], images[0]):
        with pytest.raises(Exception, match="INVALID_ARGUMENT"):
            run(wrong)
    model = onnx.load(exported.folder / "model.onnx")
    axes = [axis.dim_param or axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["batch", 2, "height", "width"]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["encoder.json"]) == json.loads((encoder / "encoder.json").read_text())


# ---- What is refused


@pytest.mark.parametrize("stem", ["small", "strided"])
def test_timm_is_refused_a_stem_that_it_lacks(stem: str, tmp_path: Path) -> None:
    encoder = Case("resnet10t", stem).save(tmp_path)
    with pytest.raises(ConfigError, match=rf"'{stem}'.*--format onnx or torch.*network\.stem=standard"):
        export(encoder, tmp_path / "out", format="timm")
    assert not (tmp_path / "out").exists()


def test_timm_is_refused_a_model_of_torchvision(tmp_path: Path) -> None:
    encoder = Case("shufflenet_v2_x0_5").save(tmp_path)
    with pytest.raises(ConfigError, match=r"shufflenet_v2_x0_5.*torchvision.*--format onnx or torch"):
        export(encoder, None, format="timm")


def test_an_unknown_format(encoder: Path) -> None:
    with pytest.raises(ConfigError, match=r"'keras'.*timm, onnx, torch"):
        export(encoder, None, format="keras")


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_onnx_without_its_packages(missing: str, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(ConfigError, match=rf"needs {missing},.*pip install {missing},.*--format torch"):
        export(encoder, None, format="onnx")


def test_folders_that_hold_something_else_stay_as_they_are(encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    for name, reason in (("file", "is a file"), ("full", "holds files"), (encoder.name, "holds files")):
        with pytest.raises(CheckpointError, match=rf"{name}: {reason}.*with -o"):
            export(encoder, tmp_path / name, format="timm")
    export(encoder, tmp_path / "out", format="timm")
    with pytest.raises(CheckpointError, match=r"no export with --format torch"):
        export(encoder, tmp_path / "out", format="torch")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_an_earlier_export_is_replaced(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    export(encoder, out, format="timm")
    before = load_file(out / "model.safetensors")
    own = load(encoder, device="cpu")
    with torch.no_grad():
        own.module.get_parameter("bn1.weight").mul_(2.0)
    byol.encoder.encoder.save_encoder(encoder, own.module, own.spec)
    monkeypatch.chdir(out)
    export(encoder, Path("."), format="timm")  # into the working folder
    after = load_file(out / "model.safetensors")
    assert torch.equal(after["bn1.weight"], 2 * before["bn1.weight"])
    assert {path.name for path in out.iterdir()} == {"README.md", "config.json", "model.safetensors"}


def test_nothing_is_there_and_nothing_to_write_to(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        export(tmp_path / "nowhere", None, format="timm")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        export(encoder, tmp_path / "file" / "out", format="timm")


# ---- An export that is wrong


@pytest.mark.parametrize("format", ["timm", pytest.param("torch", marks=pytest.mark.slow)])
def test_a_wrong_export_is_not_left_behind(
    format: str, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = exporting.make_plain

    def make_wrong(own: byol.Encoder) -> nn.Module:
        network = original(own)
        with torch.no_grad():
            network.get_parameter("bn1.bias").add_(0.01)
        return network

    monkeypatch.setattr(exporting, "make_plain", make_wrong)
    with pytest.raises(CheckpointError, match=r"differ from byol's by .*nothing is written"):
        export(encoder, tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()


def test_an_earlier_export_stays_if_the_next_one_is_wrong(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    export(encoder, out, format="timm")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(
        timm_folder, "open_timm", lambda folder: lambda views: np.zeros((len(views), 96), np.float32)
    )
    with pytest.raises(CheckpointError, match="differ"):
        export(encoder, out, format="timm")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_preprocessing_that_is_wrong_is_noticed(encoder: Path, tmp_path: Path) -> None:
    """Normalisation, order of channels, and resizing: each by itself is more than is accepted."""
    own = load(encoder, device="cpu")

    def embed(images: Tensor) -> np.ndarray:
        return own.embed(list(images))

    def halve(images: Tensor) -> Tensor:
        return images[:, :, ::2, ::2]

    assert parity.check_parity(embed, own, what="w") == 0.0
    for spoil in (lambda x: x // 2, lambda x: x.flip(1), halve):
        with pytest.raises(CheckpointError, match=r"^w: "):
            parity.check_parity(lambda images, spoil=spoil: embed(spoil(images)), own, what="w")
    nothing = np.full((1, 96), np.nan, dtype=np.float32)
    assert find_difference(nothing, nothing) == float("inf")


# ---- Images that timm's transform cannot prepare


@pytest.mark.parametrize("bits", [16, 32])
def test_transforms_refuse_other_depths_and_the_card_says_how(bits: int, tmp_path: Path) -> None:
    encoder = Case("test_resnet", channels=3, bits=bits, view_px=16, stored_px=16).save(tmp_path)  # type: ignore[arg-type]
    said: list[str] = []
    exported = export(encoder, None, format="timm", say=said.append)
    assert len(said) == 1 and f"{bits}-bit" in said[0] and "README.md" in said[0]
    model = timm.create_model(f"local-dir:{exported.folder}", pretrained=True)
    with pytest.raises(KeyError, match=rf"{bits}-bit.*README\.md"):
        timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    low, high = (
        load(encoder, device="cpu").spec.pixels.low[1],
        load(encoder, device="cpu").spec.pixels.high[1],
    )
    assert f"| 1 | {low:g} | {high:g} | 0.35 | 0.28 |" in (exported.folder / "README.md").read_text()


# ---- Cards, the command, Python


def test_a_card_without_a_run(encoder: Path) -> None:
    exported = export(encoder, None, format="timm")
    text = (exported.folder / "README.md").read_text()
    fields = read_metadata(exported.folder / "README.md")
    assert fields["library_name"] == "timm" and fields["pipeline_tag"] == "image-feature-extraction"
    assert "model-index" not in fields and "byol" in fields["tags"]
    for part in ("of `cells`", "`abc`", "local-dir:FOLDER", "does not know its results"):
        assert part in text, part


@pytest.mark.slow
def test_a_run_is_exported_with_its_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "images", num=4)
    run_dir = tmp_path / "run"
    make_run(run_dir, tmp_path / "images", "network.stem=standard")
    assert main(["export", str(run_dir), "--format", "timm"]) == 0
    said = capsys.readouterr().out
    assert str(tmp_path / "run-timm") in said and "README.md" in said
    text = (tmp_path / "run-timm" / "README.md").read_text()
    assert "# run\n" in text and "## Method" in text and "local-dir:FOLDER" in text
    assert main(["card", str(run_dir)]) == 0
    card = (run_dir / "card.md").read_text()
    assert read_metadata(run_dir / "card.md")["library_name"] == "byol" and "byol.load" in card
    assert text.split("## Use")[0].split("---\n")[2] == card.split("## Use")[0].split("---\n")[2]
    run = byol.open_run(run_dir)
    exported = run.export(format="torch", output=tmp_path / "out")
    assert isinstance(exported, byol.Exported) and exported.folder == tmp_path / "out"
    target = byol.export(run_dir / "target", format="timm")
    assert "target network" in (target.folder / "README.md").read_text()
    assert main(["export", str(run_dir), "--format", "timm", "trainer.seed=1"]) == 2
    assert "trainer.seed" in capsys.readouterr().err
