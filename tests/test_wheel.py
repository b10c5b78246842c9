"""The wheel and the source archive hold what byol needs and no more, and the wheel alone runs."""

import json
import os
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Callable
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

from byol.kernels.build import load_kernels

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAME = f"{PROJECT['name']}-{PROJECT['version']}"
SCRIPTS = "Scripts" if os.name == "nt" else "bin"
SHORT = [
    "trainer.max_epochs=1",
    "evaluation.num_bootstrap=20",
    "evaluation.num_draws=2",
    "trainer.num_workers=1",
]
Run = Callable[..., str]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive, and with the wheel that is built from it."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def run(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs `byol` of the wheel in an environment that has the libraries of this one, and no checkout."""
    folder = tmp_path_factory.mktemp("installed")
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = venv / SCRIPTS / "python"
    # No network and no cache: the wheel is all that is installed.
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index"]
    (wheel,) = built.glob("*.whl")
    subprocess.run([*pip, "--quiet", str(wheel)], check=True)
    (site,) = venv.rglob("site-packages")
    # Folders that a .pth file names come after `site`, and .pth files in them are not read: so neither an
    # editable installation nor another byol is seen.
    libraries = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "libraries.pth").write_text("\n".join(libraries), encoding="utf-8")
    known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    known |= {"OMP_NUM_THREADS": "1"}

    def byol(*arguments: str) -> str:
        command = [str(venv / SCRIPTS / "byol"), *arguments]
        done = subprocess.run(command, cwd=folder, env=known, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return done.stdout

    place = subprocess.run(
        [str(python), "-c", "import byol; print(byol.__file__)"], env=known, capture_output=True, text=True
    )
    assert Path(place.stdout.strip()).is_relative_to(site), place.stdout + place.stderr
    return byol


def list_sources() -> set[str]:
    """Every file of the package, relative to `src`."""
    source = ROOT / "src"
    paths = (path for path in (source / "byol").rglob("*") if path.is_file())
    return {path.relative_to(source).as_posix() for path in paths if "__pycache__" not in path.parts}


def test_the_wheel_holds_the_package_alone(built: Path) -> None:
    with ZipFile(built / f"{NAME}-py3-none-any.whl") as wheel:
        names = set(wheel.namelist())
        metadata = Parser().parsestr(wheel.read(f"{NAME}.dist-info/METADATA").decode())
    files = {name for name in names if not name.startswith(f"{NAME}.dist-info/")}
    assert files == list_sources()
    for kind in ("kernels/cpp/*.cpp", "kernels/cpp/*.h", "config/presets/**/*.yaml", "reporting/web/*.js",
                 "reporting/web/*.html", "checking/web/*.html", "py.typed"):  # fmt: skip
        found = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src/byol").glob(kind)}
        assert found and found <= files, kind
    assert f"{NAME}.dist-info/licenses/LICENSE" in names
    assert metadata["License-Expression"] == "MIT" and metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra") or ()) == set(PROJECT["optional-dependencies"])


def test_the_source_archive_holds_no_tests_and_no_pictures(built: Path) -> None:
    with tarfile.open(built / f"{NAME}.tar.gz") as archive:
        names = {member.name.partition("/")[2]: member.size for member in archive if member.isfile()}
    outside = {name for name in names if not name.startswith("src/byol/")}
    assert {name.removeprefix("src/") for name in names if name not in outside} == list_sources()
    assert outside == {
        "CHANGELOG.md", "CITATION.cff", "LICENSE", "PKG-INFO", "README.md", "config.yaml", "constraints.txt",
        "env.yml", "pyproject.toml", "run.py", ".gitignore",
    }  # fmt: skip
    assert sum(names.values()) < 3e6


def test_the_wheel_alone_runs(run: Run) -> None:
    assert "byol demo" in run("--help")
    facts = json.loads(run("env", "--json"))
    assert facts["problems"] == []
    assert facts["byol"] == {
        "version": PROJECT["version"], "checkout": False, "commit": None, "changed": None
    }  # fmt: skip
    # The C++ sources are there, if this machine can compile them at all.
    assert facts["kernels"]["compiled"] == (load_kernels() is not None)
    assert "max_epochs: 1000" in run("config", "--preset", "paper")


def test_the_wheel_alone_trains_and_reports(run: Run) -> None:
    said = run("demo", *SHORT)
    assert "byol online" in said and "saved in" in said
    assert "runs/demo/report.html" in run("report", "runs/demo", "--images", "60").replace("\\", "/")
    assert "training may start" in run("check", "motifs", "-o", "check", "--preset", "demo")
