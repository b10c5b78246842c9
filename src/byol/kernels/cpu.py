"""The instruction set that PyTorch computes with on this CPU.

Every choice between a fast path and PyTorch's own goes by it, never by a brand or a model. What PyTorch and
oneDNN are told not to use is not used by `byol` either, so one machine can stand for several kinds of CPU:

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
)  # each has those before


@cache
def instruction_set() -> InstructionSet:
    """The widest that the CPU has and that PyTorch and oneDNN may use; "baseline" is an x86 without AVX2."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return "neon"
    return min(_find_pytorch(), _find_onednn_limit(), key=_X86.index)


def computes_bf16() -> bool:
    """Whether the CPU multiplies bfloat16; elsewhere it would be converted, at a loss of time."""
    return instruction_set() in ("avx512_bf16", "amx")


def _find_pytorch() -> InstructionSet:
    level = torch.backends.cpu.get_cpu_capability()  # heeds ATEN_CPU_CAPABILITY
    if "AVX512" in level:
        capabilities = torch.cpu.get_capabilities()
        if capabilities.get("amx_bf16", False):
            return "amx"
        return "avx512_bf16" if capabilities.get("avx512_bf16", False) else "avx512"
    return "avx2" if "AVX2" in level else "baseline"


def _find_onednn_limit() -> InstructionSet:
    """What the variables ONEDNN_MAX_CPU_ISA or DNNL_MAX_CPU_ISA leave to oneDNN."""
    limit = (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "ALL").upper()
    if limit in ("ALL", "DEFAULT") or "AMX" in limit:
        return "amx"
    if limit.startswith(("AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10")):
        return "avx512_bf16"
    if limit.startswith("AVX512"):
        return "avx512"
    return "avx2" if limit.startswith("AVX2") else "baseline"
