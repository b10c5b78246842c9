"""How a run begins: which heads come along, how long the encoder stays, and that it is continued exactly."""

import io
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from byol.auto import resolve
from byol.auto.train import train as train_partial
from byol.base.errors import CheckpointError
from byol.config import Config, load_config, load_partial
from byol.method.networks import Byol
from byol.method.schedule import Plan
from byol.runfolder import checkpoint
from byol.training import initial_weights, loop
from byol.training.initial_weights import InitialWeights
from byol.weights.stem_mark import unmark_stem

TINY = [
    "network.name=test_resnet",
    "network.stem=standard",
    "network.projection_head.mlp_hidden_size=8",
    "network.projection_head.projection_size=4",
    "data_transforms.input_shape=[16,16,null]",
    "data.stored_px=16",
    "trainer.batch_size=8",
    "trainer.accumulation_steps=1",
    "trainer.max_epochs=2",
    "trainer.precision=fp32",
    "trainer.num_workers=1",
    "trainer.log_interval=1",
]


def configure(folder: Path, *overrides: str, channels: int = 3) -> Config:
    path = folder / f"images{channels}.npy"
    if not path.exists():
        np.save(path, np.random.default_rng(0).integers(0, 256, (16, 16, 16, channels), dtype=np.uint8))
    return load_config(None, [f"data.source={path}", *TINY, *overrides], preset="default")


def run(config: Config, run_dir: Path) -> str:
    said = io.StringIO()
    loop.train(config, run_dir, console=Console(file=said, width=500))
    return said.getvalue()


