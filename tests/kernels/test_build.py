"""The compiler's part: found or not, cached, and never in the way."""

import platform
import shutil
from pathlib import Path

import pytest
import torch

from byol.kernels import build
from byol.kernels.cpu import instruction_set

needs_compiler = pytest.mark.skipif(
    build.load_kernels() is None, reason=f"no kernels on this machine: {build.explain_kernels()}"
)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Each test compiles, or fails to, on its own and in its own cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.load_for.cache_clear()
    yield
    build.load_for.cache_clear()


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.slow
@needs_compiler
def test_compiles_once_and_keeps_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    num_sources = len(list((Path(build.__file__).parent / "cpp").glob("*.cpp")))
    counting = script(tmp_path / "c++", f'echo "$@" >> {tmp_path}/calls; exec {compiler} "$@"')
    monkeypatch.setenv("CXX", str(counting))
    assert build.load_for(instruction_set())[1] == f"compiled kernels ({instruction_set()})"
    kept = list((tmp_path / "byol").iterdir())
    assert [path.suffix for path in kept] == [".so"]
    assert (tmp_path / "calls").read_text().count(" -c ") == num_sources
    build.load_for.cache_clear()
    assert build.load_for(instruction_set())[0] is not None
    assert list((tmp_path / "byol").iterdir()) == kept
    assert (tmp_path / "calls").read_text().count(" -c ") == num_sources


def test_without_a_compiler_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    assert build.load_for(instruction_set()) == (
        None,
        "PyTorch's kernels, because there is no C++ compiler (g++)",
    )


def test_a_compiler_that_fails_is_named_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failing = script(
        tmp_path / "c++", '[ "$1" = --version ] && echo 1 || { echo "no such flag" >&2; exit 1; }'
    )
    monkeypatch.setenv("CXX", str(failing))
    assert build.load_for(instruction_set()) == (
        None,
        f"PyTorch's kernels, because {failing} failed (no such flag)",
    )
    monkeypatch.setenv("CXX", str(tmp_path / "missing"))
    build.load_for.cache_clear()
    found, why = build.load_for(instruction_set())
    assert found is None and "missing" in why


@pytest.mark.slow
@needs_compiler
def test_an_unwritable_cache_is_no_obstacle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert build.load_for(instruction_set())[0] is not None


@needs_compiler
def test_says_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    found = build.load_kernels()
    assert found is not None
    assert found.has("norm_forward", torch.float32) and found.has("winograd_convolution_4", torch.float32)
    assert not found.has("norm_forward", torch.float64) and not found.has("nothing", torch.float32)


def test_a_cpu_without_avx2_and_an_unknown_system_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    found, why = build.load_for("baseline")
    assert found is None and "AVX2" in why and "PyTorch's" in why
    build.load_for.cache_clear()
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    found, why = build.load_for(instruction_set())
    assert found is None and "Windows" in why


@pytest.mark.slow
@needs_compiler
def test_a_compiler_without_openmp_serves_one_thread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    without = script(
        tmp_path / "c++",
        f'case "$*" in *-fopenmp*) echo "no OpenMP" >&2; exit 1;; esac; exec {compiler} "$@"',
    )
    monkeypatch.setenv("CXX", str(without))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        found = build.load_kernels()
        assert found is not None and not found.has_openmp
        torch.set_num_threads(2)
        assert build.load_kernels() is None
        assert "OpenMP" in build.explain_kernels()
    finally:
        torch.set_num_threads(threads)
