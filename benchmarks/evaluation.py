"""What an evaluation costs: features beside training steps of the same network, then the two classifiers.

    python benchmarks/evaluation.py --out benchmarks/results/evaluation
    python benchmarks/evaluation.py --tiny --out runs/evaluation        # does it work at all?

Training steps and features alternate in one process. The classifiers get synthetic features of the size of
CIFAR-10's (50,000 training and 10,000 test images, 512 features, 10 classes); their time includes the choice
of k and temperature, or of the penalty.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command import names_of, new_parser, save_result
from measure import (
    describe_command,
    describe_machine,
    limit_cores,
    machine_lines,
    paired_ratios,
    read_own_peak_bytes,
    show_range,
    spread,
)
from settings import SETTINGS, Setting
from systems import Job
from systems.ours import System

from byol.encoder.encoder import Encoder
from byol.encoder.spec import EncoderSpec
from byol.metrics import probes
from pictures import make_folders

_NUM_FEATURED = 50_000  # images that the time for features is given for


@dataclass(frozen=True)
class Sizes:
    """Of the classifiers' features."""

    train: int = 50_000
    test: int = 10_000
    features: int = 512
    classes: int = 10


def main() -> int:
    options = _parse()
    threads = limit_cores(options.threads)
    torch.set_num_threads(threads)
    sizes = Sizes(500, 100, 16) if options.tiny else Sizes()
    result = {
        "format": 1,
        **describe_command(),
        "tiny": options.tiny,
        "device": options.device,
        "machine": describe_machine(threads=threads),
        "sizes": asdict(sizes),
        "classifiers": _measure_classifiers(sizes, repeats=options.repeats),
        "networks": {
            name: _measure_network(SETTINGS[name], options, threads=threads) for name in options.settings
        },
    }
    save_result(result, render(result), options.out / f"evaluation-{options.device}")
    return 0


def _parse() -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--settings", type=names_of(SETTINGS), default=["a", "b"], help=",".join(SETTINGS))
    parser.add_argument("--alternations", type=int, default=7, help="of training steps and features")
    parser.add_argument("--seconds", type=float, default=3.0, help="of either in one alternation")
    parser.add_argument("--repeats", type=int, default=5, help="of each classifier")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the networks")
    options = parser.parse_args()
    if options.tiny:
        options.alternations, options.seconds, options.repeats = 2, 0.0, 1
    return options


# ---- Features


@dataclass(frozen=True)
class Rate:
    """Images a second, and a second of the CPU time of all threads."""

    wall: float
    cpu: float


def _measure_network(setting: Setting, options: argparse.Namespace, *, threads: int) -> dict[str, Any]:
    """Images a second of training and of features, alternating."""
    setting = setting.sized(batch=None, tiny=options.tiny)
    files, packs = make_folders(setting, options.work, tiny=options.tiny)
    system = System(Job("ours", setting, options.device, threads, 0, files, packs))
    system.prepare()
    encoder = Encoder(
        EncoderSpec.of(system.config, system.images, which="online", done=0),
        copy.deepcopy(system.byol.online.encoder),  # as the training goes on with its own
        device=options.device,
    )
    work: dict[str, Callable[[int], None]] = {
        "training": lambda batches: _train(system, batches),
        "features": lambda batches: _embed(encoder, system, batches * setting.batch),
    }
    batches = {name: _choose_batches(run, seconds=options.seconds) for name, run in work.items()}
    forget_peak()
    rates: dict[str, list[Rate]] = {name: [] for name in work}
    for number in range(options.alternations):
        for name, run in work.items():
            wall_s, cpu_s = _time(lambda run=run, name=name: run(batches[name]))
            images = batches[name] * setting.batch
            rates[name].append(Rate(images / wall_s, images / cpu_s))
        line = ", ".join(f"{name} {each[-1].wall:.1f}" for name, each in rates.items())
        print(f"({setting.name}) alternation {number + 1}, images/s: {line}", file=sys.stderr, flush=True)
    system.close()
    measured = {
        per: {name: [getattr(rate, per) for rate in each] for name, each in rates.items()}
        for per in ("wall", "cpu")
    }
    return {
        "setting": asdict(setting) | {"description": setting.describe()},
        "training_in": str(system.ranks.dtype).removeprefix("torch."),
        "images_per_s": {name: _with_each(each) for name, each in measured["wall"].items()},
        "images_per_cpu_s": {name: _with_each(each) for name, each in measured["cpu"].items()},
        "features_over_training": {
            per: _with_each(paired_ratios(each["features"], each["training"]))
            for per, each in measured.items()
        },
        "peak_bytes": read_own_peak_bytes(),
    }


def _with_each(values: list[float]) -> dict[str, Any]:
    return {"each": values} | spread(values)


