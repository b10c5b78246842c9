"""What opens exports in a process of its own, without byol on its path: python consumers.py KIND FOLDER ...

Each FOLDER holds an export in `export`, and the inputs: `images.npy` (stored values), `views.npy`
(normalised) and sometimes `image.png`. Features are written into it: one `KIND-INPUT.npy` for each input that
KIND takes.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np


def hide_byol() -> None:
    """Take every folder with byol in it off the path, as on a machine without it."""
    sys.path[:] = [entry for entry in sys.path if not (Path(entry or ".") / "byol").is_dir()]
    assert importlib.util.find_spec("byol") is None


def open_by_timm(folder: Path) -> None:
    import timm
    import torch
    from PIL import Image

    model = timm.create_model(f"local-dir:{folder / 'export'}", pretrained=True).eval()
    with torch.no_grad():
        save(folder, "timm-views", model(load_views(folder)).numpy())
        if (folder / "image.png").exists():
            transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
            image = transform(Image.open(folder / "image.png"))
            save(folder, "timm-file", model(image[None]).numpy())


def open_by_transformers(folder: Path) -> None:
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModel, pipeline

    export = str(folder / "export")
    model = AutoModel.from_pretrained(export).eval()
    with torch.no_grad():
        save(folder, "transformers-views", model(load_views(folder)).pooler_output.numpy())
    if (folder / "image.png").exists():
        processor = AutoImageProcessor.from_pretrained(export)
        inputs = processor(Image.open(folder / "image.png"), return_tensors="pt")
        with torch.no_grad():
            save(folder, "transformers-processor", model(**inputs).pooler_output.numpy())
        extract = pipeline("image-feature-extraction", model=export, pool=True)
        save(folder, "transformers-file", np.array(extract(str(folder / "image.png")), dtype=np.float32))
    else:
        try:
            AutoImageProcessor.from_pretrained(export)
        except KeyError as error:
            (folder / "transformers-refusal.txt").write_text(str(error))


def open_by_onnxruntime(folder: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "export" / "model.onnx"))
    images = np.load(folder / "images.npy")
    (features,) = session.run(["features"], {"images": images})
    save(folder, "onnxruntime-images", features)
    assert "torch" not in sys.modules


def open_by_torch(folder: Path) -> None:
    import torch

    encode = torch.export.load(folder / "export" / "model.pt2").module()
    images = torch.from_numpy(np.load(folder / "images.npy"))
    with torch.no_grad():
        save(folder, "torch-images", encode(images).numpy())
    assert "timm" not in sys.modules


def load_views(folder: Path):  # type: ignore[no-untyped-def]
    import torch

    return torch.from_numpy(np.load(folder / "views.npy"))


def save(folder: Path, name: str, features: np.ndarray) -> None:
    np.save(folder / f"{name}.npy", features)


if __name__ == "__main__":
    hide_byol()
    kinds = {
        "timm": open_by_timm,
        "transformers": open_by_transformers,
        "onnxruntime": open_by_onnxruntime,
        "torch": open_by_torch,
    }
    for name in sys.argv[2:]:
        kinds[sys.argv[1]](Path(name))
