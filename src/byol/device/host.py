"""Information about the CPU from the operating system. This file does not need torch."""

import os
import platform
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
CPU_INFO = Path("/proc/cpuinfo")
# Instruction sets that affect the speed of networks, with their names in Linux.
_FEATURES = (
    "sse4_2", "avx", "fma", "avx2", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_tile", "amx_bf16", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip


def name_cpu() -> str:
    """Return the model of the CPU if the system knows it, otherwise the architecture."""
    names = _read_cpu_info("model name")
    return names[0] if names else platform.processor() or platform.machine()


def list_cpu_features() -> list[str]:
    """Return the instruction sets of the CPU that affect speed; [] on systems other than Linux."""
    lists = _read_cpu_info("flags") or _read_cpu_info("Features")  # x86, ARM
    there = set(lists[0].split()) if lists else set()
    return [name for name in _FEATURES if name in there]


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota() -> float | None:
    """Return the CPU limit of the container as a number of cores; None: there is no limit."""
    quotas = [quota for quota in map(_read_quota, list_cgroups("cpu")) if quota is not None]
    return min(quotas, default=None)


def list_cgroups(controller: str) -> list[Path]:
    """Return the control groups that may limit "cpu" or "memory" of this process: its own and their parents.

    Both versions of control groups are supported. Systems other than Linux have none.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            root = _CGROUP / controllers
            inside = root.joinpath(path.lstrip("/"))
            folders += [folder for folder in (inside, *inside.parents) if folder.is_relative_to(root)]
    return folders


def _read_quota(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").exists():
            quota, period = map(int, (folder / "cpu.max").read_text(encoding="utf-8").split())
        else:
            quota, period = (
                int((folder / name).read_text(encoding="utf-8"))
                for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            )
    except (OSError, ValueError):  # ValueError: "max", no limit
        return None
    return quota / period if quota > 0 and period > 0 else None


def _read_cpu_info(name: str) -> list[str]:
    """Return the value of `name` for each core; []: the system has no such file or line."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == name]
