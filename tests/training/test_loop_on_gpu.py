"""The loop on a CUDA device: the same run as on the CPU, and a host that waits only where it looks."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from byol.config import load_config
from byol.training.loop import train
from byol.training.runlog import Metrics, read_metrics

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SETTINGS = [
    "network.name=resnet10t",
    "network.stem=standard",
    "network.projection_head.mlp_hidden_size=32",
    "network.projection_head.projection_size=16",
    "data_transforms.input_shape=[16,16,3]",
    "data_transforms.domain=null",
    "trainer.batch_size=8",
    "trainer.accumulation_steps=1",
    "trainer.max_epochs=100",
    "trainer.checkpoint_interval=1000000",
    "trainer.health_interval=1000000",
    "trainer.num_workers=1",
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (67, 16, 16, 3), dtype=np.uint8))
    return path


def run(images: Path, run_dir: Path, *overrides: str) -> list[Metrics]:
    config = load_config(None, [f"data.source={images}", *SETTINGS, *overrides], preset="default")
    outcome = train(config, run_dir, console=Console(file=io.StringIO(), width=200))
    assert outcome.done == outcome.total_steps
    return read_metrics(run_dir)


def test_the_first_losses_are_those_of_the_cpu(images: Path, tmp_path: Path) -> None:
    """Weights, order and views are drawn on the host; TF32 and another order of sums are what differs."""
    losses = []
    for device in ("cpu", "cuda"):
        overrides = [f"trainer.device={device}", "trainer.precision=fp32", "trainer.log_interval=1"]
        metrics = run(images, tmp_path / device, *overrides, "trainer.max_epochs=1")
        losses.append([line.loss for line in metrics[:3]])
    assert losses[1] == pytest.approx(losses[0], abs=0.02)


@pytest.mark.parametrize("memory", ["device", "ram", "map"])
@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_the_host_waits_as_often_in_a_longer_run(
    images: Path, tmp_path: Path, memory: str, optimizer: str
) -> None:
    """Logging and saving at the end alone: every wait belongs to the start or the end, none to a step."""

    def count_waits(epochs: int) -> int:
        overrides = [
            "trainer.device=cuda",
            "trainer.log_interval=1000000",
            f"trainer.max_epochs={epochs}",
            f"data.memory={memory}",
            f"optimizer.name={optimizer}",
            "optimizer.params.lr=0.1",
        ]
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                run(images, tmp_path / f"run{epochs}", *overrides)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing CUDA operation" in str(warning.message) for warning in seen)

    count_waits(1)  # packing, kernels
    few, many = count_waits(2), count_waits(6)
    assert 0 < few == many
