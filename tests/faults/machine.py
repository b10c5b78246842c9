"""The machine around a run: clock, shared memory, threads, ranks, memory, and numbers that are not finite."""

import datetime
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from byol.config import load_config
from byol.data.pack import batches
from byol.data.pack.packed import open_pack
from byol.method.schedule import Plan
from byol.runfolder import checkpoint
from byol.training import loop, step
from faults import system
from faults.children import Child, run
from faults.results import Job, Result
from faults.scene import (
    LONG,
    OUTPUT,
    RUN,
    SHORT,
    explain,
    find_losses,
    finish,
    start_anew,
    take_fingerprint,
    train_command,
)
from faults.shim import Fault

_GROUP = "The machine"
_SAME = "the same command continues and ends identical"


def _expect(length: tuple[str, ...] = SHORT) -> dict[str, str]:
    start_anew()
    assert (done := run(*train_command(length))).code == 0, explain(done)
    return take_fingerprint(Path(RUN))


# ---- The clock


def _set_clock(offset_s: float) -> None:
    """Python's clocks of the day are off by so much in this process."""
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() + offset_s
    time.time_ns = lambda: now_ns() + int(offset_s * 1e9)

    class Shifted(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.datetime.now(tz) + datetime.timedelta(seconds=offset_s)

    for name, module in list(sys.modules.items()):
        if name.startswith("byol.") and getattr(module, "datetime", None) is datetime.datetime:
            module.datetime = Shifted  # type: ignore[attr-defined]


def clock_set_back(offset_s: float) -> Result:
    """A run is stopped and continues at an earlier time: its files are of the future."""
    expected, problems, tried = _expect(), list[str](), 0
    start_anew()
    total = run(*train_command(), fault=Fault(pattern=OUTPUT)).count
    for share in (0.3, 0.6, 0.9):
        start_anew()
        run(*train_command(), fault=Fault(int(total * share), pattern=OUTPUT, signal=signal.SIGKILL))
        ended = run(*train_command(), prepare=partial(_set_clock, offset_s))
        problems += [] if ended.code == 0 else [explain(ended)]
        problems += find_losses(Path(RUN), expected)
        for command in (["eval", RUN], ["report", RUN]):
            ended = run(*command, prepare=partial(_set_clock, offset_s))
            problems += [] if ended.code == 0 else [f"{command[0]}: {explain(ended)}"]
        tried += 3
    ends = Counter({"identical": tried}) if not problems else Counter()
    how = f"after a kill, time.time and datetime are off by {offset_s / 86400:+.0f} days"
    promised = f"{_SAME}; eval and report work"
    return Result(_GROUP, "The clock is set back or ahead", how, promised, tried, ends, tuple(problems))


# ---- Shared memory, threads


def small_shared_memory() -> Result:
    """`/dev/shm` as in a container."""
    expected, problems, sizes = _expect(), list[str](), ("64m", "64k")
    for size in sizes:
        start_anew()
        for command in (train_command(), ["eval", RUN], ["report", RUN]):
            ended = run(*command, prepare=system.mount_memory("/dev/shm", size))
            problems += [] if ended.code == 0 else [f"{command[0]}: {explain(ended)}"]
        problems += find_losses(Path(RUN), expected)
    ends = Counter({"done, identical": 3 * len(sizes)}) if not problems else Counter()
    how = "a tmpfs of 64 MB, and of 64 kB, on /dev/shm, in train, eval and report"
    promised = "byol puts nothing there: all is done, identical"
    return Result(_GROUP, "Small /dev/shm", how, promised, 3 * len(sizes), ends, tuple(problems))


def _break(owner: Any, name: str, number: int, error: BaseException) -> None:
    """The n-th call of a function fails."""
    real, calls = getattr(owner, name), [0]

    def failing(*arguments: Any, **others: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            raise error
        return real(*arguments, **others)

    setattr(owner, name, failing)


def dead_reader(*, num: int) -> Result:
    """A thread that reads batches dies."""
    expected, ends, problems = _expect(LONG), Counter[str](), list[str]()
    errors = (OSError(5, "Input/output error"), MemoryError("no memory"))
    for number in range(num):
        start_anew()
        error = errors[number % len(errors)]
        prepare = partial(_break, batches.HostStore, "prepare", 1 + 31 * number // num, error)
        ended = run(*train_command(LONG), prepare=prepare)
        if not ended.is_clear or ended.seconds > 60:
            problems.append(f"{type(error).__name__}: {explain(ended)}")
        wrong = finish(train_command(LONG), Path(RUN), expected)
        ends["ended at once, then identical"] += not wrong
        problems += wrong
    promised = f"the command ends at once, in one clear line, instead of waiting for ever; {_SAME}"
    how = "EIO or MemoryError in the thread that makes the n-th batch"
    return Result(_GROUP, "A thread that reads images dies", how, promised, num, ends, tuple(problems))


# ---- Ranks


def _become_rank(rank: int, port: int, limit_s: float) -> None:
    """This process as one of two that torchrun started."""
    from byol.device import ranks

    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    ranks._TIMEOUT = ranks._PATIENCE = datetime.timedelta(seconds=limit_s)


def _start_ranks(port: int, *, limit_s: float) -> list[Child]:
    return [
        Child(train_command(LONG), prepare=partial(_become_rank, rank, port, limit_s)) for rank in range(2)
    ]


def dead_rank(name: str, *, num: int, first_port: int) -> Result:
    """One of two ranks is killed, or stops without a word."""
    is_hung = name == "SIGSTOP"
    start_anew()
    whole = [child.wait() for child in _start_ranks(first_port, limit_s=60)]
    assert all(ended.code == 0 for ended in whole), [explain(ended) for ended in whole]
    expected, ends, problems = take_fingerprint(Path(RUN)), Counter[str](), list[str]()
    for turn in range(num):
        start_anew()
        both = _start_ranks(first_port + 2 * turn + 1, limit_s=6 if is_hung else 60)
        while not checkpoint.list_checkpoints(Path(RUN)) and not any(child.poll() for child in both):
            time.sleep(0.002)
        time.sleep(0.07 * turn)
        victim, other = (both[turn % 2], both[1 - turn % 2])
        victim.send(getattr(signal, name))
        ended = other.wait(limit_s=60)
        victim.send(signal.SIGKILL)
        victim.wait()
        if ended.code == -signal.SIGKILL:
            problems.append(f"turn {turn}: the other rank waited for ever")
        elif ended.code == 0:
            ends["was done"] += 1
        elif not (ended.is_clear and "another rank" in ended.err):
            problems.append(f"turn {turn}: {explain(ended)}")
        again = [child.wait() for child in _start_ranks(first_port + 2 * turn + 2, limit_s=60)]
        problems += [f"turn {turn}: again: {explain(end)}" for end in again if end.code != 0]
        wrong = find_losses(Path(RUN), expected)
        ends["the other one ends, then identical"] += not wrong and ended.code != 0
        problems += [f"turn {turn}: {text}" for text in wrong]
    what = "hangs" if is_hung else "is killed"
    limit = " within the time-out (10 minutes, 6 s here)" if is_hung else ""
    promised = f"the other rank ends in one clear line{limit}; both started again continue and end identical"
    how = f"{name} to one of two ranks on CPUs, after the first checkpoint"
    return Result(_GROUP, f"A rank {what}", how, promised, num, ends, tuple(problems))


def killed_under_torchrun(*, num: int) -> Result:
    """torchrun starts the ranks again when one is killed."""
    start_anew()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, "--max-restarts=1", "-m", "byol", *train_command(LONG)]
    assert subprocess.run(command, capture_output=True).returncode == 0
    expected, ends, problems = take_fingerprint(Path(RUN)), Counter[str](), list[str]()
    for turn in range(num):
        start_anew()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as agent:
            while not checkpoint.list_checkpoints(Path(RUN)) and agent.poll() is None:
                time.sleep(0.01)
            ranks = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
            os.kill(int(ranks[turn % len(ranks)]), signal.SIGKILL)
            said = agent.communicate(timeout=300)[0].decode(errors="replace")
        wrong = find_losses(Path(RUN), expected)
        wrong += [] if agent.returncode == 0 else [f"exit {agent.returncode}, {said[-600:]}"]
        ends["started again, identical"] += not wrong
        problems += [f"turn {turn}: {text}" for text in wrong]
    how = "SIGKILL to one of two ranks on CPUs, after the first checkpoint; `torchrun --max-restarts=1`"
    promised = "torchrun starts the ranks again, the run continues and ends identical"
    return Result(_GROUP, "A rank is killed under torchrun", how, promised, num, ends, tuple(problems))


# ---- Numbers that are not finite


def _spoil(numbers: Sequence[int], value: float, place: str) -> None:
    """The loss, or one gradient, of the steps with these numbers (from 1) is this value, once."""
    real: Callable[..., step.Computed] = loop.compute_within_memory
    calls = [0]

    def spoiled(network: torch.nn.Module, *arguments: Any, **others: Any) -> step.Computed:
        computed = real(network, *arguments, **others)
        calls[0] += 1
        if calls[0] not in numbers:
            return computed
        if place == "gradient":
            given = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
            given[len(given) // 2].view(-1)[0] = value
            return computed
        return replace(computed, loss=torch.full_like(computed.loss, value))

    loop.compute_within_memory = spoiled  # type: ignore[assignment]


_VALUES = (float("nan"), float("inf"), float("-inf"))


def _find_not_finite() -> list[str]:
    """What of the weights and of the optimizer of the run is not finite."""
    state, problems = checkpoint.read_latest(Path(RUN))
    assert state is not None and not problems, problems
    momentum = {str(key): value["momentum_buffer"] for key, value in state["optimizer"]["state"].items()}
    return [f"{key} is not finite" for key, value in {**state["byol"], **momentum}.items()
            if not bool(torch.isfinite(value).all())]  # fmt: skip


def not_finite(place: str, *, num: int) -> Result:
    """A loss or gradient of NaN or infinity at one step."""
    ends, problems = Counter[str](), list[str]()
    for number in range(num):
        start_anew()
        at = 31 * number // num
        ended = run(*train_command(LONG), prepare=partial(_spoil, (at + 1,), _VALUES[number % 3], place))
        wrong = [] if ended.code == 0 else [f"step {at}: {explain(ended)}"]
        wrong += [] if f"did not apply step {at}," in ended.out else [f"step {at} is not named"]
        wrong += [] if Path(RUN, "skipped", f"step-{at:08d}.json").exists() else [f"step {at} is not kept"]
        wrong += _find_not_finite()
        ends["not applied, named, and the run went on"] += not wrong
        problems += wrong
    promised = "the step is not applied, a line and a file name it, and the run goes on to its end"
    how = f"NaN, infinity or minus infinity as the {place} of a step"
    return Result(_GROUP, f"A {place} that is not finite", how, promised, num, ends, tuple(problems))


def three_not_finite(*, num: int) -> Result:
    """Three steps in a row, once: the run goes back. At each computation: it stops."""
    ends, problems = Counter[str](), list[str]()
    for number in range(num):
        start_anew()
        at = 4 + 24 * number // num  # there is a checkpoint before
        once = tuple(range(at + 1, at + 4))
        ended = run(*train_command(LONG), prepare=partial(_spoil, once, _VALUES[number % 3], "loss"))
        wrong = [] if ended.code == 0 and "going back to the checkpoint" in ended.out else [explain(ended)]
        wrong += _find_not_finite()
        ends["went back, and on with half the learning rate"] += not wrong
        problems += wrong
        start_anew()
        always = tuple(range(at + 1, 1000))
        ended = run(*train_command(LONG), prepare=partial(_spoil, always, _VALUES[number % 3], "loss"))
        wrong = [] if ended.is_clear and "not finite" in ended.err else [explain(ended)]
        wrong += _find_not_finite()
        ends["stopped in one line, with the last good checkpoint"] += not wrong
        problems += wrong
    promised = (
        "back to the last checkpoint with half the learning rate; the second time one line with the cause"
    )
    how = "NaN or infinity as the loss of three steps in a row, once and from then on always"
    return Result(_GROUP, "Three steps in a row", how, promised, 2 * num, ends, tuple(problems))


# ---- Memory


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def flat_memory(*, num_steps: int) -> Result:
    """Memory of the process over many steps of the loader."""
    _expect()
    packed = open_pack(next(path.parent for path in Path("runs/packs").glob("*/pack.json")))
    config = load_config(Path(RUN, "config.yaml"), ["trainer.max_epochs=100000"], preset=None)
    plan = Plan.of(config, num_images=len(packed))
    seen = []
    with batches.Batches(
        packed, plan, rows=slice(0, 8), device=torch.device("cpu"), first_step=0, memory="map"
    ) as loader:
        for number, batch in zip(range(num_steps + 1), loader, strict=False):
            assert batch.images.shape[0] == 8
            if number * 10 % num_steps == 0:
                seen.append(_resident_bytes())
    grown = (seen[-1] - seen[1]) / 1e6
    problems = [f"grew by {grown:.1f} MB"] if grown > 4.0 else []
    ends = Counter({f"grew by {max(0.0, grown):.1f} MB": 1})
    how = f"{num_steps:,} steps of the loader; resident memory after a tenth of them and at the end"
    return Result(_GROUP, "Memory over many steps", how, "grows by less than 4 MB", 1, ends, tuple(problems))


def list_jobs(*, short: bool) -> Iterator[Job]:
    """All of them, each for a process and a folder of its own."""
    for days in (-400, 30):
        yield partial(clock_set_back, days * 86400.0)
    if system.can_mount():
        yield small_shared_memory
    yield partial(dead_reader, num=2 if short else 12)
    port = 20_000 + os.getpid() % 20_000
    yield partial(dead_rank, "SIGKILL", num=1 if short else 6, first_port=port)
    yield partial(dead_rank, "SIGSTOP", num=1 if short else 2, first_port=port + 100)
    if not short:
        yield partial(killed_under_torchrun, num=2)
    for place in ("loss", "gradient"):
        yield partial(not_finite, place, num=2 if short else 12)
    yield partial(three_not_finite, num=1 if short else 6)
    yield partial(flat_memory, num_steps=2_000 if short else 20_000)