def state_of(run_dir: Path) -> dict[str, torch.Tensor]:
    state, _ = checkpoint.read_latest(run_dir)
    assert state is not None
    return dict(state["byol"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    run(configure(folder), folder / "run")
    return folder / "run"


def is_same(key: str, one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return torch.equal(one[key], two[key])


@pytest.mark.parametrize(
    ("overrides", "heads", "expected"),
    [
        ([], "random", (0, 1.0)),
        ([], "kept", (0, 1.0)),
        ([], "new", (2, 0.3)),
        (["trainer.max_epochs=100000"], "new", (500, 0.3)),
        (["network.warm_heads=7", "network.encoder_lr=0.5"], "kept", (7, 0.5)),
    ],
)
def test_open_values(tmp_path: Path, overrides: list[str], heads: str, expected: tuple[int, float]) -> None:
    config = configure(tmp_path, "trainer.max_epochs=20", *overrides)
    begun = InitialWeights.of(config.network, heads=heads, plan=Plan.of(config, num_images=16))  # type: ignore[arg-type]
    assert (begun.warm_steps, begun.encoder_lr) == expected


def test_the_encoder_stays_then_rises_to_its_share() -> None:
    begun = InitialWeights("new", warm_steps=4, encoder_lr=0.4)
    shares = [begun.encoder_share(step) for step in range(10)]
    assert shares == pytest.approx([0, 0, 0, 0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    assert InitialWeights("new", warm_steps=0, encoder_lr=0.4).encoder_share(0) == 0.4


def test_all_networks_of_a_run_come_along(finished: Path, tmp_path: Path) -> None:
    said = run(
        configure(tmp_path, f"network.fine_tune_from={finished}", "optimizer.params.lr=1e-12"), tmp_path / "b"
    )
    assert f"starting from the networks of {finished}, step 4" in said
    before, after = state_of(finished), state_of(tmp_path / "b")
    torch.testing.assert_close(
        before["predictor.0.weight"], after["predictor.0.weight"], atol=1e-8, rtol=1e-6
    )


@pytest.mark.parametrize("form", ["heads", "channels", "folder", "file"])
def test_the_encoder_alone_and_new_heads(finished: Path, tmp_path: Path, form: str) -> None:
    """While the heads are warmed nothing of the encoder changes, BatchNorm's statistics included."""
    source, channels = finished, 5 if form == "channels" else 3
    overrides = ["network.projection_head.projection_size=6"] if form == "heads" else []
    if form in ("folder", "file"):
        source = tmp_path / "export"
        source.mkdir()
        for name in ("encoder.safetensors", "encoder.json"):
            (source / name).write_bytes((finished / name).read_bytes())
        source = source / "encoder.safetensors" if form == "file" else source
    config = configure(
        tmp_path, f"network.fine_tune_from={source}", "network.warm_heads=9", *overrides, channels=channels
    )
    said = run(config, tmp_path / "b")
    assert f"starting from the encoder of {source}, with new heads" in said
    assert "the first 9 steps train only the heads (network.warm_heads)" in said
    assert ("converted from 3 to 5 channels" in said) == (form == "channels")
    given, after = load_file(finished / "encoder.safetensors"), state_of(tmp_path / "b")
    skipped = "conv1" if form == "channels" else "num_batches_tracked"
    for branch in ("online", "target"):
        for key, value in given.items():
            if "num_batches_tracked" not in key and not (form == "channels" and key.startswith(skipped)):
                assert torch.equal(after[f"{branch}.encoder.{key}"], value), key
    assert not torch.equal(after["online.projector.0.weight"], after["target.projector.0.weight"])


def test_afterwards_the_encoder_learns_by_its_rate(finished: Path, tmp_path: Path) -> None:
    states = []
    for number, rate in enumerate(("1.0", "1.0e-12")):
        overrides = [
            f"network.fine_tune_from={finished}",
            "network.warm_heads=1",
            f"network.encoder_lr={rate}",
        ]
        run(configure(tmp_path, *overrides), tmp_path / f"{number}")
        states.append(state_of(tmp_path / f"{number}"))
    key, before = "online.encoder.layer1.0.conv1.weight", state_of(finished)
    assert not torch.allclose(states[0][key], before[key], atol=1e-6)
    torch.testing.assert_close(states[1][key], before[key], atol=1e-8, rtol=1e-6)
    statistics = "online.encoder.bn1.running_mean"
    assert not is_same(statistics, states[1], before)  # they move again


def test_stopped_in_the_warming_and_continued_without_the_weights(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the run began with is in `start.json`; the weights may be gone."""
    source = tmp_path / "encoder.safetensors"
    weights = (finished / source.name).read_bytes()
    source.write_bytes(weights)
    config = configure(tmp_path, f"network.fine_tune_from={source}", "network.warm_heads=2")
    run(config, tmp_path / "whole")
    original, calls = loop.set_lr, 0

    def stop_in_the_first(optimizer: torch.optim.Optimizer, lr: float, *, encoder_share: float) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        original(optimizer, lr, encoder_share=encoder_share)

    monkeypatch.setattr(loop, "set_lr", stop_in_the_first)
    run(config, tmp_path / "stopped")
    source.unlink()
    run(config, tmp_path / "stopped")
    one, two = state_of(tmp_path / "whole"), state_of(tmp_path / "stopped")
    assert [key for key in one if not torch.equal(one[key], two[key])] == []
    begun = initial_weights.read(tmp_path / "whole")
    assert begun is not None and begun == initial_weights.read(tmp_path / "stopped")
    assert begun.heads == "new" and begun.measures is not None


def test_a_run_of_an_earlier_version_and_a_damaged_file(tmp_path: Path) -> None:
    config = configure(tmp_path)
    plan = Plan.of(config, num_images=16)
    assert initial_weights.read(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-00000004.pt").touch()
    networks = object.__new__(Byol)  # theirs are in the checkpoint
    assert initial_weights.begin(tmp_path, networks, config=config, plan=plan) == (
        InitialWeights("random", 0, 1.0),
        [],
    )
    for text in ('{"format": 2}', "{", '{"format": 1}'):
        (tmp_path / "start.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"start\.json: cannot be read .*; start again"):
            initial_weights.read(tmp_path)


@pytest.mark.parametrize("form", ["run", "encoder", "file", "unmarked", "checkpoint"])
def test_weights_of_another_stem_are_refused(tmp_path: Path, form: str) -> None:
    """Their keys and shapes are the same: without a word the encoder would compute something else."""
    earlier = tmp_path / "earlier"
    run(configure(tmp_path, "network.stem=strided"), earlier)
    if form == "encoder":
        for path in (earlier / "checkpoints").iterdir():
            path.unlink()
    if form == "unmarked":  # as byol wrote it before
        state, _ = unmark_stem(load_file(earlier / "encoder.safetensors"))
        save_file(state, earlier / "encoder.safetensors")
    source = {
        "file": earlier / "encoder.safetensors",
        "unmarked": earlier / "encoder.safetensors",
        "checkpoint": next(iter(sorted((earlier / "checkpoints").glob("*.pt"))), earlier),
    }.get(form, earlier)
    begin = f"network.fine_tune_from={source}"
    with pytest.raises(CheckpointError, match=r"'strided'.*'standard'.*network\.stem=strided"):
        run(configure(tmp_path, begin), tmp_path / "b")
    assert "starting from the" in run(configure(tmp_path, begin, "network.stem=strided"), tmp_path / "c")


def test_what_cannot_be_started_from(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source, reason in (
        (tmp_path / "none", "neither a folder nor a weights file"),
        (tmp_path / "empty", "holds neither a checkpoint nor an encoder; give a run folder"),
    ):
        with pytest.raises(CheckpointError, match=f"network.fine_tune_from: .*{reason}"):
            run(configure(tmp_path, f"network.fine_tune_from={source}"), tmp_path / "b")
    other = configure(tmp_path, f"network.fine_tune_from={finished}", "network.name=resnet10t")
    with pytest.raises(
        CheckpointError,
        match=r"does not fit the encoder: .* network\.name=test_resnet network\.stem=standard",
    ):
        run(other, tmp_path / "b")


@pytest.mark.parametrize("channels", [None, "grey"])
def test_weights_that_do_not_fit_are_refused_before_images_are_packed(
    tmp_path: Path, channels: str | None
) -> None:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(3)}, tmp_path / "other.pth")
    chosen = [] if channels is None else [f"data.channels={channels}"]
    config = configure(tmp_path, f"network.fine_tune_from={tmp_path / 'other.pth'}", *chosen)
    with pytest.raises(CheckpointError, match=r"other\.pth does not fit the encoder"):
        resolve.check_weights(config, tmp_path / "run")
    overrides = [f"data.source={config.data.source}", f"network.fine_tune_from={tmp_path / 'other.pth'}"]
    partial_config = load_partial(None, [*overrides, *TINY, *chosen], preset="default")
    with pytest.raises(CheckpointError, match=r"other\.pth does not fit the encoder"):
        train_partial(partial_config, tmp_path / "run", console=Console(file=io.StringIO()))
    with pytest.raises(CheckpointError, match=r"other\.pth does not fit the encoder"):
        resolve.preview(partial_config, tmp_path / "run", say=print)
    assert not (tmp_path / "run").exists()
