"""The packages that byol needs, and those that it uses if they are installed.

Each is listed by its name for pip, with the module that Python imports.
"""

REQUIRED = {
    "filelock": "filelock",
    "imagecodecs": "imagecodecs",
    "jaxtyping": "jaxtyping",
    "jinja2": "jinja2",
    "numpy": "numpy",
    "pillow": "PIL",
    "pydantic": "pydantic",
    "pyyaml": "yaml",
    "rich": "rich",
    "safetensors": "safetensors",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
    "tensorboard": "tensorboard",
    "tifffile": "tifffile",
    "timm": "timm",
    "torch": "torch",
    "torchvision": "torchvision",
}
OPTIONAL = {
    "aiohttp": "aiohttp",
    "anndata": "anndata",
    "fsspec": "fsspec",
    "mlflow": "mlflow",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "onnxscript": "onnxscript",
    "pillow-heif": "pillow_heif",
    "pyarrow": "pyarrow",
    "pydicom": "pydicom",
    "simplejpeg": "simplejpeg",
    "trackio": "trackio",
    "umap-learn": "umap",
    "wandb": "wandb",
}


def install_command(*packages: str) -> str:
    """Return the command that installs packages, for a message.

    It never uses an extra such as "byol[dicom]", for which pip would install any package named byol from the
    package index.
    """
    return f"pip install {' '.join(packages)}"
