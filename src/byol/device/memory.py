"""Measure and limit memory, and recognise errors that mean that memory ran out."""

import ctypes
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from byol.device.host import list_cgroups

# Texts of such errors: of PyTorch on a CPU (Linux, other systems), of oneDNN, and of GPU libraries.
_WORDS = (
    "can't allocate memory",
    "not enough memory",
    "could not create a primitive",
    "CUDA out of memory",
    "XPU out of memory",
    "UR_RESULT_ERROR_OUT_OF",  # _DEVICE_MEMORY, _HOST_MEMORY, _RESOURCES of Intel's driver
    "MPS backend out of memory",
    "Invalid buffer size",  # a tensor larger than Metal allows
    "ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or its cause, means that memory ran out, on a CPU or a GPU.

    On Linux the system may also kill the process without an error. That cannot be caught.
    """
    if error.__cause__ is not None:
        return is_out_of_memory(error.__cause__)
    import torch  # here, so that the other functions work if torch is broken

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def available_bytes() -> int:
    """Return the host memory (bytes) that is available without swapping, within the container's limit."""
    try:
        available = read_fields(Path("/proc/meminfo"))["MemAvailable"]
    except (OSError, KeyError):  # not Linux
        if os.name == "nt":
            return _ask_windows().available
        # The total memory, because nothing says how much other processes use.
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    room = [limit - used for limit, used in map(_read_cgroup, list_cgroups("memory")) if limit is not None]
    return max(0, min([available, *room]))


def total_bytes() -> tuple[int, int | None]:
    """Return the machine's memory and the container's limit in bytes (None: there is no limit)."""
    try:
        total = read_fields(Path("/proc/meminfo"))["MemTotal"]
    except (OSError, KeyError):  # not Linux
        if os.name == "nt":
            return _ask_windows().total, None
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None
    limits = [limit for limit, _ in map(_read_cgroup, list_cgroups("memory")) if limit is not None]
    return total, min((limit for limit in limits if limit < total), default=None)


def peak_bytes() -> int:
    """Return the peak resident memory of this process in bytes, including libraries."""
    try:
        return read_fields(Path("/proc/self/status"))["VmHWM"]
    except (OSError, KeyError):
        if os.name == "nt":
            return _ask_windows().peak
        import resource  # not used on Linux, where it includes memory of the parent before the start

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def limit_memory(num_bytes: int) -> None:
    """Limit the memory that this process can allocate. This works only on Linux.

    There, a step that is too large raises an error, instead of making the system kill a process.
    """
    if sys.platform == "linux":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        soft = num_bytes if hard == resource.RLIM_INFINITY else min(num_bytes, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


class _Status(ctypes.Structure):
    """The structure MEMORYSTATUSEX of Windows."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in ("total", "available", *"abcde")),
    )


class _Counters(ctypes.Structure):
    """The structure PROCESS_MEMORY_COUNTERS of Windows."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("faults", ctypes.c_uint32),
        *((name, ctypes.c_size_t) for name in ("peak", *"abcdefg")),
    )


class _WindowsMemory(NamedTuple):
    """Bytes: total memory, available memory, and the peak of this process."""

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
    """Return limit (None: there is none) and use in bytes, without file caches that the system can free."""
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


def read_fields(path: Path) -> dict[str, int]:
    """Read the lines "Name: NUMBER kB" of a file in /proc; return bytes."""
    lines = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {
        words[0].removesuffix(":"): int(words[1]) * 1024
        for words in lines
        if len(words) == 3 and words[2] == "kB"
    }
