"""Signals: each asks to save and stop, a second Ctrl-C stops at once, and handlers come back."""

import os
import pty
import signal
import subprocess
import sys
import threading

import pytest

from byol.base.errors import Interrupted
from byol.base.signals import StopSignal, interrupting

NAMES = ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP"]


def send(name: str) -> None:
    os.kill(os.getpid(), getattr(signal, name))


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_is_a_wish_and_handlers_come_back(name: str) -> None:
    before = signal.getsignal(getattr(signal, name))
    with StopSignal().listen() as stop:
        assert stop.name is None
        send(name)
        send("SIGTERM")
        assert stop.name == name
    assert signal.getsignal(getattr(signal, name)) == before


@pytest.mark.parametrize("first", NAMES)
def test_ctrl_c_after_any_other_stops_at_once(first: str) -> None:
    with StopSignal().listen() as stop:
        send(first)
        assert stop.name == first
        with pytest.raises(KeyboardInterrupt):
            send("SIGINT")


def test_torchrun_passes_one_press_on_as_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    now_s = 100.0
    monkeypatch.setattr("byol.base.signals.time.monotonic", lambda: now_s)
    with StopSignal().listen() as stop:
        send("SIGINT")
        now_s += 0.5
        send("SIGINT")
        assert stop.name == "SIGINT"
        now_s += 1.0
        with pytest.raises(KeyboardInterrupt):
            send("SIGINT")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "SIGINT"])
def test_before_there_is_something_to_save_a_signal_interrupts(name: str) -> None:
    with pytest.raises(Interrupted) as stopped, interrupting():
        send(name)
    assert stopped.value.signal == name


def test_inside_the_loop_a_signal_is_a_wish_again() -> None:
    with interrupting():
        with StopSignal().listen() as stop:
            send("SIGUSR1")
        assert stop.name == "SIGUSR1"
        with pytest.raises(Interrupted):
            send("SIGUSR1")


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupting(), StopSignal().listen() as stop:
            send("SIGHUP")
            assert stop.name is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_hear_nothing() -> None:
    heard: list[str | None] = []

    def listen() -> None:
        with interrupting(), StopSignal().listen() as stop:
            heard.append(stop.name)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert heard == [None]


CLOSED = """
import os, sys, time
from byol.base.signals import StopSignal
with StopSignal().listen() as stop:
    os.write(3, b"r")
    while stop.name is None:
        time.sleep(0.01)
    print("into a terminal that is gone", flush=True)
    print("into a terminal that is gone", file=sys.stderr, flush=True)
    os.write(3, stop.name.encode())
"""


def test_a_closed_terminal_asks_to_stop_and_nothing_is_printed_into_it() -> None:
    """A real terminal: closing its other end sends SIGHUP, and writing to it fails from then on."""
    heard, tell = os.pipe()
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup pytest` ignores it, and so would the child
        os.dup2(tell, 3)
        os.execv(sys.executable, [sys.executable, "-c", CLOSED])
    os.close(tell)
    assert os.read(heard, 1) == b"r"
    os.close(terminal)
    assert os.read(heard, 100) == b"SIGHUP"
    os.close(heard)
    assert os.waitpid(child, 0)[1] == 0


def test_signals_that_the_system_lacks_are_no_error() -> None:
    program = (
        "import signal\n"
        "for name in ('SIGUSR1', 'SIGUSR2', 'SIGHUP'):\n    delattr(signal, name)\n"
        "from byol.base.signals import StopSignal, interrupting\n"
        "with interrupting(), StopSignal().listen():\n    pass\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
