"""The suite of faults: a few of each kind hold, and a product that breaks its promises is found."""

import subprocess
import sys

import pytest

from shell_commands import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="fork, and files in /proc"),
]

# A product that compares no checksum of a checkpoint.
TRUSTING = """
from byol.runfolder import checkpoint

class Equal(str):
    def __ne__(self, other):
        return False

class Digest:
    def __init__(self, content):
        self.content = content

    def hexdigest(self):
        return Equal("0" * 64)

checkpoint.hashlib = type("hashlib", (), {"sha256": Digest})
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
    code = f"""import sys
sys.path.insert(0, "tests")
{before}
from faults.suite import main
sys.exit(main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", code, "--smoke", "--jobs", "1", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


def test_a_few_of_each_kind() -> None:
    ended = run("")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "BROKEN" not in ended.stdout and " faults in " in ended.stdout


@pytest.mark.parametrize(
    ("product", "group", "said"),
    [
        (TRUSTING, "damage", "BROKEN A checkpoint"),
        (FORGETFUL, "kills", "differs"),
        (CARELESS, "machine", "BROKEN A gradient that is not finite"),
    ],
    ids=["trusting", "forgetful", "careless"],
)
def test_a_broken_promise_is_found(product: str, group: str, said: str) -> None:
    ended = run(product, "--only", group)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    broken = [line for line in ended.stdout.splitlines() if line.startswith("BROKEN")]
    assert any(said in line for line in broken), ended.stdout
