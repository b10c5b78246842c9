"""Which device is chosen, how precise it is, how its memory is asked; GPUs that are not there are played."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from byol.base.errors import ConfigError
from byol.config import load_config
from byol.data.pack.packing import pack
from byol.data.sources.official import Part
from byol.data.sources.opening import ArraySource
from byol.device import devices
from byol.device.devices import (
    PeakMemory,
    choose_backend,
    choose_device,
    choose_dtype,
    empty_cache,
    explain_device,
    find_gpus,
    free_bytes,
    name_gpu,
    send_stored,
    to_float32,
    wait_for,
)
from byol.device.memory import is_out_of_memory
from byol.device.ranks import Ranks, connect
from byol.method.schedule import Plan
from byol.training.summary import describe_setup
from byol.training.time_budget import TimeBudget

CPU = torch.device("cpu")
Has = Callable[..., None]


@pytest.fixture
def has(monkeypatch: pytest.MonkeyPatch) -> Has:
    """Let PyTorch find so many GPUs of each kind, and none of the others."""

    def find(**counts: int) -> None:
        for name, module in (("cuda", torch.cuda), ("xpu", torch.xpu), ("mps", torch.mps)):
            count = counts.get(name, 0)
            asked = torch.backends.mps if name == "mps" else module
            monkeypatch.setattr(asked, "is_available", lambda count=count: count > 0)
            monkeypatch.setattr(module, "device_count", lambda count=count: count)

    return find


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({}, "cpu"),
        ({"mps": 1}, "mps:0"),
        ({"xpu": 1}, "xpu:0"),
        ({"cuda": 2}, "cuda:0"),
        ({"mps": 1, "xpu": 1}, "xpu:0"),
        ({"cuda": 1, "xpu": 1, "mps": 1}, "cuda:0"),
    ],
)
def test_auto_takes_a_gpu_where_there_is_one(has: Has, counts: dict[str, int], expected: str) -> None:
    has(**counts)
    assert str(choose_device("auto")) == expected
    assert str(choose_device("cpu")) == "cpu"
    for kind in counts:
        assert choose_device(kind) == torch.device(kind, 0)


def test_each_rank_has_its_own_gpu(has: Has) -> None:
    has(xpu=2)
    assert [choose_device("auto", local_rank=rank).index for rank in (0, 1)] == [0, 1]
    assert choose_device("xpu:1").index == 1
    with pytest.raises(ConfigError, match=r"trainer\.device: rank 2 .*there are 2 \(xpu\); .*or use cpu"):
        choose_device("xpu", local_rank=2)
    with pytest.raises(ConfigError, match=r"trainer\.device: 'xpu:2' .*there are 2"):
        choose_device("xpu:2")


@pytest.mark.parametrize("asked", ["cuda", "xpu", "mps", "cuda:0"])
def test_a_device_that_is_not_there_names_those_that_are(has: Has, asked: str) -> None:
    others = {"cuda": 1, "xpu": 1, "mps": 1} | {asked.partition(":")[0]: 0}
    has(**others)
    with pytest.raises(ConfigError) as caught:
        choose_device(asked)
    message = str(caught.value)
    assert message.startswith(f"trainer.device: '{asked}' is set, but")
    there = ["cpu", *(name for name in ("cuda", "xpu", "mps") if others[name])]
    assert f"finds {there[0]}, {there[1]} and {there[2]} here" in message and "use auto" in message
    has()
    with pytest.raises(ConfigError, match="finds cpu here; use auto or cpu"):
        choose_device(asked)


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:x", ""])
def test_what_is_no_device(has: Has, name: str) -> None:
    has()
    with pytest.raises(ConfigError, match=rf"^device: '{name}' is not a device .*use auto or cpu"):
        choose_device(name, key="device")


def test_every_setting_is_a_device(has: Has) -> None:
    has(cuda=1, xpu=1, mps=1)
    for name in ("cpu", *find_gpus()):
        setting = load_config(None, [f"trainer.device={name}"], preset="demo").trainer.device
        assert choose_device(setting).type == name


# ---- Precision


def test_precision_on_a_cpu_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    for hardware, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(devices, "computes_bf16", lambda hardware=hardware: hardware)
        assert choose_dtype("auto", device=CPU) == dtype
        assert choose_dtype("fp32", device=CPU) == torch.float32
        assert choose_dtype("bf16", device=CPU) == torch.bfloat16


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
@pytest.mark.parametrize("supported", [True, False])
def test_precision_on_a_gpu_is_what_it_computes_in(
    monkeypatch: pytest.MonkeyPatch, kind: str, supported: bool
) -> None:
    def is_supported(including_emulation: bool = True) -> bool:
        return including_emulation or supported

    monkeypatch.setattr(torch.get_device_module(kind), "is_bf16_supported", is_supported)
    expected = torch.bfloat16 if supported else torch.float32
    assert choose_dtype("auto", device=torch.device(kind)) == expected


def test_precision_on_an_apple_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    mps = torch.device("mps")
    for macos in (13, 14, 26):
        monkeypatch.setattr(
            torch.backends.mps,
            "is_macos_or_newer",
            lambda major, minor, macos=macos: (macos, 0) >= (major, minor),
        )
        assert choose_dtype("auto", device=mps) == choose_dtype("fp32", device=mps) == torch.float32
        if macos >= 14:
            assert choose_dtype("bf16", device=mps) == torch.bfloat16
        else:
            with pytest.raises(ConfigError, match=r"trainer\.precision: bf16 .* macOS 14; use fp32"):
                choose_dtype("bf16", device=mps)


# ---- Several ranks


def test_an_apple_gpu_trains_with_one_rank(has: Has, monkeypatch: pytest.MonkeyPatch) -> None:
    has(mps=1)
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        for device in ("auto", "mps"):
            trainer = load_config(None, [f"trainer.device={device}"], preset="demo").trainer
            with (
                pytest.raises(ConfigError, match=r"trainer\.device: .*mps.* one process .*device=cpu"),
                connect(trainer),
            ):
                pass


def test_the_exchange_between_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_backend_available", lambda name: True)
    names = {kind: choose_backend(torch.device(kind)) for kind in ("cpu", "cuda", "xpu")}
    assert names == {"cpu": "gloo", "cuda": "nccl", "xpu": "xccl"}
    monkeypatch.setattr(torch.distributed, "is_backend_available", lambda name: False)
    with pytest.raises(ConfigError, match=r"trainer\.device: several ranks on xpu .*xccl.*device=cpu"):
        choose_backend(torch.device("xpu"))


# ---- What is said, memory, waiting


def test_a_device_without_measurements_says_so() -> None:
    for kind, words in (("mps", "Apple GPUs"), ("xpu", "Intel GPUs")):
        line = explain_device(torch.device(kind))
        assert line is not None and words in line and "not yet measured" in line and "docs/devices.md" in line
    assert explain_device(CPU) is None and explain_device(torch.device("cuda")) is None


def test_names_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"NVIDIA {device.index}")
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda device: f"Intel {device.index}")
    monkeypatch.setattr(torch.backends.mps, "get_name", lambda: "Apple M4")
    named = [name_gpu(torch.device(name)) for name in ("cuda:1", "xpu:0", "mps:0", "cpu")]
    assert named == ["NVIDIA 1", "Intel 0", "Apple M4", None]


def play_memory(kind: str, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A GPU of 100 bytes, of which this process has `taken`, at most `peak`; notes what it is asked to do."""
    state = SimpleNamespace(taken=10, peak=90, done=[])
    module = torch.get_device_module(kind)
    monkeypatch.setattr(module, "synchronize", lambda: state.done.append("wait"))
    monkeypatch.setattr(module, "empty_cache", lambda: state.done.append("empty"))
    if kind == "mps":
        monkeypatch.setattr(module, "recommended_max_memory", lambda: 100)
        monkeypatch.setattr(module, "driver_allocated_memory", lambda: state.taken)
        return state

    def reset(device: torch.device) -> None:
        state.peak = state.taken

    monkeypatch.setattr(module, "mem_get_info", lambda device: (100 - state.taken, 100))
    monkeypatch.setattr(module, "memory_reserved", lambda device: state.taken)
    monkeypatch.setattr(module, "max_memory_reserved", lambda device: state.peak)
    monkeypatch.setattr(module, "reset_peak_memory_stats", reset)
    return state


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_memory_of_a_gpu(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device, state = torch.device(kind, 0), play_memory(kind, monkeypatch)
    assert free_bytes(device) == 90
    peak = PeakMemory(device)
    assert state.done == ["empty"] and peak.bytes() == 0
    state.taken = state.peak = 70
    assert peak.bytes() == 60 and free_bytes(device) == 30
    wait_for(device)
    empty_cache(device)
    assert state.done == ["empty", "wait", "empty"]


def test_a_cpu_has_nothing_to_wait_for() -> None:
    wait_for(CPU)
    empty_cache(CPU)


@pytest.mark.parametrize(
    "message",
    [
        "XPU out of memory. Tried to allocate 2.00 GiB.",
        "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
        "MPS backend out of memory (MPS allocated: 17.9 GB, max allowed: 18.1 GB).",
        "Invalid buffer size: 74.51 GB",
    ],
)
def test_errors_that_say_that_memory_ran_out(message: str) -> None:
    assert is_out_of_memory(RuntimeError(message))


# ---- 16 bit without uint16


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_16_bits_without_uint16_are_the_same(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    every = torch.arange(2**16, dtype=torch.int32).repeat(channels).to(torch.uint16)
    images = every.view(2, -1, 16, channels).permute(0, 3, 1, 2)
    expected = to_float32(images)
    monkeypatch.setattr(devices, "UNMEASURED", {"cpu": "CPUs played as Apple GPUs"})
    sent = send_stored(images, CPU)
    assert sent.dtype == torch.uint16 and sent.stride() == images.stride()
    found = to_float32(sent)
    assert torch.equal(found, expected) and found.stride() == expected.stride()
    assert (float(found.min()), float(found.max())) == (0.0, 65535.0)


# ---- Said once, at the start of a run


def test_a_run_on_such_a_device_says_so_at_its_start(tmp_path: Path) -> None:
    images = np.zeros((8, 8, 8, 3), dtype=np.uint8)
    source = ArraySource("set", (Part("", images),), np.full(8, -1), ())
    packed = pack(
        source, folder=tmp_path / "pack", stored_px=8, view_px=8, channels=None, max_bad=0.0, num_workers=1
    )
    config = load_config(None, ["trainer.batch_size=4"], preset="demo")
    plan = Plan.of(config, num_images=8)
    budget = TimeBudget(plan, saved=None)
    said = {
        (kind, done): "\n".join(
            describe_setup(
                config, packed, plan=plan, budget=budget, step_s=None, done=done, run_dir=tmp_path,
                ranks=Ranks(0, 1, torch.device(kind, 0), torch.float32),
            )
        )
        for kind in ("cuda", "xpu", "mps")
        for done in (0, 1)
    }  # fmt: skip
    for kind in ("xpu", "mps"):
        assert explain_device(torch.device(kind)) in said[kind, 0].splitlines()
        assert "not yet measured" not in said[kind, 1]
    assert "not yet measured" not in said["cuda", 0]
