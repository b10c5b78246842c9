"""Write the section "Use" of the model card of an export: its input, its output, and example code."""

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
"""

_ONNX = """\
```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{file}")
images = np.zeros((1, {channels}, 480, 640), np.{type})  # yours: any number, height and width
(features,) = session.run(["features"], {{"images": images}})  # (1, {num_features})
```
"""

_TORCH = """\
```python
import torch

encode = torch.export.load("{file}").module()
images = torch.zeros(1, {channels}, 480, 640, dtype=torch.{type})  # yours: any number, height and width
features = encode(images)  # (1, {num_features})
```
"""


def write_usage(spec: EncoderSpec, *, format: Format, difference: float) -> Usage:
    """Describe how to use an export in a format; `difference` is the result of its check."""
    if format == "timm":
        template, file, paragraphs = _TIMM, "", [*_describe_mirror(spec), *_describe_preparation(spec)]
    else:
        template, file = (_ONNX, onnx_file.FILE_NAME) if format == "onnx" else (_TORCH, torch_file.FILE_NAME)
        paragraphs = _describe_contract(spec)
    code = template.format(
        file=file,
        channels=spec.channels,
        px=spec.seen_px,
        type=_TYPES[spec.bits],
        num_features=spec.num_features,
    )
    tried = (
        "byol ran this export on batches of 1, 3 and 8 images when it was written. The features differed "
        f"from byol's by at most {difference:.1e} of the largest feature."
    )
    library = {"timm": "timm", "onnx": "onnx", "torch": "pytorch"}[format]
    return Usage("\n\n".join([code.strip(), *paragraphs, _describe_channels(spec), tried]), library)


def _describe_channels(spec: EncoderSpec) -> str:
    """Describe the channels of the encoder."""
    if spec.select == "grey" and spec.channels == 1:
        return "The channel is grey. For a colour image it is 0.299 R + 0.587 G + 0.114 B, rounded."
    if spec.select == "rgb":
        return "The channels are red, green and blue. Repeat a grey image three times."
    if isinstance(spec.select, tuple):
        numbers = ", ".join(map(str, spec.select))
        return f"The channels are the channels {numbers} of a file, counted from 0."
    return "The channels are those of the training files, in their order (for colours red, green, blue)."


def _describe_contract(spec: EncoderSpec) -> list[str]:
    """Describe the input of a file with the preprocessing inside."""
    text = (
        f"`images` has the shape (number, channel, height, width) and the type {_TYPES[spec.bits]}. Give the "
        "values as the files hold them: the export resizes, scales and normalises them as byol does. All "
        "images of one call have the same size. `features` is float32."
    )
    if spec.bits != 32:
        return [text]
    return [text, "byol fills NaN and other values that mark missing pixels; this export does not."]


def _describe_mirror(spec: EncoderSpec) -> list[str]:
    """Say how to compute byol's features with a network that sees one view at a time."""
    if not spec.mirrored:
        return []
    return [
        "byol's own features are the mean over a view and its mirror image, which classifiers like better: "
        "`(model(views) + model(views.flip(3))) / 2`."
    ]


def _describe_preparation(spec: EncoderSpec) -> list[str]:
    """Describe how to prepare images for the network of a timm folder."""
    problem = explain_own_scaling(spec)
    if problem is None:
        return [_describe_transform(spec)]
    pixels = spec.pixels
    numbers = zip(pixels.low, pixels.high, pixels.mean, pixels.std, strict=True)
    rows = [
        f"| {channel} | " + " | ".join(f"{value:.9g}" for value in row) + " |"
        for channel, row in enumerate(numbers)
    ]
    return [
        f"The image processors of timm and transformers cannot prepare images for this encoder: {problem}. "
        f"Prepare each image yourself: {_describe_resize(spec)}. Then scale each stored value v to "
        "x = clip((v - low) / (high - low), 0, 1), and normalise it to (x - mean) / std:",
        "\n".join(["| channel | low | high | mean | std |", "|---|---|---|---|---|", *rows]),
    ]


def _describe_transform(spec: EncoderSpec) -> str:
    makers = ["`timm.data.create_transform(**timm.data.resolve_model_data_config(model))`"]
    if spec.channels == 3:  # transformers makes every image RGB
        makers += [
            '`AutoImageProcessor.from_pretrained("FOLDER")`',
            '`pipeline("image-feature-extraction", model="FOLDER", pool=True)`',
        ]
    listed = makers[0] if len(makers) == 1 else f"{', '.join(makers[:-1])} and {makers[-1]}"
    verb = "prepares" if len(makers) == 1 else "prepare"
    if spec.stored_px == spec.seen_px:
        exactness = (
            f"The result is exactly byol's if both sides of the image shrink to {spec.seen_px} px. It "
            "differs a little for smaller images, and for JPEG files of more than four times that size, "
            "because byol decodes these at a fraction of their size."
        )
    else:
        exactness = (
            f"The result differs a little from byol's: byol resizes an image to {spec.stored_px} px and then "
            f"to {spec.seen_px} px, but timm does it in one step. Exports with --format onnx or torch resize "
            "as byol does."
        )
    return f"{listed} {verb} Pillow images. {exactness}"


def _describe_resize(spec: EncoderSpec) -> str:
    px = spec.stored_px
    if spec.geometry == "scale":
        first = (
            f"put it in the middle of {px} x {px} px without resizing (shrink it if it is larger) and fill "
            "the rest with the median of its border"
        )
    else:
        first = f"resize it to {px} x {px} px (Pillow's HAMMING)"
    if px == spec.seen_px:
        return first
    return f"{first}, then resize that to {spec.seen_px} x {spec.seen_px} px (antialiased bilinear)"
