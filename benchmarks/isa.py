"""One machine as several kinds of CPU: what PyTorch, oneDNN, MKL and byol's kernels may use is limited.

Their environment variables are read when PyTorch is loaded, so each kind is measured in processes of its own.
A kind that the machine lacks cannot be had. MKL's matrix products heed their variable on Intel's CPUs alone:
on others those of "scalar" are faster than such a CPU's.
"""

import os

from byol.kernels.cpu import instruction_set

RESTRICTIONS = {
    "scalar": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    },
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
    },
    "avx512_bf16": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
    },
    "amx": {},
}


def list_available() -> list[str]:
    """The kinds that this machine can stand for, the narrowest first."""
    widest = instruction_set()
    if widest == "neon":
        return []
    kinds = list(RESTRICTIONS)
    return kinds[: kinds.index("scalar" if widest == "baseline" else widest) + 1]


def restrict(kind: str) -> dict[str, str]:
    """The environment of a process that computes as a CPU of this kind."""
    return os.environ | RESTRICTIONS[kind]
