"""Weights of others: what is fitted, what is left out and said, and what is refused by its first key."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn

from byol.errors import CheckpointError, ConfigError
from byol.method.pretrained import find_timm, fit_channels, fit_weights, read_weights


def make_encoder(channels: int = 3) -> nn.Module:
    encoder: nn.Module = timm.create_model("test_resnet", num_classes=0, in_chans=channels)
    return encoder


@pytest.mark.parametrize(("given", "channels"), [(3, 1), (3, 3), (3, 5), (1, 3)])
def test_equal_channels_get_the_response_they_had(given: int, channels: int) -> None:
    torch.manual_seed(0)
    weight, image = torch.randn(4, given, 3, 3), torch.randn(2, 1, 8, 8)
    fitted = fit_channels(weight, channels=channels)
    before = nn.functional.conv2d(image.expand(-1, given, -1, -1), weight)
    after = nn.functional.conv2d(image.expand(-1, channels, -1, -1), fitted)
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-5)


def test_a_classifier_is_left_out_and_said() -> None:
    whole = timm.create_model("test_resnet", num_classes=7).state_dict()
    state, notes = fit_weights(whole, make_encoder(), where="w")
    assert notes == ["its classifier (fc.weight, fc.bias) is left out"]
    make_encoder().load_state_dict(state)


def test_other_channels_and_old_files_without_counters() -> None:
    found = {key: v for key, v in make_encoder().state_dict().items() if "num_batches" not in key}
    encoder = make_encoder(5)
    state, notes = fit_weights(found, encoder, where="w")
    encoder.load_state_dict(state)
    assert notes == ["its first convolution is fitted from 3 to 5 channels"]


def test_the_first_key_that_does_not_agree_is_named() -> None:
    found = make_encoder().state_dict()
    key = "layer2.0.conv1.weight"
    with pytest.raises(CheckpointError, match=rf"{key} is only in this network; .*network\.name"):
        fit_weights({k: v for k, v in found.items() if k != key}, make_encoder(), where="w")
    with pytest.raises(CheckpointError, match=r"extra is only in w"):
        fit_weights({**found, "extra": torch.zeros(1)}, make_encoder(), where="w")
    with pytest.raises(CheckpointError, match=rf"{key} is \(1,\) in w, \("):
        fit_weights({**found, key: torch.zeros(1)}, make_encoder(), where="w")


def test_another_stem_is_refused_with_the_setting() -> None:
    first = next(k for k, v in make_encoder().state_dict().items() if v.ndim == 4)
    found = make_encoder().state_dict()
    larger = {**found, first: torch.zeros(found[first].shape[0], 3, 7, 7)}
    with pytest.raises(CheckpointError, match=r"7x7, this network of 3x3; set network\.stem=standard"):
        fit_weights(larger, make_encoder(), where="w")


def test_files(tmp_path: Path) -> None:
    state = make_encoder().state_dict()
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pth")
    for name in ("a.safetensors", "a.pth"):
        assert read_weights(tmp_path / name).keys() == state.keys()
    (tmp_path / "b.safetensors").write_bytes(b"not")
    (tmp_path / "b.pth").write_bytes(b"not")
    torch.save({"state_dict": state}, tmp_path / "c.pt")
    for name, reason in (("b.safetensors", "read"), ("b.pth", "read"), ("c.pt", "state_dict, not tensors")):
        with pytest.raises(CheckpointError, match=reason):
            read_weights(tmp_path / name)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (pytest.fail, ("executed",))

    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_weights(tmp_path / "evil.pth")


def test_timm_weights_are_found_where_downloads_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    with pytest.raises(CheckpointError, match=r"not on this machine \(looked in .*hub and .*checkpoints\)"):
        find_timm("resnet18")
    with pytest.raises(ConfigError, match="no weights of 'resnet99'"):
        find_timm("resnet99")

    download = tmp_path / "torch" / "checkpoints" / "resnet18_a1_0-d63eafa0.pth"
    download.parent.mkdir(parents=True)
    download.write_bytes(b"")
    assert find_timm("resnet18.a1_in1k") == download

    model = tmp_path / "hub" / "models--timm--resnet18.a1_in1k"
    snapshot = model / "snapshots" / "abc" / "model.safetensors"
    for path, text in ((model / "refs" / "main", "abc"), (snapshot, "")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    assert find_timm("resnet18") == snapshot
