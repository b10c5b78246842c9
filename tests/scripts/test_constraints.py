"""constraints.txt pins every package that byol with its extras needs; scripts/constraints makes it."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "constraints"
LINES = [
    line
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]


def list_declared() -> list[Requirement]:
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = content["project"]["optional-dependencies"].values()
    lines = [*content["build-system"]["requires"], *content["project"]["dependencies"]]
    found = [Requirement(line) for line in [*lines, *(line for extra in extras for line in extra)]]
    return [requirement for requirement in found if requirement.name != content["project"]["name"]]


def make(tmp_path: Path, *dependencies: str, extras: str = "") -> subprocess.CompletedProcess[str]:
    """Run the script for a project with these dependencies."""
    project = tmp_path / "pyproject.toml"
    project.write_text(
        f"[build-system]\nrequires = []\n[project]\nname = 'thing'\ndependencies = {list(dependencies)}\n"
        f"[project.optional-dependencies]\n{extras}\n",
        encoding="utf-8",
    )
    command = [sys.executable, str(SCRIPT), "--project", str(project), "--out", str(tmp_path / "out.txt")]
    return subprocess.run(command, capture_output=True, text=True)


def is_full_pin(line: str) -> bool:
    """A name and a version: no address, no local version, no empty pin."""
    found = re.fullmatch(r"[a-z0-9]+(?:-[a-z0-9]+)*==([0-9][0-9a-z.!]*)", line)
    return found is not None and str(Version(found[1])) == found[1]


def test_every_line_is_a_full_pin() -> None:
    assert len(LINES) > 50 and [line for line in LINES if not is_full_pin(line)] == []
    for line in ("pyee==", "torch", "torch>=2", "torch==2.14.1+cpu", "a @ file:///b", "a==1 # b"):
        assert not is_full_pin(line)


def test_names_are_sorted_and_stand_once() -> None:
    names = [line.partition("=")[0] for line in LINES]
    assert names == sorted(set(names))


@pytest.mark.parametrize("requirement", list_declared(), ids=str)
def test_every_declared_dependency_is_pinned(requirement: Requirement) -> None:
    pins = dict(line.split("==") for line in LINES)
    name = canonicalize_name(requirement.name)
    assert name in pins, f"{name} is not pinned: run scripts/constraints"
    assert requirement.specifier.contains(pins[name])


def test_what_is_required_is_pinned_too(tmp_path: Path) -> None:
    done = make(
        tmp_path, "Jinja2>=3", "no-such-package; python_version < '3'", extras="all = ['thing', 'rich']"
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "out.txt").read_text().splitlines()
    assert lines[0].startswith("#") and "scripts/constraints" in lines[0]
    assert f"jinja2=={version('jinja2')}" in lines and f"markupsafe=={version('markupsafe')}" in lines
    assert f"markdown-it-py=={version('markdown-it-py')}" in lines  # of rich, which an extra asks for
    assert len(lines) < 10 and lines[1:] == sorted(lines[1:])


def test_an_environment_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    done = make(tmp_path, "no-such-package>=1", "jinja2<1")
    assert done.returncode == 1 and not (tmp_path / "out.txt").exists()
    assert "no-such-package>=1" in done.stderr and "not installed" in done.stderr
    assert "jinja2<1" in done.stderr and version("jinja2") in done.stderr