def _choose_batches(run: Callable[[int], None], *, seconds: float) -> int:
    """How many take so long; the first run is the warm-up."""
    run(1)
    return max(1, round(seconds / _time(lambda: run(1))[0]))


def _train(system: System, batches: int) -> None:
    for _ in range(batches):
        system.step()
    if system.ranks.device.type == "cuda":
        torch.cuda.synchronize()


def _embed(encoder: Encoder, system: System, images: int) -> None:
    """Of packed images, as `byol eval` makes them."""
    encoder.embed_packed(system.images, rows=np.arange(images) % len(system.images))


def _time(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and seconds of the CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


# ---- Classifiers


def _measure_classifiers(sizes: Sizes, *, repeats: int) -> dict[str, Any]:
    train, labels = make_features(sizes, sizes.train, seed=1)
    test, truth = make_features(sizes, sizes.test, seed=2)
    measured = {}
    for name, classify in (("knn", probes.knn), ("logistic regression", probes.logistic_regression)):
        walls, cpus = [], []
        forget_peak()
        for _ in range(repeats):
            wall, cpu = time.perf_counter(), time.process_time()
            predicted = classify(train, labels, test=test, seed=0)
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
            print(f"{name}: {walls[-1]:.2f} s, {cpus[-1]:.2f} s of CPU", file=sys.stderr, flush=True)
        measured[name] = {
            "wall_s": _with_each(walls),
            "cpu_s": _with_each(cpus),
            "peak_bytes": read_own_peak_bytes(),
            "top1": float((predicted.labels == truth).mean()),
            "chosen": predicted.chosen,
        }
    return measured


def make_features(sizes: Sizes, num: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels: overlapping classes, a spectrum that falls as 1 / i, no negative values.

    As those of a ResNet's pooled maps, which makes logistic regression iterate as often as on real ones.
    """
    shared, own = np.random.default_rng(0), np.random.default_rng(seed)
    centres = shared.normal(size=(sizes.classes, sizes.features))
    scale = 1.0 / np.sqrt(np.arange(1, sizes.features + 1))
    mixing, _ = np.linalg.qr(shared.normal(size=(sizes.features, sizes.features)))
    labels = own.integers(0, sizes.classes, num)
    hidden = (0.15 * centres[labels] + own.normal(size=(num, sizes.features))) * scale
    return np.maximum(hidden @ mixing, 0.0).astype(np.float32), labels


# ---- Memory


def forget_peak() -> None:
    """Let the highest resident memory of this process count from here on, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


# ---- The table


def render(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    sizes = result["sizes"]
    lines = [
        "# Evaluation",
        "",
        *machine_lines(result["machine"]),
        f"- {result['date']}, `{result['command']}`",
        "",
        f"Medians (smallest-largest); ratios within each alternation. Networks on the {result['device']}, "
        "features in float32 from packed images.",
        "",
        "| network | training, images/s | features, images/s | ratio | ratio by CPU time "
        f"| {_NUM_FEATURED:,} features take | peak memory |",
        f"|{'---|' * 7}",
        *(_network_row(name, one) for name, one in result["networks"].items()),
        "",
        f"{sizes['train']:,} training and {sizes['test']:,} test images, {sizes['features']} features, "
        f"{sizes['classes']} classes; the choice of settings is part of the time:",
        "",
        "| classifier | seconds | seconds of CPU | peak memory | top-1, chosen |",
        f"|{'---|' * 5}",
        *(_classifier_row(name, one) for name, one in result["classifiers"].items()),
    ]
    if result["tiny"]:
        lines += ["", "A smoke test: the figures mean nothing."]
    return "\n".join(lines) + "\n"


def _network_row(name: str, one: dict[str, Any]) -> str:
    rates, ratios = one["images_per_s"], one["features_over_training"]
    cells = [
        f"({name}) {one['setting']['description']}; trained in {one['training_in']}",
        show_range(rates["training"]),
        show_range(rates["features"]),
        show_range(ratios["wall"]),
        show_range(ratios["cpu"]),
        f"{_NUM_FEATURED / rates['features']['median']:.0f} s",
        _megabytes(one["peak_bytes"]),
    ]
    return f"| {' | '.join(cells)} |"


def _classifier_row(name: str, one: dict[str, Any]) -> str:
    chosen = ", ".join(f"{key} = {value:g}" for key, value in one["chosen"].items())
    cells = [
        name,
        show_range(one["wall_s"]),
        show_range(one["cpu_s"]),
        _megabytes(one["peak_bytes"]),
        f"{100 * one['top1']:.1f} %, {chosen}",
    ]
    return f"| {' | '.join(cells)} |"


def _megabytes(count: int | None) -> str:
    return "not known" if count is None else f"{count / 1e6:,.0f} MB"


if __name__ == "__main__":
    sys.exit(main())
