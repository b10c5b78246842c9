"""What `byol eval` costs without labels, beside the features: neighbours, prototypes, measures, metadata.

    python benchmarks/labelfree.py --out benchmarks/results/labelfree
    python benchmarks/labelfree.py --tiny --out runs/labelfree         # does it work at all?

The features are synthetic, as many as are described at most and of the size of a ResNet-18's. Each part is
run once, in one process, with the settings of `byol eval`.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from command import new_parser, save_result
from measure import describe_command, describe_machine, limit_cores, machine_lines, read_own_peak_bytes

from byol.evaluation.metadata import judge_column
from byol.evaluation.unlabelled import (
    MOST_IMAGES,
    NUM_MEASURED,
    NUM_NEIGHBOURS,
    NUM_OUTLIERS,
    NUM_PROTOTYPES,
)
from byol.metrics import geometry
from byol.metrics.neighbours import Distinct, find_neighbours, find_outliers, find_prototypes
from evaluation import Sizes, forget_peak, make_features

_NUM_VALUES = 40  # of the column, plates say
_VIEW_NOISE = 0.3  # of a feature's spread, between the two views of an image

Answer = TypeVar("Answer")


def main() -> int:
    options = _parse()
    threads = limit_cores(options.threads)
    torch.set_num_threads(threads)
    load_before = os.getloadavg() if hasattr(os, "getloadavg") else None
    parts, bytes_before = _measure(options.images, options.features)
    result = {
        "format": 1,
        **describe_command(),
        "tiny": options.tiny,
        "machine": describe_machine(threads=threads),
        "load_before": load_before,
        "load_after": os.getloadavg() if load_before else None,
        "images": options.images,
        "features": options.features,
        "parts": parts,
        "bytes_before": bytes_before,
        "peak_bytes": read_own_peak_bytes(),
    }
    save_result(result, render(result), options.out / "labelfree")
    return 0


def _parse() -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--images", type=int, default=MOST_IMAGES)
    parser.add_argument("--features", type=int, default=512, help="of an image")
    options = parser.parse_args()
    if options.tiny:
        options.images, options.features = 500, 16
    return options


class _Clock:
    """Seconds, and seconds of the CPU, of each part."""

    def __init__(self) -> None:
        self.parts: dict[str, dict[str, float]] = {}

    def time(self, name: str, run: Callable[[], Answer]) -> Answer:
        wall, cpu = time.perf_counter(), time.process_time()
        answer = run()
        self.parts[name] = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        print(f"{name}: {self.parts[name]['wall_s']:.1f} s", file=sys.stderr, flush=True)
        return answer


def _measure(num_images: int, num_features: int) -> tuple[dict[str, dict[str, float]], int | None]:
    """Every part once; and the resident memory before the first."""
    sizes = Sizes(train=num_images, features=num_features, classes=_NUM_VALUES)
    features, values = make_features(sizes, num_images, seed=1)
    forget_peak()  # making them took more than they take
    bytes_before = read_own_peak_bytes()
    clock = _Clock()
    distinct = clock.time("copies", lambda: Distinct.of(features))
    neighbours = clock.time(
        f"{NUM_NEIGHBOURS} nearest of each",
        lambda: find_neighbours(features[distinct.rows], k=NUM_NEIGHBOURS),
    )
    clock.time(
        f"{NUM_PROTOTYPES} prototypes",
        lambda: find_prototypes(features, distinct, num=NUM_PROTOTYPES, seed=0),
    )
    clock.time(f"{NUM_OUTLIERS} outliers", lambda: find_outliers(neighbours, num=NUM_OUTLIERS))
    whole = features[:NUM_MEASURED]
    rng = np.random.default_rng(2)
    noise = _VIEW_NOISE * whole.std() * rng.normal(size=(2, *whole.shape))
    first, second = (whole + noise).astype(np.float32)
    clock.time(
        f"rank, alignment, uniformity, retrieval of {len(whole):,}, for two encoders",
        lambda: [geometry.measure(whole, first, second=second, seed=0) for _ in range(2)],
    )
    clock.time(
        f"metadata, a column of {_NUM_VALUES} values",
        lambda: judge_column(features, values, name="plate", is_label=False, seed=0),
    )
    return clock.parts, bytes_before


def render(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "# Without labels",
        "",
        *machine_lines(result["machine"]),
        f"- {result['date']}, `{result['command']}`",
    ]
    if result["load_before"]:
        before, after = result["load_before"], result["load_after"]
        lines.append(f"- load of the machine: {before[0]:.1f} before, {after[0]:.1f} after")
    lines += [
        "",
        f"{result['images']:,} images of {result['features']} features, each part once.",
        "",
        "| part | seconds | seconds of CPU |",
        "|---|---|---|",
        *(f"| {name} | {one['wall_s']:.1f} | {one['cpu_s']:.1f} |" for name, one in result["parts"].items()),
    ]
    wall, cpu = (sum(one[key] for one in result["parts"].values()) for key in ("wall_s", "cpu_s"))
    lines += [f"| all | {wall:.1f} | {cpu:.1f} |", ""]
    if result["peak_bytes"] is not None:
        lines.append(
            f"Peak of resident memory: {result['peak_bytes'] / 1e6:,.0f} MB, of which "
            f"{result['bytes_before'] / 1e6:,.0f} MB were there before the first part."
        )
    if result["tiny"]:
        lines.append("A smoke test: the figures mean nothing.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
