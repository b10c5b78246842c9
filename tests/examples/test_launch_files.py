"""The files in `examples/`: syntax, byol commands, and the Slurm script against a stand-in for `srun`."""

import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from shell_commands import ROOT, check_byol, split_commands

EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.sh"))
needs_bash = pytest.mark.skipif(shutil.which("bash") is None or os.name == "nt", reason="needs bash")


@needs_bash
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid_bash(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True, capture_output=True)
    assert path.read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\n# ")
    assert path.stat().st_mode & 0o111


def test_every_example_is_on_the_page_and_tested() -> None:
    names = {path.name for path in EXAMPLES.iterdir() if path.suffix != ".ipynb"}
    assert names == {"Dockerfile", "kubernetes.yaml", *(path.name for path in SCRIPTS)}
    page = (ROOT / "docs" / "machines.md").read_text(encoding="utf-8")
    assert all(f"`examples/{name}`" in page for name in names)


def test_commands_in_the_heads_of_the_files_work() -> None:
    """The comments show how a file is used; `byol` commands among them go through the real parser."""
    found = 0
    for path in (path for path in EXAMPLES.iterdir() if path.suffix != ".ipynb"):
        for line in re.findall(r"^#   (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE):
            (words,) = split_commands(line)
            if "byol" in words and words[0] == "docker" and words[1] == "run":
                check_byol(words[words.index("byol") + 1 :])
            found += 1
    assert found >= 6


def test_the_kubernetes_job_trains() -> None:
    volume, job = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text(encoding="utf-8"))
    assert (volume["kind"], job["kind"], job["apiVersion"]) == ("PersistentVolumeClaim", "Job", "batch/v1")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert all(isinstance(word, str) for word in container["args"])
    check_byol(container["args"])
    assert pod["restartPolicy"] == "OnFailure" and pod["terminationGracePeriodSeconds"] >= 60
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    claims = {item["name"]: item["persistentVolumeClaim"]["claimName"] for item in pod["volumes"]}
    assert mounted == set(claims) and set(claims.values()) == {volume["metadata"]["name"]}


def test_the_dockerfile_copies_what_there_is() -> None:
    text = (EXAMPLES / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    instructions = [name for name, _ in lines]
    assert instructions[0] == "FROM" and set(instructions) == {
        "FROM", "RUN", "COPY", "WORKDIR", "ENTRYPOINT", "CMD",
    }  # fmt: skip
    assert [rest for name, rest in lines if name == "ENTRYPOINT"] == ['["byol"]']
    copied = [word for name, rest in lines if name == "COPY" for word in shlex.split(rest)[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    # The package is built from these: the files that pyproject.toml names, and the sources.
    assert set(copied) == {"pyproject.toml", "README.md", "LICENSE", "src"}
    installed = next(rest for name, rest in lines if name == "RUN" and "pip install" in rest)
    extras = re.search(r'"/opt/byol\[([\w,]+)\]"', installed)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert extras and all(re.search(rf"^{name} = \[", project, re.MULTILINE) for name in extras[1].split(","))


# ---- Slurm

# What the script needs of the real ones: srun passes signals on, scontrol names hosts and requeues.
SRUN = """#!/usr/bin/env bash
echo "$@" > "$LOG/srun"
trap 'echo saved > "$LOG/saved"; exit 143' TERM
for i in $(seq "$STEPS"); do touch "$LOG/started"; sleep 0.05; done
exit "$CODE"
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = requeue ]; then echo "$2" > "$LOG/requeued"; else echo node1; echo node2; fi
"""


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[bytes]]:
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def start_job(*, steps: int, code: int = 0) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "LOG": str(tmp_path),
            "STEPS": str(steps),
            "CODE": str(code),
            "SLURM_JOB_ID": "17",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NODELIST": "node[1-2]",
        }
        command = [str(EXAMPLES / "slurm.sh"), "IMAGES/", "runs/cells", "trainer.max_epochs=3"]
        return subprocess.Popen(command, env=environment)

    return start_job


@needs_bash
@pytest.mark.parametrize("code", [0, 2])
def test_a_slurm_job_that_ends_is_not_queued_again(
    start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path, code: int
) -> None:
    assert start(steps=1, code=code).wait(timeout=60) == code
    assert not (tmp_path / "requeued").exists()
    words = (tmp_path / "srun").read_text().split()
    assert words[0] == "torchrun" and "--nnodes=2" in words and "--rdzv-endpoint=node1:29500" in words
    assert words[words.index("-m") + 1] == "byol"
    check_byol(words[words.index("byol") + 1 :])


@needs_bash
def test_a_slurm_job_at_its_time_limit_saves_and_is_queued_again(
    start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    job = start(steps=1000)
    for _ in range(600):
        if (tmp_path / "started").exists():
            break
        subprocess.run(["sleep", "0.05"], check=True)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == 143
    assert (tmp_path / "saved").exists() and (tmp_path / "requeued").read_text() == "17\n"
