"""A small run with everything that a report shows, and the names that are hard to show."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from byol.cli.main import main
from byol.encoder.encoder import load
from byol.reporting.embedding_map import Embedded, open_run_images
from byol.reporting.run_summary import read_summary
from runs import TINY

HARD_NAMES = ("<img src=x onerror=alert(1)>.png", "quo\"te's & <b>.png", "line\nbreak.png", "größe 大.png")
COLOURS = {"dark": (40, 40, 40), "<i>red</i>": (200, 40, 40), "blue": (40, 40, 200)}
_TINY = (*TINY, "trainer.max_epochs=2", "trainer.log_interval=2")


def train_run(folder: Path, *, num: int = 12) -> Path:
    """A run of some steps on `num` images of each class, the first ones with HARD_NAMES."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / "images" / name.replace("/", "_")).mkdir(parents=True)
        for index in range(num):
            image = np.array(colour) + rng.normal(0.0, 25.0, (16, 16, 3))
            file = HARD_NAMES[index] if name == "dark" and index < len(HARD_NAMES) else f"{index:02d}.png"
            picture = Image.fromarray(image.clip(0, 255).astype(np.uint8))
            picture.save(folder / "images" / name.replace("/", "_") / file)
    assert main(["train", str(folder / "images"), "-o", str(folder / "runs" / "a"), *_TINY]) == 0
    return folder / "runs" / "a"


def make_row(features: str, top1: float, *, classifier: str = "logistic regression") -> dict[str, object]:
    """Of eval.json, format 1; the interval is 0.02 to both sides."""
    return {
        "features": features,
        "transform": "pca-256" if features == "pixels" else "none",
        "classifier": classifier,
        "dimensions": 96,
        "top1": top1,
        "low95": top1 - 0.02,
        "high95": top1 + 0.02,
        "balanced": top1,
        "chosen": {"C": 0.1},
        "seconds": 1.0,
    }


def write_evaluation(run_dir: Path, *, online: float = 0.9, num_classes: int = 3, version: int = 2) -> None:
    """eval.json, of the format asked for."""
    rows = [
        make_row(name, top1) for name, top1 in (("pixels", 0.4), ("untrained", 0.5), ("byol online", online))
    ]
    content: dict[str, object] = {
        "format": version,
        "split": "images: every fifth image of each class held out for testing",
        "num_train": 28,
        "num_test": 8,
        "num_classes": num_classes,
        "num_unlabelled": 0,
        "done": 8,
        "seconds": 1.0,
        "rows": rows,
    }
    if version == 2:
        counts = np.eye(num_classes, dtype=int) * 50
        counts[0, 1] = 7
        new = {"top5": 0.99, "balanced_low95": 0.3, "balanced_high95": 0.95}
        content |= {
            "protocol": "test part",
            "class_names": [*COLOURS, *(f"class {at}" for at in range(3, num_classes))],
            "rows": [row | new for row in rows],
            "low_shot": [
                {"features": name, "per_class": number, "num_draws": 5, "mean": 0.4 + share, "std": 0.05}
                for name, share in (("pixels", 0.0), ("byol online", 0.3))
                for number in (1, 2, 5)
            ],
            "confusion": {
                "features": "byol online",
                "classifier": "logistic regression",
                "counts": counts.tolist(),
            },
        }
    (run_dir / "eval.json").write_text(json.dumps(content))


def write_measures(run_dir: Path) -> None:
    """measures.json, of images that the run has."""
    names = list(open_embedded(run_dir).images.names)
    neighbours = [{"row": row, "name": names[row], "similarity": 0.9 - row / 100} for row in range(1, 9)]
    encoder = {"rank": 5.0, "max_rank": 96, "alignment": 0.3, "uniformity": -2.0, "retrieval": 0.8}
    content = {
        "format": 1,
        "num_images": len(names),
        "done": 8,
        "seconds": 1.0,
        "encoders": [{"features": name, **encoder} for name in ("untrained", "byol online")],
        "verdict": "The encoder finds 80 % of the views again, the untrained one 80 %.",
        "neighbours": [{"row": 0, "name": names[0], "neighbours": neighbours}],
        "prototypes": [{"row": 3, "name": names[3], "size": 12}],
        "outliers": [{"row": 4, "name": names[4], "distance": 0.4}],
        "metadata": [
            {
                "column": "plate",
                "num_values": 2,
                "accuracy": 0.8,
                "low95": 0.7,
                "high95": 0.9,
                "chance": 0.5,
                "warning": True,
            }
        ],
    }
    (run_dir / "measures.json").write_text(json.dumps(content))


def open_embedded(run_dir: Path) -> Embedded:
    """The run's images and features."""
    config = read_summary(run_dir).config
    encoder = load(run_dir, device="cpu")
    images = open_run_images(config, run_dir, encoder=encoder, say=lambda line: None)
    return Embedded.of(images, run_dir, config=config, encoder=encoder, say=print)
