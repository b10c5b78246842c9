"""From weights on disk to a run, to an export, to a run again: not a bit changes on the way."""

import io
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from byol.config import Config, load_config
from byol.exporting.export import export
from byol.runfolder import checkpoint
from byol.training import loop
from byol.weights.files import read_weights
from byol.weights.prefixes import COUNTER
from byol.weights.pretrained import fit_weights

TINY = [
    "network.name=test_resnet",
    "network.stem=standard",
    "network.warm_heads=9",  # all steps: the encoder stays as it begins
    "network.projection_head.mlp_hidden_size=8",
    "network.projection_head.projection_size=4",
    "data_transforms.input_shape=[16,16,null]",
    "data.stored_px=16",
    "trainer.batch_size=8",
    "trainer.accumulation_steps=1",
    "trainer.max_epochs=2",
    "trainer.precision=fp32",
    "trainer.num_workers=1",
]


def configure(folder: Path, *overrides: str) -> Config:
    path = folder / "images.npy"
    if not path.exists():
        np.save(path, np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), dtype=np.uint8))
    return load_config(None, [f"data.source={path}", *TINY, *overrides], preset="default")


def train_from(source: Path, folder: Path, name: str) -> tuple[Path, str]:
    """The run folder, and what was said."""
    said = io.StringIO()
    config = configure(folder, f"network.fine_tune_from={source}")
    loop.train(config, folder / name, console=Console(file=said, width=500))
    return folder / name, said.getvalue()


def check_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """All but the counters of batches, which no result depends on, and which a training moves."""
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key]) and COUNTER not in key] == []


@pytest.mark.slow
def test_weights_of_timm_to_a_run_to_an_export_to_a_run(tmp_path: Path) -> None:
    torch.manual_seed(3)
    given = timm.create_model("test_resnet", num_classes=7).state_dict()
    save_file(given, tmp_path / "timm.safetensors")
    run_dir, _ = train_from(tmp_path / "timm.safetensors", tmp_path, "a")
    exported = export(run_dir, tmp_path / "export", format="timm")
    weights = load_file(exported.folder / "model.safetensors")
    check_same(weights, {key: value for key, value in given.items() if not key.startswith("fc.")})

    network = timm.create_model("test_resnet", num_classes=0)
    fitted, notes = fit_weights(read_weights(exported.folder), network, where="w")
    assert notes == [] and all(torch.equal(value, weights[key]) for key, value in fitted.items())
    for source in (exported.folder, exported.folder / "model.safetensors"):
        again, said = train_from(source, tmp_path, f"b{source.suffix}")
        assert f"starting from the encoder of {source}" in said
        check_same(load_file(export(again, None, format="timm").folder / "model.safetensors"), weights)
        state, _ = checkpoint.read_latest(again)
        assert state is not None
        for branch in ("online", "target"):
            prefix = f"{branch}.encoder."
            found = {k.removeprefix(prefix): v for k, v in state["byol"].items() if k.startswith(prefix)}
            check_same(found, weights)
