"""The loop: stopped and continued equals never stopped, bit for bit; ranks do not matter; guards act."""

import io
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from byol.base.errors import CollapsedError, DataError, DivergedError, RunMismatchError
from byol.config import Config, load_config
from byol.method.networks import Byol
from byol.runfolder import checkpoint, environment
from byol.training import fixed_images, loop
from byol.training.loop import train
from byol.training.runlog import read_metrics

TINY = [
    "network.name=resnet10t",
    "network.projection_head.mlp_hidden_size=32",
    "network.projection_head.projection_size=16",
    "data_transforms.input_shape=[16,16,3]",
    "data.stored_px=16",
    "trainer.batch_size=8",
    "trainer.max_epochs=4",
    "trainer.checkpoint_interval=7",
    "trainer.log_interval=1",
    "trainer.health_interval=10",
    "trainer.precision=fp32",
    "trainer.num_workers=1",
    "network.stem=standard",
]
TOTAL_STEPS = 4 * (64 // 8)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (67, 16, 16, 3), dtype=np.uint8))
    return path


def configure(images: Path, *overrides: str) -> Config:
    return load_config(None, [f"data.source={images}", *TINY, *overrides], preset="demo")


def run(config: Config, run_dir: Path) -> loop.TrainingOutcome:
    return train(config, run_dir, console=Console(file=io.StringIO(), width=200))


def final_state(run_dir: Path) -> dict[str, torch.Tensor]:
    state, problems = checkpoint.read_latest(run_dir)
    assert state is not None and problems == [] and state["done"] == TOTAL_STEPS
    momentum = {
        f"momentum.{key}": value["momentum_buffer"] for key, value in state["optimizer"]["state"].items()
    }
    return {**state["byol"], **momentum}


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    assert [key for key in one if not torch.equal(one[key], two[key])] == []


@pytest.fixture(scope="session")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    outcome = run(configure(images), run_dir)
    assert outcome == loop.TrainingOutcome(TOTAL_STEPS, TOTAL_STEPS, None)
    return run_dir


@pytest.mark.slow
def test_a_run_folder_holds_everything(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "config.yaml", "start.json", "metrics.jsonl", "tensorboard", "checkpoints", "target",
        "encoder.safetensors", "encoder.json", "best", "best.json", "environment.json",
    }  # fmt: skip
    assert [metrics.done for metrics in read_metrics(finished)] == list(range(1, TOTAL_STEPS + 1))
    assert all(0.0 <= metrics.loss <= 8.0 for metrics in read_metrics(finished))


def test_it_learns_something(finished: Path) -> None:
    metrics = read_metrics(finished)
    assert metrics[-1].loss < metrics[0].loss
    assert metrics[-1].tau > metrics[0].tau and metrics[-1].lr < max(line.lr for line in metrics)


def test_a_finished_run_has_nothing_to_do(finished: Path, images: Path) -> None:
    before = final_state(finished)
    assert run(configure(images), finished).done == TOTAL_STEPS
    assert_same(before, final_state(finished))


@pytest.mark.slow
def test_what_changes_no_numbers_may_change(finished: Path, images: Path, tmp_path: Path) -> None:
    """Logging, checking and saving at other moments, and more workers, give the same weights."""
    other = configure(
        images,
        "trainer.log_interval=5",
        "trainer.health_interval=3",
        "trainer.checkpoint_interval=100",
        "trainer.num_workers=2",
        "trainer.loggers=[]",
        "data.memory=map",
    )
    run(other, tmp_path / "run")
    assert_same(final_state(finished), final_state(tmp_path / "run"))
    assert not (tmp_path / "run" / "tensorboard").exists()


@pytest.mark.slow
def test_another_seed_changes_them(finished: Path, images: Path, tmp_path: Path) -> None:
    run(configure(images, "trainer.seed=1"), tmp_path / "run")
    weights = "online.encoder.layer1.0.conv1.weight"
    assert not torch.equal(final_state(finished)[weights], final_state(tmp_path / "run")[weights])


@pytest.mark.slow
def test_stopped_by_a_signal_and_continued(
    finished: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    original = loop.make_training_views
    calls = 0

    def stop_at_5_and_18(*arguments: object, **others: object) -> object:
        nonlocal calls
        calls += 1
        if calls in (5, 18):
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "make_training_views", stop_at_5_and_18)
    assert run(configure(images), run_dir) == loop.TrainingOutcome(5, TOTAL_STEPS, "SIGTERM")
    assert run(configure(images), run_dir) == loop.TrainingOutcome(18, TOTAL_STEPS, "SIGTERM")
    assert run(configure(images), run_dir) == loop.TrainingOutcome(TOTAL_STEPS, TOTAL_STEPS, None)
    assert_same(final_state(finished), final_state(run_dir))
    assert [metrics.done for metrics in read_metrics(run_dir)] == list(range(1, TOTAL_STEPS + 1))
    for name in ("best.json", "best/encoder.safetensors", "best/encoder.json"):
        assert (run_dir / name).read_bytes() == (finished / name).read_bytes()
    known = environment.read(run_dir)
    assert known is not None and known.num_images == 67
    assert [(start.first_step, start.done) for start in known.starts] == [(0, 5), (5, 18), (18, TOTAL_STEPS)]


@pytest.mark.slow
def test_a_network_with_dropout_continues_exactly(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_byol, original = Byol.of, loop.set_lr
    calls = 0

    def make_with_dropout(*arguments: object, **others: object) -> Byol:
        byol = make_byol(*arguments, **others)  # type: ignore[arg-type]
        byol.online.encoder.drop_rate = 0.5  # type: ignore[assignment]
        return byol

    def stop_at_5(optimizer: torch.optim.Optimizer, lr: float, *, encoder_share: float) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        original(optimizer, lr, encoder_share=encoder_share)

    plain = tmp_path / "plain"
    run(configure(images, "trainer.max_epochs=1"), plain)
    monkeypatch.setattr(Byol, "of", make_with_dropout)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(configure(images, "trainer.max_epochs=1"), whole)
    monkeypatch.setattr(loop, "set_lr", stop_at_5)
    run(configure(images, "trainer.max_epochs=1"), stopped)
    torch.rand(7)
    run(configure(images, "trainer.max_epochs=1"), stopped)
    losses = [[metrics.loss for metrics in read_metrics(folder)] for folder in (plain, whole, stopped)]
    assert losses[1] == losses[2] and losses[0] != losses[1]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_killed_at_five_random_moments_and_continued(images: Path, tmp_path: Path, precision: str) -> None:
    """kill -9 of a process that trains, five times; the last start finishes."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    overrides = [
        *TINY,
        f"trainer.precision={precision}",
        "trainer.checkpoint_interval=3",
        f"data.packs={tmp_path}/packs",
    ]
    command = [sys.executable, "-m", "byol", "train", str(images), "--preset", "demo", *overrides, "-o"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(whole)], check=True, env=environment, capture_output=True)
    moments = random.Random(0)
    num_killed = 0
    for _ in range(20):
        process = subprocess.Popen([*command, str(killed)], env=environment, stdout=subprocess.DEVNULL)
        if num_killed < 5:
            num_killed += kill_while_training(process, killed, delay_s=moments.uniform(0.0, 0.3))
        elif process.wait() == 0:
            break
    assert num_killed == 5
    assert_same(final_state(whole), final_state(killed))


def kill_while_training(process: "subprocess.Popen[bytes]", run_dir: Path, *, delay_s: float) -> bool:
    """Kill once the process has logged a step and `delay_s` has gone by; False if it had finished before."""
    log = run_dir / "metrics.jsonl"
    before = log.stat().st_mtime_ns if log.exists() else 0
    while process.poll() is None and (
        not log.exists() or log.stat().st_size == 0 or log.stat().st_mtime_ns == before
    ):
        time.sleep(0.01)
    time.sleep(delay_s)
    was_running = process.poll() is None
    process.kill()
    process.wait()
    return was_running


RANKS = [*TINY, "trainer.batch_size=64", "trainer.max_epochs=20", "data_transforms.input_shape=[32,32,3]"]


FP64 = [*RANKS, "data.stored_px=32", "trainer.vicreg_weight=1", "data_transforms.target_view=weak"]


def train_in_fp64(rank: int, world_size: int, port: int, images: Path, run_dir: Path) -> None:
    """One rank of a run whose networks and views are fp64, so that rounding stays below what is compared."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": f"{rank}", "WORLD_SIZE": f"{world_size}", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = f"{port}"
    make_views, whole_view, make_byol = loop.make_training_views, fixed_images.whole_view, Byol.of
    Byol.of = lambda *a, **k: make_byol(*a, **k).double()  # type: ignore[method-assign]
    loop.make_training_views = lambda *a, **k: tuple(view.double() for view in make_views(*a, **k))  # type: ignore[assignment]
    fixed_images.make_views = lambda *a, **k: loop.make_training_views(*a, **k)[:2]  # type: ignore[assignment, return-value]
    fixed_images.whole_view = lambda *a, **k: whole_view(*a, **k).double()  # type: ignore[assignment]
    config = load_config(None, [f"data.source={images}", *FP64], preset="demo")
    run(config, run_dir)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_two_ranks_of_32_equal_one_of_64(images: Path, tmp_path: Path) -> None:
    """20 steps at the demo's learning rate: the same losses and BatchNorm statistics to 1e-6.

    VICReg's terms, which are of all images of a batch, are on in the first 10 steps; the target network sees
    a weak view.

    In fp32 rounding alone parts the two after a few steps: see the next test.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for world_size, name in ((1, "one"), (2, "two")):
        arguments = (world_size, port, images, tmp_path / name)
        torch.multiprocessing.spawn(train_in_fp64, args=arguments, nprocs=world_size)
    one, two = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two")
    assert len(one) == len(two) == 20
    assert max(abs(a.loss - b.loss) for a, b in zip(one, two, strict=True)) < 1e-6
    states = [checkpoint.read_latest(tmp_path / name)[0] for name in ("one", "two")]
    assert states[0] is not None and states[1] is not None
    for key, value in states[0]["byol"].items():
        torch.testing.assert_close(states[1]["byol"][key], value, atol=1e-6, rtol=1e-4)


@pytest.mark.slow
def test_torchrun_follows_one_process(images: Path, tmp_path: Path) -> None:
    """The command under torchrun, fp32: the first losses to 1e-4 (later rounding is blown up)."""
    arguments = [
        "-m",
        "byol",
        "train",
        str(images),
        "--preset",
        "demo",
        *RANKS,
        f"data.packs={tmp_path}/packs",
    ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for launcher, name in (([sys.executable], "one"), (torchrun, "two")):
        command = [
            *launcher,
            *arguments,
            "optimizer.params.lr=0.001",
            "data.stored_px=32",
            "-o",
            str(tmp_path / name),
        ]
        subprocess.run(command, check=True, env=environment, capture_output=True)
    one, two = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two")
    assert len(one) == len(two) == 20
    assert max(abs(a.loss - b.loss) for a, b in zip(one[:2], two[:2], strict=True)) < 1e-4


@pytest.mark.slow
def test_accumulation_takes_every_image_once(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four parts of two images: as many optimizer steps and target updates as without, all images seen."""
    rows: list[slice] = []
    updates = 0
    make_views, update = loop.make_training_views, Byol.update_target

    def note_rows(*arguments: object, rows: slice, **others: object) -> object:
        seen.append(rows)
        return make_views(*arguments, rows=rows, **others)  # type: ignore[arg-type]

    def count(self: Byol, tau: float) -> None:
        nonlocal updates
        updates += 1
        update(self, tau)

    seen = rows
    monkeypatch.setattr(loop, "make_training_views", note_rows)
    monkeypatch.setattr(Byol, "update_target", count)
    run(configure(images, "trainer.accumulation_steps=4", "trainer.max_epochs=1"), tmp_path / "run")
    assert rows == [slice(at, at + 2, 1) for at in (0, 2, 4, 6)] * 8
    assert updates == 8


class Waits(TorchDispatchMode):
    """Where the host reads a value that the device computes, step by step; on a GPU it would wait there.

    The images of a batch and the network are on the device; so is what is computed from anything on it. (On a
    CPU `.cpu()` and `.numpy()` of a tensor call nothing and are not seen: the test on a GPU counts those.)
    """

    READS = frozenset({"_local_scalar_dense", "is_nonzero", "nonzero", "equal", "_unique2", "masked_select"})

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[list[str]] = []
        # All that is on the device, kept so that no memory is used again for something else.
        self._kept: list[torch.Tensor] = []
        self._on_device: set[int] = set()

    def add(self, *tensors: torch.Tensor) -> None:
        self._kept += tensors
        self._on_device |= {tensor.untyped_storage().data_ptr() for tensor in tensors}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if self.steps and any(tensor.untyped_storage().data_ptr() in self._on_device for tensor in given):
            name = func.__name__.partition(".")[0]
            if name in self.READS:
                self.steps[-1].append(name)
            self.add(*(leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)))
        return result


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adamw"])
def test_the_host_waits_once_in_a_step_that_does_not_log(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    """For loss and gradient, which are looked at in every step on CPU alone."""
    waits, make_views, make_byol = Waits(), loop.make_training_views, Byol.of

    def start_step(batch: torch.Tensor, *arguments: object, **others: object) -> object:
        if others["rows"] == slice(0, 4, 1):
            waits.steps.append([])
        waits.add(batch)
        return make_views(batch, *arguments, **others)  # type: ignore[arg-type]

    def note_network(*arguments: object, **others: object) -> Byol:
        byol = make_byol(*arguments, **others)  # type: ignore[arg-type]
        waits.add(*byol.state_dict().values())
        return byol

    monkeypatch.setattr(loop, "make_training_views", start_step)
    monkeypatch.setattr(Byol, "of", note_network)
    rarely = [f"trainer.{name}_interval=1000" for name in ("log", "health", "checkpoint")]
    overrides = [*rarely, "trainer.accumulation_steps=2", "trainer.max_epochs=1"]
    with waits:
        run(configure(images, *overrides, f"optimizer.name={optimizer}"), tmp_path / "run")
    assert waits.steps[:-1] == [["_local_scalar_dense"]] * 7
    assert len(waits.steps[-1]) > 3  # the last one logs


def test_a_run_with_a_far_too_high_rate_is_stopped(images: Path, tmp_path: Path) -> None:
    with pytest.raises((DivergedError, CollapsedError), match="step"):
        run(
            configure(
                images, "optimizer.params.lr=1000", "optimizer.params.weight_decay=1", "trainer.max_epochs=20"
            ),
            tmp_path / "run",
        )


@pytest.mark.slow
def test_starting_from_an_earlier_run(finished: Path, images: Path, tmp_path: Path) -> None:
    run(
        configure(images, f"network.fine_tune_from={finished}", "optimizer.params.lr=1e-12"), tmp_path / "run"
    )
    before, after = final_state(finished), final_state(tmp_path / "run")
    weights = "predictor.0.weight"
    torch.testing.assert_close(before[weights], after[weights], atol=1e-8, rtol=1e-6)


def test_another_configuration_or_other_images_are_refused(
    finished: Path, images: Path, tmp_path: Path
) -> None:
    before = final_state(finished)
    with pytest.raises(RunMismatchError, match=r"optimizer\.params\.lr"):
        run(configure(images, "optimizer.params.lr=0.5"), finished)
    assert_same(before, final_state(finished))


def test_fewer_images_than_a_batch(images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"67 images.*trainer\.batch_size"):
        run(configure(images, "trainer.batch_size=128"), tmp_path / "run")


def test_stated_channels_are_checked(images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"input_shape: .* 1 channels.* 3; set 3"):
        run(configure(images, "data_transforms.input_shape=[16,16,1]"), tmp_path / "run")
