"""How our speed and memory grow: with the number of packed images, the view, the batch, or the ranks.

    python benchmarks/scaling.py --what rows --out benchmarks/results/scaling     # writes 6 GB into --work
    python benchmarks/scaling.py --what view --tiny --out runs/scaling            # does it work at all?

Every point is a process of its own. For views, batches and ranks it trains ResNet-18 as in setting (a), from
files of 256 px where the views vary. For rows it is a ResNet-10-T at 32 px with batch 256: a network so
small that reading would show.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from command import new_parser, save_result
from measure import (
    describe_command,
    describe_machine,
    limit_cores,
    machine_lines,
    read_own_memory,
    show_range,
    spread,
)
from process import SystemFailedError, SystemProcess
from settings import SETTINGS, Setting
from systems import Job

from pictures import make_folders

_POINTS = {
    "rows": (1_000, 10_000, 100_000, 1_000_000),
    "view": (32, 64, 96, 128, 224),
    "batch": (16, 32, 64, 128, 256),
    "ranks": (1, 2),
}
_TINY_POINTS = {"rows": (16,), "view": (16,), "batch": (8,), "ranks": (1, 2)}
_SMALL_STEM_PX = 64  # our rule: views of at most so many pixels get the small stem
_WARM_UP_STEPS = {"cpu": 2, "cuda": 20}
_OTHER_MEMORY = {"cpu": "ram", "cuda": "map"}  # what data.memory=auto does not choose for small sets
_CHUNKS = 3
_TIMEOUT_S = 900.0
_FILE_PX, _NUM_FILES = 256, 512


def main() -> int:
    options = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no stopped process is left behind
    end = time.monotonic() + options.limit_s
    threads = limit_cores(options.threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    options.work.mkdir(parents=True, exist_ok=True)
    points, stopped_early = [], None
    for value in (_TINY_POINTS if options.tiny else _POINTS)[options.what]:
        if points and time.monotonic() > end:
            stopped_early = f"before {options.what} {value}: the time given was up"
            break
        try:
            point = _MEASURES[options.what](value, options, threads)
        except SystemFailedError as error:
            point = {"skipped": str(error)}
        points.append({options.what: value, **point})
        print(points[-1], file=sys.stderr, flush=True)
    result = {
        "format": 1,
        **describe_command(),
        "what": options.what,
        "tiny": options.tiny,
        "device": options.device,
        "machine": describe_machine(threads=threads),
        "points": points,
        "stopped_early": stopped_early,
    }
    save_result(result, render(result), options.out / f"scaling-{options.what}-{options.device}")
    return 0


def _parse() -> argparse.Namespace:
    parser = new_parser(__doc__, threads_help="cores; ranks share them")
    parser.add_argument("--what", choices=tuple(_POINTS), required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=4.0, help=f"of each of {_CHUNKS} measurements")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="start no other point after this")
    options = parser.parse_args()
    if options.tiny:
        options.seconds = 0.0
    return options


# ---- What is measured at each point


def _measure_rows(num_rows: int, options: argparse.Namespace, threads: int) -> dict[str, Any]:
    setting = SETTINGS["b"].sized(batch=None, tiny=options.tiny)
    setting = replace(setting, network="resnet10t", small_stem=False)
    work = options.work / f"rows-{num_rows}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        source = _write_rows(work / "images.npy", num_rows, px=setting.view_px)
        job = Job("ours", setting, options.device, threads, 0, source, work / "packs")
        packing_s = _in_new_process(_pack, job)
        opened = _in_new_process(_open, job)
        other = replace(job, overrides=(f"data.memory={_OTHER_MEMORY[options.device]}",))
        return {"packing_s": packing_s, **opened, **_train(job, options), "other": _train(other, options)}
    finally:
        shutil.rmtree(work)


def _measure_view(view_px: int, options: argparse.Namespace, threads: int) -> dict[str, Any]:
    setting = SETTINGS["a"].sized(batch=None, tiny=options.tiny)
    file_px, num_files = (32, 16) if options.tiny else (_FILE_PX, _NUM_FILES)
    setting = replace(
        setting,
        name=f"view-{view_px}",
        view_px=view_px,
        small_stem=view_px <= _SMALL_STEM_PX,
        file_width=file_px,
        file_height=file_px,
        num_files=num_files,
    )
    stem = "small" if setting.small_stem else "standard"
    return {"stem": stem, **_train(_make_job(setting, options, threads), options)}


def _measure_batch(batch: int, options: argparse.Namespace, threads: int) -> dict[str, Any]:
    setting = SETTINGS["a"].sized(batch=batch, tiny=options.tiny)
    return _train(_make_job(setting, options, threads), options)


def _measure_ranks(num_ranks: int, options: argparse.Namespace, threads: int) -> dict[str, Any]:
    """The same global batch on each number of ranks, which share the cores."""
    setting = SETTINGS["a"].sized(batch=None, tiny=options.tiny)
    threads_each = max(1, threads // num_ranks)
    job = _make_job(setting, options, threads_each)
    _in_new_process(_pack, job)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rank0.json"
        run = subprocess.run(
            [
                *(sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"),
                *(f"--nproc-per-node={num_ranks}", str(Path(__file__).with_name("ranks.py"))),
                *(job.to_json(), str(options.seconds), str(_CHUNKS), str(out)),
            ],
            env=os.environ | {"OMP_NUM_THREADS": str(threads_each)},
            stderr=subprocess.PIPE,
            text=True,
            timeout=_TIMEOUT_S,
        )
        if run.returncode:
            reasons = [line for line in run.stderr.splitlines() if "Error: " in line]
            raise SystemFailedError(reasons[0].strip() if reasons else f"exit code {run.returncode}")
        answer = json.loads(out.read_text())
    rates = [setting.batch * answer["steps"] / seconds for seconds in answer["seconds"]]
    return {"threads_each": threads_each, "images_per_s": spread(rates), "rank_bytes": answer["peak_bytes"]}


_MEASURES = {"rows": _measure_rows, "view": _measure_view, "batch": _measure_batch, "ranks": _measure_ranks}


def _make_job(setting: Setting, options: argparse.Namespace, threads: int) -> Job:
    files, packs = make_folders(setting, options.work, tiny=options.tiny)
    return Job("ours", setting, options.device, threads, 0, files, packs)


def _train(job: Job, options: argparse.Namespace) -> dict[str, Any]:
    process = SystemProcess(job, timeout_s=_TIMEOUT_S)
    try:
        process.run(_WARM_UP_STEPS[options.device], timeout_s=_TIMEOUT_S, watch_memory=True)
        step_s = process.run(1, timeout_s=_TIMEOUT_S).seconds
        steps = max(1, round(options.seconds / step_s))
        chunks = [process.run(steps, timeout_s=_TIMEOUT_S) for _ in range(_CHUNKS)]
        memory = process.memory
        images = job.setting.batch * steps
        by_cpu = [images / chunk.cpu_s for chunk in chunks if chunk.cpu_s]
        return {
            "images_per_s": spread([images / chunk.seconds for chunk in chunks]),
            "images_per_cpu_s": spread(by_cpu) if len(by_cpu) == len(chunks) else None,
            "first_step_s": process.first_step_s,
            "own_bytes": memory.own_bytes if memory else None,
            "file_bytes": memory.mapped_bytes if memory else None,
            "device_bytes": process.device_bytes,
        }
    finally:
        process.kill()


# ---- Many images


def _write_rows(path: Path, num_rows: int, *, px: int) -> Path:
    """An array of noise; the same thousand images again and again."""
    block = np.random.default_rng(0).integers(0, 256, (min(1000, num_rows), px, px, 3), dtype=np.uint8)
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(num_rows, px, px, 3))
    for first in range(0, num_rows, len(block)):
        rows[first : first + len(block)] = block[: num_rows - first]
    rows.flush()
    return path


def _in_new_process(function: Any, job: Job) -> Any:
    """So that memory is that of the one thing done."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, job).result()


