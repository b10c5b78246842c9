"""Where files lie and who else writes: a second process, images elsewhere or gone, folders to read only."""

import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from faults import system
from faults.children import Child, Ended, run
from faults.results import Job, Result
from faults.scene import (
    IMAGES,
    LONG,
    OUTPUT,
    RUN,
    explain,
    find_losses,
    finish,
    start_anew,
    take_fingerprint,
    train_command,
)
from faults.shim import Fault

_GROUP = "Folders and files"
_TUNE = ("finetune", RUN, "-o", "runs/f", "--epochs", "1")


def _train() -> dict[str, str]:
    start_anew()
    assert (done := run(*train_command())).code == 0, explain(done)
    return take_fingerprint(Path(RUN))


def _stop_half_way() -> None:
    """A run that was killed between two checkpoints."""
    start_anew()
    counted = run(*train_command(), fault=Fault(pattern=OUTPUT)).count
    start_anew()
    run(*train_command(), fault=Fault(counted * 3 // 4, pattern=OUTPUT, signal=9))


# ---- Two writers


def second_process(*, num: int) -> Result:
    """The same training again while the first one runs."""
    command = train_command(LONG)
    start_anew()
    run(*command)
    expected, ends, problems = take_fingerprint(Path(RUN)), Counter[str](), list[str]()
    for turn in range(num):
        start_anew()
        first = Child(command)
        while not Path(RUN, ".lock.json").exists() and not first.poll():
            time.sleep(0.002)
        time.sleep(0.05 * turn)
        second = run(*command)
        is_refused = second.is_clear and f"process {first.pid} on " in second.err
        if first.poll() and not is_refused:  # it came too late
            ends["the first had ended"] += second.code == 0
            problems += [] if second.code == 0 else [explain(second)]
            continue
        ended = first.wait()
        problems += [] if is_refused else [f"the second: {explain(second)}"]
        problems += [] if ended.code == 0 else [f"the first: {explain(ended)}"]
        problems += find_losses(Path(RUN), expected)
        ends["refused in one line, the first identical"] += is_refused
    promised = "the second is refused in one line with process, host and time; the first ends identical"
    how = "the same command while the first one runs, at other moments"
    return Result(_GROUP, "Two trainings in one run folder", how, promised, num, ends, tuple(problems))


def stale_lock(*, num: int) -> Result:
    """The lock of a training that was killed."""
    command = train_command(LONG)
    start_anew()
    run(*command)
    expected, ends, problems = take_fingerprint(Path(RUN)), Counter[str](), list[str]()
    for turn in range(num):
        start_anew()
        child = Child(command)
        while not Path(RUN, ".lock.json").exists() and not child.poll():
            time.sleep(0.002)
        time.sleep(0.05 * turn)
        child.send(9)
        child.wait()
        wrong = finish(command, Path(RUN), expected)
        ends["continues, identical"] += not wrong
        problems += wrong
    how, promised = "SIGKILL of the one that holds it", "the next command is not refused, and ends identical"
    return Result(_GROUP, "A lock whose process is dead", how, promised, num, ends, tuple(problems))


def second_finetuning() -> Result:
    """Two fine-tunings into one folder."""
    _train()
    first = Child(_TUNE)
    while not Path("runs/f/.lock.json").exists() and not first.poll():
        time.sleep(0.002)
    second = run(*_TUNE)
    ended = first.wait()
    problems = [] if second.is_clear and f"process {first.pid} on " in second.err else [explain(second)]
    problems += [] if ended.code == 0 else [f"the first: {explain(ended)}"]
    ends = Counter({"refused in one line": int(not problems)})
    promised = "the second is refused in one line, the first is not hindered"
    how = "the same command while the first one runs"
    return Result(_GROUP, "Two fine-tunings into one folder", how, promised, 1, ends, tuple(problems))


# ---- Images that lie elsewhere


def _move(how: str) -> str:
    """Do something to the images; where they are now."""
    if how == "other file times":
        for number, path in enumerate(sorted(Path(IMAGES).rglob("*.png"))):
            os.utime(path, (1e9 + number, 1e9 + number))
        return IMAGES
    if how == "a copy at another path":
        shutil.copytree(IMAGES, "elsewhere/deep/cells")
        return "elsewhere/deep/cells"
    if how == "renamed":
        os.rename(IMAGES, "renamed")
        return "renamed"
    os.symlink(os.path.abspath(IMAGES), "link")
    return "link"


_MOVES = ("other file times", "a copy at another path", "renamed", "a link to them")


def images_moved(how: str) -> Result:
    """A stopped run continues with the same images at another place."""
    expected = _train()
    problems = []
    for stop in (_stop_half_way, lambda: _train()):
        stop()
        place = _move(how)
        ended = run(*train_command(images=place))
        problems += [] if ended.code == 0 else [explain(ended)]
        if place != IMAGES and "the same images" not in ended.out:
            problems.append(f"it does not say so: {ended.out[-300:]}")
        kept = {name: value for name, value in expected.items() if _is_kept(name)}
        problems += [text for text in find_losses(Path(RUN), kept) if "differs" in text]
        evaluated = run("eval", RUN)
        problems += [] if evaluated.code == 0 else [f"eval: {explain(evaluated)}"]
        _put_back(place)
    ends = Counter({"continues, identical": 2 - bool(problems)})
    promised = "the same command with the new path continues exactly, and says so; eval finds them there"
    title = f"The same images: {how}"
    return Result(_GROUP, title, "between two starts", promised, 2, ends, tuple(problems))


def _is_kept(name: str) -> bool:
    """What does not hold the path: config.yaml and encoder.json name the images' place."""
    return name != "config.yaml" and not name.endswith("encoder.json") and not name.startswith("pack ")


def _put_back(place: str) -> None:
    if place == "renamed":
        os.rename("renamed", IMAGES)
    elif place == "link":
        os.unlink("link")
    elif place != IMAGES:
        shutil.rmtree(place)


def other_images() -> Result:
    """A stopped run is given other images, or one of its images has changed."""
    expected = _train()
    ends, problems = Counter[str](), list[str]()
    for change in ("one is another", "one is missing", "one is new"):
        _stop_half_way()
        shutil.copytree(IMAGES, "changed")
        first, second = sorted(Path("changed").rglob("*.png"))[:2]
        if change == "one is another":
            shutil.copyfile(second, first)
        elif change == "one is missing":
            first.unlink()
        else:
            shutil.copyfile(second, first.with_name("new.png"))
        ended = run(*train_command(images="changed"))
        if not ended.is_clear:
            problems.append(f"{change}: {explain(ended)}")
        problems += [f"{change}: {text}" for text in finish(train_command(), Path(RUN), expected)]
        ends["refused in one line; with the old images identical"] += ended.is_clear
        shutil.rmtree("changed")
    promised = "refused in one line; with the images of before the same command continues, identical"
    how = "one image replaced, removed or added, at another path"
    return Result(_GROUP, "Other images than before", how, promised, 3, ends, tuple(problems))


def images_gone(command: Sequence[str], files: Sequence[str]) -> Result:
    """The images are deleted after the training."""
    before = _train()
    run(*command)
    problems, ends = list[str](), Counter[str]()
    expected = _read(files)
    os.rename(IMAGES, "gone")
    for path in files:
        Path(path).unlink()
    ended = run(*command)
    os.rename("gone", IMAGES)
    if ended.code == 0:
        problems += [f"{name} differs" for name, text in _read(files).items() if text != expected[name]]
        problems += [] if "from the pack" in ended.out else [f"it does not say so: {ended.out[-300:]}"]
        ends["from the pack, the same result"] += not problems
    else:
        problems.append(explain(ended))
    problems += find_losses(Path(RUN), before)
    promised = "works from the pack, says so, and the result is the same"
    title = f"Images deleted after the training: byol {command[0]}"
    return Result(_GROUP, title, "their folder is renamed", promised, 1, ends, tuple(problems))


def continued_without_images() -> Result:
    """The images are deleted before a stopped run continues."""
    expected = _train()
    _stop_half_way()
    os.rename(IMAGES, "gone")
    ended = run(*train_command())
    os.rename("gone", IMAGES)
    problems = [] if ended.code == 0 else [explain(ended)]
    problems += [] if "from the pack" in ended.out else [f"it does not say so: {ended.out[-300:]}"]
    problems += find_losses(Path(RUN), expected)
    ends = Counter({"continues from the pack, identical": int(not problems)})
    promised = "the same command continues from the pack, says so, and ends identical"
    title, how = "Images deleted before a stopped run continues", "their folder is renamed"
    return Result(_GROUP, title, how, promised, 1, ends, tuple(problems))


def _read(files: Sequence[str]) -> dict[str, bytes]:
    """Results but for times and for their checksums."""
    dropped = rb'"(seconds|sha256)": "?[0-9a-f.e-]+'
    return {name: re.sub(dropped, b"", Path(name).read_bytes()) for name in files}


# ---- A run folder that cannot be written


def read_only() -> Result:
    """Commands that read a run on a read-only file system."""
    before = _train()
    prepare = system.mount_read_only(str(Path(RUN).absolute()))
    ends, problems, tried = Counter[str](), list[str](), 0
    commands: tuple[tuple[str, ...], ...] = (
        ("eval", RUN),
        ("report", RUN, "-o", "report.html"),
        ("embed", RUN, IMAGES, "-o", "features.npz"),
        ("report", RUN),
        ("train", *train_command()[1:]),
    )
    for command in commands:
        ended = run(*command, prepare=prepare)
        tried += 1
        problems += _judge_reading(command, ended, ends)
    problems += find_losses(Path(RUN), before)
    promised = (
        "eval shows its table and says that it is not saved; report and embed write elsewhere; else one line"
    )
    how = "a read-only mount: eval, report, embed, train"
    return Result(_GROUP, "A run folder to read only", how, promised, tried, ends, tuple(problems))


def _judge_reading(command: Sequence[str], ended: Ended, ends: Counter[str]) -> list[str]:
    writes_elsewhere = "-o" in command and command[0] in ("report", "embed")
    if ended.code == 0 and (writes_elsewhere or command[0] == "train"):
        ends["done"] += 1
        return []
    if not writes_elsewhere and ended.is_clear and (command[0] != "eval" or "kNN" in ended.out):
        ends[
            "one clear line" if command[0] != "eval" else "the table is shown; one line that it is not saved"
        ] += 1
        return []
    return [f"{' '.join(command)}: {explain(ended)}"]


def list_jobs(*, short: bool) -> Iterator[Job]:
    """All of them, each for a process and a folder of its own."""
    yield partial(second_process, num=2 if short else 12)
    yield partial(stale_lock, num=2 if short else 12)
    yield second_finetuning
    for how in _MOVES:
        yield partial(images_moved, how)
    yield other_images
    evaluated = ("runs/a/eval.json", "runs/a/measures.json")
    yield partial(images_gone, ("eval", RUN), evaluated)
    yield partial(images_gone, ("report", RUN), ("runs/a/report.html",))
    yield continued_without_images
    if system.can_mount():
        yield read_only
