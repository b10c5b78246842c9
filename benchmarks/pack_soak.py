"""A million packed images: do start, memory and speed stay as with ten thousand?

    python benchmarks/pack_soak.py --threads 1 --out benchmarks/results/pack-soak    # writes 2 GB into --work
    python benchmarks/pack_soak.py --tiny --threads 1 --out runs/soak                # does it work at all?

For each number of images, the script makes an array of noise at 16 px, and then starts one process after
another: one packs, one opens the pack, one reads batches without a network, one trains 200 steps (the real
loop, ended by SIGTERM), and one is `byol eval` without labels. The network is small, so that reading shows.
Memory is what a process has beyond one that has loaded the package: its own, and pages of mapped files, which
the system may take back.
"""

import argparse
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command import new_parser, save_result
from measure import (
    Memory,
    describe_command,
    describe_machine,
    limit_cores,
    machine_lines,
    read_memory,
    read_own_memory,
    show_range,
    spread,
)

from byol.config import Config, load_config
from byol.data.pack.batches import Batches
from byol.data.pack.images import open_images
from byol.device.ranks import keep_freed_memory
from byol.method.schedule import Plan
from byol.training import loop

_PX, _BATCH = 16, 256
_IMAGES, _TINY_IMAGES = (10_000, 1_000_000), (600, 1200)
_STEPS, _TINY_STEPS = 200, 2
_CHUNKS = 5
_OVERRIDES = (
    "network.name=test_resnet",
    "network.stem=standard",
    "network.projection_head.mlp_hidden_size=64",
    "network.projection_head.projection_size=32",
    f"data_transforms.input_shape=[{_PX},{_PX},3]",
    f"data.stored_px={_PX}",
    f"trainer.batch_size={_BATCH}",
    "trainer.max_epochs=100000",  # longer than any measurement
    "trainer.num_workers=1",
    "trainer.device=cpu",
    "trainer.loggers=[]",
)


def main() -> int:
    options = _parse()
    threads = limit_cores(options.threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    options.work.mkdir(parents=True, exist_ok=True)
    points = []
    for num in _TINY_IMAGES if options.tiny else _IMAGES:
        points.append({"images": num, **_measure(num, options)})
        print(points[-1], file=sys.stderr, flush=True)
    result = {
        "format": 1,
        **describe_command(),
        "tiny": options.tiny,
        "machine": describe_machine(threads=threads),
        "points": points,
    }
    save_result(result, render(result), options.out / "pack-soak")
    return 0


def _parse() -> argparse.Namespace:
    parser = new_parser(__doc__, threads_help="cores")
    parser.add_argument("--seconds", type=float, default=3.0, help=f"of each of {_CHUNKS} readings")
    options = parser.parse_args()
    options.steps = _TINY_STEPS if options.tiny else _STEPS
    if options.tiny:
        options.seconds = 0.0
    return options


def _measure(num: int, options: argparse.Namespace) -> dict[str, Any]:
    work = options.work / f"pack-soak-{num}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        _write_images(work / "images.npy", num)
        return {
            "pack": _in_new_process(_pack, work),
            "open": [_in_new_process(_open, work) for _ in range(2 if options.tiny else _CHUNKS)],
            "read": _in_new_process(_read, work, options.seconds),
            "train": _in_new_process(_train, work, options.steps),
            "eval": _evaluate(work),
        }
    finally:
        shutil.rmtree(work)


def _write_images(path: Path, num: int) -> None:
    """Noise: each image is another one, so that none is a duplicate."""
    drawn = np.random.default_rng(0)
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(num, _PX, _PX, 3))
    for first in range(0, num, 10_000):
        part = images[first : first + 10_000]
        part[:] = drawn.integers(0, 256, part.shape, dtype=np.uint8)
    images.flush()


def _in_new_process(function: Any, *arguments: Any) -> Any:
    """So that memory is that of the one thing done."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _configure(work: Path) -> Config:
    overrides = [f"data.source={work / 'images.npy'}", f"data.packs={work / 'packs'}", *_OVERRIDES]
    return load_config(None, overrides, preset="demo")


def _added(before: Memory | None, after: Memory | None) -> dict[str, int]:
    if before is None or after is None:
        return {"own_bytes": 0, "file_bytes": 0}
    return {
        "own_bytes": after.own_bytes - before.own_bytes,
        "file_bytes": after.mapped_bytes - before.mapped_bytes,
    }


class _Watch:
    """The highest memory of this process in a `with` block, looked at every 50 ms."""

    def __init__(self) -> None:
        self._before, self._over = read_own_memory(), threading.Event()
        self._own, self._files = 0, 0
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def highest(self) -> dict[str, int]:
        """Each kind at its own highest."""
        before = self._before or Memory(self._own, self._files)
        return _added(before, Memory(self._own, self._files))

    def _watch(self) -> None:
        while True:
            now = read_own_memory() or Memory(0, 0)
            self._own, self._files = max(self._own, now.own_bytes), max(self._files, now.mapped_bytes)
            if self._over.wait(0.05):
                return


# ---- What each process does


def _pack(work: Path) -> dict[str, Any]:
    start = time.perf_counter()
    with _Watch() as memory:
        packed = open_images(_configure(work), work / "run", console=None)
    seconds = time.perf_counter() - start
    assert packed.note == "packed"
    size = sum(path.stat().st_size for path in packed.folder.iterdir())
    return {"seconds": seconds, "peak": memory.highest(), "pack_bytes": size}


def _open(work: Path) -> dict[str, Any]:
    """As a continued run does it: find the pack of the source, check it, make the first batch's order."""
    config = _configure(work)
    before, start = read_own_memory(), time.perf_counter()
    packed = open_images(config, work / "run", console=None)
    opened = time.perf_counter()
    plan = Plan.of(config, num_images=len(packed))
    plan.indices(0)
    end = time.perf_counter()
    assert packed.note == "found"
    added = _added(before, read_own_memory())
    return {"seconds": opened - start, "order_seconds": end - opened, "added": added}


