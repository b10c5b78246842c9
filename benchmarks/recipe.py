"""Accuracy per minute: train one variant of the recipe for a fixed time on one core, evaluate it.

    python benchmarks/recipe.py prepare cifar10 ARCHIVES/ sets/
    taskset -c 1 python benchmarks/recipe.py trial cifar10 sets/ --minutes 9 --change default
    taskset -c 1 python benchmarks/recipe.py trial cifar10 sets/ trainer.m=0.97 --minutes 9 --change "m 0.97"
    taskset -c 1 python benchmarks/recipe.py trial cifar10 sets/ --epochs 2 --change default
    python benchmarks/recipe.py patches cifar10 sets/
    python benchmarks/recipe.py draw

A trial appends one row to trials.csv. The variant is given by settings, or by the working tree from which
this file is started (a row holds its commit). Test images are never read: `prepare` leaves out every fifth
image of a class where a set has no test part of its own, and holds out every fifth of the others for
validation. `draw` writes one picture per set, accuracy against minutes, beside trials.csv.

The clock is the CPU time of the training process, so another process on the same core takes nothing from it.
Where CPU times cannot be compared (several programs on a core, other machines), `--epochs` fixes the images
that are seen; the row then has the CPU time that it took.
"""

import argparse
import csv
import subprocess
import tarfile
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TRIALS = HERE / "results" / "recipe" / "trials.csv"
ENTRY_FOLDER = {"cells": "labelled"}  # of the training images, the part with labels
HOLD_OUT_EVERY = 5
MOST_LABELLED = 20_000  # training images that classifiers are fitted on; bounds the time of an evaluation
NUM_DRAWS = 5
PATCH_VIEWS = ("data_transforms.input_shape=[32,32,3]", "network.name=resnet10t", "network.stem=small")
STYLE = """<style>
text { font: 9px system-ui, sans-serif; fill: #555; }
text.main { fill: #2459c9; } text.second { fill: #b3401f; }
.grid { stroke: #ddd; } .line { fill: none; stroke-width: 1.5; } .line.main { stroke: #2459c9; }
.line.second { stroke: #b3401f; } .fill.main { fill: #2459c9; } .fill.second { fill: #b3401f; }
</style>"""
NUM_RANKED = 2048  # images the effective rank is computed on


@dataclass(frozen=True)
class ImageSet:
    """How a set is unpacked, and what is set for it besides the images."""

    archives: tuple[str, ...]  # below the folder of archives; the first one has the labels
    has_test_part: bool  # in an archive of its own, which is not read
    config: str | None = None  # a file beside this one; None: preset default and the folder alone
    overrides: tuple[str, ...] = ()


