"""Find the instruction set that PyTorch uses on this CPU.

Every choice between fast code and that of PyTorch depends on it, never on the brand or model. Instructions
that PyTorch or oneDNN may not use are not used by `byol` either, so one machine can imitate other CPUs:

    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 byol train IMAGES/
"""

import os
import platform
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


@cache
def instruction_set() -> InstructionSet:
    """Return the largest that the CPU has and PyTorch and oneDNN may use; "baseline": x86 without AVX2."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return "neon"
    return min(_find_pytorch(), _find_onednn_limit(), key=_X86.index)


def computes_bf16() -> bool:
    """Return whether the CPU multiplies bfloat16; on others it is converted first, which is slower."""
    return instruction_set() in ("avx512_bf16", "amx")


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
