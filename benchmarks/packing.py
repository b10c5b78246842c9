"""How fast image files become a packed copy, in how much memory, and how fast a packed copy opens.

    python benchmarks/packing.py --out benchmarks/results/packing      # two cores; writes 2 GB into --work
    python benchmarks/packing.py --tiny --out runs/packing             # does it work at all?

The ways alternate, each on as many cores as it has workers, with all files in the system's cache. "Plain
loop" is one core that decodes and fits image after image and keeps nothing. Memory is measured in processes
that do nothing else.
"""

import argparse
import functools
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from command import new_parser, save_result
from measure import (
    describe_command,
    describe_machine,
    limit_cores,
    machine_lines,
    paired_ratios,
    read_own_memory,
    read_own_peak_bytes,
    spread,
)
from PIL import Image

from byol.config import load_config
from byol.data.decode import image
from byol.data.decode.image import read_square
from byol.data.decode.opened import quiet
from byol.data.pack.packed import open_pack
from byol.data.pack.packing import pack
from byol.data.sources.opening import open_source
from byol.device.ranks import keep_freed_memory
from pictures import draw_picture

_WHOLE = 2**16  # no JPEG is so much larger than the stored size that it would be decoded at a fraction


@dataclass(frozen=True)
class Case:
    """Files of one kind, and the side that they are stored at."""

    name: str
    width: int
    height: int
    suffix: str
    num_files: int
    stored_px: int
    fractions: bool = False  # whether decoding at a fraction of the size is possible, and compared


_CASES = (
    Case("photographs", 500, 375, ".jpg", 1200, 258),
    Case("thumbnails", 32, 32, ".png", 50_000, 32),
    Case("large photographs", 2000, 1500, ".jpg", 100, 258, fractions=True),
)
_TINY_CASES = (
    Case("photographs", 50, 37, ".jpg", 8, 26),
    Case("thumbnails", 32, 32, ".png", 40, 32),
    Case("large photographs", 200, 150, ".jpg", 4, 26, fractions=True),
)
_NUM_DRAWN = 200  # pictures; files beyond repeat them


def main() -> int:
    options = _parse()
    cores = limit_cores(options.threads)
    workers = (1, cores) if cores > 1 else (1,)
    options.work.mkdir(parents=True, exist_ok=True)
    cases = _TINY_CASES if options.tiny else _CASES
    with ExitStack() as stack:
        processes = _Processes(stack, keep=options.tiny)
        result = {
            "format": 1,
            **describe_command(),
            "tiny": options.tiny,
            "machine": describe_machine(threads=cores),
            "pillow": _describe_pillow(),
            "cases": [_measure_case(case, options, processes, workers=workers) for case in cases],
            "opening": _measure_opening(1000 if options.tiny else 1_000_000, options, processes),
        }
    save_result(result, render(result), options.out / "packing")
    return 0


def _parse() -> argparse.Namespace:
    parser = new_parser(__doc__, threads_help="cores")
    parser.add_argument("--alternations", type=int, default=7)
    options = parser.parse_args()
    if options.tiny:
        options.alternations = 2
    return options


def _describe_pillow() -> str:
    from PIL import features

    return f"Pillow {Image.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}"


# ---- Packing


