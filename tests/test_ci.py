"""The workflow for other systems can run: known machines, the Pythons of the project, files that exist."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# Labels of GitHub's own machines, as its documentation lists them, and what each stands for.
SYSTEMS = {
    "ubuntu-22.04": "Linux x86", "ubuntu-24.04": "Linux x86", "ubuntu-latest": "Linux x86",
    "ubuntu-22.04-arm": "Linux ARM", "ubuntu-24.04-arm": "Linux ARM",
    "macos-14": "macOS", "macos-15": "macOS", "macos-26": "macOS", "macos-latest": "macOS",
    "windows-2022": "Windows", "windows-2025": "Windows", "windows-11-arm": "Windows",
    "windows-latest": "Windows",
}  # fmt: skip
PROGRAMS = {"pytest", "pip", "pip_audit", "ruff", "mypy"}


def read(path: Path) -> dict[str, Any]:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(workflow, dict)
    return workflow


def matrix_of(job: dict[str, Any]) -> dict[str, list[str]]:
    return dict(job.get("strategy", {}).get("matrix", {}))


def fill_in(text: str, job: dict[str, Any]) -> list[str]:
    """All that `text` stands for: itself, or the values of the one matrix key that it names."""
    named = re.fullmatch(r"\$\{\{ matrix\.(\w+) \}\}", text)
    return matrix_of(job)[named[1]] if named else [text]


def list_jobs() -> list[tuple[str, dict[str, Any]]]:
    return [(f"{path.name}: {name}", job) for path in WORKFLOWS for name, job in read(path)["jobs"].items()]


def pythons_of_the_project() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = {
        re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line) for line in project["classifiers"]
    }
    return {match[1] for match in found if match}


def test_there_is_a_workflow_that_starts() -> None:
    assert WORKFLOWS
    for path in WORKFLOWS:
        workflow = read(path)
        # YAML reads the key `on` as true.
        assert set(workflow[True]) == {"push", "pull_request"} and set(workflow) == {"name", True, "jobs"}


@pytest.mark.parametrize(("name", "job"), list_jobs())
def test_machines_are_known(name: str, job: dict[str, Any]) -> None:
    assert set(fill_in(job["runs-on"], job)) <= set(SYSTEMS), name
    assert job["timeout-minutes"] <= 60


def test_every_system_and_python_is_tested() -> None:
    job = dict(list_jobs())["ci.yml: test"]
    systems = {SYSTEMS[label] for label in fill_in(job["runs-on"], job)}
    assert systems == {"Linux x86", "Linux ARM", "macOS", "Windows"}
    setup = next(step for step in job["steps"] if "setup-python" in step.get("uses", ""))
    versions = fill_in(setup["with"]["python-version"], job)
    assert all(isinstance(version, str) for version in versions)  # 3.10 as a number is 3.1
    assert set(versions) == pythons_of_the_project()


@pytest.mark.parametrize(("name", "job"), list_jobs())
def test_steps_can_run(name: str, job: dict[str, Any]) -> None:
    for step in job["steps"]:
        assert ("uses" in step) != ("run" in step), name
        if "uses" in step:
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]), step
            for version in fill_in(str(step.get("with", {}).get("python-version", "3.14")), job):
                assert version in pythons_of_the_project()
            continue
        for command in step["run"].splitlines():
            check_command(shlex.split(command))


def check_command(words: list[str]) -> None:
    assert words[:2] == ["python", "-m"] and words[2] in PROGRAMS, words
    files = [word for word in words[3:] if "/" in word or word.endswith((".py", ".txt", ".toml", ".yml"))]
    for file in files:
        assert (ROOT / file).exists(), f"{file} is not there"
    if words[2] == "pytest":
        assert files, "without files the whole suite would run"


def test_a_file_that_is_not_there_is_found() -> None:
    with pytest.raises(AssertionError, match=r"tests/test_gone\.py is not there"):
        check_command(["python", "-m", "pytest", "tests/test_gone.py"])
    with pytest.raises(AssertionError):
        check_command(["pytest", "tests"])


def test_extras_that_are_installed_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for _, job in list_jobs():
        commands = " ".join(step.get("run", "") for step in job["steps"])
        for extras in re.findall(r"\.\[([\w,]+)\]", commands):
            assert set(extras.split(",")) <= set(project["optional-dependencies"])
