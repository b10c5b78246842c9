"""An encoder as a folder that timm and transformers load: `config.json` and `model.safetensors`.

`timm.create_model("local-dir:FOLDER", pretrained=True)` reads it, `transformers.AutoModel.from_pretrained`
too, and so does the Hub. The network gets normalised views; timm's transform makes them of 8-bit images.
"""

from pathlib import Path
from typing import Any

import torch
from pydantic_core import to_json
from safetensors.torch import save_file
from torch import Tensor, nn

from byol.base.errors import ConfigError
from byol.encoder.spec import EncoderSpec
from byol.exporting.parity import Features, Run

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"


def check_timm(spec: EncoderSpec) -> None:
    """Refuse an encoder that plain timm cannot make.

    Raises:
        ConfigError: says why, and what to do instead.
    """
    import timm

    if spec.stem != "standard":
        raise ConfigError(
            f"--format: timm's {spec.name} has no stem '{spec.stem}', so it would compute other features; "
            "use --format onnx or torch, or train with network.stem=standard"
        )
    if not timm.is_model(spec.name):
        raise ConfigError(
            f"--format: timm has no {spec.name}, a torchvision model; use --format onnx or torch"
        )


def explain_own_scaling(spec: EncoderSpec) -> str | None:
    """Why the image processors of timm and transformers ("they") cannot prepare images; None: they can."""
    if spec.bits != 8:
        return f"its images hold {spec.bits}-bit values, but they scale only 8-bit values"
    if spec.geometry != "square":
        return "its images keep their scale on a canvas, but they resize every image"
    if isinstance(spec.select, tuple) and spec.select != tuple(range(spec.channels)):
        return f"it uses the channels {list(spec.select)} of a file, but they give all channels in order"
    return None


def write_timm(folder: Path, network: nn.Module, spec: EncoderSpec) -> None:
    """Write both files into a folder."""
    weights = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    save_file(weights, folder / WEIGHTS_NAME, metadata={"format": "pt"})  # transformers asks for the format
    (folder / CONFIG_NAME).write_bytes(to_json(_configure(network, spec), indent=2) + b"\n")


def _configure(network: nn.Module, spec: EncoderSpec) -> dict[str, Any]:
    """`config.json` as timm and transformers read it; arguments of the model stand in `model_args`."""
    import timm

    name = spec.name.partition(".")[0]
    given: Any = timm.get_pretrained_cfg(name)
    is_fixed = given is not None and bool(given.fixed_input_size)
    own = dict(getattr(network, "pretrained_cfg", None) or {})
    arguments = {"in_chans": spec.channels} | ({"img_size": spec.view_px} if is_fixed else {})
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": spec.num_features,
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "byol",
            "input_size": [spec.channels, spec.seen_px, spec.seen_px],
            "fixed_input_size": is_fixed,
            "interpolation": _choose_interpolation(spec),
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": list(spec.pixels.mean),
            "std": list(spec.pixels.std),
            "num_classes": 0,
            # Earlier versions of timm convert this layer from 3 channels, also where it has others.
            "first_conv": own.get("first_conv") if spec.channels == 3 else None,
            "classifier": own.get("classifier"),
        },
    }


def _choose_interpolation(spec: EncoderSpec) -> str:
    """Pillow's window; or why timm's transform must not be used, which then raises a KeyError of it."""
    if (problem := explain_own_scaling(spec)) is not None:
        return f"image processors cannot prepare images for this encoder: {problem}; see README.md"
    # byol resizes twice if the sizes differ; in one step a triangle is nearest to that (docs/decisions.md).
    return "hamming" if spec.stored_px == spec.seen_px else "bilinear"


def open_timm(folder: Path) -> Run:
    """What runs the network of a folder, by timm; on views, not on images."""
    import timm

    network: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()

    def run(views: Tensor) -> Features:
        with torch.no_grad():
            features: Tensor = network(views)
        return features.numpy()

    return run
