"""Weights under other names: the message holds Python that converts them, and the result can be loaded."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from byol.base.errors import CheckpointError
from byol.weights.files import read_weights
from byol.weights.pretrained import fit_weights


def make_encoder() -> nn.Module:
    torch.manual_seed(0)
    encoder: nn.Module = timm.create_model("test_resnet", num_classes=0)
    return encoder


@pytest.mark.parametrize(
    ("rename", "extra"),
    [
        (lambda name: name.replace("layer", "stage"), ""),
        (lambda name: f"net.trunk.{name.replace('layer', 'stage')}", ""),
        (lambda name: name.replace("layer", "stage").replace(".bn", ".norm"), ""),
        (lambda name: name.replace("downsample", "shortcut"), ""),
        (lambda name: "\x1b[31m'." + name.replace("layer", "st\x07age"), ""),
        (lambda name: name, "center"),
        (lambda name: f"net.{name}", "net.running.mean"),
    ],
)
def test_following_the_advice_gives_weights_that_fit(
    rename: Callable[[str], str], extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = make_encoder().state_dict()
    theirs = {rename(name): value for name, value in wanted.items()}
    torch.save(theirs | ({extra: torch.zeros(3)} if extra else {}), "theirs.pth")
    with pytest.raises(CheckpointError) as caught:
        fit_weights(read_weights("theirs.pth"), make_encoder(), where="theirs.pth")
    told = str(caught.value)
    code = re.search(r"in Python: (import torch; .*)$", told)
    assert code is not None and told.isprintable()
    exec(code[1], {})
    state, notes = fit_weights(read_weights("encoder.pth"), make_encoder(), where="encoder.pth")
    assert notes == [] and all(torch.equal(state[name], value) for name, value in wanted.items())


def test_what_renaming_does_not_mend_is_not_advised() -> None:
    state = make_encoder().state_dict()
    for found in (
        {name: value for name, value in state.items() if not name.startswith("layer4")},  # layers are missing
        {**state, "layer1.7.conv1.weight": torch.zeros(1)},  # there are more
        {**state, "layer1.0.conv1.weight": torch.zeros(1)},  # of another shape
        {name.replace("conv1.weight", "kernel"): value for name, value in state.items() if "bn2" not in name},
    ):
        with pytest.raises(CheckpointError, match=r"such as conv1\.0\.weight, as \.safetensors$"):
            fit_weights(found, make_encoder(), where="w")
