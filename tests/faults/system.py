"""Limits of the real system, for a child that is about to run a command; each is a `prepare`."""

import ctypes
import os
import resource
from collections.abc import Callable
from functools import cache, partial

_NEW_MOUNTS, _PRIVATE = 0x00020000, 0x4000 | 0x40000  # CLONE_NEWNS; MS_REC | MS_PRIVATE
_BIND, _READ_ONLY, _REMOUNT = 0x1000, 0x1, 0x20

Prepare = Callable[[], None]


def limit_files(num: int) -> Prepare:
    """As `ulimit -n`."""
    return partial(resource.setrlimit, resource.RLIMIT_NOFILE, (num, num))


def limit_file_size(num_bytes: int) -> Prepare:
    """As `ulimit -f`, in bytes: to write further is EFBIG."""
    return partial(resource.setrlimit, resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


def mount_read_only(path: str) -> Prepare:
    """The folder as a read-only file system, for this process alone."""

    def prepare() -> None:
        _leave_mounts()
        _mount(path, path, None, _BIND)
        _mount(path, path, None, _BIND | _REMOUNT | _READ_ONLY)

    return prepare


def mount_memory(path: str, size: str) -> Prepare:
    """An empty file system in memory of so many bytes, for this process alone."""

    def prepare() -> None:
        _leave_mounts()
        _mount("tmpfs", path, "tmpfs", 0, f"size={size}")

    return prepare


@cache
def can_mount() -> bool:
    """Whether this process may: it needs to be root, or as good as."""
    child = os.fork()
    if child == 0:
        try:
            _leave_mounts()
            os._exit(0)
        except OSError:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def _leave_mounts() -> None:
    """From now on this process's mounts are its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_MOUNTS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    _mount("none", "/", None, _PRIVATE)


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    if libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]) != 0:
        raise OSError(ctypes.get_errno(), f"mount {target}")
