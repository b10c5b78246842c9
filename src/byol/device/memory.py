"""How much memory there is, how much a process has had, and whether an error says that it ran out."""

import ctypes
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from byol.device.host import list_cgroups

# What errors say: PyTorch's own on a CPU (Linux, other systems), oneDNN's, and those of libraries on a GPU.
_WORDS = (
    "can't allocate memory",
    "not enough memory",
    "could not create a primitive",
    "CUDA out of memory",
    "XPU out of memory",
    "UR_RESULT_ERROR_OUT_OF",  # _DEVICE_MEMORY, _HOST_MEMORY, _RESOURCES of Intel's driver
    "MPS backend out of memory",
    "Invalid buffer size",  # a tensor larger than any that Metal gives
    "ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or the one behind it, says that memory ran out, on a CPU or a GPU.

    On Linux a process may also be ended by the system before anything is raised: nobody can catch that.
    """
    if error.__cause__ is not None:
        return is_out_of_memory(error.__cause__)
    import torch  # here, so that memory can be told where torch is broken

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def available_bytes() -> int:
    """Host memory to be had without swapping, within a container's limit."""
    try:
        available = _read_fields(Path("/proc/meminfo"))["MemAvailable"]
    except (OSError, KeyError):  # not Linux
        if os.name == "nt":
            return _ask_windows().available
        # All there is, as nothing says what others have taken.
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    room = [limit - used for limit, used in map(_read_cgroup, list_cgroups("memory")) if limit is not None]
    return max(0, min([available, *room]))


def total_bytes() -> tuple[int, int | None]:
    """The machine's memory, and how much of it a container allows this process (None: no limit)."""
    try:
        total = _read_fields(Path("/proc/meminfo"))["MemTotal"]
    except (OSError, KeyError):  # not Linux
        if os.name == "nt":
            return _ask_windows().total, None
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None
    limits = [limit for limit, _ in map(_read_cgroup, list_cgroups("memory")) if limit is not None]
    return total, min((limit for limit in limits if limit < total), default=None)


def peak_bytes() -> int:
    """The highest resident memory of this process, libraries included."""
    try:
        return _read_fields(Path("/proc/self/status"))["VmHWM"]
    except (OSError, KeyError):
        if os.name == "nt":
            return _ask_windows().peak
        import resource  # on Linux it counts what the parent had before the start as well

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def limit_memory(num_bytes: int) -> None:
    """Let this process fail to allocate more than so much, where the system can: Linux.

    There a step that is too large is then an error, instead of the end of this or another process.
    """
    if sys.platform == "linux":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        soft = num_bytes if hard == resource.RLIM_INFINITY else min(num_bytes, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


class _Status(ctypes.Structure):
    """MEMORYSTATUSEX of Windows."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in ("total", "available", *"abcde")),
    )


class _Counters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of Windows."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("faults", ctypes.c_uint32),
        *((name, ctypes.c_size_t) for name in ("peak", *"abcdefg")),
    )


class _WindowsMemory(NamedTuple):
    """Bytes: of the machine, free now, and the most that this process has had."""

    total: int
    available: int
    peak: int


def _ask_windows() -> _WindowsMemory:
    kernel: Any = ctypes.windll.kernel32  # type: ignore[attr-defined, unused-ignore]
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    process = ctypes.c_void_p(kernel.GetCurrentProcess())
    status, counters = _Status(), _Counters()
    status.length, counters.length = ctypes.sizeof(status), ctypes.sizeof(counters)
    if not kernel.GlobalMemoryStatusEx(ctypes.byref(status)):
        raise OSError("Windows does not tell how much memory is free")
    if not kernel.K32GetProcessMemoryInfo(process, ctypes.byref(counters), counters.length):
        raise OSError("Windows does not tell how much memory this process has had")
    return _WindowsMemory(int(status.total), int(status.available), int(counters.peak))


def _read_cgroup(folder: Path) -> tuple[int | None, int]:
    """Limit (None: there is none) and use, bytes; files that the system can drop do not count as used."""
    for limit_name, used_name, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            limit, used = (
                int((folder / limit_name).read_text(encoding="utf-8")),
                int((folder / used_name).read_text(encoding="utf-8")),
            )
            lines = (
                line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
            )
            return limit, used - {name: int(value) for name, value in lines}.get(cache, 0)
        except (OSError, ValueError):  # ValueError: "max", no limit
            continue
    return None, 0


def _read_fields(path: Path) -> dict[str, int]:
    """The lines "Name: NUMBER kB" of a file of /proc, in bytes."""
    lines = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {
        words[0].removesuffix(":"): int(words[1]) * 1024
        for words in lines
        if len(words) == 3 and words[2] == "kB"
    }
