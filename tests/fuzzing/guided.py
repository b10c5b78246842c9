"""Coverage-guided fuzzing of the readers that are written in Python, by libFuzzer (the package atheris).

    scripts/fuzz --guided --minutes 10

libFuzzer keeps inputs that reach new lines of byol, tifffile, pydicom or PyYAML, and changes these. It
ends at the first input for which a reader does anything but read or refuse it. Each target runs in a process
of its own: this file is its program.
"""

import contextlib
import importlib.util
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

LIMIT_S, LIMIT_MIB = 5, 3072  # for one input; of the process, in which PyTorch takes most
_INSTRUMENTED = ["byol.base", "byol.config", "byol.data", "byol.weights", "byol.training.skipped", "tifffile",
                 "pydicom", "yaml"]  # fmt: skip

Read = Callable[[bytes], object]


@dataclass(frozen=True)
class Target:
    """What libFuzzer starts from, words that mean something, and what reads an input."""

    known: Sequence[bytes]
    read: Read
    words: Sequence[bytes] = ()
    mend: Callable[[bytes], bytes] | None = None  # corrects checksums, so that a reader goes on


def list_targets(folder: Path) -> dict[str, Callable[[], Target]]:
    """Return the targets by name. Their files are in `folder`."""
    from PIL import Image

    from byol.config import load_config
    from byol.data.decode import formats
    from byol.data.decode.image import load as load_image
    from byol.data.labels.label_file import match_labels, read_list
    from byol.data.sources.opening import open_source
    from byol.training import skipped
    from byol.weights.files import read_weights
    from fuzzing import containers, mutate, seeds, targets

    formats.MAX_PIXELS = Image.MAX_IMAGE_PIXELS = targets.MAX_PIXELS

    def of_file(name: str, known: Sequence[bytes], read: Callable[[Path], object], **more: object) -> Target:
        path = folder / name
        path.parent.mkdir(exist_ok=True)

        def read_file(data: bytes) -> object:
            path.write_bytes(data)
            return read(path)

        return Target(known, read_file, **more)  # type: ignore[arg-type]

    def read_tar(path: Path) -> None:
        source = open_source(load_config(None, [f"data.source={path}"], preset="default").data)
        for index in range(len(source)):
            assert ".." not in source.names(index).split("/")
            with contextlib.suppress(formats.DataError):
                load_image(source.item(index))

    def image(kind: str) -> Target:
        mend = mutate.mend_png if kind == "PNG" else None
        return Target(seeds.IMAGES[kind]() or [b""], load_image, mend=mend)

    record = skipped.Skipped(3, "nan", "nan", 0.1, 0, 1, 2, 1, 1, [0, 1], ["a", "b"])
    configurations = [text.encode() for text in targets.CONFIGS]
    return {
        "configuration": lambda: of_file(
            "a.yaml",
            configurations,
            lambda path: load_config(path, [], preset=None),
            words=targets.YAML_WORDS,
        ),
        "lists": lambda: of_file("a.csv", targets.TABLES, read_list, words=targets.TABLE_WORDS),
        "labels": lambda: of_file(
            "b.csv", targets.TABLES, lambda path: match_labels(path, targets.NAMES), words=targets.TABLE_WORDS
        ),
        "tars": lambda: of_file(
            "a.tar", containers.list_tars(), read_tar, words=containers.WORDS, mend=mutate.mend_tar
        ),
        "skipped steps": lambda: of_file(
            "skipped/step-00000003.json",
            [skipped.write(folder, record).read_bytes()],
            lambda path: skipped.read(path.parents[1], 3),
        ),
        "weights": lambda: of_file("a.pt", targets.list_weights(), read_weights),
        **{
            f"image {kind}": (lambda kind=kind: image(kind))
            for kind in ("npy", "npz", "TIFF", "DICOM", "PNG", "JPEG")
        },
    }


def main(name: str, folder: Path, arguments: Sequence[str]) -> None:
    """Run libFuzzer on a target; this does not return."""
    import atheris

    with atheris.instrument_imports(include=_INSTRUMENTED):
        from byol.base.errors import ByolError

        target = list_targets(folder)[name]()
    import warnings
    from random import Random

    from fuzzing.mutate import mutate

    warnings.simplefilter("ignore")
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, content in enumerate(target.known):
        (corpus / str(number)).write_bytes(content)

    def change(data: bytes, most: int, seed: int) -> bytes:
        random = Random(seed)
        if random.random() < 0.5:
            changed = bytes(atheris.Mutate(data, most))
        else:
            changed = mutate(data, target.known, random, words=target.words)
        if target.mend is not None and random.random() < 0.8:
            changed = target.mend(changed)
        return changed[:most]

    def attempt(data: bytes) -> None:
        with contextlib.suppress(ByolError):
            target.read(data)

    options = [f"-timeout={LIMIT_S}", f"-rss_limit_mb={LIMIT_MIB}", "-max_len=65536", "-print_final_stats=1"]
    options += [f"-artifact_prefix={folder}/", *arguments, str(corpus)]
    atheris.Setup([sys.argv[0], *options], attempt, custom_mutator=change)
    atheris.Fuzz()


def run_all(names: Sequence[str], *, seconds: float, seed: int) -> int:
    """Run targets one after the other and print a table; the exit code."""
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: pip install atheris", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="byol-fuzz-") as place:
        known = list(list_targets(Path(place)))
    chosen = [name for name in known if name.startswith(tuple(names or [""]))]
    print("| Target | Inputs | Branches reached | Found | Inputs/s |\n|---|---:|---:|---:|---:|")
    texts, total = [], 0
    for name in chosen:
        number, reached, text, took = _run(name, seconds=seconds / len(chosen), seed=seed)
        print(f"| {name} | {number:,} | {reached:,} | {int(bool(text))} | {number / took:,.0f} |", flush=True)
        texts += [f"{name}:\n{text}"] if text else []
        total += number
    print(f"| all | {total:,} | | {len(texts)} | |")
    print("\n".join(texts))
    return 1 if texts else 0


def _run(name: str, *, seconds: float, seed: int) -> tuple[int, int, str, float]:
    """Return the number of inputs, of branches reached, what was found ("": nothing), and the seconds."""
    with tempfile.TemporaryDirectory(prefix="byol-fuzz-") as place:
        command = [sys.executable, __file__, name, place, f"-max_total_time={max(1, round(seconds))}"]
        start_s = time.monotonic()
        ended = subprocess.run(
            [*command, f"-seed={seed + 1}"], capture_output=True, text=True, errors="replace"
        )
        took = time.monotonic() - start_s
        tried = re.findall(r"stat::number_of_executed_units: (\d+)", ended.stderr)
        reached = re.findall(r"cov: (\d+)", ended.stderr)
        found = ""
        if ended.returncode:
            inputs = [path.read_bytes() for path in Path(place).glob("*-*") if path.is_file()]
            shown = "".join(f"{content[:2000]!r}\n" for content in inputs)
            found = f"{ended.stdout[-3000:]}\n{ended.stderr[-2000:]}\n{shown}"
        return int(tried[-1]) if tried else 0, int(reached[-1]) if reached else 0, found, took


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
