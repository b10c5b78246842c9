"""The loops in `cpp/`, compiled once for this CPU by the machine's own C++ compiler.

They do what PyTorch has no single operation for. They are compiled for the instruction set that PyTorch uses
(`cpu.py`), and the result stays in the user's cache folder, named by all that it depends on. Without a
compiler only speed is lost: who asks gets None, and takes PyTorch's operations.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from byol.kernels.cpu import InstructionSet, instruction_set

CHANNEL_GROUP = 32  # channels of an image are a multiple of it: kGroup of vectors.h

_FOLDER = Path(__file__).parent / "cpp"
# No -ffast-math: a NaN must stay one. Nothing is linked: OpenMP's calls find the threads that PyTorch uses.
_FLAGS = ("-std=c++20", "-O3", "-fPIC", "-Wno-psabi")
_AVX2 = ("-mavx2", "-mfma", "-mbmi2")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
# Kinds of CPU that are not here have no kernels.
_ARCHITECTURES: dict[InstructionSet, tuple[str, ...]] = {
    "avx2": (*_AVX2, "-mtune=native"),
    "avx512": (*_AVX512, "-mtune=native"),
    "avx512_bf16": (*_AVX512, "-mavx512bf16", "-mtune=native"),
    "amx": (*_AVX512, "-mavx512bf16", "-mtune=native"),
    "neon": ("-mcpu=native",),
}
# OpenMP, and a library whose missing functions are found among those of the process.
_SYSTEMS = {
    "Linux": (("-fopenmp",), ("-shared",)),
    "Darwin": (("-Xclang", "-fopenmp"), ("-dynamiclib", "-undefined", "dynamic_lookup")),
}
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_TIME_LIMIT_S = 300


@dataclass(frozen=True)
class Kernels:
    """The compiled library; without OpenMP each loop runs on one thread."""

    compiled: ctypes.CDLL
    has_openmp: bool

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
    kernels = _load(instruction_set())[0]
    # PyTorch's operations on several threads are faster than kernels on one.
    return kernels if kernels is None or kernels.has_openmp or torch.get_num_threads() == 1 else None


def explain_kernels() -> str:
    """In words, whether there are kernels, and why not."""
    kernels, words = _load(instruction_set())
    if kernels is not None and load_kernels() is None:
        return "PyTorch's kernels, because the compiler has no OpenMP and there are several threads"
    return words


def describe_compiler() -> str | None:
    """The first line that the C++ compiler says of its version; None if there is no compiler.

    Raises:
        OSError, subprocess.SubprocessError: it cannot be run.
    """
    compiler = _find_compiler()
    return None if compiler is None else _ask_version(compiler)


def run_kernel(name: str, *arguments: Tensor | int | float | None, dtype: torch.dtype) -> None:
    """Call a kernel that the caller knows to be there."""
    kernels = load_kernels()
    assert kernels is not None, "whoever chooses the kernel looks first"
    kernels(name, *arguments, dtype=dtype)


@cache
def _load(kind: InstructionSet) -> tuple[Kernels | None, str]:
    """The kernels for a kind of CPU, and in words whether there are any."""
    if platform.system() not in _SYSTEMS:
        return None, f"PyTorch's kernels, because byol compiles none on {platform.system()}"
    if kind not in _ARCHITECTURES:
        return None, "PyTorch's kernels, because the CPU has no AVX2"
    compiler = _find_compiler()
    if compiler is None:
        return None, "PyTorch's kernels, because there is no C++ compiler (g++)"
    failures = []
    for openmp in (_SYSTEMS[platform.system()][0], ()):
        try:
            path = _compile(compiler, (*_ARCHITECTURES[kind], *openmp))
            return Kernels(ctypes.CDLL(str(path)), bool(openmp)), f"compiled kernels ({kind})"
        except subprocess.CalledProcessError as error:
            failures += [(error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[0]]
        except (OSError, subprocess.TimeoutExpired) as error:
            failures += [str(error)]
    return None, f"PyTorch's kernels, because {compiler} failed ({failures[0]})"


def _compile(compiler: str, flags: tuple[str, ...]) -> Path:
    """The compiled file, from the cache if it is there.

    Raises:
        OSError, subprocess.SubprocessError: it cannot be made.
    """
    sources = sorted(_FOLDER.glob("*.cpp"))
    command, link = [compiler, *_FLAGS, *flags], _SYSTEMS[platform.system()][1]
    version = _ask_version(compiler)
    texts = [path.read_text(encoding="utf-8") for path in (*sources, *sorted(_FOLDER.glob("*.h")))]
    depends = "\0".join([*texts, *command, *link, version, describe_cpu()])
    made = cache_folder() / f"kernels-{hashlib.sha256(depends.encode()).hexdigest()[:20]}.so"
    if not made.exists():
        with tempfile.TemporaryDirectory(dir=made.parent) as scratch, ThreadPoolExecutor() as pool:
            objects = [f"{source.stem}.o" for source in sources]
            run = partial(_run, folder=scratch)
            list(pool.map(run, ([*command, "-c", str(source)] for source in sources)))
            run([compiler, *link, *objects, "-o", "new.so"])
            # Whole or not at all: ranks may do this at the same time.
            (Path(scratch) / "new.so").replace(made)
    return made


def _find_compiler() -> str | None:
    """What CXX names, otherwise the first of the usual names that is on the PATH."""
    return os.environ.get("CXX") or next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)


def _ask_version(compiler: str) -> str:
    return _run([compiler, "--version"]).splitlines()[0]


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


def cache_folder() -> Path:
    """A folder of the user's own; where there is no such place, one for this process alone."""
    with suppress(OSError, RuntimeError):  # RuntimeError: no home
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "byol"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(folder, os.W_OK):
            return folder
    return Path(tempfile.mkdtemp(prefix="byol-"))


def describe_cpu() -> str:
    """What tuning for this CPU depends on: its features, as Linux lists them."""
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
