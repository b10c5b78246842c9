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
    for faster in (True, False):
        monkeypatch.setattr(cpu, "multiplies_bf16_faster", lambda faster=faster: faster)
        assert cpu.computes_bf16() == (faster and expected in ("avx512_bf16", "amx"))
    assert expected in get_args(cpu.InstructionSet)


@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_bf16_must_be_faster_than_float32(ratio: float, monkeypatch: pytest.MonkeyPatch) -> None:
    now, product = [0.0], torch.mm

    def multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        now[0] += 1.0 if left.dtype == torch.float32 else ratio
        return product(left, right)

    monkeypatch.setattr(cpu.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch, "mm", multiply)
    assert cpu.multiplies_bf16_faster.__wrapped__() == (ratio < 1.0)


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