def _measure_case(
    case: Case, options: argparse.Namespace, processes: "_Processes", *, workers: tuple[int, ...]
) -> dict[str, Any]:
    """Rates of all ways, alternating, and the peak of memory at two numbers of images."""
    folder, most = _make_files(case, options.work), workers[-1]
    ways: dict[str, tuple[int, Callable[[], dict[str, float]]]] = {
        "loop": (1, functools.partial(_loop, case, folder))
    }
    for number in workers:
        ways[f"workers_{number}"] = number, functools.partial(_pack, case, folder, number)
    if case.fractions:
        ways["loop_whole"] = 1, functools.partial(_loop, case, folder, _WHOLE)
        ways[f"workers_{most}_whole"] = most, functools.partial(_pack, case, folder, most, _WHOLE)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + options.alternations):
        for name, (number, measure) in ways.items():
            rates[name].append(processes.run(number, measure)["images_per_s"])
    rates = {name: each[1:] for name, each in rates.items()}  # the first brought the files into the cache
    peaks = []
    for num_files in (case.num_files // 4, case.num_files):
        part = replace(case, num_files=num_files)
        measure = functools.partial(_pack, part, _make_files(part, options.work), most, watch=True)
        peaks.append(processes.run(most, measure, fresh=True))
    return {
        "name": case.name,
        "files": f"{case.width} x {case.height} px {case.suffix[1:].upper()}",
        "stored_px": case.stored_px,
        "images_per_s": {name: spread(each) for name, each in rates.items()},
        "efficiency": _efficiency(rates, most),
        "fraction_over_whole": _over(rates, f"workers_{most}", f"workers_{most}_whole"),
        "peak": peaks,
    }


def _efficiency(rates: dict[str, list[float]], workers: int) -> dict[str, Any] | None:
    """Rate with `workers` over that many times the rate of one core, packing and in the plain loop."""
    if workers == 1:
        return None
    many = [rate / workers for rate in rates[f"workers_{workers}"]]
    return {
        name: spread(paired_ratios(many, rates[one]))
        for name, one in (("packing", "workers_1"), ("plain loop", "loop"))
    }


def _over(rates: dict[str, list[float]], one: str, other: str) -> dict[str, float] | None:
    return spread(paired_ratios(rates[one], rates[other])) if other in rates else None


def _make_files(case: Case, work: Path) -> Path:
    folder = work / f"packing-{case.width}x{case.height}-{case.num_files}"
    if folder.is_dir():
        return folder
    unfinished = work / f"{folder.name}.{os.getpid()}"
    unfinished.mkdir()
    for number in range(min(case.num_files, _NUM_DRAWN)):
        picture = Image.fromarray(draw_picture(case.height, case.width, seed=number))
        path = unfinished / f"{number:06d}{case.suffix}"
        picture.save(path, **({"quality": 90} if case.suffix == ".jpg" else {}))
        for copy in range(number + _NUM_DRAWN, case.num_files, _NUM_DRAWN):
            shutil.copyfile(path, unfinished / f"{copy:06d}{case.suffix}")
    unfinished.rename(folder)
    return folder


class _Processes:
    """One process for each number of cores; new ones (unless `keep`) where memory is measured."""

    def __init__(self, stack: ExitStack, *, keep: bool) -> None:
        self._stack, self._keep = stack, keep
        self._pools: dict[int, ProcessPoolExecutor] = {}

    def run(
        self, cores: int, measure: Callable[[], dict[str, float]], *, fresh: bool = False
    ) -> dict[str, float]:
        if fresh and not self._keep:
            with self._open(cores) as pool:
                return pool.submit(measure).result()
        if cores not in self._pools:
            self._pools[cores] = self._stack.enter_context(self._open(cores))
        return self._pools[cores].submit(measure).result()

    def _open(self, cores: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn"), initializer=_begin, initargs=(cores,)
        )


def _begin(cores: int) -> None:
    limit_cores(cores)
    keep_freed_memory()  # as `byol train` does


@contextmanager
def _spare(times: int | None) -> Iterator[None]:
    """Another rule for decoding JPEGs at a fraction, in this process: for files that threads read."""
    before = image._SPARE
    image._SPARE = times or before
    try:
        yield
    finally:
        image._SPARE = before


def _loop(case: Case, folder: Path, spare: int | None = None) -> dict[str, float]:
    paths = sorted(folder.iterdir())
    start = time.perf_counter()
    with quiet, _spare(spare):
        for path in paths:
            read_square(path, px=case.stored_px, channels=None)
    return {"images_per_s": len(paths) / (time.perf_counter() - start)}


def _pack(
    case: Case, folder: Path, workers: int, spare: int | None = None, *, watch: bool = False
) -> dict[str, float]:
    target = folder.with_name("packing-target")
    shutil.rmtree(target, ignore_errors=True)
    data = load_config(None, [], preset="default").data
    children = _ChildrenWatch()
    with children if watch else nullcontext(), _spare(spare):
        before, source = read_own_memory(), open_source(data, source=str(folder))
        start = time.perf_counter()
        packed = pack(
            source,
            folder=target,
            stored_px=case.stored_px,
            view_px=case.stored_px,
            channels=None,
            max_bad=0.0,
            num_workers=workers,
        )
        seconds, peak = time.perf_counter() - start, read_own_peak_bytes()
    assert len(packed) == case.num_files and packed.note == "packed"
    shutil.rmtree(target)
    return {
        "images": case.num_files,
        "images_per_s": case.num_files / seconds,
        "added_bytes": peak - before.all_bytes if peak and before else -1,
        "child_bytes": children.most_bytes,
    }


class _ChildrenWatch:
    """The highest resident memory of any child process, looked at now and then. On Linux; 0 elsewhere."""

    def __init__(self) -> None:
        self.most_bytes, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "_ChildrenWatch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            for listed in Path("/proc/self/task").glob("*/children"):
                with suppress(OSError):  # a thread or a child has ended
                    for child in listed.read_text().split():
                        status = Path(f"/proc/{child}/status").read_text()
                        peaks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
                        self.most_bytes = max([self.most_bytes, *(int(peak) * 1024 for peak in peaks)])


# ---- Opening


def _measure_opening(num_rows: int, options: argparse.Namespace, processes: _Processes) -> dict[str, Any]:
    """A packed copy of so many images of 8 px, and a list of so many lines."""
    work = options.work / f"packing-opening-{num_rows}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        processes.run(1, functools.partial(_write_pack, num_rows, work))
        measure = functools.partial(_open, work / "pack")
        opened = [processes.run(1, measure, fresh=True) for _ in range(options.alternations)]
        (work / "list.csv").write_text(
            "file,label\n"
            + "".join(f"plate/image_{row:07d}.png,class {row % 9}\n" for row in range(num_rows))
        )
        measure = functools.partial(open_list, work / "list.csv")
        listed = [processes.run(1, measure, fresh=True) for _ in range(min(3, options.alternations))]
        return {"rows": num_rows, "pack": _spreads(opened), "list": _spreads(listed)}
    finally:
        shutil.rmtree(work)


def _spreads(found: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {key: spread([one[key] for one in found]) for key in found[0]}


def _write_pack(num_rows: int, work: Path) -> dict[str, float]:
    block = np.random.default_rng(0).integers(0, 256, (1000, 8, 8, 3), dtype=np.uint8)
    rows = np.lib.format.open_memmap(work / "rows.npy", "w+", np.uint8, (num_rows, 8, 8, 3))
    for first in range(0, num_rows, len(block)):
        rows[first : first + len(block)] = block[: num_rows - first]
    rows.flush()
    data = load_config(None, [], preset="default").data
    pack(
        open_source(data, source=str(work / "rows.npy")),
        folder=work / "pack",
        stored_px=8,
        view_px=8,
        channels=None,
        max_bad=0.0,
        num_workers=2,
    )
    return {}


def _open(folder: Path) -> dict[str, float]:
    """Seconds to open a pack, checksums included, and what it adds to memory then and after 100 batches."""
    before, start = read_own_memory(), time.perf_counter()
    packed = open_pack(folder)
    seconds, after = time.perf_counter() - start, read_own_memory()
    order = np.random.default_rng(0).permutation(len(packed))
    for first in range(0, min(len(packed), 25_600), 256):
        packed.read(order[first : first + 256])
    read = read_own_memory()
    if before is None or after is None or read is None:
        return {"seconds": seconds}
    return {
        "seconds": seconds,
        "added_bytes": after.all_bytes - before.all_bytes,
        "added_after_reading_bytes": read.all_bytes - before.all_bytes,
    }


def open_list(path: Path) -> dict[str, float]:
    data = load_config(None, [], preset="default").data
    before, start = read_own_memory(), time.perf_counter()
    source = open_source(data, source=str(path))
    seconds, after, peak = time.perf_counter() - start, read_own_memory(), read_own_peak_bytes()
    assert len(source) > 0
    if before is None or after is None or peak is None:
        return {"seconds": seconds}
    return {
        "seconds": seconds,
        "added_bytes": after.all_bytes - before.all_bytes,
        "added_peak_bytes": peak - before.all_bytes,
    }


# ---- The tables


def render(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    cores = result["machine"]["threads"]
    lines = [
        "# Packing",
        "",
        *machine_lines(result["machine"]),
        f"- {result['pillow']}",
        f"- {result['date']}, `{result['command']}`",
        "",
        f"| files | stored at | plain loop, images/s | packing, 1 worker | {cores} workers | "
        "per core, over 1 worker | per core, over the loop |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in result["cases"]:
        rates, efficiency = case["images_per_s"], case["efficiency"]
        names = ("loop", "workers_1", f"workers_{cores}")
        cells = [_range(rates[name], ".0f") for name in names]
        cells += [_range(efficiency[name], ".2f") if efficiency else "" for name in ("packing", "plain loop")]
        lines.append(f"| {case['name']}, {case['files']} | {case['stored_px']} px | {' | '.join(cells)} |")
    lines += ["", *_render_fractions(result["cases"]), *_render_memory(result["cases"])]
    lines += _render_opening(result["opening"])
    lines += ["", "Medians, with their range. Memory is resident memory beyond that of the modules."]
    if result["tiny"]:
        lines.append("A smoke test: the figures mean nothing.")
    return "\n".join(lines) + "\n"


def _render_fractions(cases: list[dict[str, Any]]) -> list[str]:
    lines = []
    for case in cases:
        if case["fraction_over_whole"] is not None:
            whole = next(
                spread_of for name, spread_of in case["images_per_s"].items() if name.endswith("_whole")
            )
            lines.append(
                f"- {case['name']}, decoded at a fraction of their size: "
                f"{_range(case['fraction_over_whole'], '.2f')} times the images/s of decoding them whole "
                f"({_range(whole, '.0f')} in the plain loop)"
            )
    return lines


def _render_memory(cases: list[dict[str, Any]]) -> list[str]:
    lines = []
    for case in cases:
        less, more = case["peak"]
        lines.append(
            f"- {case['name']}, peak of memory: {less['added_bytes'] / 1e6:.0f} MB with {less['images']:,} "
            f"images, {more['added_bytes'] / 1e6:.0f} MB with {more['images']:,}"
            + (f"; {more['child_bytes'] / 1e6:.0f} MB a reading process" if more["child_bytes"] else "")
        )
    return lines


def _render_opening(opening: dict[str, Any]) -> list[str]:
    packed, listed = opening["pack"], opening["list"]
    lines = [f"- a pack of {opening['rows']:,} images opens in {_range(packed['seconds'], '.2f')} s"]
    if "added_bytes" in packed:
        lines[-1] += (
            f" and adds {packed['added_bytes']['median'] / 1e6:.0f} MB, "
            f"{packed['added_after_reading_bytes']['median'] / 1e6:.0f} MB after 100 batches of 256"
        )
    lines.append(f"- a list of {opening['rows']:,} files opens in {_range(listed['seconds'], '.1f')} s")
    if "added_bytes" in listed:
        lines[-1] += (
            f" and adds {listed['added_bytes']['median'] / 1e6:.0f} MB, "
            f"{listed['added_peak_bytes']['median'] / 1e6:.0f} MB at its peak"
        )
    return lines


def _range(values: dict[str, float], form: str) -> str:
    return f"{values['median']:{form}} ({values['min']:{form}}-{values['max']:{form}})"


if __name__ == "__main__":
    sys.exit(main())
