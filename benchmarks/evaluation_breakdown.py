"""Where the time of an evaluation goes: `byol eval` on a finished run, nothing of it cached, part by part.

    python benchmarks/evaluation_breakdown.py --run runs/demo --out benchmarks/results/evaluation-breakdown

Each part's time is its own: what it calls that is a part itself counts there. The run stays as it is.
"""

import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from command import new_parser, save_result
from measure import describe_command, describe_machine, limit_cores, machine_lines

from byol.config import write_override
from byol.encoder.encoder import Encoder
from byol.evaluation import features, rows, table, unlabelled
from byol.metrics import geometry

# Part -> where the functions are that are it.
PARTS: dict[str, list[tuple[Any, str]]] = {
    "images opened, labels parted": [
        (table, "open_splits"), (unlabelled, "open_images"), (features, "_estimate_norms"),
    ],
    "principal components of pixels": [(rows, "pixel_components")],
    "features of whole images": [(Encoder, "embed_packed")],
    "features of two views": [(unlabelled, "view_features_of")],
    "logistic regression, choice of C included": [(rows.probes, "logistic_regression")],
    "kNN, choice of k and temperature included": [(rows.probes, "knn")],
    "low-shot curve": [(table, "measure_low_shot")],
    "intervals": [(table, "make_row")],
    "nearest neighbours of all images": [(unlabelled, "find_neighbours")],
    "prototypes": [(unlabelled, "find_prototypes")],
    "rank, alignment, uniformity, retrieval": [(geometry, "measure")],
    "files of the description": [(unlabelled, "_save")],
}  # fmt: skip
REST = "all else"


class Stopwatch:
    """Wall and CPU seconds of each part; only the innermost part that runs is timed."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._running = [REST]
        self._last = self._now()

    def wrap(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **others: Any) -> Any:
            self.lap()
            self._running.append(part)
            try:
                return call(*arguments, **others)
            finally:
                self.lap()
                self._running.pop()

        return timed

    def lap(self) -> None:
        """What has passed goes to the part that runs."""
        now = self._now()
        for at, (before, after) in enumerate(zip(self._last, now, strict=True)):
            self.seconds[self._running[-1]][at] += after - before
        self._last = now

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()


def main() -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run with labels")
    options = parser.parse_args()
    threads = limit_cores(options.threads)
    torch.set_num_threads(threads)
    run_dir = options.work / "breakdown"
    shutil.rmtree(run_dir, ignore_errors=True)
    shutil.copytree(options.run, run_dir, ignore=shutil.ignore_patterns("features"))
    watch = Stopwatch()
    for part, places in PARTS.items():
        for place, name in places:
            setattr(place, name, watch.wrap(part, getattr(place, name)))
    packs = write_override("data.packs", str(options.run.resolve().parent / "packs"))
    table.check_labels(run_dir, overrides=[packs])
    unlabelled.describe(run_dir, overrides=[packs])
    table.evaluate(run_dir, overrides=[packs], say=lambda line: print(line, file=sys.stderr))
    watch.lap()
    result = {
        "format": 1,
        **describe_command(),
        "tiny": options.tiny,
        "machine": describe_machine(threads=threads),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "parts": {part: {"wall_s": wall, "cpu_s": cpu} for part, (wall, cpu) in watch.seconds.items()},
    }
    save_result(result, render(result), options.out / "evaluation-breakdown")
    return 0


def render(result: dict[str, Any]) -> str:
    """The result as Markdown, the longest part first."""
    parts = sorted(result["parts"].items(), key=lambda part: -part[1]["wall_s"])
    total = {key: sum(part[key] for _, part in parts) for key in ("wall_s", "cpu_s")}
    lines = [
        "# Where the time of an evaluation goes",
        "",
        *machine_lines(result["machine"]),
        f"- {result['date']}, `{result['command']}`; PyTorch uses {result['capability']}",
        "",
        "| part | seconds | seconds of CPU |",
        f"|{'---|' * 3}",
        *(
            f"| {name} | {one['wall_s']:.1f} | {one['cpu_s']:.1f} |"
            for name, one in [*parts, ("**all**", total)]
        ),
    ]
    if result["tiny"]:
        lines += ["", "A smoke test: the figures mean nothing."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
