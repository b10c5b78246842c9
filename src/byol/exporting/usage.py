"""The section "Use" of an export's model card: what goes in, what comes out, and the lines to type."""

from typing import Literal

from byol.encoder.spec import EncoderSpec
from byol.exporting import onnx_file, torch_file
from byol.exporting.timm_folder import explain_own_scaling
from byol.reporting.card import Usage

Format = Literal["timm", "onnx", "torch"]

_TYPES = {8: "uint8", 16: "uint16", 32: "float32"}

_TIMM = """\
With timm (`FOLDER` is the folder of this file; on the Hub, `hf-hub:USER/NAME` replaces `local-dir:FOLDER`):

```python
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
features = model(views)  # (N, {num_features}) of views (N, {channels}, {px}, {px}), prepared as below
```

With transformers:

```python
from transformers import AutoModel

model = AutoModel.from_pretrained("FOLDER").eval()
features = model(views).pooler_output  # the same features
```

{preparation}
"""

_BY_TRANSFORM = """\
`timm.data.create_transform(**timm.data.resolve_model_data_config(model))` prepares a Pillow image{pipeline}.
{exactness}
"""

_PIPELINE = """; so do
`AutoImageProcessor.from_pretrained("FOLDER")` and
`pipeline("image-feature-extraction", model="FOLDER", pool=True)`"""

_BY_HAND = """\
timm's transform and transformers' image processor refuse these images, because {problem}. Prepare them
yourself: {resize}; then x = clip((v - low) / (high - low), 0, 1) of a stored value v, and
(x - mean) / std, for each channel:

| channel | low | high | mean | std |
|---|---|---|---|---|
{rows}
"""

_ONNX = """\
```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{file}")
images = np.zeros((1, {channels}, 480, 640), np.{type})  # yours: any number, height and width
(features,) = session.run(["features"], {{"images": images}})  # (1, {num_features})
```

{contract}
"""

_TORCH = """\
```python
import torch

encode = torch.export.load("{file}").module()
images = torch.zeros(1, {channels}, 480, 640, dtype=torch.{type})  # yours: any number, height and width
features = encode(images)  # (1, {num_features})
```

{contract}
"""

_CONTRACT = """\
`images` are (number, channel, height, width), {type}, with the values that files hold: resizing, scaling and
normalisation are part of the file. Images of one call have one size. `features` are float32. {channels}

The file was tried on {tried} when it was written; its features differ from those of byol by at most
{difference:.1e} of the largest."""


def write_usage(spec: EncoderSpec, *, format: Format, difference: float) -> Usage:
    """How an export in a format is used; `difference` is what its check has found."""
    if format == "timm":
        return Usage(_describe_timm(spec), "timm")
    template, file = (_ONNX, onnx_file.FILE_NAME) if format == "onnx" else (_TORCH, torch_file.FILE_NAME)
    contract = _CONTRACT.format(
        type=_TYPES[spec.bits],
        channels=_describe_channels(spec),
        tried="batches of 1, 3 and 8 images of three sizes",
        difference=difference,
    )
    text = template.format(
        file=file,
        channels=spec.channels,
        type=_TYPES[spec.bits],
        num_features=spec.num_features,
        contract=contract,
    )
    return Usage(text.strip(), "onnx" if format == "onnx" else "pytorch")


def _describe_channels(spec: EncoderSpec) -> str:
    """Which channels, as the encoder sees them."""
    if spec.select == "grey" and spec.channels == 1:
        return "The channel is grey: for a colour image 0.299 R + 0.587 G + 0.114 B, rounded."
    if spec.select == "rgb":
        return "The channels are red, green and blue; give a grey image three times."
    if isinstance(spec.select, tuple):
        return f"The channels are those of a file with these numbers, from 0: {list(spec.select)}."
    if spec.channels == 3 and spec.bits == 8:
        return "The channels are red, green and blue, or what the training's files held."
    return "The channels are those of the training's files, in their order."


def _describe_timm(spec: EncoderSpec) -> str:
    if (problem := explain_own_scaling(spec)) is None:
        preparation = _describe_transform(spec)
    else:
        pixels = spec.pixels
        numbers = zip(pixels.low, pixels.high, pixels.mean, pixels.std, strict=True)
        rows = [f"| {at} | " + " | ".join(f"{v:.9g}" for v in row) + " |" for at, row in enumerate(numbers)]
        preparation = _BY_HAND.format(problem=problem, resize=_describe_resize(spec), rows="\n".join(rows))
    text = _TIMM.format(
        num_features=spec.num_features,
        channels=spec.channels,
        px=spec.seen_px,
        preparation=f"{preparation.strip()} {_describe_channels(spec)}",
    )
    return text.strip()


def _describe_transform(spec: EncoderSpec) -> str:
    if spec.stored_px == spec.seen_px:
        exactness = (
            f"It resizes as byol does if both sides shrink to {spec.seen_px} px. Features differ a little "
            "for smaller images, and for JPEG files of four times that size and more, which byol decodes "
            "smaller."
        )
    else:
        exactness = (
            f"byol resizes an image to {spec.stored_px} px and then to {spec.seen_px} px; timm's transform "
            "does it in one step, so features differ a little. `byol export` with --format onnx or torch "
            "resizes as byol does."
        )
    return _BY_TRANSFORM.format(pipeline=_PIPELINE if spec.channels == 3 else "", exactness=exactness)


def _describe_resize(spec: EncoderSpec) -> str:
    if spec.geometry == "scale":
        first = (
            f"lay the image in the middle of {spec.stored_px} x {spec.stored_px} px without resizing it "
            "(shrink it if it is larger), with the median of its border around it"
        )
    else:
        first = f"resize it to {spec.stored_px} x {spec.stored_px} px (Pillow's HAMMING)"
    if spec.stored_px == spec.seen_px:
        return first
    return f"{first}, then to {spec.seen_px} x {spec.seen_px} px (antialiased bilinear)"
