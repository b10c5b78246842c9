"""byol's commands in forked children: torch is imported once, so that a command takes a second.

A child is a copy of this process, which must have no other threads. Its output goes into a file.
"""

import contextlib
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults.shim import Fault, arm

LIMIT_S = 300.0  # a command that takes longer hangs


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int  # of the exit; -N: by signal N
    out: str
    err: str
    count: int  # operations that the shim has counted
    seconds: float
    seen: dict[str, int] = field(default_factory=dict)  # these by their kind

    @property
    def complaint(self) -> str:
        """What was said on standard error, shortened."""
        return self.err.strip()[-600:]

    @property
    def is_clear(self) -> bool:
        """Whether it failed with one line: no traceback, and an exit code of byol's own."""
        lines = self.err.strip().splitlines()
        return self.code in (1, 2) and len(lines) == 1 and lines[0].startswith("byol: ")


class Child:
    """A command that runs; `wait` for it, or send it signals before."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        fault: Fault | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        """`prepare` is called in the child before the command: it may change what it likes there."""
        self._base = Path(f".child-{os.getpid()}-{time.monotonic_ns()}")
        self._start_s = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _run(self._base, arguments, fault=fault, prepare=prepare)
        self._code: int | None = None

    def poll(self) -> bool:
        """Whether it has ended."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code is not None

    def send(self, number: int) -> None:
        """A signal, if it still runs."""
        if not self.poll():
            os.kill(self.pid, number)

    def wait(self, limit_s: float = LIMIT_S) -> Ended:
        """Its end. One that takes longer than the limit is killed: code -9."""
        while not self.poll():
            if time.monotonic() - self._start_s > limit_s:
                os.kill(self.pid, signal.SIGKILL)
                limit_s += 60.0
            time.sleep(0.002)
        assert self._code is not None
        texts = [self._take(suffix) for suffix in ("out", "err")]
        counted = self._base.with_suffix(".count")
        count, seen = 0, {}
        if counted.exists():
            count, seen = pickle.loads(counted.read_bytes())
            counted.unlink()
        return Ended(self._code, *texts, count, time.monotonic() - self._start_s, seen)

    def _take(self, suffix: str) -> str:
        path = self._base.with_suffix(f".{suffix}")
        text = path.read_text(errors="replace") if path.exists() else ""
        path.unlink(missing_ok=True)
        return text


def run(*arguments: str, fault: Fault | None = None, prepare: Callable[[], None] | None = None) -> Ended:
    """A command to its end."""
    return Child(arguments, fault=fault, prepare=prepare).wait()


def _run(
    base: Path, arguments: Sequence[str], *, fault: Fault | None, prepare: Callable[[], None] | None
) -> None:
    """In the child: the command, and the end of the process."""
    base = base.absolute()
    shim = None
    code = 99
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        for place, suffix in ((1, "out"), (2, "err")):
            file = os.open(base.with_suffix(f".{suffix}"), os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
            os.dup2(file, place)
            os.close(file)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
        from byol.cli.main import main

        if prepare is not None:
            prepare()
        if fault is not None:
            shim = arm(fault)
        code = main(list(arguments))
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    if shim is not None:
        shim.fault = Fault()
        base.with_suffix(".count").write_bytes(pickle.dumps((shim.count, dict(shim.seen))))
    os._exit(code)


def in_parallel(jobs: Sequence[Callable[[], Any]], *, most: int) -> list[Any]:
    """What each job returns, in their order; each runs in a forked copy of this process, `most` at once.

    Raises:
        RuntimeError: a job failed; its traceback is printed.
    """
    results: dict[int, Any] = {}
    running: dict[int, tuple[int, Path]] = {}
    waiting = list(enumerate(jobs))
    while waiting or running:
        while waiting and len(running) < most:
            place, job = waiting.pop(0)
            path = Path(f".job-{os.getpid()}-{place}").absolute()
            sys.stdout.flush()
            sys.stderr.flush()
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    path.write_bytes(pickle.dumps(job()))
                    code = 0
                except BaseException:
                    traceback.print_exc()
                sys.stderr.flush()
                os._exit(code)
            running[pid] = place, path
        pid, status = os.wait()
        if pid not in running:
            continue
        place, path = running.pop(pid)
        if status != 0:
            raise RuntimeError(f"job {place} failed")
        results[place] = pickle.loads(path.read_bytes())
        path.unlink()
    return [results[place] for place in range(len(jobs))]
