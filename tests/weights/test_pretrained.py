"""Weights of others: what is fitted, what is left out and said, and what is refused by its first key."""

import re
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from torch import nn

from byol.base.errors import CheckpointError, ConfigError
from byol.weights.pretrained import find_timm, fit_channels, fit_weights


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
    assert notes == ["its heads (fc.weight, fc.bias) are not used"]
    make_encoder().load_state_dict(state)


def test_other_channels_and_old_files_without_counters() -> None:
    found = {key: v for key, v in make_encoder().state_dict().items() if "num_batches" not in key}
    encoder = make_encoder(5)
    state, notes = fit_weights(found, encoder, where="w")
    encoder.load_state_dict(state)
    assert notes == ["its first convolution is converted from 3 to 5 channels"]


def test_what_does_not_agree_is_named() -> None:
    found = make_encoder().state_dict()
    key = "layer2.0.conv1.weight"
    with pytest.raises(CheckpointError, match=rf"w .* lacks {key};.*network\.name"):
        fit_weights({k: v for k, v in found.items() if k != key}, make_encoder(), where="w")
    with pytest.raises(CheckpointError, match=r"also has layer1\.9\.conv1\.weight"):
        fit_weights({**found, "layer1.9.conv1.weight": torch.zeros(1)}, make_encoder(), where="w")
    with pytest.raises(CheckpointError, match=rf"with another shape {key} \(1,\) for \("):
        fit_weights({**found, key: torch.zeros(1)}, make_encoder(), where="w")
    with pytest.raises(CheckpointError, match=rf"with another shape {key}"):
        fit_weights({**found, key: found[key].int()}, make_encoder(), where="w")
    with pytest.raises(CheckpointError, match=rf"{key} is not finite"):
        fit_weights({**found, key: found[key] * torch.nan}, make_encoder(), where="w")


def under(prefix: str, state: dict[str, torch.Tensor], *, add: float = 0.0) -> dict[str, torch.Tensor]:
    return {
        prefix + name: value + add if value.is_floating_point() else value for name, value in state.items()
    }


def check_fit(
    found: dict[str, torch.Tensor], note: str, *, add: float = 0.0, select: str | None = None
) -> None:
    """The first encoder of `found` is that of seed 0, plus `add`."""
    torch.manual_seed(0)
    wanted = make_encoder().state_dict()
    state, notes = fit_weights(found, make_encoder(), where="w", select=select)
    assert any(note in line for line in notes), notes
    wanted = under("", wanted, add=add)
    assert all(torch.equal(state[name], value) for name, value in wanted.items())


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "state_dict.module.encoder_q.",
        "state_dict.backbone.",
        "classy_state_dict.base_model.model.trunk._feature_blocks.",
        "online_network.encoder.",
        "teacher.backbone.",
        "_orig_mod.",
        "anything 1.else.",
    ],
)
def test_any_prefix_is_found_and_said(prefix: str) -> None:
    torch.manual_seed(0)
    found = under(prefix, make_encoder().state_dict())
    heads = {
        f"{prefix}fc.weight": torch.zeros(3),
        "projector.0.weight": torch.zeros(3),
        "queue": torch.zeros(3),
    }
    check_fit(found | heads, f"'{prefix}'")


@pytest.mark.parametrize(
    ("best", "other"),
    [
        ("teacher.backbone.", "student.module.backbone."),
        ("module.encoder_q.", "module.encoder_k."),
        ("module.base_encoder.", "module.momentum_encoder."),
        ("online_encoder.net.", "target_encoder.net."),
        ("backbone.", "backbone_momentum."),
        ("backbone.", "momentum_backbone."),
        ("state_dict_ema.", "state_dict."),
        ("model_ema.", "model."),
    ],
)
def test_the_encoder_that_the_authors_evaluate(best: str, other: str) -> None:
    torch.manual_seed(0)
    state = make_encoder().state_dict()
    found = under(other, state, add=1) | under(best, state)
    check_fit(found, f"not used: '{other}' (w:{other[:-1]} selects it)")
    check_fit(found, f"'{other}'", add=1, select=other[:-1])


def test_one_network_under_two_names_and_two_networks() -> None:
    torch.manual_seed(0)
    state = make_encoder().state_dict()
    check_fit(under("net.", state) | under("online.net.", state), "'net.'")
    both = under("a.", state) | under("b.", state, add=1)
    with pytest.raises(CheckpointError, match=r"w holds 2 different encoders.*'a\.', 'b\.'.* example w:a$"):
        fit_weights(both, make_encoder(), where="w")
    check_fit(both, "'b.'", add=1, select="b")
    with pytest.raises(CheckpointError, match=r"within 'c'.*'a\.' .*'b\.' .*name one of these"):
        fit_weights(both, make_encoder(), where="w:c", select="c")


def test_control_codes_in_names_do_not_reach_the_terminal() -> None:
    evil = {"\x1b[31m\n.conv.weight": torch.zeros(2), "\x07": torch.zeros(2)}
    with pytest.raises(CheckpointError, match="does not fit") as caught:
        fit_weights(evil, make_encoder(), where="w")
    assert str(caught.value).isprintable()


