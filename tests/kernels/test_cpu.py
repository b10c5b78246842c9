"""The instruction set is the widest that the CPU has and that PyTorch and oneDNN may use."""

import json
import os
import platform
import subprocess
import sys
from typing import get_args

import pytest
import torch

from byol.kernels import cpu


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch):
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    cpu.instruction_set.cache_clear()
    yield
    cpu.instruction_set.cache_clear()


@pytest.mark.parametrize(
    ("level", "capabilities", "limit", "expected"),
    [
        ("AVX512", {"amx_bf16": True, "avx512_bf16": True}, "", "amx"),
        ("AVX512", {"amx_bf16": True, "avx512_bf16": True}, "AVX512_CORE_BF16", "avx512_bf16"),
        ("AVX512", {"avx512_bf16": True}, "", "avx512_bf16"),
        ("AVX512", {"avx512_bf16": True}, "AVX512_CORE_VNNI", "avx512"),
        ("AVX512", {}, "", "avx512"),
        ("AVX512", {"avx512_bf16": True}, "avx2", "avx2"),
        ("AVX2", {"avx512_bf16": True}, "", "avx2"),
        ("AVX2", {}, "SSE41", "baseline"),
        ("AVX2", {}, "ALL", "avx2"),
        ("DEFAULT", {}, "AVX512_CORE_AMX", "baseline"),
        ("NO AVX", {}, "", "baseline"),
    ],
)
def test_the_least_of_cpu_pytorch_and_onednn(
    level: str, capabilities: dict[str, bool], limit: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert cpu.instruction_set() == expected
    assert cpu.computes_bf16() == (expected in ("avx512_bf16", "amx"))
    assert expected in get_args(cpu.InstructionSet)


@pytest.mark.parametrize("machine", ["arm64", "aarch64", "ARM64"])
def test_arm_is_neon(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert cpu.instruction_set() == "neon"
    assert not cpu.computes_bf16()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="PyTorch's limits are those of x86")
@pytest.mark.parametrize(
    ("level", "limit", "most"), [("avx2", "AVX2", "avx2"), ("default", "SSE41", "baseline")]
)
def test_pytorch_itself_is_limited(level: str, limit: str, most: str) -> None:
    code = "import json; from byol.kernels.cpu import instruction_set; print(json.dumps(instruction_set()))"
    environment = os.environ | {"ATEN_CPU_CAPABILITY": level, "ONEDNN_MAX_CPU_ISA": limit}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(run.stdout) in ("baseline", most)
