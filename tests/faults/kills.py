"""Kills and signals, at random moments and in the middle of file operations; then the same command again."""

import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from faults.children import Child, Ended, run
from faults.results import Job, Result
from faults.scene import (
    LONG,
    OUTPUT,
    RUN,
    explain,
    find_losses,
    find_newest,
    finish,
    start_anew,
    take_fingerprint,
    train_command,
)
from faults.shim import Fault

_GROUP = "Kills and signals"
_SAME = "the same command continues and ends identical; a metric line a step"
_SAVED = f"a checkpoint of the step it stopped at, exit code 128 + signal; {_SAME}"
_STOPS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP")


def random_moments(name: str, *, num: int, seed: int) -> Result:
    """A run that is hit `num` times at random moments, over as many runs as it takes."""
    moments = random.Random(seed)
    command, number = train_command(LONG), getattr(signal, name)
    start_anew()
    run(*command)
    expected, ends, problems = take_fingerprint(Path(RUN)), Counter[str](), list[str]()
    start_anew()
    hit = 0
    while hit < num:
        child = Child(command)
        time.sleep(moments.uniform(0.02, 0.6))
        child.send(number)
        ended = child.wait()
        if ended.code == 0:
            problems += find_losses(Path(RUN), expected)
            start_anew()
            continue
        hit += 1
        problems += _judge_stop(ended, number, ends)
    problems += finish(command, Path(RUN), expected)
    is_kill = name == "SIGKILL"
    return Result(
        _GROUP, f"{name} at a random moment", "sent to a run of 32 steps with a checkpoint every second one",
        _SAME if is_kill else _SAVED, hit, ends, tuple(problems),
    )  # fmt: skip


def _judge_stop(ended: Ended, number: int, ends: Counter[str]) -> list[str]:
    """Whether a signal ended a training as it should."""
    if ended.code == -number:
        ends["killed" if number == signal.SIGKILL else "ended before torch was ready"] += 1
        return []
    if ended.code != 128 + number or "Traceback" in ended.err:
        return [f"signal {number}: {explain(ended)}"]
    said = re.search(r"stopped by \S+.* after step ([\d,]+) of", ended.out)
    if said is None:
        ends["interrupted before the first step, what is packed stays"] += 1
        return []
    ends["saved and stopped"] += 1
    newest = find_newest(Path(RUN))
    if newest == int(said[1].replace(",", "")):
        return []
    return [f"said step {said[1]}, the newest checkpoint is of step {newest}"]


def double_interrupt(*, num: int, seed: int) -> Result:
    """Ctrl-C twice."""
    moments = random.Random(seed)
    command = train_command(LONG)
    start_anew()
    run(*command)
    expected, ends, problems = take_fingerprint(Path(RUN)), Counter[str](), list[str]()
    for _ in range(num):
        start_anew()
        child = Child(command)
        time.sleep(moments.uniform(0.1, 0.6))
        child.send(signal.SIGINT)
        child.send(signal.SIGINT)
        ended = child.wait()
        if ended.code not in (0, 130) or "Traceback" in ended.err:
            problems.append(f"twice SIGINT: {explain(ended)}")
        ends["stopped at once" if ended.code == 130 else "was done"] += 1
        problems += finish(command, Path(RUN), expected)
    promised = f"stops without another save, exit code 130; {_SAME}"
    return Result(
        _GROUP, "Ctrl-C twice", "SIGINT twice at a random moment", promised, num, ends, tuple(problems)
    )


def in_every_operation(*, part: int, parts: int, stride: int) -> Result:
    """kill -9 in the middle of every operation on a file of a whole run, packing included."""
    command = train_command()
    start_anew()
    counted = run(*command, fault=Fault(pattern=OUTPUT))
    expected, ends, problems, tried = take_fingerprint(Path(RUN)), Counter[str](), list[str](), 0
    for number in range(1 + part * stride, counted.count + 1, parts * stride):
        start_anew()
        ended = run(*command, fault=Fault(number, pattern=OUTPUT, signal=signal.SIGKILL))
        tried += 1
        if ended.code != -signal.SIGKILL:
            problems.append(f"operation {number}: {explain(ended)}")
            continue
        wrong = finish(command, Path(RUN), expected)
        ends["identical"] += not wrong
        problems += [f"operation {number}: {text}" for text in wrong]
    how = "the shim kills in an open, write (half of it done), fsync, rename, mkdir, unlink and truncate"
    return Result(
        _GROUP,
        "SIGKILL in the middle of file operations of a run",
        how,
        _SAME,
        tried,
        ends,
        tuple(problems),
    )


