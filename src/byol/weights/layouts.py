"""Translate the tensor names of other libraries to those of timm, such as `layer1.0.conv1`.

Each layout is a list of rules that do this, with any prefix before the name.
"""

import re
from collections.abc import Callable

import torch
from torch import Tensor

State = dict[str, Tensor]
Rule = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]


def layouts_of(found: State) -> dict[str, State]:
    """Return `found` unchanged, then renamed to the names of timm by each layout that matches."""
    renamed = {"": found}
    for name, rules in _LAYOUTS.items():
        state = {_rename(key, rules): value for key, value in found.items()}
        if state.keys() != found.keys() and len(state) == len(found):
            renamed[name] = _join_attention(state)
    return renamed


def _rename(name: str, rules: list[Rule]) -> str:
    for pattern, replacement in rules:
        name = pattern.sub(replacement, name)
    return name


def _join_attention(state: State) -> State:
    """Join query, key and value to one tensor, as in timm."""
    joined = dict(state)
    for name in state:
        front, middle, end = name.rpartition(".attn.q.")
        parts = [f"{front}.attn.{part}.{end}" for part in "qkv"]
        if middle and all(part in state for part in parts):
            joined[f"{front}.attn.qkv.{end}"] = torch.cat([joined.pop(part) for part in parts])
    return joined


def _rules(*pairs: tuple[str, str | Callable[[re.Match[str]], str]]) -> list[Rule]:
    return [(re.compile(pattern), replacement) for pattern, replacement in pairs]


def _count_up(template: str) -> Callable[[re.Match[str]], str]:
    """Return a function that fills the groups of a match into `template`; {0+} adds one to group 0."""

    def fill(match: re.Match[str]) -> str:
        text = template
        for place, group in enumerate(match.groups()):
            text = text.replace(f"{{{place}+}}", str(int(group) + 1) if group.isdigit() else "")
            text = text.replace(f"{{{place}}}", group)
        return text

    return fill


def _sequential(layers: tuple[int, ...]) -> list[Rule]:
    """Rules for `nn.Sequential(*resnet.children())`, whose names are numbers; `layers`: layer1 to layer4."""
    names = {0: "conv1", 1: "bn1", **{number: f"layer{at}" for at, number in enumerate(layers, start=1)}}

    def name_it(match: re.Match[str]) -> str:
        return f"{match[1]}{names.get(int(match[2]), match[2])}."

    return _rules((r"^((?:[^.]*[^.\d][^.]*\.)*)(\d+)\.(?=\D|\d+\.\D)", name_it))


_ENDS = r"(?=weight$|bias$)"
_LAYOUTS: dict[str, list[Rule]] = {
    "torch.nn.Sequential": _sequential((4, 5, 6, 7)),
    "torch.nn.Sequential without max-pool": _sequential((3, 4, 5, 6)),
    "transformers ResNet": _rules(
        (r"(?:^|(?<=\.))embedder\.embedder\.convolution\.", "conv1."),
        (r"(?:^|(?<=\.))embedder\.embedder\.normalization\.", "bn1."),
        (
            r"(?:^|(?<=\.))encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.convolution\.",
            _count_up("layer{0+}.{1}.conv{2+}."),
        ),
        (
            r"(?:^|(?<=\.))encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.normalization\.",
            _count_up("layer{0+}.{1}.bn{2+}."),
        ),
        (
            r"(?:^|(?<=\.))encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.convolution\.",
            _count_up("layer{0+}.{1}.downsample.0."),
        ),
        (
            r"(?:^|(?<=\.))encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.normalization\.",
            _count_up("layer{0+}.{1}.downsample.1."),
        ),
    ),
    "transformers ViT": _rules(
        (r"(?:^|(?<=\.))embeddings\.cls_token$", "cls_token"),
        (r"(?:^|(?<=\.))embeddings\.mask_token$", "mask_token"),
        (r"(?:^|(?<=\.))embeddings\.position_embeddings$", "pos_embed"),
        (r"(?:^|(?<=\.))embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"(?:^|(?<=\.))encoder\.layer\.(\d+)\.", r"blocks.\1."),
        (r"(?<=\d\.)attention\.attention\.(q)uery\.", r"attn.\1."),
        (r"(?<=\d\.)attention\.attention\.(k)ey\.", r"attn.\1."),
        (r"(?<=\d\.)attention\.attention\.(v)alue\.", r"attn.\1."),
        (r"(?<=\d\.)attention\.output\.dense\.", "attn.proj."),
        (r"(?<=\d\.)intermediate\.dense\.", "mlp.fc1."),
        (r"(?<=\d\.)output\.dense\.", "mlp.fc2."),
        (r"(?<=\d\.)layernorm_before\.", "norm1."),
        (r"(?<=\d\.)layernorm_after\.", "norm2."),
        (r"(?<=\d\.)layer_scale(\d)\.lambda1$", r"ls\1.gamma"),
        (r"(?:^|(?<=\.))layernorm\." + _ENDS, "norm."),
    ),
    "torchvision ViT": _rules(
        (r"(?:^|(?<=\.))class_token$", "cls_token"),
        (r"(?:^|(?<=\.))encoder\.pos_embedding$", "pos_embed"),
        (r"(?:^|(?<=\.))conv_proj\.", "patch_embed.proj."),
        (r"(?:^|(?<=\.))encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
        (r"(?<=\d\.)self_attention\.in_proj_", "attn.qkv."),
        (r"(?<=\d\.)self_attention\.out_proj\.", "attn.proj."),
        (r"(?<=\d\.)mlp\.(?:0|linear_1)\.", "mlp.fc1."),
        (r"(?<=\d\.)mlp\.(?:3|linear_2)\.", "mlp.fc2."),
        (r"(?<=\d\.)ln_([12])\.", r"norm\1."),
        (r"(?:^|(?<=\.))encoder\.ln\." + _ENDS, "norm."),
    ),
    "OpenMMLab ViT": _rules(
        (r"(?:^|(?<=\.))patch_embed\.projection\.", "patch_embed.proj."),
        (r"(?:^|(?<=\.))layers\.(\d+)\.(?=ln|attn|ffn)", r"blocks.\1."),
        (r"(?<=\d\.)ln([12])\.", r"norm\1."),
        (r"(?<=\d\.)ffn\.layers\.0\.0\.", "mlp.fc1."),
        (r"(?<=\d\.)ffn\.layers\.1\.", "mlp.fc2."),
        (r"(?:^|(?<=\.))ln1\." + _ENDS, "norm."),
    ),
    "DINOv2 in chunks": _rules((r"(?:^|(?<=\.))blocks\.\d+\.(\d+)\.(?=\D)", r"blocks.\1.")),
    "torch.compile": _rules((r"_orig_mod\.", "")),
}