SETS = {
    "cifar10": ImageSet(
        ("cifar10/train.tar.gz",),
        True,
        "cifar10.yaml",
        ("optimizer.warmup_epochs=null", "trainer.m=null", "evaluation.test=null"),
    ),
    "plankton": ImageSet(("plankton/train.tar.gz",), False),
    "cells": ImageSet(("cellcycle16/labelled.tar.gz", "cellcycle16/g1_only.tar.gz"), False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("prepare", "trial", "patches", "draw"):
        command = commands.add_parser(name)
        command.add_argument("--out", type=Path, default=TRIALS, help="the CSV file of the rows")
        if name == "draw":
            continue
        command.add_argument("set", choices=tuple(SETS))
        if name == "prepare":
            command.add_argument("archives", type=Path, help="the folder of the downloaded archives")
        command.add_argument("sets", type=Path, help="the folder that `prepare` fills")
        if name in ("trial", "patches"):
            command.add_argument("--seed", type=int, default=0)
        if name == "trial":
            command.add_argument("--change", required=True, help="what differs from the default, in words")
            length = command.add_mutually_exclusive_group(required=True)
            length.add_argument("--minutes", type=float, help="CPU time of the training")
            length.add_argument("--epochs", type=int, help="train for so many epochs instead")
            command.add_argument("overrides", nargs="*", help="settings, as for byol train")
    options = parser.parse_args()
    work = {"prepare": _prepare, "trial": _trial, "patches": _patches, "draw": _draw}
    work[options.command](options)


# ---- The images


def _prepare(options: argparse.Namespace) -> None:
    """Unpack a set into SETS/NAME/train and SETS/NAME/validation, one folder a class."""
    chosen = SETS[options.set]
    target = options.sets / options.set
    for number, archive in enumerate(chosen.archives):
        part = Path(archive).name.partition(".")[0] if len(chosen.archives) > 1 else ""
        with tempfile.TemporaryDirectory(dir=options.sets) as unpacked:
            with tarfile.open(options.archives / archive) as file:
                file.extractall(unpacked, filter="data")
            for folder in sorted(path for path in Path(unpacked).iterdir() if path.is_dir()):
                for place, image in enumerate(sorted(folder.iterdir())):
                    kind = "train" if number else _kind(place, chosen.has_test_part)
                    if kind != "test":
                        where = target / kind / (part if kind == "train" else "") / folder.name
                        where.mkdir(parents=True, exist_ok=True)
                        image.rename(where / image.name)


def _kind(place: int, has_test_part: bool) -> str:
    """The part that the image at this place of its class belongs to."""
    if has_test_part:
        return "train" if place % HOLD_OUT_EVERY else "validation"
    if place % HOLD_OUT_EVERY == 0:
        return "test"
    kept = place - place // HOLD_OUT_EVERY - 1
    return "train" if kept % HOLD_OUT_EVERY else "validation"


# ---- One trial


def _trial(options: argparse.Namespace) -> None:
    """Train for a fixed CPU time, evaluate on the validation images, and append the row."""
    time.perf_counter = time.process_time  # before byol is loaded: all its clocks then count CPU time
    import torch

    from byol.api.arguments import make_partial_config
    from byol.auto.train import train
    from byol.encoder.encoder import load
    from byol.training import setup, step_benchmark

    torch.set_num_threads(1)

    def benchmark_step(config: Any, *, channels: int, stored_px: int, bits: int) -> Any:
        """In this process: the product's own measures wall-clock time in another one."""
        images = step_benchmark.RandomImages(channels, stored_px, bits)
        step_s = step_benchmark.measure_step(config, images, device=torch.device("cpu"))
        return step_benchmark.StepBenchmark(config.batch_size, 1, step_s, 0, 0)

    setup.benchmark_step = benchmark_step
    chosen, folder = SETS[options.set], options.sets / options.set
    source = folder / "train"
    overrides = [
        *chosen.overrides,
        f"data.source={source}",
        f"data.packs={folder / 'packs'}",
        f"trainer.max_epochs={'null' if options.epochs is None else options.epochs}",
        "trainer.accumulation_steps=1",
        "trainer.checkpoint_interval=1000000",
        "trainer.health_interval=1000",
        "trainer.loggers=[]",
        f"trainer.seed={options.seed}",
        *options.overrides,
    ]
    config = make_partial_config(
        source if chosen.config is None else HERE / chosen.config,
        preset=None,
        hours=None if options.minutes is None else options.minutes / 60.0,
        overrides=overrides,
    )
    with tempfile.TemporaryDirectory(dir=options.sets) as run_dir:
        start_s = time.process_time()
        outcome = train(config, Path(run_dir))
        minutes = (time.process_time() - start_s) / 60.0
        print(f"{outcome.done} steps, {minutes:.1f} min of CPU", flush=True)
        encoder = load(run_dir, device="cpu")
        result = evaluate(partial(_embed, encoder, run_dir=run_dir), folder, options.set)
        batch = _batch_size(Path(run_dir))
    row = Row(
        commit=find_commit(), change=options.change, set=options.set, seed=options.seed,
        passes=outcome.done * batch, minutes=options.minutes or round(minutes, 2), **result,
    )  # fmt: skip
    append(row, options.out)


def _batch_size(run_dir: Path) -> int:
    from byol.config import load_config

    return load_config(run_dir / "config.yaml", [], preset=None).batch_size


def _embed(encoder: Any, images: Path, *, run_dir: str) -> tuple[Any, list[str]]:
    import numpy as np

    from byol.encoder.encoder import gather

    files = list_evaluated(images)
    list_file = Path(run_dir) / "images.txt"
    list_file.write_text("".join(f"{path.resolve()}\n" for path in files), encoding="utf-8")
    blocks = list(encoder.embed_source(gather(list_file, encoder.spec)))
    return np.concatenate([block.features for block in blocks]), [n for block in blocks for n in block.names]


def _patches(options: argparse.Namespace) -> None:
    """Evaluate the baseline of k-means on patches and append its row; its time is that of the features."""
    time.perf_counter = time.process_time
    import numpy as np

    from byol.config import load_config
    from byol.data.pack.images import open_images
    from byol.encoder.spec import EncoderSpec
    from byol.evaluation.patches import patch_encoder, patch_features

    folder = options.sets / options.set
    parts = [folder / "train" / ENTRY_FOLDER.get(options.set, ""), folder / "validation"]
    config = load_config(
        None, [f"data.source={parts[0]}", f"data.packs={folder / 'packs'}", *PATCH_VIEWS], preset="default"
    )
    train, test = (open_images(config, folder, console=None, source=str(part)) for part in parts)
    spec = EncoderSpec.of(config, train, which="online", done=0)
    rows = [np.arange(len(train))[:: -(-len(train) // MOST_LABELLED)], np.arange(len(test))]
    num_centroids = config.evaluation.num_centroids
    assert num_centroids is not None, "the preset has the baseline"
    start_s = time.process_time()
    with tempfile.TemporaryDirectory(dir=options.sets) as cache_folder:
        encoder = patch_encoder(train, rows[0], spec=spec, num_centroids=num_centroids, seed=options.seed)
        features = [
            patch_features(part, wanted, encoder=encoder, cache_folder=Path(cache_folder))
            for part, wanted in zip((train, test), rows, strict=True)
        ]
    minutes = (time.process_time() - start_s) / 60.0

    def embed(images: Path) -> tuple[Any, list[str]]:
        at = parts.index(images)
        part = (train, test)[at]
        return features[at], [part.names[int(row)] for row in rows[at]]

    result = evaluate(embed, folder, options.set)
    row = Row(
        commit=find_commit(), change=f"patches, {num_centroids} centroids", set=options.set,
        seed=options.seed, passes=0, minutes=round(minutes, 2), **result,
    )  # fmt: skip
    append(row, options.out)


# ---- Evaluation


@dataclass(frozen=True)
class Row:
    """A trial; accuracies are top-1 on the validation images, percent."""

    commit: str
    change: str
    set: str
    seed: int
    passes: int  # images seen in training
    minutes: float  # CPU time of the training, one core
    logistic: float
    knn: float
    labels5: float  # logistic regression with 5 labels a class, mean of NUM_DRAWS draws
    labels50: float
    rank: float  # effective rank of the validation features
    whitened_knn: float  # kNN on whitened features


def evaluate(embed: Any, folder: Path, name: str) -> dict[str, float]:
    """The measured fields of a row: fitted on the labelled training images, tested on the validation part."""
    import numpy as np
    import torch

    from byol.evaluation.low_shot import INVERSE_PENALTY, draw_images
    from byol.metrics import health, probes

    train, names = embed(folder / "train" / ENTRY_FOLDER.get(name, ""))
    test, test_names = embed(folder / "validation")
    classes = sorted({Path(one).parent.name for one in names})
    labels, truth = (
        np.array([classes.index(Path(one).parent.name) for one in each]) for each in (names, test_names)
    )

    def percent(predicted: Any) -> float:
        return round(100.0 * float((predicted == truth).mean()), 2)

    found = {
        "logistic": percent(
            probes.logistic_regression(train, labels, test=test, seed=0, scale=probes.standardise).labels
        ),
        "knn": percent(probes.knn(train, labels, test=test, seed=0).labels),
    }
    for count in (5, 50):
        shares = []
        for draw in range(NUM_DRAWS):
            rows = draw_images(labels, per_class=count, seed=0, draw=draw)
            few, scaled = probes.standardise(train[rows], test)
            ranked = probes.fit_logistic(few, labels[rows], test=scaled, inverse_penalty=INVERSE_PENALTY)
            shares.append(percent(ranked[:, 0]))
        found[f"labels{count}"] = round(float(np.mean(shares)), 2)
    some = torch.from_numpy(test[np.linspace(0, len(test) - 1, min(len(test), NUM_RANKED)).astype(int)])
    whitened = probes.whitened_knn(train, labels, test=test, seed=0).labels
    return found | {"rank": round(float(health.measure_rank(some)), 1), "whitened_knn": percent(whitened)}


def list_files(folder: Path) -> list[Path]:
    """Return the files of a folder, sorted by path."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def list_evaluated(folder: Path) -> list[Path]:
    """Return at most MOST_LABELLED files of a folder, evenly spread over the sorted ones."""
    files = list_files(folder)
    return files[:: -(-len(files) // MOST_LABELLED)]


def append(row: Row, path: Path) -> None:
    """Add a row to the CSV file and print it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    begins = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(asdict(row)), lineterminator="\n")
        if begins:
            writer.writeheader()
        writer.writerow(asdict(row))
    print(row, flush=True)


def _draw(options: argparse.Namespace) -> None:
    """Draw logistic regression and kNN against minutes, one picture per set, beside the CSV file.

    A curve is a change that was measured at two times or more; each point is the mean over its seeds.
    """
    from byol.pictures.charts import Series, draw_lines

    with options.out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for name in dict.fromkeys(row["set"] for row in rows):
        series = []
        for change in dict.fromkeys(row["change"] for row in rows if row["set"] == name):
            for field, kind in (("logistic", "main"), ("knn", "second")):
                found = defaultdict(list)
                for row in rows:
                    if (row["set"], row["change"]) == (name, change):
                        found[float(row["minutes"])].append(float(row[field]))
                if len(found) > 1:
                    minutes = sorted(found)
                    means = [sum(found[at]) / len(found[at]) for at in minutes]
                    series.append(Series(f"{change}, {field}", minutes, means, kind, has_dots=True))
        if not series:
            print(f"{name}: no change was measured at two times, so nothing is drawn")
            continue
        ticks = sorted({float(at) for one in series for at in one.x})
        title = f"{name}: top-1 accuracy against minutes of one core"
        chart = draw_lines(series, title=title, x_label="minutes", x_ticks=ticks, log_x=True)
        target = options.out.with_name(f"{name}.svg")
        head, _, rest = chart.partition(">")
        start = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" width="680" ', 1)
        target.write_text(f"{start}>\n{STYLE}\n{rest}\n", encoding="utf-8")
        print(target)


def find_commit() -> str:
    """Of the working tree that byol is imported from; "+" if it has changes."""
    from byol.base.version import SOURCE

    git = ["git", "-C", str(SOURCE)]
    commit = subprocess.run(
        [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    )
    changed = subprocess.run([*git, "status", "--porcelain", "-uno", "."], capture_output=True, text=True)
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")


if __name__ == "__main__":
    main()
