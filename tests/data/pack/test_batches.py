"""Batches: exactly the rows of the plan, from RAM and map, and threads that end."""

import gc
import threading
import time
from pathlib import Path
from threading import Event, Semaphore
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from byol.config import load_config
from byol.data.pack import batches as module
from byol.data.pack.batches import Batches
from byol.data.pack.packed import Packed
from byol.data.pack.packing import pack
from byol.data.sources.opening import ArraySource, Part
from byol.method.schedule import Plan

CPU = torch.device("cpu")


def make(
    folder: Path, *, num_images: int, dtype: type = np.uint8, batch_size: int = 4
) -> tuple[Packed, Plan]:
    images = np.random.default_rng(0).integers(0, 256, (num_images, 6, 6, 3)).astype(dtype)
    source = ArraySource("set", (Part("", images),), np.full(num_images, -1), ())
    packed = pack(source, folder=folder, stored_px=None, view_px=6, channels=None, max_bad=0.0, num_workers=1)
    config = load_config(None, [f"trainer.batch_size={batch_size}", "trainer.max_epochs=3"], preset="default")
    return packed, Plan.of(config, num_images=num_images)


def running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("byol-batches")]


@pytest.mark.parametrize("memory", ["auto", "ram", "map", "device"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_the_rows_of_the_plan_in_order(tmp_path: Path, memory: str, dtype: type) -> None:
    packed, plan = make(tmp_path / "p", num_images=18, dtype=dtype)
    with Batches(packed, plan, rows=slice(0, 4), device=CPU, first_step=0, memory=memory) as source:
        made = list(source)
    assert len(made) == plan.total_steps == 12 and not running()
    for step, batch in enumerate(made):
        indices = plan.indices(step)
        expected = packed.images[indices].transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(batch.images.numpy(), expected)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.images.dtype == torch.from_numpy(np.empty(0, dtype)).dtype
        np.testing.assert_array_equal(batch.sizes.numpy(), packed.sizes[indices])
        assert batch.sizes.dtype == torch.float32


def test_a_rank_gets_its_rows_and_all_sizes_and_a_resumed_run_its_steps(tmp_path: Path) -> None:
    packed, plan = make(tmp_path / "p", num_images=18)
    with Batches(packed, plan, rows=slice(2, 4), device=CPU, first_step=7, memory="map") as source:
        made = list(source)
    assert len(made) == 5
    for step, batch in enumerate(made, start=7):
        np.testing.assert_array_equal(
            batch.images.permute(0, 2, 3, 1), packed.images[plan.indices(step)[2:4]]
        )
        assert batch.sizes.shape == (4, 2)


def test_nothing_is_left_to_do(tmp_path: Path) -> None:
    packed, plan = make(tmp_path / "p", num_images=8)
    with Batches(
        packed, plan, rows=slice(0, 4), device=CPU, first_step=plan.total_steps, memory="auto"
    ) as source:
        assert list(source) == []


def test_an_early_stop_ends_the_threads_also_without_a_with_block(tmp_path: Path) -> None:
    packed, plan = make(tmp_path / "p", num_images=18)
    with (
        pytest.raises(RuntimeError, match="stop"),
        Batches(packed, plan, rows=slice(0, 4), device=CPU, first_step=0, memory="ram") as source,
    ):
        next(source)
        raise RuntimeError("stop")
    assert not running()
    source = Batches(packed, plan, rows=slice(0, 4), device=CPU, first_step=0, memory="ram")
    next(source)
    del source
    gc.collect()
    deadline = time.monotonic() + 5
    while running() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not running()


def test_what_goes_wrong_in_a_thread_is_raised_where_the_batch_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, plan = make(tmp_path / "p", num_images=18)
    bad = plan.indices(1).tolist()
    prepare = module.HostStore.prepare

    def fail(store: module.HostStore, indices: torch.Tensor) -> torch.Tensor:
        if indices.tolist() == bad:
            raise OSError("the disk is gone")
        return prepare(store, indices)

    monkeypatch.setattr(module.HostStore, "prepare", fail)
    with Batches(packed, plan, rows=slice(0, 4), device=CPU, first_step=0, memory="map") as source:
        next(source)
        with pytest.raises(OSError, match="the disk is gone"):
            next(source)


def test_waiting_is_measured_and_reading_is_two_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that moves by half a second, while the first batch is waited for, and then stands still."""
    packed, plan = make(tmp_path / "p", num_images=18)
    prepare, begun, asked, now = module.HostStore.prepare, Semaphore(0), Event(), [0.0]

    def read_clock() -> float:
        value = now[0]
        asked.set()
        return value

    def prepare_slowly(store: module.HostStore, indices: torch.Tensor) -> torch.Tensor:
        begun.release()
        assert asked.wait(timeout=60)
        now[0] = 0.5
        return prepare(store, indices)

    monkeypatch.setattr(module.HostStore, "prepare", prepare_slowly)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=read_clock))
    with Batches(packed, plan, rows=slice(0, 4), device=CPU, first_step=0, memory="map") as source:
        assert source.wait_s == 0.0
        next(source)
        assert source.wait_s == 0.5
        for _ in range(3):
            assert begun.acquire(timeout=60)
        next(source)
        assert source.wait_s == 0.5


def test_where_the_images_are_kept_is_said(tmp_path: Path) -> None:
    packed, plan = make(tmp_path / "p", num_images=18)

    def where(memory: str) -> str:
        with Batches(packed, plan, rows=slice(0, 4), device=CPU, first_step=0, memory=memory) as source:
            return source.where

    assert where("auto") == where("map") == f"read from {packed.folder} (0.00 GB) as they are needed"
    assert where("ram") == where("device") == "in RAM (0.00 GB)"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("memory", ["auto", "ram", "map"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_on_a_gpu(tmp_path: Path, memory: str, dtype: type) -> None:
    packed, plan = make(tmp_path / "p", num_images=18, dtype=dtype)
    device = torch.device("cuda")
    with Batches(packed, plan, rows=slice(0, 4), device=device, first_step=0, memory=memory) as source:
        assert source.where.startswith({"auto": "on the GPU", "ram": "in RAM", "map": "read from"}[memory])
        for step, batch in enumerate(source):
            assert batch.images.is_cuda and batch.images.is_contiguous(memory_format=torch.channels_last)
            expected = packed.images[plan.indices(step)].transpose(0, 3, 1, 2)
            np.testing.assert_array_equal(batch.images.cpu().numpy(), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("memory", ["device", "ram", "map"])
def test_a_batch_on_a_busy_gpu_is_not_overwritten_by_a_later_one(tmp_path: Path, memory: str) -> None:
    """The copies wait behind other work while the host reads on: what they read from must live so long."""
    packed, plan = make(tmp_path / "p", num_images=400, batch_size=8)
    with Batches(
        packed, plan, rows=slice(0, 8), device=torch.device("cuda"), first_step=0, memory=memory
    ) as source:
        torch.cuda._sleep(2**29)  # cycles, about a third of a second
        made = [batch.images for batch in source]
    for step, images in enumerate(made):
        expected = packed.images[plan.indices(step)].transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(images.cpu().numpy(), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("memory", ["device", "ram", "map"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_on_a_gpu_the_host_does_not_wait_for_batches(tmp_path: Path, memory: str, dtype: type) -> None:
    packed, plan = make(tmp_path / "p", num_images=40, dtype=dtype)
    with Batches(
        packed, plan, rows=slice(0, 4), device=torch.device("cuda"), first_step=0, memory=memory
    ) as source:
        next(source)
        torch.cuda.set_sync_debug_mode("error")
        try:
            assert len(list(source)) == plan.total_steps - 1
        finally:
            torch.cuda.set_sync_debug_mode("default")