def test_another_known_model_is_recognised_and_else_the_names_wanted_are_shown() -> None:
    found = under("module.", timm.create_model("resnet18", num_classes=0).state_dict())
    with pytest.raises(CheckpointError, match=r"weights for resnet18.*network\.name=resnet18"):
        fit_weights(found, make_encoder(), where="w")
    with pytest.raises(CheckpointError, match=r"'x\.' \(1\).*such as conv1\.0\.weight, as \.safetensors"):
        fit_weights({"x.y": torch.zeros(2)}, make_encoder(), where="w")


# ---- Names of other libraries


def test_numbers_for_names() -> None:
    plain = timm.create_model("resnet18", num_classes=0)
    layers = [plain.conv1, plain.bn1, nn.ReLU(), plain.maxpool]
    blocks = [plain.layer1, plain.layer2, plain.layer3, plain.layer4]
    for prefix, children in (("backbone.", [*layers, *blocks]), ("f.", [*layers[:3], *blocks])):
        found = under(prefix, nn.Sequential(*children).state_dict())
        state, notes = fit_weights(found, timm.create_model("resnet18", num_classes=0), where="w")
        assert any("torch.nn.Sequential" in note for note in notes)
        assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())


def rename(name: str, *pairs: tuple[str, str]) -> str:
    for pattern, replacement in pairs:
        name = re.sub(pattern, replacement, name)
    return name


def test_transformers_resnet() -> None:
    plain = timm.create_model("resnet50", num_classes=0).state_dict()

    def theirs(match: re.Match[str]) -> str:
        stage, block, kind, layer = match.groups()
        name = {"conv": "convolution", "bn": "normalization"}[kind]
        return f"encoder.stages.{int(stage) - 1}.layers.{block}.layer.{int(layer) - 1}.{name}."

    found = {}
    for name, value in plain.items():
        name = re.sub(r"^layer(\d)\.(\d+)\.(conv|bn)(\d)\.", theirs, name)
        name = re.sub(
            r"^layer(\d)\.(\d+)\.downsample\.(\d)\.",
            lambda m: (
                f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.shortcut."
                + ("convolution." if m[3] == "0" else "normalization.")
            ),
            name,
        )
        pairs = (
            (r"^conv1\.", "embedder.embedder.convolution."),
            (r"^bn1\.", "embedder.embedder.normalization."),
        )
        found["resnet." + rename(name, *pairs)] = value
    state, notes = fit_weights(found, timm.create_model("resnet50", num_classes=0), where="w")
    assert any("transformers ResNet" in note for note in notes)
    assert all(torch.equal(state[name], value) for name, value in plain.items())


@pytest.mark.parametrize("layout", ["transformers", "torchvision"])
def test_vision_transformers_and_their_positions(layout: str) -> None:
    torch.manual_seed(0)
    small = {"num_classes": 0, "depth": 2}
    plain = timm.create_model("vit_tiny_patch16_224", **small)
    found = {}
    for name, value in plain.state_dict().items():
        if layout == "torchvision":
            pairs: tuple[tuple[str, str], ...] = (
                ("^cls_token", "class_token"),
                ("^pos_embed", "encoder.pos_embedding"),
                (r"^patch_embed\.proj", "conv_proj"),
                (r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
                (r"attn\.qkv\.", "self_attention.in_proj_"),
                (r"attn\.proj", "self_attention.out_proj"),
                (r"\.norm(\d)", r".ln_\1"),
                (r"mlp\.fc1", "mlp.0"),
                (r"mlp\.fc2", "mlp.3"),
                (r"^norm\.", "encoder.ln."),
            )
            found["vit." + rename(name, *pairs)] = value
            continue
        pairs = (
            ("^cls_token", "embeddings.cls_token"),
            ("^pos_embed", "embeddings.position_embeddings"),
            (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"),
            (r"^blocks\.(\d+)\.", r"encoder.layer.\1."),
            (r"attn\.proj", "attention.output.dense"),
            (r"\.norm1", ".layernorm_before"),
            (r"\.norm2", ".layernorm_after"),
            (r"mlp\.fc1", "intermediate.dense"),
            (r"mlp\.fc2", "output.dense"),
            (r"^norm\.", "layernorm."),
        )
        whole = "vit." + rename(name, *pairs)
        if "attn.qkv" in whole:
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                found[whole.replace("attn.qkv", f"attention.attention.{part}")] = third
        else:
            found[whole] = value
    state, notes = fit_weights(found, timm.create_model("vit_tiny_patch16_224", **small), where="w")
    assert any(f"{layout} ViT" in note for note in notes)
    assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())
    other = timm.create_model("vit_tiny_patch16_224", img_size=96, **small)
    state, notes = fit_weights(found, other, where="w")
    other.load_state_dict(state)
    assert any("resampled to 6x6 patches" in note for note in notes)


def test_another_stem_is_refused_with_the_setting() -> None:
    first = next(k for k, v in make_encoder().state_dict().items() if v.ndim == 4)
    found = make_encoder().state_dict()
    larger = {**found, first: torch.zeros(found[first].shape[0], 3, 7, 7)}
    with pytest.raises(CheckpointError, match=r"7x7, but this network has 3x3; set network\.stem=standard"):
        fit_weights(larger, make_encoder(), where="w")


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
