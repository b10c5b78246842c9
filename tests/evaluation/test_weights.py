"""Other people's weights as a row: from timm, another run or a file, for any number of channels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from byol.base.errors import ByolError, CheckpointError, ConfigError
from byol.encoder.encoder import load, save_encoder
from byol.evaluation import weights as weights_file
from byol.evaluation.table import evaluate
from byol.evaluation.weights import name_weights, open_weights
from byol.method.networks import build_encoder
from byol.weights.pretrained import fit_channels
from runs import PX, make_run, make_spec, write_images


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", num=5)
    return tmp_path / "images"


def make_encoder(*, channels: int, name: str = "test_resnet") -> torch.nn.Module:
    torch.manual_seed(7)
    return build_encoder(name, channels=channels, view_px=PX, stem="standard")


def test_a_row_for_a_file_of_weights(tmp_path: Path, images: Path) -> None:
    make_run(tmp_path / "run", images, target=False)
    (tmp_path / "run" / "encoder.safetensors").rename(tmp_path / "mine.safetensors")
    (tmp_path / "run" / "encoder.safetensors").symlink_to(tmp_path / "mine.safetensors")
    overrides = [f"evaluation.weights={tmp_path / 'mine.safetensors'}"]
    rows = {row.features: row for row in evaluate(tmp_path / "run", overrides=overrides).rows}
    assert list(rows) == ["pixels", "untrained", "weights mine.safetensors", "byol online"]
    same = replace(rows["byol online"], features="", seconds=0.0)
    assert replace(rows["weights mine.safetensors"], features="", seconds=0.0) == same


def test_another_run_brings_its_preprocessing(tmp_path: Path, images: Path) -> None:
    make_run(tmp_path / "run", images)
    spec = make_spec()
    found = open_weights(str(tmp_path / "run"), spec=spec, device="cpu")
    assert found.spec == load(tmp_path / "run", device="cpu").spec and found.spec.pixels != spec.pixels
    assert name_weights(str(tmp_path / "run" / "encoder.safetensors")) == "weights run"
    assert name_weights(str(tmp_path / "run")) == "weights run"


def test_channels_are_fitted(tmp_path: Path) -> None:
    grey = replace(make_spec(), channels=1, pixels=replace(make_spec().pixels, low=(0.0,), high=(255.0,)))
    grey = replace(grey, pixels=replace(grey.pixels, mean=(0.5,), std=(0.5,)))
    colour = make_encoder(channels=3)
    save_encoder(tmp_path / "colour", colour, make_spec())
    found = open_weights(str(tmp_path / "colour"), spec=grey, device="cpu")
    key = "conv1.0.weight"
    expected = fit_channels(colour.state_dict()[key], channels=1)
    torch.testing.assert_close(found.make().module.state_dict()[key], expected)
    assert found.spec.pixels == grey.pixels


def test_timm_has_its_own_mean_and_std(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(
        make_encoder(channels=3, name="test_resnet.r160_in1k").state_dict(), tmp_path / "timm.safetensors"
    )
    monkeypatch.setattr(weights_file, "find_timm", lambda name, key: tmp_path / "timm.safetensors")
    spec = replace(make_spec(), name="resnet18")
    found = open_weights("timm:test_resnet.r160_in1k", spec=spec, device="cpu")
    assert found.spec.name == "test_resnet.r160_in1k" and found.spec.stem == "standard"
    import timm

    given = timm.get_pretrained_cfg("test_resnet.r160_in1k")
    assert found.spec.pixels.mean == given.mean and found.spec.pixels.std == given.std
    assert found.make().embed(np.zeros((PX, PX, 3), dtype=np.uint8)).shape == (1, found.spec.num_features)
    two = replace(spec, channels=2)
    pixels = open_weights("timm:test_resnet.r160_in1k", spec=two, device="cpu").spec.pixels
    assert pixels.mean == (pytest.approx(np.mean(given.mean)),) * 2
    assert name_weights("timm:test_resnet") == "weights timm:test_resnet"


def check_refused(kind: type[ByolError], source: object, *, message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        open_weights(str(source), spec=make_spec(), device="cpu")
    assert "\n" not in str(caught.value)


def test_what_cannot_be_compared_with(tmp_path: Path) -> None:
    check_refused(CheckpointError, tmp_path / "no.pth", message="weights: .*no.pth is neither a folder with")
    check_refused(CheckpointError, tmp_path, message="is neither a folder with an encoder nor a file")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    check_refused(
        CheckpointError,
        tmp_path / "bad.safetensors",
        message=r"^evaluation\.weights: .*not weights",
    )
    save_file({"other": torch.zeros(2)}, tmp_path / "other.safetensors")
    check_refused(
        CheckpointError,
        tmp_path / "other.safetensors",
        message=r"^evaluation\.weights: .*other.safetensors does not fit .*; give weights of test_resnet, a",
    )
    check_refused(
        ConfigError, "timm:no_such", message=r"^evaluation\.weights: timm has no weights of 'no_such'"
    )


def test_where_the_encoder_was_found_is_said_once(tmp_path: Path, images: Path) -> None:
    make_run(tmp_path / "run", images, target=False)
    state = load_file(tmp_path / "run" / "encoder.safetensors")
    torch.save({f"module.backbone.{name}": value for name, value in state.items()}, tmp_path / "theirs.pth")
    said: list[str] = []
    evaluate(tmp_path / "run", overrides=[f"evaluation.weights={tmp_path / 'theirs.pth'}"], say=said.append)
    lines = [line for line in said if "module.backbone" in line]
    assert len(lines) == 1 and "has the prefix" in lines[0]
    assert said.index(lines[0]) == said.index(f"comparing with the encoder of {tmp_path / 'theirs.pth'}") + 1
