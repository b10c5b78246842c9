"""Try the targets, each in a child process, and tell what was found.

Input number `i` of a target is a function of (seed, target, i), so that each can be repeated. A child has a
limit of memory. The number of its current input is in memory that it shares with the parent, which ends a
child that hangs and goes on behind the input that ended it.
"""

import argparse
import ctypes
import faulthandler
import json
import mmap
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

import torch

from byol.base.errors import ByolError
from fuzzing import guided
from fuzzing.targets import TARGETS, Try, prepare

LIMIT_S = 5.0  # for one input
LIMIT_BYTES = 2**29  # more memory than before, for one input
_DATA_BYTES = 2**31  # more than at the start of the child; then allocation fails
_KILL_S = 60.0  # a child that does not get on in this time hangs in compiled code


class HangError(Exception):
    """An input took longer than LIMIT_S."""


@dataclass(frozen=True)
class Finding:
    """An input for which a reader did anything but read or refuse it."""

    number: int
    kind: str  # type of the exception, or what else happened
    where: str  # the innermost line of byol
    text: str


@dataclass
class Tally:
    """What has become of the inputs of a target."""

    target: str
    tried: int = 0
    read: int = 0
    refused: int = 0  # with an error of byol
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)

    @property
    def distinct(self) -> list[Finding]:
        """The first finding of each kind at each place."""
        return list({(one.kind, one.where): one for one in reversed(self.findings)}.values())[::-1]


def main(arguments: Sequence[str]) -> int:
    """Try targets and print a table; the exit code."""
    parser = argparse.ArgumentParser(description="Damage what byol reads at random, and see what it does.")
    parser.add_argument("--target", action="append", help="its name or the start of it; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--count", type=int, help="inputs of each target")
    parser.add_argument("--minutes", type=float, help="in total (default: 1, without --count)")
    parser.add_argument("--guided", action="store_true", help="coverage-guided, by the package atheris")
    options = parser.parse_args(arguments)
    if options.guided:
        return guided.run_all(
            options.target or (), seconds=60.0 * (options.minutes or 1.0), seed=options.seed
        )
    wanted = options.target or [""]
    names = [name for name in TARGETS if name.startswith(tuple(wanted))]
    if not names:
        parser.error(f"--target: choose from {', '.join(TARGETS)}")
    minutes = options.minutes or (None if options.count else 1.0)
    seconds = None if minutes is None else 60.0 * minutes / len(names)
    tallies = [
        run(name, seed=options.seed, first=options.first, count=options.count, seconds=seconds)
        for name in names
    ]
    print(render(tallies))
    for tally in tallies:
        for one in tally.distinct:
            print(
                f"\n--target '{tally.target}' --seed {options.seed} --first {one.number} --count 1\n"
                f"{one.text}"
            )
    return 1 if any(tally.findings for tally in tallies) else 0


