"""Errors of the disk: full, over quota, too large a file, unreadable, without maps; and few file handles."""

import errno
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from byol.base import disk as reading
from byol.runfolder import checkpoint
from faults import system
from faults.children import Ended, run
from faults.results import Job, Result
from faults.scene import (
    IMAGES,
    OUTPUT,
    RUN,
    TAR,
    explain,
    find_losses,
    finish,
    start_anew,
    take_fingerprint,
    train_command,
    write_tar,
)
from faults.shim import READS, WRITES, Fault

_GROUP = "Disks"
_FULL = WRITES - {"unlink", "fsync"}  # what a full disk refuses
_CLEAR = (
    "one clear line, checkpoints stay whole; when there is space again the same command continues, identical"
)


def _expect(images: str = IMAGES) -> dict[str, str]:
    start_anew()
    assert (done := run(*train_command(images=images))).code == 0, explain(done)
    return take_fingerprint(Path(RUN))


def _judge(ended: Ended, expected: dict[str, str], ends: Counter[str], *, where: str) -> list[str]:
    """After an error of the disk: one line, nothing is damaged, and the same command continues."""
    if ended.code == 0:
        ends["went on without, identical"] += 1
        return [f"{where}: {text}" for text in find_losses(Path(RUN), expected)]
    problems = [] if ended.is_clear else [f"no clear line: {explain(ended)}"]
    for path in checkpoint.list_checkpoints(Path(RUN)):
        try:
            checkpoint.read(path)
        except Exception as error:
            problems.append(f"{path.name} is damaged: {error}")
    problems += finish(train_command(), Path(RUN), expected)
    ends["one clear line, then identical"] += not problems
    return [f"{where}: {text}" for text in problems]


def write_errors(number: int, *, lasting: bool, part: int, parts: int, stride: int) -> Result:
    """The n-th operation that writes fails, for all n; `lasting`: all after it as well."""
    expected = _expect()
    start_anew()
    operations = _FULL if lasting else WRITES
    counted = run(*train_command(), fault=Fault(operations=operations, pattern=OUTPUT))
    ends, problems, tried = Counter[str](), list[str](), 0
    for place in range(1 + part * stride, counted.count + 1, parts * stride):
        start_anew()
        wrong = Fault(place, operations, pattern=OUTPUT, error=number, lasting=lasting)
        ended = run(*train_command(), fault=wrong)
        tried += 1
        problems += _judge(ended, expected, ends, where=f"operation {place}")
    name = errno.errorcode[number]
    how = f"{name} from the n-th open, write, fsync, rename, mkdir or unlink of a whole run" + (
        " and from all after it" if lasting else " alone"
    )
    words = {
        "ENOSPC": "Disk full",
        "EDQUOT": "Quota used up",
        "EFBIG": "File too large",
        "EIO": "Write error",
    }
    return Result(
        _GROUP, f"{words[name]} at the n-th operation of a run", how, _CLEAR, tried, ends, tuple(problems)
    )


def write_errors_of(title: str, arguments: tuple[str, ...], clean: tuple[str, ...], *, stride: int) -> Result:
    """A full disk at the n-th operation of another command."""
    before = _expect()
    run(*arguments)
    ends, problems, tried, place, total = Counter[str](), list[str](), 0, 1, 1
    while place <= total:
        for path in clean:
            shutil.rmtree(path, ignore_errors=True)
            Path(path).unlink(missing_ok=True)
        if place == 1:
            total = run(*arguments, fault=Fault(operations=_FULL, pattern=OUTPUT)).count
            for path in clean:
                shutil.rmtree(path, ignore_errors=True)
                Path(path).unlink(missing_ok=True)
        ended = run(*arguments, fault=Fault(place, _FULL, pattern=OUTPUT, lasting=True))
        tried += 1
        again = run(*arguments)
        if not (ended.code == 0 or ended.is_clear) or again.code != 0:
            problems.append(f"operation {place}: {explain(ended)}; again: {explain(again)}")
        else:
            ends[
                "done without what could not be kept" if ended.code == 0 else "one clear line, then done"
            ] += 1
        place += stride
    problems += find_losses(Path(RUN), before)
    promised = "one clear line, or all is done but for a cache; the run is as it was; with space it is done"
    how = "ENOSPC from the n-th operation on"
    return Result(_GROUP, f"Disk full during {title}", how, promised, tried, ends, tuple(problems))


