"""The suite of faults: a few of each kind hold, and a product that breaks its promises is found."""

import subprocess
import sys

import pytest

from shell_commands import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="fork, and files in /proc"),
]

# A product whose files are written in place, so that a kill leaves half of one.
IN_PLACE = """
def write_in_place(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(content) if isinstance(content, bytes) else content(file)

import byol.base.files
byol.base.files.write_atomically = write_in_place
"""
# A product that continues without the momentum of its optimizer.
FORGETFUL = """
import torch
load = torch.optim.SGD.load_state_dict
torch.optim.SGD.load_state_dict = lambda optimizer, state: load(optimizer, {**state, "state": {}})
"""
# A product that applies every step.
CARELESS = """
import torch
from byol.training import guard
guard.torch = type("torch", (), {**vars(torch), "isfinite": lambda values: torch.ones_like(values).bool()})
"""


def run(before: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, 'tests')\n{before}\nfrom faults.suite import main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "--smoke", "--jobs", "1", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


def test_a_few_of_each_kind() -> None:
    ended = run("")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "BROKEN" not in ended.stdout and " faults in " in ended.stdout


@pytest.mark.parametrize(
    ("product", "group", "said"),
    [
        (IN_PLACE, "kills", "SIGKILL in the middle of every file operation of a run: operation"),
        (FORGETFUL, "kills", "differs"),
        (CARELESS, "machine", "BROKEN A gradient that is not finite"),
    ],
    ids=["in place", "forgetful", "careless"],
)
def test_a_broken_promise_is_found(product: str, group: str, said: str) -> None:
    ended = run(product, "--only", group)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    broken = [line for line in ended.stdout.splitlines() if line.startswith("BROKEN")]
    assert any(said in line for line in broken), ended.stdout