def render(tallies: Sequence[Tally]) -> str:
    """The table, as Markdown."""
    lines = ["| Target | Inputs | Read | Refused | Found | Inputs/s |", "|---|---:|---:|---:|---:|---:|"]
    for one in [*tallies, _sum(tallies)]:
        rate = one.tried / max(one.seconds, 1e-9)
        cells = (
            one.target,
            *(f"{n:,}" for n in (one.tried, one.read, one.refused, len(one.distinct))),
            f"{rate:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _sum(tallies: Sequence[Tally]) -> Tally:
    total = Tally("all")
    for one in tallies:
        total.tried, total.read, total.refused = (
            total.tried + one.tried,
            total.read + one.read,
            total.refused + one.refused,
        )
        total.seconds += one.seconds
        total.findings += [Finding(f.number, f.kind, f"{one.target} {f.where}", f.text) for f in one.findings]
    return total


def run(name: str, *, seed: int, count: int | None, seconds: float | None, first: int = 0) -> Tally:
    """Try inputs of a target until `count` or `seconds` is reached."""
    total, end = Tally(name), first + (count or 2**62)
    start = time.monotonic()
    while first < end and (seconds is None or time.monotonic() - start < seconds):
        left = None if seconds is None else seconds - (time.monotonic() - start)
        tally, ended_by = _in_child(name, seed=seed, first=first, end=end, seconds=left)
        total.tried, total.read = total.tried + tally.tried, total.read + tally.read
        total.refused, total.seconds = total.refused + tally.refused, total.seconds + tally.seconds
        total.findings += tally.findings
        first += tally.tried
        if ended_by is None:
            break
        total.findings.append(Finding(first, ended_by, "", f"the process ended: {ended_by}"))
        total.tried, first = total.tried + 1, first + 1
        if len(total.findings) > 100:
            break
    return total


def _in_child(
    name: str, *, seed: int, first: int, end: int, seconds: float | None
) -> tuple[Tally, str | None]:
    """What a child found, and how it ended before the end, at the input after those that it tried."""
    shared = mmap.mmap(-1, 3 * 8)
    counts = (ctypes.c_int64 * 3).from_buffer(shared)  # tried, read, refused
    with tempfile.TemporaryDirectory(prefix="byol-fuzz-") as folder:
        report = Path(folder) / "findings.jsonl"
        start = time.monotonic()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _serve(name, Path(folder), report, counts, seed=seed, first=first, end=end, seconds=seconds)
                code = 0
            except BaseException:
                traceback.print_exc(file=sys.__stdout__)
            finally:
                os._exit(code)
        ended_by = _watch(child, counts)
        findings = (
            [Finding(**json.loads(line)) for line in report.read_text().splitlines()]
            if report.exists()
            else []
        )
        if ended_by == "exit code 1":
            raise RuntimeError(f"fuzzing of {name} failed at input {first + counts[0]}")
        return Tally(name, *counts, time.monotonic() - start, findings), ended_by


def _watch(child: int, counts: "ctypes.Array[ctypes.c_int64]") -> str | None:
    """Wait for a child; how it ended, None: as it should."""
    before, since = -1, time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if os.WIFSIGNALED(status):
                return signal.Signals(os.WTERMSIG(status)).name
            return None if os.WEXITSTATUS(status) == 0 else f"exit code {os.WEXITSTATUS(status)}"
        if counts[0] != before:
            before, since = counts[0], time.monotonic()
        elif time.monotonic() - since > _KILL_S:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "a hang"
        time.sleep(0.02)


def _serve(
    name: str,
    folder: Path,
    report: Path,
    counts: "ctypes.Array[ctypes.c_int64]",
    *,
    seed: int,
    first: int,
    end: int,
    seconds: float | None,
) -> None:
    """The child: try inputs."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)  # libraries write about damaged files
    faulthandler.disable()  # that of pytest writes elsewhere
    attempt = prepare(name, folder / "files")
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (used + _DATA_BYTES, resource.RLIM_INFINITY))
    signal.signal(signal.SIGALRM, _raise_hang)
    start = time.monotonic()
    with report.open("a") as file:
        for number in range(first, end):
            if seconds is not None and time.monotonic() - start > seconds:
                return
            outcome = _try_one(attempt, Random(f"{seed} {name} {number}"), number)
            if isinstance(outcome, Finding):
                file.write(json.dumps(asdict(outcome)) + "\n")
                file.flush()
            else:
                counts[1 if outcome == "read" else 2] += 1
            counts[0] += 1


def _raise_hang(signum: int, frame: object) -> None:
    raise HangError(f"longer than {LIMIT_S:g} s")


def _try_one(attempt: Try, random: Random, number: int) -> Finding | str:
    before, start = _peak_bytes(), time.monotonic()
    outcome: Finding | str = "read"
    try:
        with _alarm():
            attempt(random)
    except ByolError as error:
        outcome = "refused"
        if len(str(error)) > 10_000:
            outcome = Finding(number, "long message", type(error).__name__, str(error)[:500])
    except BaseException as error:
        steps = traceback.extract_tb(error.__traceback__)
        ours = [step for step in steps if "/byol/" in step.filename]
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
        text = "".join(traceback.format_exception(error))
        outcome = Finding(number, type(error).__name__, where, text[-3000:])
    if _peak_bytes() - before > LIMIT_BYTES:
        grown = (_peak_bytes() - before) / 2**20
        outcome = Finding(number, "memory", "", f"{grown:.0f} MiB more than before")
    if time.monotonic() - start > LIMIT_S and not isinstance(outcome, Finding):
        outcome = Finding(number, "hang", "", f"{time.monotonic() - start:.1f} s")
    return outcome


@contextmanager
def _alarm() -> Iterator[None]:
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
