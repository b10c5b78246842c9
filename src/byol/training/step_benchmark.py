"""How long a step of a run takes on this machine, and how much memory: the real step, a few times.

On a CPU the steps are made in a process of their own, `python -m byol.training.step_benchmark`: its peak is
that of the step alone, and what it allocates is gone afterwards.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from byol.base.errors import ConfigError
from byol.base.version import SOURCE
from byol.config import Config
from byol.device.devices import (
    PeakMemory,
    choose_device,
    choose_dtype,
    empty_cache,
    exact_fp32,
    free_bytes,
    send_stored,
    wait_for,
)
from byol.device.memory import available_bytes, is_out_of_memory, limit_memory, peak_bytes
from byol.device.ranks import Ranks, keep_freed_memory
from byol.method.networks import Byol
from byol.method.optimizers import build_optimizer, set_lr
from byol.method.schedule import Plan
from byol.method.views import Pixels, make_views
from byol.training.step import can_halve, compute_gradients

_SHARE = 0.8  # of the memory that is free now
# Of a GPU's: `data.memory=auto` may have put images into 30 % of what is free.
_GPU_SHARE = 0.56
_ENOUGH_STEPS, _ENOUGH_S = 5, 5.0  # steps are measured until there are so many, or they took so long
_MEASURED_MICROBATCHES = 2  # of a batch in more micro-batches as many are computed, and their time is scaled
_WINDOWS_CODES = {0xC000013A: "SIGINT", 0xC0000409: "SIGABRT"}  # STATUS_CONTROL_C_EXIT, _STACK_BUFFER_OVERRUN
_OUT_OF_MEMORY = "out of memory"  # the child's answer


@dataclass(frozen=True)
class StepBenchmark:
    """A step of a run, as measured on this machine."""

    batch_size: int  # global batch
    accumulation_steps: int  # micro-batches it is computed in
    step_s: float  # median of the real steps after the first
    peak_bytes: int  # of device memory, or of the process on a CPU
    limit_bytes: int  # what may be used: a share of what was free before

    @property
    def fits(self) -> bool:
        """Whether a run of such steps has room."""
        return self.peak_bytes <= self.limit_bytes


def benchmark_step(config: Config, *, channels: int, stored_px: int, bits: int) -> StepBenchmark:
    """Time and peak memory of the run's step on random stored images of so many channels, pixels and bits.

    A few seconds, more where two micro-batches take longer. Under torchrun it is the step of one rank with
    its share of the batch, the other ranks idle.

    Raises:
        ConfigError: the networks cannot be made, or there is not enough memory for one step.
    """
    benchmark = try_step(config, channels=channels, stored_px=stored_px, bits=bits)
    if benchmark is None:
        raise ConfigError(
            f"trainer.batch_size: a step of {config.batch_size} images in {config.accumulation_steps} "
            "micro-batch(es) runs out of memory; set "
            f"trainer.accumulation_steps={2 * config.accumulation_steps}"
        )
    return benchmark


def choose_batch(config: Config, *, wanted: int, channels: int, stored_px: int, bits: int) -> StepBenchmark:
    """The step of `wanted` images in as few micro-batches as fit into memory, at least as many as configured.

    Their number is doubled until it fits; micro-batches are equal and have at least MIN_MICROBATCH images.

    Raises:
        ConfigError: the smallest micro-batch does not fit either, or the networks cannot be made.
    """
    num_microbatches = config.accumulation_steps
    while True:
        trainer = config.trainer.model_copy(
            update={"batch_size": wanted, "accumulation_steps": num_microbatches}
        )
        tried = config.model_copy(update={"trainer": trainer})
        benchmark = try_step(tried, channels=channels, stored_px=stored_px, bits=bits)
        if benchmark is not None and benchmark.fits:
            return benchmark
        if not can_halve(wanted, num_microbatches=num_microbatches, world_size=_world_size()):
            microbatch = wanted // (num_microbatches * _world_size())
            raise ConfigError(
                f"trainer.batch_size: {wanted} images do not fit into memory, not even {microbatch} at a "
                f"time ({_describe(benchmark)}); set a smaller data_transforms.input_shape, a smaller "
                "network.name, or a batch that is a power of two"
            )
        num_microbatches *= 2


def _describe(benchmark: StepBenchmark | None) -> str:
    if benchmark is None:
        return "allocation failed"
    return f"needs {benchmark.peak_bytes / 1e9:.1f} of {benchmark.limit_bytes / 1e9:.1f} GB available"


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


# ---- One attempt; None says that memory ran out


def try_step(config: Config, *, channels: int, stored_px: int, bits: int) -> StepBenchmark | None:
    images = RandomImages(channels, stored_px, bits)
    device = choose_device(config.trainer.device, local_rank=int(os.environ.get("LOCAL_RANK", "0")))
    if device.type != "cpu":
        return _try_on_gpu(config, images, device=device)
    limit = available_bytes()
    job = {
        "config": config.model_dump_json(),
        "images": asdict(images),
        "threads": torch.get_num_threads(),
        "may_allocate": limit,
    }
    answer = _ask_child(job)
    if answer is None:
        return None
    return StepBenchmark(
        config.batch_size, config.accumulation_steps, **answer, limit_bytes=int(_SHARE * limit)
    )


def _try_on_gpu(config: Config, images: "RandomImages", *, device: torch.device) -> StepBenchmark | None:
    peak_memory = PeakMemory(device)
    free = free_bytes(device)
    step_s = None
    try:
        step_s = _measure(config, images, device=device)
    except (ConfigError, RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    peak = peak_memory.bytes()
    empty_cache(device)
    if step_s is None:
        return None
    return StepBenchmark(config.batch_size, config.accumulation_steps, step_s, peak, int(_GPU_SHARE * free))


def _ask_child(job: dict[str, Any]) -> dict[str, Any] | None:
    """What the child measured; None if it ran out of memory, or the system ended it because of that."""
    # This same package, wherever the person is; -P: no file there is taken for a module.
    paths = [str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])]
    child = subprocess.Popen(
        [sys.executable, "-P", "-W", "ignore", "-m", "byol.training.step_benchmark"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said, errors = child.communicate(json.dumps(job))
    finally:  # also on Ctrl-C
        with suppress(ProcessLookupError):
            child.kill()
        child.wait()
    if child.returncode == 0:
        answer = json.loads(said.splitlines()[-1])
        if "refused" in answer:
            raise ConfigError(answer["refused"])
        return None if answer.get("failed") == _OUT_OF_MEMORY else answer
    # Ended by the system, or by a library that gives up when it gets no memory.
    ended_by = _name_signal(child.returncode)
    if ended_by == "SIGKILL" or (ended_by == "SIGABRT" and "alloc" in errors):
        return None
    if ended_by == "SIGINT":  # Ctrl-C reaches parent and child
        raise KeyboardInterrupt
    raise RuntimeError(f"the benchmark failed with code {child.returncode}:\n{errors}")


def _name_signal(returncode: int) -> str:
    """The signal that ended a process, "" if none did. Windows has codes of its own for Ctrl-C and abort."""
    if returncode in _WINDOWS_CODES:
        return _WINDOWS_CODES[returncode]
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return ""


# ---- The steps


@dataclass(frozen=True)
class RandomImages:
    """Random stored images, of the kind that a pack holds."""

    channels: int
    stored_px: int
    bits: int  # 8, 16, or 32: floating point

    def make(self, num: int, *, device: torch.device) -> Tensor:
        shape = (num, self.stored_px, self.stored_px, self.channels)
        if self.bits == 32:
            return send_stored(torch.rand(shape), device).permute(0, 3, 1, 2)
        dtype = torch.uint8 if self.bits == 8 else torch.uint16
        return send_stored(torch.randint(0, 2**self.bits, shape, dtype=dtype), device).permute(0, 3, 1, 2)

    @property
    def pixels(self) -> Pixels:
        largest = 1.0 if self.bits == 32 else float(2**self.bits - 1)
        return Pixels(*((value,) * self.channels for value in (0.0, largest, 0.5, 0.25)))


def _measure(config: Config, images: RandomImages, *, device: torch.device) -> float:
    """Seconds of a step, median; the first is left out."""
    trainer = config.trainer
    # A rank's share of the batch, without the exchange.
    ranks = Ranks(0, _world_size(), device, choose_dtype(trainer.precision, device=device))
    num_microbatches = min(_MEASURED_MICROBATCHES, config.accumulation_steps)
    microbatch = config.batch_size // (config.accumulation_steps * ranks.world_size)
    with exact_fp32(device):
        step = make_step(
            config,
            images,
            ranks=ranks,
            num_images=microbatch * num_microbatches,
            num_microbatches=num_microbatches,
        )
        step()
        times: list[tuple[float, float]] = []
        start = time.perf_counter()
        while not times or (len(times) < _ENOUGH_STEPS and time.perf_counter() - start < _ENOUGH_S):
            times.append(step())
    gradients_s, update_s = (statistics.median(column) for column in zip(*times, strict=True))
    return float(gradients_s * config.accumulation_steps / num_microbatches + update_s)


def make_step(
    config: Config, images: RandomImages, *, ranks: Ranks, num_images: int, num_microbatches: int
) -> Callable[[], tuple[float, float]]:
    """A function that makes a step and says how long gradients and update took, seconds."""
    # Rates change neither time nor memory; with a time budget any number of steps will do.
    plan = Plan.of(config, num_images=config.batch_size, expected_steps=10**6)
    networks = Byol.of(config, channels=images.channels, seed_key=plan.key("init", 0))
    networks = networks.to(ranks.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(networks, config.optimizer, plan=plan)
    batch = images.make(num_images, device=ranks.device)
    sizes = torch.full((plan.batch_size, 2), float(images.stored_px))
    make = partial(make_views, sizes=sizes, transforms=config.data_transforms, key=0, pixels=images.pixels)

    def wait() -> float:
        wait_for(ranks.device)
        return time.perf_counter()

    def step() -> tuple[float, float]:
        start = wait()
        compute_gradients(
            networks, batch, make=make, show=None, num_microbatches=num_microbatches, ranks=ranks
        )
        middle = wait()
        set_lr(optimizer, plan.lr(0))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        networks.update_target(plan.tau(0))
        return middle - start, wait() - middle

    return step


def _main() -> None:
    """In the child: a job on stdin, the answer as the last line on stdout."""
    job = json.load(sys.stdin)
    torch.set_num_threads(job["threads"])
    limit_memory(job["may_allocate"])
    keep_freed_memory()
    answer: dict[str, Any]
    try:
        config = Config.model_validate_json(job["config"])
        step_s = _measure(config, RandomImages(**job["images"]), device=torch.device("cpu"))
        answer = {"step_s": step_s, "peak_bytes": peak_bytes()}
    except (ConfigError, RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            answer = {"failed": _OUT_OF_MEMORY}
        elif isinstance(error, ConfigError):
            answer = {"refused": str(error)}
        else:
            raise
    print(json.dumps(answer))


if __name__ == "__main__":
    _main()