def real_limits() -> Result:
    """The system's own EFBIG: `ulimit -f`."""
    expected = _expect()
    ends, problems, sizes = Counter[str](), list[str](), (0, 100, 1000, 5000, 20_000, 60_000, 200_000)
    for size in sizes:
        start_anew()
        # The output of the command is a file as well: what is said must still fit into it.
        ended = run(*train_command(), prepare=system.limit_file_size(max(size, 400)))
        problems += _judge(ended, expected, ends, where=f"{size} bytes")
    return Result(
        _GROUP, "File-size limit of the system", "`ulimit -f`", _CLEAR, len(sizes), ends, tuple(problems)
    )


def real_full_disk() -> Result:
    """A file system in memory that is too small; then a larger one."""
    ends, problems, sizes = Counter[str](), list[str](), ("16k", "64k", "200k", "600k")
    place = Path("small").absolute()
    for size in sizes:
        start_anew()
        place.mkdir(exist_ok=True)
        command = train_command(output="small/a")
        ended = run(*command, prepare=system.mount_memory(str(place), size))
        if not ended.is_clear:
            problems.append(f"{size}: {explain(ended)}")
        ends["one clear line"] += ended.is_clear
    name, how = "A file system of 16 to 600 kB", "tmpfs in a mount namespace"
    return Result(_GROUP, name, how, "one clear line", len(sizes), ends, tuple(problems))


# ---- Reading


def _no_pauses() -> None:
    """Reading is tried again at once."""
    reading.PAUSES_S = (0.0, 0.0, 0.0)


def read_errors(number: int, *, lasting: bool, stride: int, images: str = IMAGES) -> Result:
    """Reading an image fails while it is packed, once or always."""
    if images == TAR:
        write_tar(Path(TAR), Path(IMAGES))
    command, expected = train_command(images=images), _expect(images)
    start_anew()
    pattern = rf"/{IMAGES}/.*\.png$" if images == IMAGES else rf"/{TAR}$"
    counted = run(*command, fault=Fault(pattern=pattern, operations=READS), prepare=_no_pauses)
    ends, problems, tried = Counter[str](), list[str](), 0
    for place in range(1, counted.count + 1, stride):
        start_anew()
        fault = Fault(place, operations=READS, pattern=pattern, error=number, lasting=lasting)
        ended = run(*command, fault=fault, prepare=_no_pauses)
        tried += 1
        if lasting:
            named = images + ("" if images == TAR else os.sep) in ended.err
            if not (ended.is_clear and named):
                problems.append(f"read {place}: {explain(ended)}")
                continue
            problems += [f"read {place}: {text}" for text in finish(command, Path(RUN), expected)]
            ends["one line with the image's path, then identical"] += 1
        else:
            problems += [f"read {place}: {explain(ended)}"] if ended.code else []
            problems += [f"read {place}: {text}" for text in find_losses(Path(RUN), expected)]
            ends["tried again, identical"] += ended.code == 0
    what = "an image" if images == IMAGES else "a tar file"
    name = f"{errno.errorcode[number]} {'always' if lasting else 'once'} from reading {what}"
    how = f"from the n-th open or read of {what}{' on' if lasting else ''}, while packing"
    promised = (
        "packing stops with the path and names the disk; no image is booked as damaged; later it continues"
        if lasting
        else "read again; nothing is lost"
    )
    return Result(_GROUP, name, how, promised, tried, ends, tuple(problems))


