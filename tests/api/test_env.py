"""`byol env`: all of the machine, nothing of its user, also where libraries are broken."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

import byol
from byol.api import environment, probe
from byol.api.environment import Environment
from byol.base.packages import OPTIONAL, REQUIRED
from byol.cli.main import main
from byol.device import memory
from byol.kernels.cpu import instruction_set

FOUND: dict[str, Any] = {
    "build of torch": {"cuda": "13.0", "hip": None, "cudnn": "92400"},
    "instruction set": "avx2",
    "gpus": [{"kind": "cuda", "name": "NVIDIA H200", "memory_bytes": 150 * 10**9}],
    "compiler": "g++ 12.2.0",
    "kernels": {"compiled": True, "in_use": "compiled kernels (avx2)"},
    "threads": {"within_an_operation": 3, "between_operations": 2},
}


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the child process finds; tests change it."""
    answers = dict(FOUND)
    monkeypatch.setattr(environment, "run_probes", lambda: (answers, []))
    return answers


def choose_probes(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(probe, "PROBES", {name: probe.PROBES[name] for name in names})


def write_module(folder: Path, name: str, text: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(text, encoding="utf-8")


@pytest.mark.slow
def test_all_of_this_machine(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(byol.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "byol", "env", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert facts["problems"] == []
    assert facts["byol"]["version"] == byol.__version__
    assert facts["packages"]["torch"] == version("torch") and set(facts["packages"]) == set(REQUIRED)
    assert set(facts["optional"]) == set(OPTIONAL)
    assert facts["torch_build"]["version"] == torch.__version__
    assert facts["cpu"]["instruction_set"] == instruction_set()
    assert facts["threads"]["within_an_operation"] == 1
    assert facts["threads"]["variables"]["OMP_NUM_THREADS"] == "1"
    assert facts["kernels"]["in_use"] and len(facts["gpus"]) == torch.cuda.device_count()
    assert 0 < facts["memory"]["available_bytes"] <= facts["memory"]["total_bytes"]
    assert facts["disk"]["free_bytes"] > 0
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_text(found: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["byol"].startswith(byol.__version__)
    assert "NVIDIA H200 (cuda, 150.0 GB)" in lines["gpu"] and "cuda 13.0" in lines["gpu"]
    assert "compiled kernels (avx2)" in lines["kernels"] and "g++ 12.2.0" in lines["kernels"]
    assert "avx2" in lines["cpu"] and lines["threads"].startswith("torch uses 3")
    assert f"torch {version('torch')}" in lines["packages"]
    assert lines["problems"] == "none"


def test_python_gets_the_same(found: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    here = byol.environment()
    assert isinstance(here, Environment) and here.problems == []
    assert main(["env", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {**printed, "memory": {}, "disk": {}} == {**here.facts, "memory": {}, "disk": {}}
    assert str(here) == here.render() and repr(here).startswith("<byol.Environment")


def test_settings_are_refused(found: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "trainer.max_epochs=1"]) == 2
    assert "trainer.max_epochs=1" in capsys.readouterr().err


# ---- Broken and missing parts


def test_a_library_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_module(tmp_path, "torch", "print('noise')\nraise OSError('libcudart.so.13: not found\\nmore')")
    monkeypatch.syspath_prepend(tmp_path)
    choose_probes(monkeypatch, "pyyaml", "torch", "rich", "instruction set", "gpus", "kernels", "threads")
    found, problems = probe.run_probes()
    assert set(found) == {"pyyaml", "rich"}
    assert problems[0] == "torch: OSError: libcudart.so.13: not found"
    named = {problem.partition(":")[0] for problem in problems}
    assert named == {"torch", "instruction set", "gpus", "kernels", "threads"}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals")
def test_a_library_that_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_module(tmp_path, "torch", "import os, signal\nos.kill(os.getpid(), signal.SIGILL)")
    write_module(tmp_path, "timm", "import os\nos._exit(7)")
    monkeypatch.syspath_prepend(tmp_path)
    choose_probes(monkeypatch, "pyyaml", "torch", "timm", "rich")
    found, problems = probe.run_probes()
    assert set(found) == {"pyyaml", "rich"}
    assert len(problems) == 2
    assert problems[0].startswith("torch: ") and "SIGILL" in problems[0]
    assert problems[1].startswith("timm: ") and "exit code 7" in problems[1]


def test_a_library_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_module(tmp_path, "torch", "import time\ntime.sleep(600)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(probe, "TIME_LIMIT_S", 1)
    choose_probes(monkeypatch, "torch")
    found, problems = probe.run_probes()
    assert found == {} and len(problems) == 1
    assert problems[0].startswith("torch: ") and "1 s" in problems[0]


def test_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part fails, and the text still has every line."""

    def fail(*arguments: object) -> Any:
        raise OSError("nothing works")

    monkeypatch.setattr(environment, "run_probes", lambda: ({}, ["torch: broken"]))
    monkeypatch.setattr(environment, "SECTIONS", dict.fromkeys(environment.SECTIONS, fail))
    here = byol.environment()
    assert here.facts["byol"]["version"] == byol.__version__
    assert here.problems[0] == "torch: broken"
    assert {problem.partition(":")[0] for problem in here.problems[1:]} == set(environment.SECTIONS)
    names = {line.split()[0] for line in here.render().splitlines()}
    assert {"byol", "cpu", "memory", "gpu", "kernels", "threads", "disk", "packages", "problem"} <= names


def test_a_package_that_is_not_installed(found: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "OPTIONAL", {"no-such-package": "no_such_package"})
    here = byol.environment()
    assert here.facts["optional"] == {"no-such-package": None}
    assert "not installed: no-such-package" in here.render()


def test_a_container(found: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment.host, "cpu_quota", lambda: 1.5)
    monkeypatch.setattr(memory, "total_bytes", lambda: (64 * 10**9, 8 * 10**9))
    text = byol.environment().render()
    assert "limit 1.5" in text and "limit of the container 8.0 GB" in text


def test_a_checkout_names_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(tmp_path)]
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.setattr(environment, "SOURCE", tmp_path / "src")
    assert environment.describe_byol()["checkout"] is False
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "a"]):
        subprocess.run([*git, *arguments], check=True)
    described = environment.describe_byol()
    assert described["checkout"] is True and described["changed"] is False
    assert len(described["commit"]) == 12
    (tmp_path / "pyproject.toml").write_text("changed")
    assert environment.describe_byol()["changed"] is True
    monkeypatch.setenv("PATH", "")
    assert environment.describe_byol() | {"version": ""} == {
        "version": "", "checkout": True, "commit": None, "changed": None
    }  # fmt: skip


# ---- No secrets


def test_nothing_about_the_user(found: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/homes/alice smith")
    monkeypatch.setenv("USERPROFILE", "/homes/alice smith")
    monkeypatch.setenv("USER", "alice.s")
    monkeypatch.setenv("CXX", "/homes/alice smith/tools/g++")
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    monkeypatch.setattr(environment.platform, "node", lambda: "lab-box.example.org")
    said = (
        "kernels; /scratch/alice.s/cc, D:\\work\\alice.s\\lib.dll, ~/secret-project/x.so on LAB-BOX, "
        "/homes/alice smith/secret-project/y.h:3 and NVIDIA Ti/PCIe/SSE2"
    )
    found["kernels"] = {"compiled": True, "in_use": said}
    here = byol.environment()
    for text in (here.render(), here.to_json(), json.dumps(here.facts)):
        for secret in (
            "alice",
            "smith",
            "homes",
            "scratch",
            "secret",
            "work",
            "lab-box",
            "LAB-BOX",
            "hunter2",
        ):
            assert secret not in text
        for told in (".../cc", "lib.dll", ".../x.so", ".../y.h:3", "Ti/PCIe/SSE2", ".../g++"):
            assert told in text
