"""The processor and a container's limits, from files as Linux has them."""

import os
from pathlib import Path

import pytest

from byol.device import host

X86 = """processor\t: 0
model name\t: Some CPU @ 2.00GHz
flags\t\t: fpu sse4_2 avx2 avx512f
processor\t: 1
model name\t: Some CPU @ 2.00GHz
flags\t\t: fpu sse4_2 avx2 avx512f
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16 sve\nCPU implementer\t: 0x41\n"


@pytest.mark.parametrize(
    ("text", "name", "features"),
    [(X86, "Some CPU @ 2.00GHz", ["sse4_2", "avx2", "avx512f"]), (ARM, None, ["asimd", "bf16", "sve"])],
)
def test_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str | None, features: list[str]
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(host, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(host.platform, "processor", lambda: "")
    monkeypatch.setattr(host.platform, "machine", lambda: "aarch64")
    assert host.name_cpu() == (name or "aarch64")
    assert host.list_cpu_features() == features


def test_a_system_without_such_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "CPU_INFO", tmp_path / "missing")
    monkeypatch.setattr(host.platform, "processor", lambda: "arm")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert (host.name_cpu(), host.list_cpu_features()) == ("arm", [])
    assert host.count_cores() == os.cpu_count()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.cfs_quota_us": "50000\n", "cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_a_containers_limit_of_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: float | None
) -> None:
    """The group above allows four cores; the process's own group may allow less."""
    inner = tmp_path / "inner"
    inner.mkdir()
    for name, text in files.items():
        (inner / name).write_text(text)
    monkeypatch.setattr(host, "list_cgroups", lambda controller: [inner])
    assert host.cpu_quota() == expected
    (tmp_path / "cpu.max").write_text("400000 100000\n")
    monkeypatch.setattr(host, "list_cgroups", lambda controller: [inner, tmp_path])
    assert host.cpu_quota() == (4.0 if expected is None else expected)


@pytest.mark.parametrize("controller", ["cpu", "memory"])
def test_the_groups_of_this_process_lie_in_one_another(controller: str) -> None:
    assert all(group.is_relative_to("/sys/fs/cgroup") for group in host.list_cgroups(controller))