def read_errors_of_the_run(number: int, *, lasting: bool, stride: int) -> Result:
    """Reading the run's or the pack's own files fails when a stopped run continues, once or always."""
    expected = _expect()
    shutil.rmtree("stopped", ignore_errors=True)
    start_anew()
    counted = run(*train_command(), fault=Fault(pattern=OUTPUT))
    start_anew()
    run(*train_command(), fault=Fault(counted.count * 3 // 4, pattern=OUTPUT, signal=9))
    shutil.copytree("runs", "stopped")
    reads = run(*train_command(), fault=Fault(operations=READS, pattern=OUTPUT), prepare=_no_pauses).count
    ends, problems, tried = Counter[str](), list[str](), 0
    for place in range(1, reads + 1, stride):
        start_anew("runs")
        shutil.copytree("stopped", "runs")
        fault = Fault(place, operations=READS, pattern=OUTPUT, error=number, lasting=lasting)
        ended = run(*train_command(), fault=fault, prepare=_no_pauses)
        tried += 1
        problems += _judge(ended, expected, ends, where=f"read {place}")
    promised = "read again, or one clear line and the same command continues, identical"
    on = " on" if lasting else ""
    how = f"from the n-th open, read or map{on} of a file of the run or the pack, as a stopped run continues"
    name = f"{errno.errorcode[number]} {'always' if lasting else 'once'} from the run's own files"
    return Result(_GROUP, name, how, promised, tried, ends, tuple(problems))


def no_maps() -> Result:
    """A file system that has no memory maps."""
    expected = _expect()
    ends, problems, tried = Counter[str](), list[str](), 0
    for number in (errno.ENODEV, errno.EACCES, errno.ENOMEM):
        start_anew()
        fault = Fault(1, operations=frozenset({"map"}), error=number, pattern=OUTPUT, lasting=True)
        for arguments in (train_command(), ["eval", RUN], ["report", RUN]):
            ended = run(*arguments, fault=fault)
            tried += 1
            ends["read without maps"] += ended.code == 0
            problems += [f"{arguments[0]}: {explain(ended)}"] if ended.code else []
        problems += find_losses(Path(RUN), expected)
    promised = "files are read without maps, identical"
    how = "ENODEV, EACCES or ENOMEM from every mmap, in train, eval and report"
    return Result(_GROUP, "Memory maps refused", how, promised, tried, ends, tuple(problems))


def few_handles() -> Result:
    """`ulimit -n`."""
    expected = _expect()
    ends, problems, tried = Counter[str](), list[str](), 0
    for num in (40, 24, 16, 12, 9, 7):
        start_anew()
        ended = run(*train_command(), prepare=system.limit_files(num))
        tried += 1
        if num == 40 and ended.code:
            problems.append(f"{num} handles: {explain(ended)}")
        problems += _judge(ended, expected, ends, where=f"{num} handles")
    promised = "40 are enough; with fewer one clear line, and with more the same command continues"
    return Result(
        _GROUP, "Few file handles", "`ulimit -n` 40, 24, 16, 12, 9, 7", promised, tried, ends, tuple(problems)
    )


def list_jobs(*, short: bool) -> Iterator[Job]:
    """All of them, each for a process and a folder of its own."""
    stride, parts = (60, 1) if short else (1, 4)
    for part in range(parts):
        yield partial(write_errors, errno.ENOSPC, lasting=True, part=part, parts=parts, stride=stride)
    for number, lasting in ((errno.EDQUOT, True), (errno.EFBIG, True), (errno.EIO, False)):
        yield partial(write_errors, number, lasting=lasting, part=0, parts=1, stride=120 if short else 14)
    for title, arguments, clean, step in (
        ("byol eval", ("eval", RUN), ("runs/a/features", "runs/a/eval.json"), 7),
        ("byol report", ("report", RUN), ("runs/a/report.html",), 1),
        ("byol finetune", ("finetune", RUN, "-o", "runs/f", "--epochs", "1"), ("runs/f",), 3),
        ("byol embed", ("embed", RUN, IMAGES, "-o", "runs/f.npz"), ("runs/f.npz",), 1),
        ("byol check", ("check", IMAGES, "-o", "runs/check"), ("runs/check",), 4),
    ):
        yield partial(write_errors_of, title, arguments, clean, stride=step * (10 if short else 1))
    yield real_limits
    if system.can_mount():
        yield real_full_disk
    for number in (errno.EIO, errno.ESTALE):
        yield partial(read_errors, number, lasting=False, stride=30 if short else 5)
        yield partial(read_errors, number, lasting=True, stride=30 if short else 9)
    yield partial(read_errors, errno.EIO, lasting=False, stride=40 if short else 9, images=TAR)
    yield partial(read_errors, errno.EIO, lasting=True, stride=40 if short else 9, images=TAR)
    yield partial(read_errors_of_the_run, errno.EIO, lasting=False, stride=30 if short else 2)
    yield partial(read_errors_of_the_run, errno.EIO, lasting=True, stride=40 if short else 8)
    yield no_maps
    yield few_handles