def _read(work: Path, seconds: float) -> dict[str, Any]:
    """Images per second that the loader delivers, if nothing is computed with them."""
    torch.set_num_threads(1)
    config = _configure(work)
    packed = open_images(config, work / "run", console=None)
    plan = Plan.of(config, num_images=len(packed))
    whole, device, rates = slice(0, _BATCH), torch.device("cpu"), []
    with Batches(packed, plan, rows=whole, device=device, first_step=0, memory="auto") as batches:
        next(batches)
        for _ in range(_CHUNKS):
            start, num = time.perf_counter(), 0
            while num == 0 or time.perf_counter() - start < seconds:
                num += len(next(batches).images)
            rates.append(num / (time.perf_counter() - start))
    return {"images_per_s": spread(rates)}


def _train(work: Path, steps: int) -> dict[str, Any]:
    """The real loop; after so many steps it gets the signal of a batch system."""
    torch.set_num_threads(1)
    keep_freed_memory()
    config, set_lr, done = _configure(work), loop.set_lr, 0
    marks: list[tuple[float, float, Memory | None]] = []

    def set_lr_and_count(*arguments: Any, **others: Any) -> None:
        nonlocal done
        done += 1
        if done in (max(1, steps // 10), steps):
            marks.append((time.perf_counter(), time.process_time(), read_own_memory()))
        if done == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        set_lr(*arguments, **others)

    loop.set_lr = set_lr_and_count
    before, start = read_own_memory(), time.perf_counter()
    with _Watch() as memory:
        outcome = loop.train(config, work / "run")
    assert outcome.done == steps
    (early_s, early_cpu_s, early), (late_s, late_cpu_s, late) = marks[0], marks[-1]
    num = _BATCH * (steps - max(1, steps // 10))
    return {
        "first_steps_s": early_s - start,
        "images_per_s": num / (late_s - early_s),
        "images_per_cpu_s": num / (late_cpu_s - early_cpu_s),
        "early": _added(before, early),
        "late": _added(before, late),
        "peak": memory.highest(),
    }


def _evaluate(work: Path) -> dict[str, float]:
    """`byol eval` without labels, as a command, with the highest memory seen from outside."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "byol", "eval", str(work / "run")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    most, over = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.05):
            with suppress(OSError):
                memory = read_memory(process.pid)
                most = max(most, memory.all_bytes if memory else 0)

    watching = threading.Thread(target=watch)
    watching.start()
    _, said = process.communicate()
    over.set()
    watching.join()
    if process.returncode:
        raise SystemExit(f"byol eval ended with exit code {process.returncode}: {said}")
    return {"seconds": time.perf_counter() - start, "peak_bytes": most}


# ---- The table


def render(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    points = result["points"]
    lines = [
        "# Many packed images",
        "",
        *machine_lines(result["machine"]),
        f"- {result['date']}, `{result['command']}`",
        "",
        f"| images | {' | '.join(format(point['images'], ',') for point in points)} |",
        f"|{'---|' * (len(points) + 1)}",
        *(f"| {name} | {' | '.join(map(show, points))} |" for name, show in _ROWS),
        "",
        f"Images of {_PX} x {_PX} x 3 bytes, batches of {_BATCH}. Ranges are over {_CHUNKS} measurements. "
        "Files are in the system's cache. Memory is beyond a process that has loaded the package: its own, "
        "and pages of mapped files, each at its highest where that is asked.",
    ]
    if result["tiny"]:
        lines.append("A smoke test: the figures mean nothing.")
    return "\n".join(lines) + "\n"


def _megabytes(count: float) -> str:
    return f"{count / 1e6:,.0f} MB"


def _both(memory: dict[str, int]) -> str:
    return f"{_megabytes(memory['own_bytes'])} + {_megabytes(memory['file_bytes'])} of files"


def _over_openings(point: dict[str, Any], key: str) -> dict[str, float]:
    return spread([opening[key] for opening in point["open"]])


_ROWS = (
    ("pack on disk", lambda point: _megabytes(point["pack"]["pack_bytes"])),
    ("packing", lambda point: f"{point['pack']['seconds']:.1f} s"),
    ("packing, highest memory", lambda point: _both(point["pack"]["peak"])),
    ("opening the pack, s", lambda point: show_range(_over_openings(point, "seconds"))),
    ("order of an epoch, s", lambda point: show_range(_over_openings(point, "order_seconds"))),
    ("memory of both", lambda point: _both(point["open"][-1]["added"])),
    ("loader alone, images/s", lambda point: show_range(point["read"]["images_per_s"])),
    ("training, images/s", lambda point: f"{point['train']['images_per_s']:,.0f}"),
    ("training, images per CPU second", lambda point: f"{point['train']['images_per_cpu_s']:,.0f}"),
    ("start to a tenth of the steps", lambda point: f"{point['train']['first_steps_s']:.1f} s"),
    ("memory after a tenth", lambda point: _both(point["train"]["early"])),
    ("memory after all steps", lambda point: _both(point["train"]["late"])),
    ("highest memory", lambda point: _both(point["train"]["peak"])),
    ("`byol eval` without labels", lambda point: f"{point['eval']['seconds']:.0f} s"),
    ("`byol eval`, highest memory", lambda point: _megabytes(point["eval"]["peak_bytes"])),
)


if __name__ == "__main__":
    sys.exit(main())
