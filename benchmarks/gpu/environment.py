"""What a machine has for benchmarks/gpu.sh: GPU, driver, and the packages that can be imported.

    python benchmarks/gpu/environment.py --device cuda --out runs/environment

Fails if something that this package needs is missing; a peer that is missing is only told.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

NEEDED = {  # what is imported: the name of its package
    "byol": None,
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "sklearn": "scikit-learn",
    "pydantic": "pydantic",
    "rich": "rich",
    "jaxtyping": "jaxtyping",
    "safetensors": "safetensors",
    "tensorboard": "tensorboard",
    "tifffile": "tifffile",
    "PIL": "pillow",
    "yaml": "PyYAML",
    "beartype": "beartype",
    "pytest": "pytest",
}
PEERS = {"lightly": "lightly", "byol_pytorch": "byol-pytorch", "pyarrow": "pyarrow", "triton": "triton"}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found = {name: look_for(name, package) for name, package in {**NEEDED, **PEERS}.items()}
    content = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "packages": found,
        "gpu": describe_gpu() if options.device == "cuda" else None,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "environment.json").write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(content, indent=1))
    missing = [name for name in NEEDED if found[name].startswith("missing")]
    print(f"missing: {', '.join(missing)}" if missing else "all that is needed is there")
    return 1 if missing or (options.device == "cuda" and content["gpu"] is None) else 0


def look_for(name: str, package: str | None) -> str:
    """The version of a package that can be imported, or why it cannot."""
    try:
        importlib.import_module(name)
    except Exception as error:  # whatever its import raises
        return f"missing: {type(error).__name__}: {error}"
    return "this checkout" if package is None else importlib.metadata.version(package)


def describe_gpu() -> dict[str, object] | None:
    """Of the first GPU; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    if shutil.which("nvidia-smi"):
        print(subprocess.run(["nvidia-smi"], capture_output=True, text=True).stdout)
    return {
        "name": properties.name,
        "bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


if __name__ == "__main__":
    sys.exit(main())
