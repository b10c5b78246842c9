"""Find the instruction set that PyTorch uses on this CPU.

Every choice between fast code and that of PyTorch depends on it or on a measurement, never on the brand or
model. Instructions that PyTorch or oneDNN may not use are not used by `byol` either, so one machine can
imitate other CPUs:

    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 byol train IMAGES/
"""

import os
import platform
import time
from functools import cache
from typing import Literal

import torch

InstructionSet = Literal["amx", "avx512_bf16", "avx512", "avx2", "baseline", "neon"]
_X86: tuple[InstructionSet, ...] = (
    "baseline",
    "avx2",
    "avx512",
    "avx512_bf16",
    "amx",
)  # each includes those before it
_PRODUCT_SIDE, _PRODUCTS = 512, 8  # of matrices that are multiplied to compare bfloat16 with float32


@cache
def instruction_set() -> InstructionSet:
    """Return the largest that the CPU has and PyTorch and oneDNN may use; "baseline": x86 without AVX2."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return "neon"
    return min(_find_pytorch(), _find_onednn_limit(), key=_X86.index)


def computes_bf16() -> bool:
    """Return whether the CPU multiplies bfloat16, and faster than float32.

    On CPUs without such instructions it is converted first, which is slower. Intel CPUs that have them, but
    no AMX, multiply it at half the speed of float32, CPUs of AMD at more than its speed. So it is measured.
    """
    return instruction_set() in ("avx512_bf16", "amx") and multiplies_bf16_faster()


@cache
def multiplies_bf16_faster() -> bool:
    """Return whether a product of matrices takes less time in bfloat16 than in float32, measured in 0.1 s."""
    return _time_product(torch.bfloat16) < _time_product(torch.float32)


def _time_product(dtype: torch.dtype) -> float:
    """Return the shortest of some times, because other programs can only lengthen them."""
    matrix = torch.ones(_PRODUCT_SIDE, _PRODUCT_SIDE, dtype=dtype)
    times = []
    for _ in range(_PRODUCTS):
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        times.append(time.perf_counter() - start)
    return min(times)


def _find_pytorch() -> InstructionSet:
    level = torch.backends.cpu.get_cpu_capability()  # depends on ATEN_CPU_CAPABILITY
    if "AVX512" in level:
        capabilities = torch.cpu.get_capabilities()
        if capabilities.get("amx_bf16", False):
            return "amx"
        return "avx512_bf16" if capabilities.get("avx512_bf16", False) else "avx512"
    return "avx2" if "AVX2" in level else "baseline"


def _find_onednn_limit() -> InstructionSet:
    """Return the largest that the variables ONEDNN_MAX_CPU_ISA or DNNL_MAX_CPU_ISA allow oneDNN."""
    limit = (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "ALL").upper()
    if limit in ("ALL", "DEFAULT") or "AMX" in limit:
        return "amx"
    if limit.startswith(("AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10")):
        return "avx512_bf16"
    if limit.startswith("AVX512"):
        return "avx512"
    return "avx2" if limit.startswith("AVX2") else "baseline"
