"""`byol replay`: the step is the same bit for bit, and the place where a fault was put is found."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from byol.base.errors import ByolError, CheckpointError, ConfigError, DataError
from byol.cli.main import main
from byol.config import Config, load_config
from byol.method.networks import Byol
from byol.method.schedule import Plan
from byol.training import loop, replay, skipped
from byol.training.first_bad import WEAK
from byol.training.loop import train

TINY = (
    "network.name=test_resnet",
    "network.projection_head.mlp_hidden_size=16",
    "network.projection_head.projection_size=8",
    "network.stem=standard",
    "data_transforms.input_shape=[16,16,3]",
    "data.stored_px=16",
    "trainer.batch_size=8",
    "trainer.max_epochs=1",
    "trainer.vicreg_weight=1",
    "trainer.checkpoint_interval=7",
    "trainer.log_interval=1",
    "trainer.health_interval=1000",
    "trainer.precision=fp32",
    "trainer.num_workers=1",
    "trainer.loggers=[]",
)
LAYER = "online.encoder.layer2.0.conv1"
MAKE_VIEWS, MAKE_BYOL = loop.make_training_views, Byol.of


def configure(folder: Path, *overrides: str) -> Config:
    images = folder / "images.npy"
    if not images.exists():
        np.save(images, np.random.default_rng(0).integers(0, 256, (35, 16, 16, 3), dtype=np.uint8))
    return load_config(None, [f"data.source={images}", *TINY, *overrides], preset="demo")


class Injection:
    """Puts a fault into one call of a layer at chosen steps, and keeps what the layer gave just before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...], call: int,
                 change: Callable[[Tensor], Tensor], layer: str = LAYER) -> None:  # fmt: skip
        self._steps, self._call, self._change, self._layer = steps, call, change, layer
        self._step, self._num_calls, self.seen = -1, 0, dict[int, list[Tensor]]()
        keys = Plan.of(load_config(None, TINY, preset="demo"), num_images=35)
        self._keys = {keys.key("views", step): step for step in range(4)}
        for module in (loop, replay):
            monkeypatch.setattr(module, "make_training_views", self.make_views)
        monkeypatch.setattr(Byol, "of", self.make_byol)

    def make_views(self, *arguments: object, key: int, rows: slice, **others: object) -> object:
        if rows.start == 0:  # the first micro-batch of a step
            self._step, self._num_calls = self._keys[key], 0
        return MAKE_VIEWS(*arguments, key=key, rows=rows, **others)  # type: ignore[arg-type]

    def make_byol(self, *arguments: object, **others: object) -> Byol:
        byol = MAKE_BYOL(*arguments, **others)  # type: ignore[arg-type]
        byol.get_submodule(self._layer).register_forward_hook(self.hook)
        return byol

    def hook(self, _: nn.Module, __: object, output: Tensor) -> Tensor | None:
        call, self._num_calls = self._num_calls, self._num_calls + 1
        looked_at = output.requires_grad or self._layer.startswith("target.")
        if self._step not in self._steps or call != self._call or not looked_at:
            return None
        self.seen.setdefault(self._step, []).append(output.detach().clone())
        return self._change(output)


def spoil(row: int) -> Callable[[Tensor], Tensor]:
    def change(output: Tensor) -> Tensor:
        return torch.where(torch.arange(len(output)).view(-1, 1, 1, 1) == row, float("inf"), output)

    return change


def spoil_gradient(row: int) -> Callable[[Tensor], Tensor]:
    def change(output: Tensor) -> Tensor:
        output.register_hook(spoil(row))
        return output

    return change


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(("overrides", "call", "view", "image"),
                         [((), 0, 1, 5), (("trainer.accumulation_steps=2",), 3, 2, 4 + 1),
                          (("data_transforms.target_view=weak",), 1, 2, 5)])  # fmt: skip
def test_an_injected_fault_is_found_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direction: str, overrides: tuple[str, ...], call: int,
    view: int, image: int,
) -> None:  # fmt: skip
    """In one image of one view, in the forward or backward pass of one layer, also in a later micro-batch."""
    num_images = 4 if "trainer.accumulation_steps=2" in overrides else 8
    row = image % num_images
    change = spoil(row) if direction == "forward" else spoil_gradient(row)
    injection = Injection(monkeypatch, (2,), call, change)
    run_dir = tmp_path / "run"
    train(configure(tmp_path, *overrides), run_dir)
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    found = replay.replay(run_dir)
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before
    (trained, replayed), place = injection.seen[2], found.place
    assert torch.equal(trained, replayed) and torch.isfinite(trained).all()
    assert found.agrees and found.differences == () and place is not None
    assert (place.direction, place.view, place.rows) == (direction, view, (image,))
    assert f"the output of {LAYER} (Conv2d)" in place.what
    assert place.what.startswith("the gradient of") == (direction == "backward")
    lines = found.explain()
    assert "repeated exactly" in lines[0]
    assert f"it is in 1 of {num_images} images: {found.record.images[image]}" in lines
    assert lines[-1].startswith("next: look at these images")


