"""The loops in `cpp/`, compiled once for this CPU by the machine's own C++ compiler.

They do what PyTorch has no single operation for. The compiled file is kept in the user's cache folder, named
by all that it depends on. Without a compiler only speed is lost: who asks gets None, and takes PyTorch's
operations.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

CHANNEL_GROUP = 32  # channels of an image are a multiple of it: kGroup of vectors.h

_FOLDER = Path(__file__).parent / "cpp"
# No -ffast-math: a NaN must stay one. Nothing is linked: OpenMP's calls find the threads that PyTorch uses.
_FLAGS = ("-std=c++20", "-O3", "-fopenmp", "-fPIC", "-Wno-psabi")
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_TIME_LIMIT_S = 300


@dataclass(frozen=True)
class Kernels:
    """The compiled library."""

    compiled: ctypes.CDLL

    def __call__(self, name: str, *arguments: Tensor | int | float | None, dtype: torch.dtype) -> None:
        """Call the kernel `name` for images of `dtype`, with contiguous tensors and numbers.

        PyTorch's number of threads is added as the last argument.
        """
        values = [_to_c(argument) for argument in arguments]
        self.compiled[f"{name}_{_NAMES[dtype]}"](*values, ctypes.c_int(torch.get_num_threads()))

    def has(self, name: str, dtype: torch.dtype) -> bool:
        """Whether there is a kernel `name` for images of `dtype` on this CPU."""
        return dtype in _NAMES and hasattr(self.compiled, f"{name}_{_NAMES[dtype]}")


def load_kernels() -> Kernels | None:
    """The kernels, or None; `explain_kernels` says why."""
    return _load("native")[0]


def explain_kernels() -> str:
    """In words, whether there are kernels, and why not."""
    return _load("native")[1]


def run_kernel(name: str, *arguments: Tensor | int | float | None, dtype: torch.dtype) -> None:
    """Call a kernel that the caller knows to be there."""
    kernels = load_kernels()
    assert kernels is not None, "whoever chooses the kernel looks first"
    kernels(name, *arguments, dtype=dtype)


@cache
def _load(arch: str) -> tuple[Kernels | None, str]:
    if platform.system() != "Linux":
        return None, f"no compiled kernels on {platform.system()}, PyTorch's are used"
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    if compiler is None:
        return None, "no C++ compiler (g++) found, PyTorch's kernels are used"
    try:
        path = _compile(compiler, arch)
        return Kernels(ctypes.CDLL(str(path))), "compiled kernels"
    except subprocess.CalledProcessError as error:
        detail = (error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[0]
    except (OSError, subprocess.TimeoutExpired) as error:
        detail = str(error)
    return None, f"{compiler} failed ({detail}), PyTorch's kernels are used"


def _compile(compiler: str, arch: str) -> Path:
    """The compiled file, from the cache if it is there.

    Raises:
        OSError, subprocess.SubprocessError: it cannot be made.
    """
    sources = sorted(_FOLDER.glob("*.cpp"))
    command = [compiler, *_FLAGS, f"-march={arch}"]
    version = _run([compiler, "--version"]).splitlines()[0]
    texts = [path.read_text(encoding="utf-8") for path in (*sources, *sorted(_FOLDER.glob("*.h")))]
    depends = "\0".join([*texts, *command, version, _describe_cpu()])
    made = _cache_folder() / f"kernels-{hashlib.sha256(depends.encode()).hexdigest()[:20]}.so"
    if not made.exists():
        with tempfile.TemporaryDirectory(dir=made.parent) as scratch:
            _run([*command, "-c", *map(str, sources)], folder=scratch)
            _run(
                [compiler, "-shared", *(f"{path.stem}.o" for path in sources), "-o", "new.so"], folder=scratch
            )
            # Whole or not at all: ranks may do this at the same time.
            (Path(scratch) / "new.so").replace(made)
    return made


def _run(command: list[str], *, folder: str | None = None) -> str:
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=_TIME_LIMIT_S,
        check=True,
    ).stdout


def _cache_folder() -> Path:
    """A folder of the user's own; where there is no such place, one for this process alone."""
    with suppress(OSError, RuntimeError):  # RuntimeError: no home
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "byol"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(folder, os.W_OK):
            return folder
    return Path(tempfile.mkdtemp(prefix="byol-"))


def _describe_cpu() -> str:
    """What -march=native depends on: the CPU's features, as Linux lists them."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("flags", "model", "Features"))}))
    return platform.machine()


def _to_c(argument: Tensor | int | float | None) -> ctypes.c_void_p | ctypes.c_int64 | ctypes.c_double:
    if isinstance(argument, int):
        return ctypes.c_int64(argument)
    if isinstance(argument, float):
        return ctypes.c_double(argument)
    return ctypes.c_void_p(None if argument is None else argument.data_ptr())
