"""`byol demo` for real, on this CPU and on an emulated one with AVX2 alone: minutes, table, are the bars met?

    python benchmarks/demo.py --kinds native,avx2 --cores 1,2 --seeds 0,1,2 --out benchmarks/results/demo

Each run begins in an empty folder, its own packed images included; without --compile the kernels of an
earlier run are used. An emulated CPU has the instructions of AVX2, not the caches and clock of an old one.
"""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command import names_of, new_parser, save_result
from isa import RESTRICTIONS
from measure import describe_command, describe_machine, machine_lines

LINEAR, KNN = "logistic regression", "knn"
KINDS: dict[str, dict[str, str]] = {
    "native": {},
    "avx2": RESTRICTIONS["avx2"] | {"OPENBLAS_CORETYPE": "Haswell"},
}
_TINY = [
    "trainer.max_epochs=1", "trainer.batch_size=500", "data_transforms.input_shape=[16,16,3]",
    "network.projection_head.mlp_hidden_size=8", "evaluation.num_draws=2",
]  # fmt: skip
# A line of the command -> the phase that ends with it.
_ENDS = {
    "timing a few training steps": "packing",
    "the demo takes about": "speed",
    "The encoder is in": "training",
    "saved in": "evaluation",
}
_STEPS = re.compile(r"step (\d+)/")


@dataclass(frozen=True)
class Bar:
    """Points of top-1 that the trained encoder must be above another row."""

    classifier: str
    above: str
    points: float


BARS = (
    Bar(LINEAR, "untrained", 15.0),
    Bar(LINEAR, "pixels", 40.0),
    Bar(KNN, "untrained", 12.0),
    Bar(KNN, "pixels", 12.0),
)


def run(
    kind: str, *, cores: int, seed: int, folder: Path, overrides: list[str], compiles: bool
) -> dict[str, Any]:
    """One demo in a new folder: seconds of its phases, steps, top-1 in percent."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    own = {"OMP_NUM_THREADS": str(cores), **KINDS[kind]}
    if compiles:
        own["XDG_CACHE_HOME"] = str(folder / "cache")
    command = [sys.executable, "-u", "-m", "byol", "demo", f"trainer.seed={seed}", *overrides]
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))[:cores]
        command = ["taskset", "-c", ",".join(map(str, allowed)), *command]
    phases: dict[str, float] = {}
    steps, start = 0, time.perf_counter()
    with subprocess.Popen(
        [*command, "-o", str(folder / "run")], stdout=subprocess.PIPE, text=True, env=os.environ | own
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", file=sys.stderr, flush=True)
            for words, phase in _ENDS.items():
                if line.startswith(words):
                    phases[phase] = time.perf_counter() - start - sum(phases.values())
            if found := _STEPS.match(line):
                steps = int(found[1])
        total_s = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"byol demo ended with exit code {process.returncode}")
    rows = json.loads((folder / "run" / "eval.json").read_text())["rows"]
    top1 = {f"{row['features']}, {row['classifier']}": 100.0 * row["top1"] for row in rows}
    return {
        "kind": kind,
        "cores": cores,
        "seed": seed,
        "steps": steps,
        "seconds": phases | {"all": total_s},
        "top1": top1,
        "missed": [
            f"{bar.classifier} above {bar.above} by {bar.points:g}" for bar in BARS if not is_met(bar, top1)
        ],
    }


def is_met(bar: Bar, top1: dict[str, float]) -> bool:
    """Whether the trained encoder is so far above the other features."""
    mine, other = (top1[f"{name}, {bar.classifier}"] for name in ("byol online", bar.above))
    return mine - other >= bar.points


def main() -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--kinds", type=names_of(KINDS), default=list(KINDS), help=",".join(KINDS))
    parser.add_argument("--cores", type=names_of(["1", "2"]), default=["2"], help="1, 2 or 1,2")
    parser.add_argument(
        "--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2]
    )
    parser.add_argument("--compile", action="store_true", help="compile the kernels in each run")
    parser.add_argument("overrides", nargs="*", help="settings, as for byol demo")
    options = parser.parse_args()
    if options.tiny:
        options.kinds, options.cores, options.seeds = ["native"], ["1"], [0]
        options.overrides += _TINY
    runs = [
        run(
            kind,
            cores=int(cores),
            seed=seed,
            folder=options.work / f"demo-{kind}-{cores}-{seed}",
            overrides=options.overrides,
            compiles=options.compile,
        )
        for kind in options.kinds
        for cores in options.cores
        for seed in options.seeds
    ]
    result = {
        "format": 1,
        **describe_command(),
        "tiny": options.tiny,
        "machine": describe_machine(threads=max(map(int, options.cores))),
        "runs": runs,
    }
    save_result(result, render(result), options.out / "demo")
    return 0


def render(result: dict[str, Any]) -> str:
    """The result as Markdown: a line a run, then mean and spread of each kind of machine."""
    names = list(result["runs"][0]["top1"])
    lines = [
        "# The demo, run by run",
        "",
        *machine_lines(result["machine"]),
        f"- {result['date']}, `{result['command']}`",
        "- avx2: the same CPU, its libraries held to AVX2",
        "",
        "| CPU | cores | seed | steps | packing, speed | training | evaluation | all | bars |",
        f"|{'---|' * 9}",
        *(_run_row(one) for one in result["runs"]),
        "",
        f"| top-1, % | {' | '.join(names)} |",
        f"|{'---|' * (len(names) + 1)}",
    ]
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in result["runs"]:
        groups.setdefault(f"{one['kind']}, {one['cores']} core{'s' if one['cores'] > 1 else ''}", []).append(
            one
        )
    lines += [
        f"| {name} | {' | '.join(_show(group, row) for row in names)} |" for name, group in groups.items()
    ]
    if result["tiny"]:
        lines += ["", "A smoke test: the figures mean nothing."]
    return "\n".join(lines) + "\n"


def _run_row(one: dict[str, Any]) -> str:
    seconds = one["seconds"]
    before = seconds.get("packing", 0.0) + seconds.get("speed", 0.0)
    times = [
        f"{value:.0f} s" for value in (before, seconds["training"], seconds["evaluation"], seconds["all"])
    ]
    bars = "met" if not one["missed"] else f"missed: {', '.join(one['missed'])}"
    cells = [one["kind"], *(str(one[key]) for key in ("cores", "seed", "steps")), *times, bars]
    return f"| {' | '.join(cells)} |"


def _show(group: list[dict[str, Any]], row: str) -> str:
    values = [one["top1"][row] for one in group]
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


if __name__ == "__main__":
    sys.exit(main())