def _pack(job: Job) -> float:
    """Seconds to make the packed copy, or to find it."""
    from systems.ours import pack_files

    start = time.perf_counter()
    pack_files(job)
    return time.perf_counter() - start


def _open(job: Job) -> dict[str, Any]:
    """Seconds to find and open the pack, and what that adds to the memory of a process with all modules."""
    from systems.ours import pack_files

    before, start = read_own_memory(), time.perf_counter()
    packed = pack_files(job)
    open_s, after = time.perf_counter() - start, read_own_memory()
    assert packed.note == "found"
    added = after.all_bytes - before.all_bytes if before and after else None
    return {"packed_bytes": packed.images.nbytes, "open_s": open_s, "open_bytes": added}


# ---- The table

_OPENING = ("packed once in", "opened in", "opening adds")


def render(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    what = result["what"]
    on_gpu, other = result["device"] == "cuda", _OTHER_MEMORY[result["device"]]
    trained = ["images/s", "images per CPU second", "memory (of it files)"]
    trained += ["device memory"] if on_gpu else []
    head = {
        "rows": ["images", *trained, *(f"{other}: {name}" for name in trained), *_OPENING],
        "view": ["view, px", "stem", *trained],
        "batch": ["batch", *trained],
        "ranks": ["ranks", "threads each", "images/s", "peak memory of a rank"],
    }[what]
    lines = [
        f"# Growth with {what}",
        "",
        *machine_lines(result["machine"]),
        f"- {result['date']}, `{result['command']}`",
        "",
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
    ]
    for point in result["points"]:
        if "skipped" in point:
            cells = [f"{point[what]:,}", f"left out: {point['skipped']}"]
            cells += [""] * (len(head) - len(cells))
        else:
            cells = _cells(what, point, on_gpu=on_gpu)
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"Medians of {_CHUNKS} measurements, with their range."]
    if what == "rows":
        lines.append(
            "Opening: as a continued run does it, in a process that has loaded the package. First with "
            f"data.memory=auto, then with data.memory={other}; files are in the system's cache."
        )
    if result["stopped_early"]:
        lines.append(f"Stopped {result['stopped_early']}.")
    if result["tiny"]:
        lines.append("A smoke test: the figures mean nothing.")
    return "\n".join(lines) + "\n"


