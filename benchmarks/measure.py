"""What the benchmarks share: spreads, ratios, memory of processes, the machine in words."""

import datetime
import importlib.metadata
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "timm", "lightly", "byol-pytorch")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles, and the ends."""
    low, median, high = values[0], values[0], values[0]
    if len(values) > 1:
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {
        "median": median,
        "min": min(values),
        "low_quartile": low,
        "high_quartile": high,
        "max": max(values),
    }


def paired_ratios(ours: Sequence[float], other: Sequence[float]) -> list[float]:
    """ours / other within each alternation, as far as both have been measured."""
    return [one / two for one, two in zip(ours, other, strict=False)]


def show_range(values: dict[str, float]) -> str:
    """A spread in short: its median and its ends, to three digits."""
    median, low, high = (_three_digits(values[key]) for key in ("median", "min", "max"))
    return f"{median} ({low}-{high})"


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


# ---- Memory and time of processes


@dataclass(frozen=True)
class Memory:
    """Resident memory of the processes of a group, bytes."""

    own_bytes: int  # anonymous and shared memory: proportional set size, so shared parts count once
    mapped_bytes: int  # pages of files, libraries for the most part: of the process that has most of them

    @property
    def all_bytes(self) -> int:
        return self.own_bytes + self.mapped_bytes


def read_memory(group: int) -> Memory | None:
    """Of a process group now; None where the system does not tell (not Linux)."""
    own, mapped = 0, 0
    for process in _list_group(group):
        memory = _read_memory_of(process)
        if memory is not None:
            own, mapped = own + memory.own_bytes, max(mapped, memory.mapped_bytes)
    return Memory(own, mapped) if own else None


def read_own_memory() -> Memory | None:
    """Of this process now."""
    return _read_memory_of(Path("/proc/self"))


def read_own_peak_bytes() -> int | None:
    """The highest resident memory that this process has had, libraries included."""
    try:
        return _read_fields(Path("/proc/self/status"))["VmHWM"]
    except OSError:
        return None


def _read_memory_of(process: Path) -> Memory | None:
    try:
        rollup, status = _read_fields(process / "smaps_rollup"), _read_fields(process / "status")
        return Memory(rollup["Pss_Anon"] + rollup["Pss_Shmem"], status["RssFile"])
    except (OSError, KeyError):  # it has ended, or this is not Linux
        return None


def read_cpu_seconds(group: int) -> float | None:
    """Seconds that the processes of a group have computed so far; None where the system does not tell."""
    ticks = 0
    for process in _list_group(group):
        with suppress(OSError):
            ticks += sum(map(int, _read_stat(process)[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK") if ticks else None


def _list_group(group: int) -> list[Path]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(_read_stat(process)[2]) == group:
                found.append(process)
    return found


def _read_stat(process: Path) -> list[str]:
    """The fields behind the name, which may hold spaces: state, parent, group, ..."""
    return (process / "stat").read_text().rpartition(")")[2].split()


def _read_fields(path: Path) -> dict[str, int]:
    """The lines "Name: NUMBER kB" of a file of /proc, in bytes."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {
        words[0].removesuffix(":"): int(words[1]) * 1024
        for words in lines
        if len(words) == 3 and words[2] == "kB"
    }


# ---- The machine


def limit_cores(threads: int) -> int:
    """Keep this process and its children on the first `threads` cores it may use; returns how many it got."""
    if not hasattr(os, "sched_setaffinity"):
        return threads
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.sched_setaffinity(0, cores)
    return len(cores)


def describe_machine(*, threads: int) -> dict[str, Any]:
    """Hardware and versions, for the head of a result."""
    import torch

    from byol.kernels.cpu import instruction_set

    found: dict[str, Any] = {
        "cpu": _cpu_name(),
        "isa": instruction_set(),
        "cores": os.cpu_count(),
        "threads": threads,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def describe_command() -> dict[str, str]:
    """When and how this process was started."""
    script = Path(sys.argv[0])
    words = ["python", f"{script.parent.name}/{script.name}", *sys.argv[1:]]
    return {"date": datetime.date.today().isoformat(), "command": shlex.join(words)}


def machine_lines(machine: dict[str, Any]) -> list[str]:
    """The machine as a Markdown list."""
    versions = [f"{name} {machine[name]}" for name in PACKAGES if machine[name]]
    lines = [
        f"- CPU: {machine['cpu']}, instruction set {machine['isa']}; "
        f"{machine['cores']} cores, {machine['threads']} used",
        f"- Python {machine['python']}, {', '.join(versions)}",
    ]
    if machine["gpu"]:
        lines.insert(1, f"- GPU: {machine['gpu']}, CUDA {machine['cuda']}")
    return lines


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
