"""Images a second of whole BYOL training steps: this package beside others, in one run, alternating.

    python benchmarks/throughput.py --setting a --out benchmarks/results/throughput
    python benchmarks/throughput.py --setting b --systems ours,lightly --threads 1 --out runs/throughput
    python benchmarks/throughput.py --setting a --isa avx2,avx512 --threads 1 --workers 1 --out runs/isa
    python benchmarks/throughput.py --setting a --tiny --out runs/throughput      # does it work at all?

A step goes from image files (for ours: packed images) to updated online and target weights, views included.
Each system lives in a process of its own; all but the one that is measured are stopped. Peers come from
benchmarks/requirements.txt; one that is not installed is left out, and the table says so.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from command import names_of, new_parser, save_result
from isa import RESTRICTIONS, list_available, restrict
from measure import (
    describe_command,
    describe_machine,
    limit_cores,
    machine_lines,
    paired_ratios,
    show_range,
    spread,
)
from process import Chunk, SystemFailedError, SystemProcess
from settings import SETTINGS, Setting
from systems import NAMES, Job
from systems.ours import pack_files

from byol.device.memory import available_bytes
from byol.kernels.build import load_kernels
from pictures import make_folders

_OURS = "ours"
_OF_KINDS = (_OURS, "ours-library", "classic", "lightly")
_WARM_UP_STEPS = {"cpu": 2, "cuda": 20}  # after the first
_START_S, _STEP_S = 900.0, 300.0  # a start, or a step, that takes longer has failed
_START_SHARE = 0.6  # of the time given: after it no other system is started
_HEADROOM = 1.3  # of the largest system so far: what must be free before another one is started


def main() -> int:
    options = _parse()
    if options.isa:
        return _measure_kinds(options)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no stopped process is left behind
    threads = limit_cores(options.threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    setting = SETTINGS[options.setting].sized(batch=options.batch, tiny=options.tiny)
    result: dict[str, Any] = {
        "format": 1,
        **describe_command(),
        "tiny": options.tiny,
        "device": options.device,
        "workers": options.workers,
        "seconds": options.seconds,
        "setting": asdict(setting) | {"description": setting.describe()},
        "machine": describe_machine(threads=threads),
    }
    result |= _measure(setting, options, threads=threads)
    save_result(result, render(result), options.out / f"throughput-{setting.name}-{options.device}")
    return 1 if "skipped" in result["systems"].get(_OURS, {}) else 0


def _parse() -> argparse.Namespace:
    parser = new_parser(__doc__, threads_help="cores for each system, its workers included")
    parser.add_argument("--setting", choices=tuple(SETTINGS), required=True)
    parser.add_argument("--systems", type=names_of(NAMES), default=list(NAMES), help=",".join(NAMES))
    parser.add_argument("--alternations", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="of one system in one alternation")
    parser.add_argument("--workers", type=int, default=2, help="DataLoader processes of the peers")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, help="instead of the setting's")
    parser.add_argument(
        "--limit-s", type=float, default=float("inf"), help="start no other alternation after so long"
    )
    parser.add_argument(
        "--isa",
        type=names_of(RESTRICTIONS),
        help=f"as CPUs of these kinds, one after the other: {','.join(RESTRICTIONS)}",
    )
    options = parser.parse_args()
    if options.tiny:
        options.alternations, options.seconds = 2, 0.0
    return options


# ---- One machine as several kinds of CPU


def _measure_kinds(options: argparse.Namespace) -> int:
    """This command once as each kind, and one table of them all."""
    missing = [kind for kind in options.isa if kind not in list_available()]
    if missing:
        sys.exit(f"--isa {missing[0]}: this CPU has not its instructions, only {', '.join(list_available())}")
    arguments = [word for word in sys.argv[1:] if not word.startswith("--isa=")]
    if "--isa" in arguments:
        place = arguments.index("--isa")
        del arguments[place : place + 2]
    if not any(word.partition("=")[0] == "--systems" for word in arguments):
        arguments += ["--systems", ",".join(_OF_KINDS)]
    results = {}
    for kind in options.isa:
        folder = options.out / kind
        command = [sys.executable, __file__, *arguments, "--out", str(folder)]  # the last --out counts
        code = subprocess.run(command, env=restrict(kind)).returncode
        if code:
            return code
        stem = folder / f"throughput-{options.setting}-{options.device}"
        results[kind] = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
    table = render_kinds(results)
    (options.out / f"isa-{options.setting}.md").write_text(table, encoding="utf-8")
    print(table)
    return 0


# ---- Measuring


@dataclass
class _Running:
    """A system under measurement."""

    process: SystemProcess
    steps: int  # of one alternation
    chunks: list[Chunk]


def _measure(setting: Setting, options: argparse.Namespace, *, threads: int) -> dict[str, Any]:
    begin = time.monotonic()
    last_start, end = begin + _START_SHARE * options.limit_s, begin + options.limit_s
    files, packs = make_folders(setting, options.work, tiny=options.tiny)
    packing = None
    if any(name.startswith(_OURS) for name in options.systems):
        job = Job(_OURS, setting, options.device, threads, options.workers, files, packs)
        packing = _prepare_ours(job, None if options.tiny else options.work / "cache")
    skipped: dict[str, str] = {}
    with ExitStack() as stack:
        running: dict[str, _Running] = {}
        for name in options.systems:
            job = Job(name, setting, options.device, threads, options.workers, files, packs)
            reason = _too_little_memory([one.process for one in running.values()])
            if running and time.monotonic() > last_start:
                reason = "the time given was up"
            if reason is None:
                try:
                    running[name] = _start(job, stack, seconds=options.seconds)
                    continue
                except SystemFailedError as error:
                    reason = str(error)
            skipped[name] = reason
            _say(f"{name}: left out, {reason}")
        stopped_early = _alternate(running, skipped, setting, alternations=options.alternations, end=end)
        systems = {
            name: _summarise(running[name], setting) if name in running else {"skipped": skipped[name]}
            for name in options.systems
        }
    return {
        "packing": packing,
        "systems": systems,
        "ours_over": _compare(systems, "images_per_s"),
        "ours_over_by_cpu": _compare(systems, "images_per_cpu_s"),
        "stopped_early": stopped_early,
    }


def _compare(systems: dict[str, Any], rate: str) -> dict[str, Any]:
    """Ours over each other system that has this rate."""
    rates = {name: one[rate]["each"] for name, one in systems.items() if one.get(rate)}
    return {
        name: {"each": (each := paired_ratios(rates[_OURS], rate))} | spread(each)
        for name, rate in rates.items()
        if _OURS in rates and name != _OURS
    }


def _prepare_ours(job: Job, cache: Path | None) -> dict[str, float]:
    """What a user waits for once: pack anew, and compile the kernels of the CPU anew into `cache`."""
    shutil.rmtree(job.packs, ignore_errors=True)
    if cache is not None:
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir()
        os.environ["XDG_CACHE_HOME"] = str(cache)  # the systems' processes find them there
    start = time.perf_counter()
    if job.device == "cpu":
        load_kernels()
    compiled = time.perf_counter()
    packed = pack_files(job)
    seconds = time.perf_counter() - compiled
    _say(f"kernels ready in {compiled - start:.1f} s, {len(packed)} images packed in {seconds:.1f} s")
    return {
        "images": len(packed),
        "seconds": seconds,
        "kernels_s": compiled - start,
        "stored_px": packed.stored_px,
        "bytes": packed.images.nbytes,
    }


def _too_little_memory(running: list[SystemProcess]) -> str | None:
    """Why another system should not be started beside those that are, if so."""
    largest = max((process.memory.all_bytes for process in running if process.memory), default=0)
    available = available_bytes()
    if available > _HEADROOM * largest:
        return None
    return f"only {available / 1e9:.1f} GB of memory left, the largest so far took {largest / 1e9:.1f} GB"


def _start(job: Job, stack: ExitStack, *, seconds: float) -> _Running:
    process = SystemProcess(job, timeout_s=_START_S)
    stack.callback(process.kill)
    warm_up = _WARM_UP_STEPS[job.device]
    step_s = process.run(warm_up, timeout_s=warm_up * _STEP_S, watch_memory=True).seconds / warm_up
    _say(f"{job.system}: first step after {process.first_step_s:.1f} s, then about {step_s:.3f} s a step")
    return _Running(process, max(1, round(seconds / step_s)), [])


def _alternate(
    running: dict[str, _Running], skipped: dict[str, str], setting: Setting, *, alternations: int, end: float
) -> str | None:
    """Measure each system in turn, again and again; a system that fails is left out from there on."""
    for number in range(alternations):
        start = time.monotonic()
        for name, one in list(running.items()):
            try:
                one.chunks.append(one.process.run(one.steps, timeout_s=one.steps * _STEP_S))
            except SystemFailedError as error:
                skipped[name] = str(error)
                del running[name]
        rates = [
            f"{name} {setting.batch * r.steps / r.chunks[-1].seconds:.2f}" for name, r in running.items()
        ]
        _say(f"alternation {number + 1}, images/s: {', '.join(rates)}")
        now = time.monotonic()
        if number + 1 < alternations and now + (now - start) > end:
            return f"after {number + 1} of {alternations} alternations: the time given was up"
    return None


def _summarise(one: _Running, setting: Setting) -> dict[str, Any]:
    images = setting.batch * one.steps
    each = [images / chunk.seconds for chunk in one.chunks]
    by_cpu = [images / chunk.cpu_s for chunk in one.chunks if chunk.cpu_s]
    memory = one.process.memory
    return {
        "description": one.process.description,
        "steps_an_alternation": one.steps,
        "images_per_s": {"each": each} | spread(each),
        "images_per_cpu_s": {"each": by_cpu} | spread(by_cpu) if len(by_cpu) == len(each) else None,
        "cores_used": _cores_used(one.chunks),
        "first_step_s": one.process.first_step_s,
        "host_bytes": memory.all_bytes if memory else None,
        "host_mapped_bytes": memory.mapped_bytes if memory else None,
        "device_bytes": one.process.device_bytes,
    }


def _cores_used(chunks: list[Chunk]) -> float | None:
    cpu_s = [chunk.cpu_s for chunk in chunks if chunk.cpu_s is not None]
    return sum(cpu_s) / sum(chunk.seconds for chunk in chunks) if len(cpu_s) == len(chunks) else None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# ---- The tables


def render_kinds(results: dict[str, dict[str, Any]]) -> str:
    """The kinds of CPU side by side, as Markdown."""
    first = next(iter(results.values()))
    others = [name for name in first["systems"] if name != _OURS]
    setting, machine = first["setting"], first["machine"]
    lines = [
        f"# Setting ({setting['name']}) as several kinds of CPU: {setting['description']}",
        "",
        f"- {machine['cpu']}, limited to the instructions of each kind; {machine['threads']} of "
        f"{machine['cores']} cores, torch {machine['torch']}",
        f"- {first['date']}, `{describe_command()['command']}`",
        "",
        f"| kind | byol, images/s | {' | '.join(f'byol / {name}' for name in others)} |",
        f"|{'---|' * (len(others) + 2)}",
    ]
    for kind, result in results.items():
        ratios = [_range(result["ours_over"].get(name)) or "left out" for name in others]
        lines.append(
            f"| {kind} | {_range(result['systems'][_OURS].get('images_per_s'))} | {' | '.join(ratios)} |"
        )
    counts = ", ".join(str(_count_alternations(result)) for result in results.values())
    lines += ["", f"Medians and ends of {counts} alternations. ours-library: `trainer.convolution=library`."]
    return "\n".join(lines) + "\n"


def render(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    setting, packing = result["setting"], result["packing"]
    lines = [
        f"# Setting ({setting['name']}): {setting['description']}",
        "",
        *machine_lines(result["machine"]),
        f"- {result['date']}, `{result['command']}`",
        f"- heads {setting['hidden_size']}/{setting['projection_size']} for all; ours: preset "
        f"`{setting['preset']}`; peers: {result['workers']} DataLoader workers",
        "",
        f"| {' | '.join(_head(result))} |",
        f"|{'---|' * len(_head(result))}",
        *(_row(name, one, result) for name, one in result["systems"].items()),
        "",
        f"{_count_alternations(result)} alternations, ratios within each. Cores used: fewer than the "
        f"{result['machine']['threads']} given if a system waits or other programs run; images per CPU "
        "second, over all its processes, suffer least from these. Host memory: the highest of a system "
        "with its workers, shared parts once; files are mapped libraries. First step: from the start of the "
        "process.",
    ]
    lines += ["", *_describe_systems(result["systems"]), ""]
    if packing is not None:
        lines.append(
            f"Before the measurement, once: ours compiled kernels in {packing['kernels_s']:.1f} s and packed "
            f"{packing['images']} images in {packing['seconds']:.1f} s, at {packing['stored_px']} px "
            f"({packing['bytes'] / 1e6:.0f} MB)."
        )
    if result["stopped_early"]:
        lines.append(f"Stopped {result['stopped_early']}.")
    if result["tiny"]:
        lines.append("A smoke test: the figures mean nothing.")
    return "\n".join(lines) + "\n"


def _describe_systems(systems: dict[str, Any]) -> list[str]:
    return [f"- {name}: {one['description']}" for name, one in systems.items() if "skipped" not in one]


def _head(result: dict[str, Any]) -> list[str]:
    rates = ["images/s, median (min-max)", "ours / it (min-max)", "cores used"]
    rates += ["images per CPU second", "ours / it by that"]
    memory = ["host memory (of it files)", *(["device memory"] if result["device"] == "cuda" else [])]
    return ["system", *rates, *memory, "first step after"]


def _row(name: str, one: dict[str, Any], result: dict[str, Any]) -> str:
    head = _head(result)
    if "skipped" in one:
        return f"| {name} | left out: {one['skipped']} {'| ' * (len(head) - 1)}"
    cells = [
        name,
        _range(one["images_per_s"]),
        _range(result["ours_over"].get(name)),
        "not known" if one["cores_used"] is None else f"{one['cores_used']:.2f}",
        _range(one["images_per_cpu_s"]),
        _range(result["ours_over_by_cpu"].get(name)),
        f"{_megabytes(one['host_bytes'])} ({_megabytes(one['host_mapped_bytes'])})",
        *([_megabytes(one["device_bytes"])] if "device memory" in head else []),
        f"{one['first_step_s']:.1f} s",
    ]
    return f"| {' | '.join(cells)} |"


def _range(values: dict[str, Any] | None) -> str:
    return "" if values is None else show_range(values)


def _megabytes(count: int | None) -> str:
    return "not known" if count is None else f"{count / 1e6:,.0f} MB"


def _count_alternations(result: dict[str, Any]) -> int:
    counts = [len(one["images_per_s"]["each"]) for one in result["systems"].values() if "skipped" not in one]
    return int(statistics.median(counts)) if counts else 0


if __name__ == "__main__":
    sys.exit(main())
