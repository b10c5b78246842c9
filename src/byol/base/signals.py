"""Signals that ask a training to save and stop: from a person, a batch system or a closing terminal.

    SIGTERM, SIGUSR1, SIGUSR2   save and stop; batch systems send one of them before they kill
    SIGINT (Ctrl-C)             save and stop; a second one stops at once
    SIGHUP                      the terminal has been closed: save and stop, unless it is ignored (`nohup`)

Before there are steps to save, while images are packed, each of them interrupts at once.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from byol.base.console import leave_terminal
from byol.base.errors import Interrupted

# torchrun sends Ctrl-C again to ranks that already got it from the terminal: one press gives two signals.
_ONE_PRESS_S = 1.0
_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP")

_Handler = Callable[[int, FrameType | None], None]


class StopSignal:
    """Records a signal so that the training loop can stop; a second Ctrl-C interrupts at once.

    In Python only the main thread can handle signals: in other threads, no signals are recorded.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._heard_s = 0.0

    @contextmanager
    def listen(self) -> Iterator["StopSignal"]:
        """Handle the signals while the block runs, then restore the earlier handlers."""
        with _handled_by(self._note, _NAMES):
            yield self

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        is_second = self.name is not None and number == signal.SIGINT
        if is_second and not ("TORCHELASTIC_RUN_ID" in os.environ and now - self._heard_s < _ONE_PRESS_S):
            raise KeyboardInterrupt
        if self.name is None:
            self.name, self._heard_s = signal.Signals(number).name, now
        if self.name == "SIGHUP":
            leave_terminal()


def show_signal(name: str) -> str:
    """Return the name of a signal as people know it."""
    return "Ctrl-C" if name == "SIGINT" else name


@contextmanager
def interrupting() -> Iterator[None]:
    """Let the signals interrupt the block as Ctrl-C does, so that files and processes are closed properly.

    Raises:
        Interrupted: a signal came; Ctrl-C still raises KeyboardInterrupt.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if name == "SIGHUP":
            leave_terminal()
        raise Interrupted(name)

    with _handled_by(interrupt, [name for name in _NAMES if name != "SIGINT"]):
        yield


@contextmanager
def _handled_by(handler: _Handler, names: tuple[str, ...] | list[str]) -> Iterator[None]:
    """Handle the signals that the system has, except an ignored SIGHUP, while the block runs."""
    known = [getattr(signal, name) for name in names if hasattr(signal, name)]
    hears = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in known} if hears else {}
    hang_up = getattr(signal, "SIGHUP", None)
    if before.get(hang_up) is signal.SIG_IGN:
        del before[hang_up]
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
