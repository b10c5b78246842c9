"""Compile the C++ loops in `cpp/` once for this CPU, with the C++ compiler of the machine.

They combine several operations of PyTorch in one loop. They are compiled for the instruction set that PyTorch
uses (`cpu.py`); the result is kept in the cache folder of the user, under a hash of everything that it
depends on. Without a compiler, `load_kernels` returns None, and the slower operations of PyTorch are used.
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

CHANNEL_GROUP = 32  # the number of channels must be a multiple of this: kGroup in vectors.h

_FOLDER = Path(__file__).parent / "cpp"
# No -ffast-math: NaN must stay NaN. No library is linked: OpenMP calls use the threads that PyTorch loaded.
_FLAGS = ("-std=c++20", "-O3", "-fPIC", "-Wno-psabi")
_AVX2 = ("-mavx2", "-mfma", "-mbmi2")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
# CPUs with another instruction set have no kernels.
_ARCHITECTURES: dict[InstructionSet, tuple[str, ...]] = {
    "avx2": (*_AVX2, "-mtune=native"),
    "avx512": (*_AVX512, "-mtune=native"),
    "avx512_bf16": (*_AVX512, "-mavx512bf16", "-mtune=native"),
    "amx": (*_AVX512, "-mavx512bf16", "-mtune=native"),
    "neon": ("-mcpu=native",),
}
# Flags for OpenMP, and for a library whose missing functions are taken from the process that loads it.
_SYSTEMS = {
    "Linux": (("-fopenmp",), ("-shared",)),
    "Darwin": (("-Xclang", "-fopenmp"), ("-dynamiclib", "-undefined", "dynamic_lookup")),
}
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_TIME_LIMIT_S = 300


@dataclass(frozen=True)
class Kernels:
    """The compiled library; without OpenMP, each loop runs on one thread."""

    compiled: ctypes.CDLL
    has_openmp: bool

    def __call__(self, name: str, *arguments: Tensor | int | float | None, dtype: torch.dtype) -> None:
        """Call the kernel `name` for images of `dtype`, with contiguous tensors and numbers.

        The number of threads of PyTorch is added as the last argument.
        """
        values = [_to_c(argument) for argument in arguments]
        self.compiled[f"{name}_{_NAMES[dtype]}"](*values, ctypes.c_int(torch.get_num_threads()))

    def has(self, name: str, dtype: torch.dtype) -> bool:
        """Return whether there is a kernel `name` for images of `dtype` on this CPU."""
        return dtype in _NAMES and hasattr(self.compiled, f"{name}_{_NAMES[dtype]}")


def load_kernels() -> Kernels | None:
    """Return the kernels, or None; `explain_kernels` says why."""
    kernels = load_for(instruction_set())[0]
    # The operations of PyTorch on several threads are faster than kernels on one thread.
    return kernels if kernels is None or kernels.has_openmp or torch.get_num_threads() == 1 else None


def explain_kernels() -> str:
    """Describe whether there are kernels, and why not."""
    kernels, words = load_for(instruction_set())
    if kernels is not None and load_kernels() is None:
        return "PyTorch's kernels, because the compiler has no OpenMP and there are several threads"
    return words


def describe_compiler() -> str | None:
    """Return the first line of the version of the C++ compiler; None if there is no compiler.

    Raises:
        OSError, subprocess.SubprocessError: the compiler cannot be run.
    """
    compiler = _find_compiler()
    return None if compiler is None else _ask_version(compiler)


def run_kernel(name: str, *arguments: Tensor | int | float | None, dtype: torch.dtype) -> None:
    """Call a kernel; the caller must know that it exists."""
    kernels = load_kernels()
    assert kernels is not None, "whoever chooses the kernel looks first"
    kernels(name, *arguments, dtype=dtype)


@cache
def load_for(kind: InstructionSet) -> tuple[Kernels | None, str]:
    """Return the kernels for an instruction set, and a description of whether there are any."""
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
    """Return the path of the compiled library, from the cache if possible.

    Raises:
        OSError, subprocess.SubprocessError: it cannot be compiled.
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
            # Atomically, because several ranks may do this at the same time.
            (Path(scratch) / "new.so").replace(made)
    return made


def _find_compiler() -> str | None:
    """Return the compiler in CXX, otherwise the first of the usual names that is on the PATH."""
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
    """Return the cache folder of the user; if it cannot be written, a temporary one for this process."""
    with suppress(OSError, RuntimeError):  # RuntimeError: no home folder
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "byol"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(folder, os.W_OK):
            return folder
    return Path(tempfile.mkdtemp(prefix="byol-"))


def describe_cpu() -> str:
    """Return the features of this CPU as Linux lists them, on which the compiled code depends."""
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
