"""Small run folders for the tests of evaluation: labelled images, a configuration and untrained weights."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from byol.config import Config, dump_config, load_config
from byol.data.pack.images import open_images
from byol.encoder.encoder import save_encoder
from byol.encoder.spec import EncoderSpec
from byol.method.networks import Byol
from byol.method.views import Pixels

PX = 16
# A run of seconds on any images, for the command line.
TINY = (
    "network.name=test_resnet",
    "network.projection_head.mlp_hidden_size=8",
    "network.projection_head.projection_size=4",
    "network.stem=standard",
    "data_transforms.domain=null",
    "data_transforms.input_shape=[16,16,null]",
    "trainer.batch_size=8",
    "trainer.accumulation_steps=1",
    "trainer.precision=fp32",
    "trainer.num_workers=1",
)


def write_images(folder: Path, *, num: int, classes: Sequence[str] = ("dark", "light", "red")) -> None:
    """`num` images of each class, told apart by their colour."""
    rng = np.random.default_rng(0)
    colours = {"dark": (40, 40, 40), "light": (200, 200, 200), "red": (200, 40, 40), "blue": (40, 40, 200)}
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(num):
            image = np.array(colours[name]) + rng.normal(0.0, 25.0, size=(PX, PX, 3))
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / name / f"{index:03d}.png")


def configure(source: str | Path, *overrides: str) -> Config:
    fixed = [
        f"data.source={source}",
        "network.name=test_resnet",
        "network.projection_head.mlp_hidden_size=8",
        "network.projection_head.projection_size=4",
        f"data_transforms.input_shape=[{PX}, {PX}, 3]",
        "data_transforms.domain=null",
        "trainer.batch_size=4",
        "trainer.accumulation_steps=1",
        "trainer.max_epochs=100",
        "trainer.num_workers=1",
        "evaluation.num_bootstrap=200",
    ]
    return load_config(None, [*fixed, *overrides], preset="default")


def make_spec() -> EncoderSpec:
    """Of an encoder for colour images of PX pixels."""
    grey = (0.5, 0.5, 0.5)
    return EncoderSpec(
        name="test_resnet",
        stem="standard",
        channels=3,
        view_px=PX,
        stored_px=PX,
        num_features=96,
        pixels=Pixels(low=(0.0,) * 3, high=(255.0,) * 3, mean=grey, std=grey),
        which="online",
        done=0,
        byol_version="0",
        data_fingerprint="",
        data_name="",
    )


def make_run(run_dir: Path, source: str | Path, *overrides: str, target: bool = True) -> Config:
    """What training leaves: config.yaml and the encoders, here of another seed's first weights."""
    config = configure(source, *overrides)
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(dump_config(config))
    images = open_images(config, run_dir, console=None)
    byol = Byol.of(config, channels=images.channels, seed_key=99)
    save_encoder(run_dir, byol.online.encoder, EncoderSpec.of(config, images, which="online", done=5))
    if target:
        spec = EncoderSpec.of(config, images, which="target", done=5)
        save_encoder(run_dir / "target", byol.target.encoder, spec)
    return config
