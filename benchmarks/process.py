"""A system in a process of its own, which trains so many steps when told to and is stopped in between.

Started by `SystemProcess` as `python process.py PIPE JOB`. The process and its workers are one process
group: a stopped system does not read ahead while another one is measured.
"""

import os
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from measure import Memory, read_cpu_seconds, read_memory
from systems import Job, load

_LOOK_S = 0.05  # between two looks at the memory


@dataclass(frozen=True)
class Chunk:
    """Some steps: how long they took, and what the system's processes computed meanwhile."""

    seconds: float
    cpu_s: float | None


class SystemFailedError(Exception):
    """The system could not be built, or a step failed; the text is one line."""


class SystemProcess:
    """One system, from the start of its process; stopped whenever no command is under way."""

    def __init__(self, job: Job, *, timeout_s: float) -> None:
        """Start, and wait for the end of the first step.

        Raises:
            SystemFailedError: it failed, or took more than `timeout_s`; it has been ended.
        """
        self._pipe, theirs = Pipe()
        start = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, str(theirs.fileno()), job.to_json()],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"OMP_NUM_THREADS": str(job.threads)},
            start_new_session=True,
        )
        theirs.close()
        self.description: str = self._receive(timeout_s)["description"]
        self.first_step_s = time.perf_counter() - start
        self.memory: Memory | None = None  # the highest seen
        self.device_bytes: int | None = None  # the highest there was
        self._signal(signal.SIGSTOP)

    def run(self, steps: int, *, timeout_s: float, watch_memory: bool = False) -> Chunk:
        """Continue, train `steps` steps, and stop again.

        To watch the memory meanwhile costs time: not for timings.

        Raises:
            SystemFailedError: a step failed, or all together took more than `timeout_s`; it has been ended.
        """
        before = read_cpu_seconds(self._process.pid)
        self._signal(signal.SIGCONT)
        self._pipe.send(steps)
        answer = self._receive(timeout_s, watch_memory=watch_memory)
        self._signal(signal.SIGSTOP)
        after = read_cpu_seconds(self._process.pid)
        self._look_at_memory()
        self.device_bytes = answer["device_bytes"]
        cpu_s = after - before if after is not None and before is not None else None
        return Chunk(answer["seconds"], cpu_s)

    def kill(self) -> None:
        """End the process and its workers; a second time does nothing."""
        if not self._pipe.closed:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._pipe.close()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _receive(self, timeout_s: float, *, watch_memory: bool = False) -> dict[str, Any]:
        """The answer to a command; whatever goes wrong, the process is ended."""
        try:
            answer = self._wait(timeout_s, watch_memory=watch_memory)
        except BaseException:
            self.kill()
            raise
        if "error" in answer:
            self.kill()
            raise SystemFailedError(answer["error"])
        return answer

    def _wait(self, timeout_s: float, *, watch_memory: bool) -> dict[str, Any]:
        end = time.monotonic() + timeout_s
        while not self._pipe.poll(_LOOK_S if watch_memory else 1.0):
            if self._process.poll() is not None and not self._pipe.poll():
                raise SystemFailedError(f"ended with exit code {self._process.returncode}")
            if time.monotonic() > end:
                raise SystemFailedError(f"gave no answer in {timeout_s:.0f} s")
            if watch_memory:
                self._look_at_memory()
        try:
            answer: dict[str, Any] = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            raise SystemFailedError(f"ended with exit code {self._process.wait()}") from None
        return answer

    def _look_at_memory(self) -> None:
        now = read_memory(self._process.pid)
        if now is not None and (self.memory is None or now.all_bytes > self.memory.all_bytes):
            self.memory = now


# ---- In the process


def _serve(pipe: Connection, job: Job) -> None:
    """The first step unasked; then as many as each message says."""
    import torch

    torch.set_num_threads(job.threads)
    on_gpu = job.device == "cuda"
    system = load(job.system)(job)
    system.prepare()

    def run(steps: int) -> dict[str, Any]:
        start = time.perf_counter()
        for _ in range(steps):
            system.step()
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "device_bytes": torch.cuda.max_memory_allocated() if on_gpu else None}

    run(1)
    autocast = ", under bf16 autocast" if job.bf16 else ""
    pipe.send({"description": f"{system.description}{autocast}"})
    while True:
        pipe.send(run(pipe.recv()))


def _main() -> None:
    pipe = Connection(int(sys.argv[1]))
    try:
        _serve(pipe, Job.from_json(sys.argv[2]))
    except Exception as error:
        missing = isinstance(error, ImportError)
        if not missing:
            traceback.print_exc()
        words = " ".join(str(error).split())[:300]
        pipe.send({"error": f"not importable: {words}" if missing else f"{type(error).__name__}: {words}"})
    os._exit(1)  # without waiting for workers


if __name__ == "__main__":
    _main()
