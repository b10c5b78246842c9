"""An encoder with its preprocessing as an ONNX file, which onnxruntime and others run without Python."""

import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from byol.base.errors import ConfigError
from byol.base.packages import install_command
from byol.encoder.spec import EncoderSpec
from byol.exporting.parity import Features, Run
from byol.exporting.torch_file import refuse_network

FILE_NAME = "model.onnx"
_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_MOST_BYTES = 1_900_000_000  # of weights within the file; protobuf ends at 2 GiB


def check_onnx() -> None:
    """Refuse before anything is computed if a package is missing.

    Raises:
        ConfigError: names it, and how to install it.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--format: onnx needs {', '.join(missing)}, but that is not installed; run "
            f"{install_command(*missing)}, or use --format torch"
        )


def write_onnx(folder: Path, program: ExportedProgram, *, spec: EncoderSpec, spec_text: str) -> None:
    """Write the file into a folder, `encoder.json` among its metadata; weights above 1.9 GB lie beside it.

    Raises:
        ConfigError: PyTorch cannot write this network as ONNX.
    """
    num_bytes = sum(value.nbytes for value in program.state_dict.values())
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own deprecated calls
        try:
            logger.setLevel(logging.ERROR)
            exported = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=["features"],
            )
        except Exception as error:
            raise refuse_network(spec, error) from error
        finally:
            logger.setLevel(level)
        assert exported is not None
        _name_axes(exported.model)
        exported.model.metadata_props["encoder.json"] = spec_text
        exported.save(str(folder / FILE_NAME), external_data=num_bytes > _MOST_BYTES)


def _name_axes(model: Any) -> None:
    """What people see of the sizes that may vary."""
    import onnx_ir

    (images,), (features,) = model.graph.inputs, model.graph.outputs
    images.shape = onnx_ir.Shape(["batch", images.shape[1], "height", "width"])
    features.shape = onnx_ir.Shape(["batch", features.shape[1]])


def open_onnx(folder: Path) -> Run:
    """What runs the file in a folder, by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / FILE_NAME), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Features:
        (features,) = session.run(["features"], {"images": images.numpy()})
        return np.asarray(features)

    return run