def _cells(what: str, point: dict[str, Any], *, on_gpu: bool) -> list[str]:
    value = f"{point[what]:,}"
    if what == "ranks":
        rate = show_range(point["images_per_s"])
        return [value, str(point["threads_each"]), rate, _megabytes(point["rank_bytes"])]
    trained = _trained_cells(point, on_gpu=on_gpu)
    if what == "view":
        return [value, point["stem"], *trained]
    if what == "batch":
        return [value, *trained]
    opening = [f"{point['packing_s']:.1f} s", f"{point['open_s']:.2f} s", _megabytes(point["open_bytes"])]
    return [value, *trained, *_trained_cells(point["other"], on_gpu=on_gpu), *opening]


def _trained_cells(point: dict[str, Any], *, on_gpu: bool) -> list[str]:
    by_cpu, own, files = point["images_per_cpu_s"], point["own_bytes"], point["file_bytes"]
    memory = "not known" if own is None else f"{_megabytes(own + files)} ({_megabytes(files)})"
    device = [_megabytes(point["device_bytes"])] if on_gpu else []
    return [show_range(point["images_per_s"]), show_range(by_cpu) if by_cpu else "not known", memory, *device]


def _megabytes(count: int | None) -> str:
    return "not known" if count is None else f"{count / 1e6:,.0f} MB"


if __name__ == "__main__":
    sys.exit(main())
