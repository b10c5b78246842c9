"""Random damage: a few seconds of every target here, more in the slow test, most by `scripts/fuzz`."""

import json
import sys
from pathlib import Path
from random import Random

import pytest

from fuzzing import suite
from fuzzing.mutate import mend_png, mutate, mutate_value
from fuzzing.seeds import GREY, by_pillow
from fuzzing.targets import TARGETS

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="fork, and limits of the system"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


def check(tally: suite.Tally) -> None:
    found = [f"input {one.number}: {one.kind} {one.where}\n{one.text}" for one in tally.distinct]
    assert not found, "\n".join(found)
    assert tally.tried == tally.read + tally.refused


@pytest.mark.parametrize("name", TARGETS)
def test_some_inputs(name: str) -> None:
    tally = suite.run(name, seed=0, count=100 if name.startswith("image") else 20, seconds=None)
    check(tally)
    assert tally.tried >= 20 and tally.read > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_more_inputs(name: str) -> None:
    check(suite.run(name, seed=1, count=None, seconds=0.5))


# ---- The fuzzer itself


def test_an_input_is_a_function_of_its_number() -> None:
    one, two = (mutate(b"a,b\nc,d\n", [b"x"], Random("0 lists 7"), words=[b"w"]) for _ in range(2))
    assert one == two
    values = {"a": [1, {"b": None}], "c": "text"}
    assert {json.dumps(mutate_value(values, Random(f"{n}"))) for n in range(50)} != {json.dumps(values)}
    assert values == {"a": [1, {"b": None}], "c": "text"}


def test_a_mended_png_has_right_checksums() -> None:
    whole = by_pillow("PNG", GREY)
    assert mend_png(whole) == whole
    damaged = whole[:29] + b"\0\0\0\0" + whole[33:]  # the checksum of its header
    assert mend_png(damaged) == whole
    assert mend_png(whole[:40]) == whole[:40] and mend_png(b"") == b""


@pytest.mark.parametrize(
    ("does", "kind"),
    [
        ("raise KeyError('x')", "KeyError"),
        ("assert False", "AssertionError"),
        ("import time; time.sleep(60)", "HangError"),
        ("bytearray(b'x' * 2**30)", "memory"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import os; os._exit(3)", "exit code 3"),
    ],
)
def test_what_must_not_happen_is_found(does: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the third of five inputs; those behind it are tried, too."""
    monkeypatch.setattr(suite, "LIMIT_S", 0.2)

    def prepare(name: str, folder: Path) -> object:
        number = [0]

        def attempt(random: Random) -> object:
            if random.random() == Random("0 labels 2").random():
                exec(does)
            return number

        return attempt

    monkeypatch.setattr(suite, "prepare", prepare)
    tally = suite.run("labels", seed=0, count=5, seconds=None)
    assert [(one.number, one.kind) for one in tally.distinct] == [(2, kind)]
    assert tally.tried == 5 and tally.read == 4
    assert "| labels | 5 | 4 | 0 | 1 |" in suite.render([tally])