def test_a_fault_in_the_target_network_is_of_the_weak_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which it computes once per micro-batch, before the online network."""
    layer = LAYER.replace("online", "target")
    injection = Injection(monkeypatch, (2,), 1, spoil(1), layer)
    overrides = ("trainer.accumulation_steps=2", "data_transforms.target_view=weak")
    train(configure(tmp_path, *overrides), tmp_path / "run")
    found = replay.replay(tmp_path / "run")
    trained, replayed = injection.seen[2]
    assert torch.equal(trained, replayed) and found.agrees and found.place is not None
    assert (found.place.direction, found.place.view, found.place.rows) == ("forward", WEAK, (4 + 1,))
    assert f"the output of {layer} (Conv2d)" in found.place.what
    assert any("in the forward pass of the weak view" in line for line in found.explain())


def test_steps_in_a_row_share_their_weights_and_only_the_last_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    injection = Injection(monkeypatch, (0, 1, 3), 0, spoil(2))
    train(configure(tmp_path), tmp_path / "run")
    files = sorted(path.name for path in (tmp_path / "run" / skipped.FOLDER).glob("*.safetensors"))
    assert [name[:13] for name in files] == ["step-00000000", "step-00000003"]
    for step in (0, 1, 3):
        found = replay.replay(tmp_path / "run", step)
        assert torch.equal(*injection.seen[step])
        assert found.record.step == step and found.others == tuple({0, 1, 3} - {step})
    assert replay.replay(tmp_path / "run").record.step == 3
    record = skipped.read(tmp_path / "run", 1)
    assert record is not None
    for step in (5, 6):
        skipped.write_weights(tmp_path / "run", nn.Linear(2, 2), step=step)
    with pytest.raises(CheckpointError, match=r"no such file; byol keeps the weights of the last 2"):
        skipped.read_weights(tmp_path / "run", record)


def test_a_loss_that_is_not_finite_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Byol.forward

    def spoiled(byol: Byol, *views: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        loss, projection = forward(byol, *views, **options)
        return loss * float("nan"), projection

    monkeypatch.setattr(Byol, "forward", spoiled)
    with pytest.raises(ByolError, match="steps 0 to 2"):
        train(configure(tmp_path), tmp_path / "run")
    place = replay.replay(tmp_path / "run").place
    assert place is not None and (place.direction, place.view, place.rows) == ("forward", 1, ())
    assert place.what == "the loss of prediction and target projection"
    assert place.before is not None and "predictor" in place.before


def test_a_step_that_was_spoiled_from_outside_is_said_to_be_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Injection(monkeypatch, (1,), 0, spoil(2))
    train(configure(tmp_path), tmp_path / "run")
    monkeypatch.undo()
    found = replay.replay(tmp_path / "run", 1)
    assert found.place is None and not found.agrees
    text = "\n".join(found.explain())
    assert "every value of the step is finite here" in text and "in the training loss nan" in text
    assert "weights and random numbers of the step are not the cause" in text


def test_a_rate_that_is_too_large(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real one, through the command: its weights overflow."""
    source = configure(tmp_path).data.source
    overrides = [*TINY, "optimizer.params.lr=1000", "optimizer.params.weight_decay=1", "trainer.max_epochs=9",
                 "optimizer.warmup_epochs=0", "optimizer.schedule=constant"]  # fmt: skip
    assert main(["train", source, "--preset", "demo", "-o", str(tmp_path / "run"), *overrides]) == 1
    capsys.readouterr()
    assert main(["replay", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "as in the training: repeated exactly" in printed
    assert "the first value that is not finite is in the forward pass of view" in printed
    assert "next: the weights have probably grown too large" in printed


def test_a_disk_that_refuses_the_weights_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise CheckpointError("skipped: cannot be written (No space left on device); free space")

    Injection(monkeypatch, (1,), 0, spoil(2))
    monkeypatch.setattr(skipped, "write_weights", refuse)
    assert train(configure(tmp_path), tmp_path / "run", console=Console(width=200)).done == 4
    printed = capsys.readouterr().out
    assert "without this file, `byol replay` cannot repeat step 1" in printed
    assert "finds where it begins" not in printed
    with pytest.raises(CheckpointError, match="has no weights for step 1"):
        replay.replay(tmp_path / "run")


def test_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    with pytest.raises(CheckpointError, match="holds no run"):
        replay.replay(run_dir)
    config = configure(tmp_path)
    Injection(monkeypatch, (1,), 0, spoil(2))
    train(config, run_dir)
    with pytest.raises(CheckpointError, match=r"has no record of step 2; not applied were: 1"):
        replay.replay(run_dir, 2)
    assert main(["replay", str(run_dir), "x"]) == 2 and "'x' is not a number" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="cannot change"):
        replay.replay(run_dir, overrides=["trainer.seed=3"])
    path = next((run_dir / skipped.FOLDER).glob("*.safetensors"))
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="its checksum differs"):
        replay.replay(run_dir)
    path.write_bytes(content)
    record = run_dir / skipped.FOLDER / "step-00000001.json"
    fields = json.loads(record.read_text())
    for key, value in (("weights", "../x.safetensors"), ("rows", [0.5] * 8), ("accumulation_steps", 0)):
        record.write_text(json.dumps({**fields, key: value, "sha256": None}))
        with pytest.raises(CheckpointError, match=r"step-00000001\.json: cannot be read"):
            replay.replay(run_dir, 1)
    early = {key: value for key, value in fields.items() if key not in ("weights", "sha256")}
    record.write_text(json.dumps(early))
    with pytest.raises(CheckpointError, match="an earlier version of byol wrote the record"):
        replay.replay(run_dir)
    record.write_text(json.dumps({**early, "weights": path.name}))
    np.save(config.data.source, np.load(config.data.source)[:, ::-1])
    with pytest.raises(DataError, match="the images have changed since step 1"):
        replay.replay(run_dir)
