"""An encoder with its preprocessing as a file of `torch.export`, which PyTorch runs without byol."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from byol.base.errors import ConfigError
from byol.encoder.spec import EncoderSpec
from byol.exporting.parity import Features, Run, draw_images
from byol.exporting.preprocessing import WholeEncoder

FILE_NAME = "model.pt2"


def trace(model: WholeEncoder, spec: EncoderSpec) -> ExportedProgram:
    """The graph of an encoder, for any number of images of any size.

    Raises:
        ConfigError: PyTorch cannot make a graph of this network.
    """
    # Sizes that are neither 1 nor equal: the graph must not take such a coincidence for a rule.
    images = draw_images(spec, 2, spec.stored_px + 3, spec.stored_px + 5)
    sizes = {0: Dim("batch", min=1), 2: Dim("height", min=1), 3: Dim("width", min=1)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's own deprecated calls
        try:
            return torch.export.export(model, (images,), dynamic_shapes=(sizes,), strict=False)
        except Exception as error:  # whatever the network's code does under tracing
            raise refuse_network(spec, error) from error


def refuse_network(spec: EncoderSpec, error: Exception) -> ConfigError:
    """What to raise if a network cannot be turned into a graph."""
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return ConfigError(
        f"--format: PyTorch {torch.__version__} cannot export {spec.name} ({reason}); use --format timm, or "
        "another version of PyTorch"
    )


def write_torch(folder: Path, program: ExportedProgram, *, spec_text: str) -> None:
    """Write the file into a folder, `encoder.json` inside it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, folder / FILE_NAME, extra_files={"encoder.json": spec_text})


def open_torch(folder: Path) -> Run:
    """What runs the file in a folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network: nn.Module = torch.export.load(folder / FILE_NAME).module()

    def run(images: Tensor) -> Features:
        with torch.no_grad():
            features: Tensor = network(images)
        return features.numpy()

    return run
