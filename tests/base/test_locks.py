"""Locks: one holder, named to others; freed by kill -9; nothing stops where there are none."""

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from filelock import FileLock

from byol.base import locks
from byol.base.locks import Holder, hold, read_holder

HOLD = """
import sys, time
from pathlib import Path
from byol.base.locks import hold
with hold(Path(sys.argv[1]), while_busy=print):
    print("held", flush=True)
    time.sleep(600)
"""


class Busy(Exception):
    """Another process holds the lock."""


def give_up(holder: Holder | None) -> NoReturn:
    raise Busy(holder)


@pytest.fixture
def other(tmp_path: Path) -> "subprocess.Popen[str]":
    """A process that holds `tmp_path/lock`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_the_second_learns_who_holds_it_and_a_kill_frees_it(
    other: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    with pytest.raises(Busy) as refused, hold(tmp_path / "lock", while_busy=give_up):
        pass
    holder = refused.value.args[0]
    assert (holder.pid, holder.host, holder.is_gone) == (other.pid, socket.gethostname(), False)
    assert f"process {other.pid} on {socket.gethostname()} (since 20" in str(holder)
    other.kill()
    other.communicate()
    left = read_holder(tmp_path / "lock")
    assert left is not None and left.is_gone
    with hold(tmp_path / "lock", while_busy=give_up) as refusal:
        mine = read_holder(tmp_path / "lock")
        assert refusal is None and mine is not None and mine.pid == os.getpid()
    assert read_holder(tmp_path / "lock") is None


def test_waiting_ends_when_the_holder_ends(other: "subprocess.Popen[str]", tmp_path: Path) -> None:
    seen: list[int] = []

    def note(holder: Holder | None) -> None:
        if holder is not None:
            seen.append(holder.pid)
        other.kill()
        other.communicate()

    with hold(tmp_path / "lock", while_busy=note):
        assert set(seen) == {other.pid}


def test_another_thread_or_call_of_the_same_process_is_another_writer(tmp_path: Path) -> None:
    with (
        hold(tmp_path / "lock", while_busy=give_up),
        pytest.raises(Busy),
        hold(tmp_path / "lock", while_busy=give_up),
    ):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_said(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with hold(tmp_path / "lock", while_busy=give_up) as refusal:
        assert refusal is not None and refusal.errno == number


@pytest.mark.parametrize("content", ["", "[1]", '{"pid": 1}', "\0"])
def test_a_record_that_cannot_be_read_is_no_record(content: str, tmp_path: Path) -> None:
    (tmp_path / "lock.json").write_text(content)
    assert read_holder(tmp_path / "lock") is None


def test_a_process_of_another_host_is_never_known_to_be_gone(tmp_path: Path) -> None:
    record = {"pid": 2**22 + 1, "host": "elsewhere", "since": "2026-01-01T00:00:00+00:00"}
    (tmp_path / "lock.json").write_text(json.dumps(record))
    holder = read_holder(tmp_path / "lock")
    assert holder is not None and not holder.is_gone
    assert Holder(record["pid"], socket.gethostname(), "").is_gone  # type: ignore[arg-type]
    assert locks.Holder.me().is_gone is False
