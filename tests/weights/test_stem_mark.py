"""Weights of a stem that timm lacks: plain timm refuses them in every way of loading, byol reads them."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from byol.base.errors import CheckpointError
from byol.encoder.encoder import load, save_encoder
from byol.method.networks import build_encoder, count_features, stem_of
from byol.weights.files import read_weights
from byol.weights.pretrained import fit_weights
from byol.weights.stem_mark import mark_stem, unmark_stem
from edits import edit_json
from runs import make_spec

STEMS = ("small", "strided")
NAMES = ("resnet10t", "resnet18", "test_resnet", "shufflenet_v2_x0_5")  # deep stems, one layer; torchvision


def make_encoder(name: str, stem: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_encoder(name, channels=3, view_px=32, stem=stem)


def save(folder: Path, name: str, stem: str) -> Path:
    """The folder's file of weights."""
    encoder = make_encoder(name, stem)
    num_features = count_features(encoder, channels=3, view_px=32)
    save_encoder(folder, encoder, replace(make_spec(), name=name, stem=stem, num_features=num_features))
    return folder / "encoder.safetensors"


def make_plain(name: str) -> nn.Module:
    """As somebody without byol makes it."""
    if timm.is_model(name):
        plain: nn.Module = timm.create_model(name, num_classes=0)
        return plain
    network = torchvision.models.get_model(name)
    network.fc = nn.Identity()
    return network


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("name", NAMES)
def test_plain_models_refuse_another_stem(name: str, stem: str, strict: bool, tmp_path: Path) -> None:
    """Also with strict=False, by which timm loads an encoder below a new classifier."""
    state = load_file(save(tmp_path, name, stem))
    with pytest.raises(RuntimeError) as caught:
        make_plain(name).load_state_dict(state, strict=strict)
    assert "size mismatch for conv1" in str(caught.value)
    if strict:
        assert f"stem_{stem}_is_unknown_to_timm_use_byol_load_or_byol_export" in str(caught.value)


@pytest.mark.parametrize("num_classes", [0, 7])
def test_timms_own_ways_refuse_another_stem(num_classes: int, tmp_path: Path) -> None:
    file = str(save(tmp_path, "resnet10t", "strided"))
    with pytest.raises(RuntimeError):
        timm.create_model("resnet10t", num_classes=num_classes, checkpoint_path=file)
    with pytest.raises(RuntimeError):
        timm.create_model(
            "resnet10t", pretrained=True, num_classes=num_classes,
            pretrained_cfg_overlay={"file": file, "num_classes": 0},
        )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_plain_models_take_the_standard_stem(name: str, tmp_path: Path) -> None:
    plain, encoder = make_plain(name).eval(), make_encoder(name, "standard").eval()
    plain.load_state_dict(load_file(save(tmp_path, name, "standard")), strict=True)
    views = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(plain(views), encoder(views))


@pytest.mark.parametrize("stem", [*STEMS, "standard"])
@pytest.mark.parametrize("name", NAMES)
def test_byol_reads_what_it_wrote_and_files_without_a_mark(name: str, stem: str, tmp_path: Path) -> None:
    path, encoder = save(tmp_path, name, stem), make_encoder(name, stem)
    assert stem_of(encoder) == stem
    wanted = encoder.state_dict()
    check_same(load(tmp_path, device="cpu").module.state_dict(), wanted)
    check_same(fit_weights(read_weights(path), make_encoder(name, stem), where="w")[0], wanted)
    save_file({key: value.contiguous() for key, value in wanted.items()}, path)  # as byol wrote it before
    check_same(load(tmp_path, device="cpu").module.state_dict(), wanted)


@pytest.mark.parametrize("prefix", ["", "module.encoder."])
def test_weights_of_another_stem_are_refused_with_the_setting(prefix: str, tmp_path: Path) -> None:
    marked = load_file(save(tmp_path, "resnet10t", "strided"))
    found = {prefix + key: value for key, value in marked.items()}
    check_same(
        fit_weights(found, make_encoder("resnet10t", "strided"), where="w")[0],
        make_encoder("resnet10t", "strided").state_dict(),
    )
    for own in ("small", "standard"):
        with pytest.raises(CheckpointError, match=r"'strided'.*network\.stem=strided"):
            fit_weights(found, make_encoder("resnet10t", own), where="w")
    with pytest.raises(CheckpointError, match=r"'strided'.*give others"):
        fit_weights(found, make_encoder("resnet10t", "small"), where="w", advice="give others")


def test_a_mark_and_an_encoder_json_that_disagree(tmp_path: Path) -> None:
    path = save(tmp_path, "resnet10t", "strided")
    edit_json(path.with_name("encoder.json"), stem="small")
    with pytest.raises(CheckpointError, match=r"'strided'.*'small'"):
        load(tmp_path, device="cpu")


def test_other_tensors_of_five_axes_stay_as_they_are() -> None:
    state = {"conv1.weight": torch.ones(2, 3, 3, 3), "volume.weight": torch.ones(2, 3, 3, 3, 1)}
    plain, stem = unmark_stem(mark_stem(state, "small"))
    assert stem == "small"
    check_same(plain, state)
    volume = {"conv1.weight": torch.ones(2, 3, 3, 3, 1)}
    assert unmark_stem(volume) == (volume, None)


def check_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in one.items())
