"""Files that were cut short or in which a bit has flipped: found, never trusted in part."""

import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from faults.children import Ended, run
from faults.results import Job, Result
from faults.scene import (
    IMAGES,
    RUN,
    TAR,
    explain,
    find_losses,
    start_anew,
    take_fingerprint,
    train_command,
    write_tar,
)
from faults.shim import Fault

_GROUP = "Damaged files"
Commands = Sequence[Sequence[str]]
Outcome = dict[str, object]


def _damages(content: bytes, *, num: int, chosen: random.Random) -> Iterator[tuple[str, bytes]]:
    """Ways to damage a file: cut short, and one bit flipped, at the ends and at random places."""
    size = len(content)
    cuts = {0, 1, size // 2, max(0, size - 1)} | {chosen.randrange(size) for _ in range(num // 3)}
    for end in sorted(cuts):
        yield f"cut to {end} bytes", content[:end]
    flips = {0, 7, size // 2, size - 1} | {chosen.randrange(size) for _ in range(num)}
    for at in sorted(place for place in flips if 0 <= place < size):
        yield (
            f"bit of byte {at}",
            content[:at] + bytes([content[at] ^ (1 << chosen.randrange(8))]) + content[at + 1 :],
        )


def damage_stopped_run(pattern: str, *, num: int, seed: int, title: str) -> Result:
    """A file of a stopped run or its pack is damaged; the same command continues, or says it in a line."""
    start_anew()
    assert (done := run(*train_command())).code == 0, explain(done)
    expected = take_fingerprint(Path(RUN))
    start_anew()
    total = run(*train_command(), fault=Fault(pattern="/runs/a/checkpoints")).count
    start_anew()
    run(*train_command(), fault=Fault(total - 4, pattern="/runs/a/checkpoints", signal=9))
    shutil.rmtree("stopped", ignore_errors=True)
    shutil.copytree("runs", "stopped")
    ends, problems, tried, chosen = Counter[str](), list[str](), 0, random.Random(seed)
    paths = _choose_files("stopped", pattern, num=num, chosen=chosen)
    for path in paths:
        for how, content in _damages(path.read_bytes(), num=max(3, num // len(paths)), chosen=chosen):
            start_anew("runs")
            shutil.copytree("stopped", "runs")
            damaged = Path("runs") / path.relative_to("stopped")
            damaged.write_bytes(content)
            ended = run(*train_command())
            tried += 1
            is_best_lost = "in runs/a/best is damaged" in ended.out  # and another is kept
            kept = {name: value for name, value in expected.items() if not is_best_lost or "best" not in name}
            if damaged.name == "config.yaml":  # byol compares its settings; a flip elsewhere is like an edit
                del kept["config.yaml"]
            wrong = _judge(ended, lambda kept=kept: find_losses(Path(RUN), kept), ends, name=damaged.name)
            problems += [f"{damaged.name}, {how}: {text}" for text in wrong]
    promised = "found: the one before is used, it is written again, or one clear line; a run ends identical"
    if title == "config.yaml":
        promised = (
            "one clear line; or only a comment or a setting of the evaluation differs, as after an edit"
        )
    how = f"{_HOW}, of a stopped run that continues"
    return Result(_GROUP, title, how, promised, tried, ends, tuple(problems))


def _choose_files(folder: str, pattern: str, *, num: int, chosen: random.Random) -> list[Path]:
    """At most `num` of the files."""
    paths = sorted(path for path in Path(folder).glob(pattern) if path.is_file())
    assert paths, pattern
    return chosen.sample(paths, min(num, len(paths)))


_HOW = "cut short and a bit flipped, at many places"


def _judge(ended: Ended, find: Callable[[], list[str]], ends: Counter[str], *, name: str) -> list[str]:
    """Either nothing is different, or one line names the damage."""
    if ended.code != 0:
        ends["one clear line"] += ended.is_clear
        return [] if ended.is_clear else [explain(ended)]
    wrong = find()
    ends["found or harmless, identical"] += not wrong
    return wrong


def damage_artefacts(
    title: str,
    pattern: str,
    commands: Commands,
    files: Sequence[str],
    *,
    num: int,
    seed: int,
    remove: Sequence[str] = (),
) -> Result:
    """A file that other commands read is damaged: they give what they gave before, or a line."""
    start_anew()
    for command in (train_command(), ["finetune", RUN, "-o", "runs/f", "--epochs", "1"], ["eval", RUN]):
        assert (done := run(*command)).code == 0, explain(done)
    for command in commands:
        run(*command)
    before = _read(files)
    shutil.rmtree("whole", ignore_errors=True)
    shutil.copytree("runs", "whole")
    ends, problems, tried, chosen = Counter[str](), list[str](), 0, random.Random(seed)
    paths = _choose_files("whole", pattern, num=num, chosen=chosen)
    for path in paths:
        for how, content in _damages(path.read_bytes(), num=max(3, num // len(paths)), chosen=chosen):
            start_anew("runs")
            shutil.copytree("whole", "runs")
            for name in remove:
                shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink(missing_ok=True)
            (Path("runs") / path.relative_to("whole")).write_bytes(content)
            for command in commands:
                ended = run(*command)
                tried += 1
                wrong = _judge(ended, lambda: _compare(before, files), ends, name=path.name)
                problems += [f"{command[0]}: {path.name}, {how}: {text}" for text in wrong]
    promised = "found, in one clear line; or made again; the result is never another one"
    return Result(_GROUP, title, _HOW, promised, tried, ends, tuple(problems))


def _read(files: Sequence[str]) -> Outcome:
    return {
        name: re.sub(rb'"(seconds|sha256)": "?[0-9a-f.e-]+', b"", Path(name).read_bytes()) for name in files
    }


def damage_tar(*, num: int, seed: int) -> Result:
    """A tar file of images is damaged before the training."""
    write_tar(Path(TAR), Path(IMAGES))
    whole, command = Path(TAR).read_bytes(), train_command(images=TAR)
    start_anew()
    assert (done := run(*command)).code == 0, explain(done)
    ends, problems, tried = Counter[str](), list[str](), 0
    # The name of a pack follows from the length of the tar file; its values are in encoder.json as a hash.
    expected = {key: value for key, value in take_fingerprint(Path(RUN)).items() if key[:5] != "pack "}
    for how, content in _damages(whole, num=num, chosen=random.Random(seed)):
        start_anew()
        Path(TAR).write_bytes(content)
        ended = run(*command)
        tried += 1
        wrong = _judge(ended, lambda: find_losses(Path(RUN), expected), ends, name=TAR)
        problems += [f"{TAR}, {how}: {text}" for text in wrong]
    promised = "found, in one clear line; or harmless, and the run ends identical"
    return Result(_GROUP, "A tar file of images", _HOW, promised, tried, ends, tuple(problems))


def _compare(before: Outcome, files: Sequence[str]) -> list[str]:
    return [f"{name} differs" for name, content in _read(files).items() if content != before[name]]


def list_jobs(*, short: bool) -> Iterator[Job]:
    """All of them, each for a process and a folder of its own."""
    num = 3 if short else 10
    for seed, (pattern, title) in enumerate(
        (
            ("a/checkpoints/*.pt", "A checkpoint"),
            ("a/checkpoints/*.sha256", "A checkpoint's checksum"),
            ("packs/*/*", "The packed images"),
            ("a/*.json", "start.json, best.json, encoder.json, environment.json"),
            ("a/config.yaml", "config.yaml"),
            ("a/**/*.safetensors", "Encoders of a run that goes on"),
        )
    ):
        yield partial(damage_stopped_run, pattern, num=num, seed=seed, title=title)
    embed, predict = ["embed", RUN, IMAGES, "-o", "f.npz"], ["predict", "runs/f", IMAGES, "-o", "p.csv"]
    jobs: tuple[tuple[str, str, Commands, Sequence[str], Sequence[str]], ...] = (
        ("An encoder (byol embed)", "a/encoder.*", [embed], ["f.npz"], ["f.npz"]),
        ("A classifier (byol predict)", "f/*.safetensors", [predict], ["p.csv"], ["p.csv"]),
        ("A classifier's description", "f/*coder.json", [predict], ["p.csv"], ["p.csv"]),
        ("Class names of a classifier", "f/classifier.json", [predict], ["p.csv"], ["p.csv"]),
        ("The feature cache (byol eval)", "a/features/*", [["eval", RUN]],
         ["runs/a/eval.json", "runs/a/measures.json"], ["runs/a/eval.json", "runs/a/measures.json"]),
        ("Results (byol card)", "a/*.json", [["card", RUN]], ["runs/a/card.md"], []),
        ("The packed images (byol eval)", "packs/*/images.npy", [["eval", RUN]],
         ["runs/a/eval.json"], ["runs/a/eval.json", "runs/a/features"]),
    )  # fmt: skip
    yield partial(damage_tar, num=num, seed=0)
    for seed, (title, pattern, commands, files, remove) in enumerate(jobs):
        yield partial(damage_artefacts, title, pattern, commands, files, num=num, seed=seed, remove=remove)
