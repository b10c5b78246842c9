"""Measure time and memory of a training step on this machine, by running the real step a few times.

On a CPU the steps run in a separate process, `python -m byol.training.step_benchmark`, so that its peak
memory is that of the step alone, and all its memory is freed afterwards.
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
from dataclasses import asdict, dataclass, replace
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
from byol.method.views import Pixels, make_training_views
from byol.training.snapshot import Snapshot
from byol.training.step import can_halve, compute_gradients
from byol.training.update import apply_step, measure

_SHARE = 0.8  # fraction of the free memory that a step may use
# The same on a GPU, where `data.memory=auto` may use 30 % of the free memory for images.
_GPU_SHARE = 0.56
_ENOUGH_STEPS, _ENOUGH_S = 5, 5.0  # measure until this number of steps or seconds is reached
_MEASURED_MICROBATCHES = 2  # if a batch has more micro-batches, measure these and scale their time
_WINDOWS_CODES = {0xC000013A: "SIGINT", 0xC0000409: "SIGABRT"}  # STATUS_CONTROL_C_EXIT, _STACK_BUFFER_OVERRUN
# Fewer threads are tried if that takes about this long at most, and taken if they are this much faster.
# The threads of a step wait for each other: one that shares its core with another program delays all of them.
_FEWER_S, _FEWER_GAIN = 20.0, 1.15
_OUT_OF_MEMORY = "out of memory"  # the child's answer


@dataclass(frozen=True)
class StepBenchmark:
    """Time and memory of a training step on this machine."""

    batch_size: int  # images in the global batch
    accumulation_steps: int  # micro-batches per step
    step_s: float  # seconds per step: median over the measured steps, without the first
    peak_bytes: int  # peak of device memory or, on a CPU, of the process
    limit_bytes: int  # largest allowed peak: a fraction of the memory that was free before
    num_threads: int | None = None  # of the measured step; None: not on a CPU
    all_threads_s: float | None = None  # seconds per step with all threads, if fewer are faster

    @property
    def fits(self) -> bool:
        """Whether the step fits into memory."""
        return self.peak_bytes <= self.limit_bytes


def benchmark_step(
    config: Config, *, channels: int, stored_px: int, bits: int, may_use_fewer_threads: bool = False
) -> StepBenchmark:
    """Measure time and peak memory of a step on random stored images with these channels, pixels and bits.

    `may_use_fewer_threads`: on a CPU, also time it with fewer threads, and return the fastest, unless
    `trainer.num_threads` is set.

    This takes a few seconds, longer if two micro-batches take longer. Under torchrun it measures one rank
    with its share of the batch while the other ranks are idle.

    Raises:
        ConfigError: the networks cannot be built, or there is not enough memory for one step.
    """
    benchmark = try_step(
        config,
        channels=channels,
        stored_px=stored_px,
        bits=bits,
        may_use_fewer_threads=may_use_fewer_threads,
    )
    if benchmark is None:
        raise ConfigError(
            f"trainer.batch_size: a step of {config.batch_size} images in {config.accumulation_steps} "
            "micro-batch(es) runs out of memory; set "
            f"trainer.accumulation_steps={2 * config.accumulation_steps}"
        )
    return benchmark


def choose_batch(config: Config, *, wanted: int, channels: int, stored_px: int, bits: int) -> StepBenchmark:
    """Measure a step of `wanted` images with the fewest micro-batches that fit into memory.

    It doubles the configured number until the step fits; micro-batches have at least MIN_MICROBATCH images.
    On a CPU it may use fewer threads, see `benchmark_step`.

    Raises:
        ConfigError: the smallest micro-batch does not fit, or the networks cannot be built.
    """
    num_microbatches = config.accumulation_steps
    while True:
        trainer = config.trainer.model_copy(
            update={"batch_size": wanted, "accumulation_steps": num_microbatches}
        )
        tried = config.model_copy(update={"trainer": trainer})
        benchmark = try_step(
            tried, channels=channels, stored_px=stored_px, bits=bits, may_use_fewer_threads=True
        )
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


# ---- One attempt; None means that memory ran out


def try_step(
    config: Config, *, channels: int, stored_px: int, bits: int, may_use_fewer_threads: bool
) -> StepBenchmark | None:
    images = RandomImages(channels, stored_px, bits)
    device = choose_device(config.trainer.device, local_rank=int(os.environ.get("LOCAL_RANK", "0")))
    if device.type != "cpu":
        return _try_on_gpu(config, images, device=device)
    limit = available_bytes()
    job = {
        "config": config.model_dump_json(),
        "images": asdict(images),
        "threads": config.trainer.num_threads or torch.get_num_threads(),
        "may_use_fewer_threads": may_use_fewer_threads and config.trainer.num_threads is None,
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
        step_s = measure_step(config, images, device=device)
    except (ConfigError, RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    peak = peak_memory.bytes()
    empty_cache(device)
    if step_s is None:
        return None
    return StepBenchmark(config.batch_size, config.accumulation_steps, step_s, peak, int(_GPU_SHARE * free))


def _ask_child(job: dict[str, Any]) -> dict[str, Any] | None:
    """Return what the child measured; None: it ran out of memory, or the system killed it for that."""
    # Import this package in the child; with -P, files in the current folder are not imported as modules.
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
    # Killed by the system, or aborted by a library that got no memory.
    ended_by = name_signal(child.returncode)
    if ended_by == "SIGKILL" or (ended_by == "SIGABRT" and "alloc" in errors):
        return None
    if ended_by == "SIGINT":  # Ctrl-C reaches parent and child
        raise KeyboardInterrupt
    raise RuntimeError(f"the benchmark failed with code {child.returncode}:\n{errors}")


def name_signal(returncode: int) -> str:
    """Return the signal that ended a process, or "". Windows has its own codes for Ctrl-C and abort."""
    if returncode in _WINDOWS_CODES:
        return _WINDOWS_CODES[returncode]
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return ""


# ---- The steps


@dataclass(frozen=True)
class RandomImages:
    """Random stored images, in the format of a pack."""

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


def measure_step(config: Config, images: RandomImages, *, device: torch.device) -> float:
    """Return the median seconds per step, without the first step."""
    trainer = config.trainer
    # One rank's share of the batch, without communication.
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
    """Return a function that runs a step and returns the seconds for gradients and for the update."""
    # Learning rates affect neither time nor memory, so any expected number of steps will do.
    plan = Plan.of(config, num_images=config.batch_size, expected_steps=10**6)
    networks = Byol.of(config, channels=images.channels, seed_key=plan.key("init", 0))
    networks = networks.to(ranks.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(networks, config.optimizer, plan=plan)
    batch = images.make(num_images, device=ranks.device)
    sizes = torch.full((plan.batch_size, 2), float(images.stored_px))
    make = partial(
        make_training_views, sizes=sizes, transforms=config.data_transforms, key=0, pixels=images.pixels
    )

    def wait() -> float:
        wait_for(ranks.device)
        return time.perf_counter()

    def step() -> tuple[float, float]:
        start = wait()
        statistics = Snapshot(networks.buffers())
        loss, _ = compute_gradients(
            networks,
            batch,
            make=make,
            show=None,
            num_microbatches=num_microbatches,
            ranks=ranks,
            vicreg_weight=plan.vicreg_weight(0),
        )
        middle = wait()
        set_lr(optimizer, plan.lr(0))
        finite = torch.isfinite(measure(loss, optimizer, ranks=replace(ranks, world_size=1))).all()
        apply_step(networks, optimizer, tau=plan.tau(0), finite=finite, statistics=statistics)
        return middle - start, wait() - middle

    return step


def measure_threads(measure: Callable[[int], float], most: int) -> dict[str, Any]:
    """Halve the number of threads for as long as steps become faster; return what StepBenchmark has of it.

    `measure` returns the seconds per step with a number of threads; `most` is the first number.
    """
    num, step_s, all_threads_s = most, measure(most), None
    while num > 1 and 4.0 * step_s < _FEWER_S:  # two steps of twice the time, if the threads are worth it
        fewer_s = measure(num // 2)
        if fewer_s * _FEWER_GAIN > step_s:
            break
        num, step_s, all_threads_s = num // 2, fewer_s, all_threads_s or step_s
    return {"step_s": step_s, "num_threads": num, "all_threads_s": all_threads_s}


def main() -> None:
    """Run in the child: read a job from stdin, and print the answer as the last line on stdout."""
    job = json.load(sys.stdin)
    limit_memory(job["may_allocate"])
    keep_freed_memory()
    answer: dict[str, Any]
    try:
        config = Config.model_validate_json(job["config"])
        images = RandomImages(**job["images"])

        def measure(num_threads: int) -> float:
            torch.set_num_threads(num_threads)
            return measure_step(config, images, device=torch.device("cpu"))

        if job["may_use_fewer_threads"]:
            answer = measure_threads(measure, job["threads"])
        else:
            answer = {"step_s": measure(job["threads"]), "num_threads": job["threads"]}
        answer["peak_bytes"] = peak_bytes()
    except (ConfigError, RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            answer = {"failed": _OUT_OF_MEMORY}
        elif isinstance(error, ConfigError):
            answer = {"refused": str(error)}
        else:
            raise
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