def stopped_in_operations(name: str, *, num: int, seed: int) -> Result:
    """A signal in the middle of writing a checkpoint, metrics or the pack."""
    command, chosen = train_command(), random.Random(seed)
    number = getattr(signal, name)
    start_anew()
    counted = run(*command, fault=Fault(pattern=OUTPUT))
    expected, ends, problems = take_fingerprint(Path(RUN)), Counter[str](), list[str]()
    for place in sorted(chosen.sample(range(1, counted.count + 1), num)):
        start_anew()
        ended = run(*command, fault=Fault(place, pattern=OUTPUT, signal=number))
        if ended.code == 0:  # in the last step: there was nothing left to stop
            ends["was done"] += 1
            problems += find_losses(Path(RUN), expected)
            continue
        problems += _judge_stop(ended, number, ends)
        problems += [f"operation {place}: {text}" for text in finish(command, Path(RUN), expected)]
    how = "the shim sends it in the middle of file operations, drawn at random"
    return Result(_GROUP, f"{name} while files are written", how, _SAVED, num, ends, tuple(problems))


# ---- Other commands


def _results_of(paths: tuple[str, ...]) -> dict[str, object]:
    """The files of a command, but for times and for the checksums that these change."""
    dropped = rb'"(seconds|sha256)": "?[0-9a-f.e-]+'
    return {path: re.sub(dropped, b"", Path(path).read_bytes()) for path in paths}


def kill_command(
    title: str, arguments: tuple[str, ...], files: tuple[str, ...], clean: tuple[str, ...], *, stride: int
) -> Result:
    """kill -9 in the middle of file operations of a command that is given after a training."""
    start_anew()
    trained = run(*train_command())
    assert trained.code == 0, explain(trained)
    run(*arguments)  # packs what it needs
    before = take_fingerprint(Path(RUN))
    for path in clean:
        _remove(Path(path))
    counted = run(*arguments, fault=Fault(pattern=OUTPUT))
    expected, ends, problems, tried = _results_of(files), Counter[str](), list[str](), 0
    for number in range(1, counted.count + 1, stride):
        for path in clean:
            _remove(Path(path))
        ended = run(*arguments, fault=Fault(number, pattern=OUTPUT, signal=signal.SIGKILL))
        tried += 1
        again = run(*arguments)
        if ended.code != -signal.SIGKILL or again.code != 0:
            problems.append(f"operation {number}: {explain(ended)}; again: {explain(again)}")
            continue
        wrong = [path for path, content in _results_of(files).items() if content != expected[path]]
        wrong += find_losses(Path(RUN), before) if number % 10 == 1 else []
        ends["identical"] += not wrong
        problems += [f"operation {number}: {path} differs" for path in wrong]
    return Result(
        _GROUP, f"SIGKILL in the middle of file operations of {title}", "as for a run",
        "the same command gives the same result; the run is as it was", tried, ends, tuple(problems),
    )  # fmt: skip


def _remove(path: Path) -> None:
    if path.is_dir():
        for each in path.rglob("*"):
            if each.is_file():
                each.unlink()
    path.unlink(missing_ok=True) if path.is_file() else None


def list_jobs(*, short: bool) -> Iterator[Job]:
    """All of them, each for a process and a folder of its own."""
    num, stride = (3, 40) if short else (12, 2)
    parts = 1 if short else 4
    for part in range(parts):
        yield partial(in_every_operation, part=part, parts=parts, stride=stride)
    for seed, name in enumerate(("SIGKILL", *_STOPS)):
        yield partial(random_moments, name, num=4 * num if name == "SIGKILL" else num, seed=seed)
        if name != "SIGKILL":
            yield partial(stopped_in_operations, name, num=num, seed=seed)
    yield partial(double_interrupt, num=num, seed=7)
    evaluated = ("runs/a/eval.json", "runs/a/measures.json", "runs/a/prototypes.csv")
    commands: tuple[tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...], int], ...] = (
        ("byol eval (feature cache included)", ("eval", RUN), evaluated, ("runs/a/features", *evaluated), 6),
        ("byol report", ("report", RUN), ("runs/a/report.html",), ("runs/a/report.html",), 2),
        (
            "byol finetune", ("finetune", RUN, "-o", "runs/f", "--epochs", "1"),
            ("runs/f/finetune.json", "runs/f/classifier.safetensors", "runs/f/encoder.safetensors"), (), 2,
        ),
        (
            "byol embed", ("embed", RUN, "images", "-o", "runs/f.npz"), ("runs/f.npz",), ("runs/f.npz",), 1,
        ),
    )  # fmt: skip
    for title, arguments, files, clean, step in commands:
        job: Callable[[], Result] = partial(
            kill_command, title, arguments, files, clean, stride=step * (8 if short else 1)
        )
        yield job
