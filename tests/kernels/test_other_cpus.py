"""The loops of `cpp/` under other compilers and on other CPUs, by cross-compilation and emulation."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from byol.kernels import build

CHECK = Path(__file__).with_name("check_kernels.cpp")
LARGEST_ERROR = 2e-5  # relative to the largest value; PyTorch's own in float32: about 1e-6
IS_X86_LINUX = (platform.system(), platform.machine()) == ("Linux", "x86_64")
AVX2 = ("-mavx2", "-mfma", "-mbmi2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compiler", "flags", "emulator"),
    [
        ("g++", AVX2, None),
        ("clang++", AVX2, None),
        ("aarch64-linux-gnu-g++", (), "qemu-aarch64"),
    ],
    ids=["gcc-avx2", "clang-avx2", "gcc-neon"],
)
def test_loops_are_right(compiler: str, flags: tuple[str, ...], emulator: str | None, tmp_path: Path) -> None:
    missing = [tool for tool in (compiler, *filter(None, [emulator])) if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed")
    if emulator is None and not IS_X86_LINUX:
        pytest.skip("not Linux on x86")
    sources = [str(path) for path in (*sorted(build._FOLDER.glob("*.cpp")), CHECK)]
    program = tmp_path / "check"
    command = [compiler, *build._FLAGS, *flags, "-static", *sources, "-o", str(program)]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    said = subprocess.run(
        [*filter(None, [emulator]), program], capture_output=True, text=True, check=True
    ).stdout
    errors = {name: float(value) for name, value in map(str.split, said.splitlines())}
    assert set(errors) == {f"{way}_{m}" for way in ("forward", "back") for m in (2, 3, 4)} | {"norm"}
    assert max(errors.values()) < LARGEST_ERROR, errors


@pytest.mark.parametrize("flags", [("-Xclang", "-fopenmp"), ()], ids=["openmp", "without"])
def test_clang_compiles_for_arm_as_on_a_mac(flags: tuple[str, ...], tmp_path: Path) -> None:
    if shutil.which("clang++") is None or shutil.which("aarch64-linux-gnu-g++") is None:
        pytest.skip("clang++ or the headers for ARM not installed")
    for source in build._FOLDER.glob("*.cpp"):
        command = ["clang++", "--target=aarch64-linux-gnu", *build._FLAGS, *flags, "-c", str(source)]
        made = subprocess.run([*command, "-o", str(tmp_path / "loops.o")], capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
