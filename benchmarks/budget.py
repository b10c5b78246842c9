"""Does a run with a time budget end on time, its schedules complete? `byol train motifs --hours H`, for real.

Every step is logged; time counts from the beginning of the first (when its line is printed, less what it
took) to the line that says that all is saved. Further arguments are those of `byol train`.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from command import new_parser, save_result
from measure import describe_command, describe_machine, limit_cores, machine_lines

from byol.training.runlog import Metrics, read_metrics

_NUM_IMAGES = 5000  # of motifs; an epoch leaves out an incomplete batch, 2 % at most
_FIRST_STEP, _SAVED = re.compile(r"step 1/"), re.compile(r"The encoder is in ")


def run(hours: float, run_dir: Path, *, overrides: list[str], threads: int) -> dict[str, Any]:
    """Train, and note when each line was printed, in seconds from the start."""
    shutil.rmtree(run_dir, ignore_errors=True)
    command = [sys.executable, "-u", "-m", "byol", "train", "motifs", "--hours", f"{hours:g}"]
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, "trainer.log_interval=1", *overrides, "-o", str(run_dir)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    )
    assert process.stdout is not None
    lines = [(time.perf_counter() - start, line.rstrip()) for line in process.stdout]
    if process.wait():
        raise SystemExit(f"byol train ended with exit code {process.returncode}")
    first_s, saved_s = (
        next(at for at, line in lines if pattern.match(line)) for pattern in (_FIRST_STEP, _SAVED)
    )
    metrics = read_metrics(run_dir)
    first_s -= metrics[0].epoch * _NUM_IMAGES / metrics[0].images_per_s
    return {
        "budget_s": hours * 3600.0,
        "before_s": first_s,
        "training_s": saved_s - first_s,
        "said": [f"{at - first_s:8.1f} s  {line.replace(str(run_dir), 'RUN')}" for at, line in lines],
    }


def _describe(result: dict[str, Any], metrics: list[Metrics]) -> str:
    last = metrics[-1]
    highest = max(line.lr for line in metrics)
    rows = [
        f"- budget {result['budget_s']:.0f} s; ended {result['training_s']:.1f} s after the first step began "
        f"({result['training_s'] / result['budget_s'] - 1.0:+.1%}); {result['before_s']:.1f} s before it "
        "(images, benchmark)",
        f"- {last.done} steps, {last.epoch:.2f} epochs; in the last step the learning rate was "
        f"{last.lr:.2g} (highest {highest:.2g}), tau {last.tau:.6f}",
        *machine_lines(result["machine"]),
    ]
    if result["tiny"]:
        rows.insert(0, "- a smoke test: the figures mean nothing")
    log = "\n".join(result["said"])
    return "\n".join([f"`{result['command']}`", "", *rows, "", "```", log, "```", ""])


def main() -> None:
    parser = new_parser(__doc__)
    parser.allow_abbrev = False
    parser.add_argument("--hours", type=float, default=0.05)
    options, overrides = parser.parse_known_args()
    limit_cores(options.threads)
    hours = options.hours
    if options.tiny:
        hours, overrides = 0.001, [*overrides, "--preset", "demo", "optimizer.warmup_epochs=0"]
    run_dir = options.work / "budget" / "run"
    result = run(hours, run_dir, overrides=overrides, threads=options.threads)
    metrics = read_metrics(run_dir)
    machine = describe_machine(threads=options.threads)
    result |= describe_command() | {"tiny": options.tiny, "machine": machine}
    result["last"] = asdict(metrics[-1])
    save_result(result, _describe(result, metrics), options.out / "budget")


if __name__ == "__main__":
    main()
