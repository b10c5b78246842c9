"""All faults, several at once, each in a folder of its own; the table at the end."""

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from byol.cli.main import main as byol
from faults import damage, disk, folders, kills, machine, results, smoke
from faults.children import in_parallel
from faults.results import Job, Result
from faults.scene import IMAGES, RUN, train_command, write_images

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
GROUPS: dict[str, Callable[..., Iterator[Job]]] = {
    "kills": kills.list_jobs,
    "disk": disk.list_jobs,
    "damage": damage.list_jobs,
    "folders": folders.list_jobs,
    "machine": machine.list_jobs,
}


def main(arguments: Sequence[str]) -> int:
    """Run the suite; the exit code."""
    parser = argparse.ArgumentParser(description="Put faults into small runs, and see what came of it.")
    parser.add_argument("--short", action="store_true", help="try fewer moments of each fault")
    parser.add_argument(
        "--smoke", action="store_true", help="a few of each kind, in about a minute of one core"
    )
    parser.add_argument("--only", choices=GROUPS, action="append", help="one group; may be repeated")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once")
    parser.add_argument(
        "--output", type=Path, help="the page to write (default: docs/reliability.md, if all)"
    )
    options = parser.parse_args(arguments)
    start_s = time.monotonic()
    output = options.output
    if output is None and not (options.short or options.smoke or options.only):
        output = PAGE
    output = None if output is None else output.absolute()
    chosen = options.only or list(GROUPS)
    jobs = [
        job
        for name in chosen
        for job in (smoke.GROUPS[name]() if options.smoke else GROUPS[name](short=options.short))
    ]
    with tempfile.TemporaryDirectory(prefix="byol-faults-") as folder:
        os.chdir(folder)
        _warm_up()
        found = in_parallel(
            [partial(_in_own_folder, place, job) for place, job in enumerate(jobs)], most=options.jobs
        )
        os.chdir("/")
    rows = results.merge(found)
    for row in rows:
        print(f"{row.group}: {row.fault}: {row.tried} tried; {row.seen}")
    for row in rows:
        for problem in row.problems:
            print(f"BROKEN {row.fault}: {problem}")
    seconds = time.monotonic() - start_s
    print(f"{sum(row.tried for row in rows)} faults in {seconds:.0f} s")
    if output is not None:
        amount = " --smoke" if options.smoke else " --short" if options.short else ""
        command = f"scripts/faults{amount}"
        results.write(output, rows, seconds=seconds, command=command)
    return 1 if any(row.problems for row in rows) else 0


def _warm_up() -> None:
    """Import and compile all that a run needs, so that forked children need not."""
    torch.set_num_threads(1)
    write_images(Path(IMAGES))
    for command in (train_command(), ["eval", RUN], ["report", RUN]):
        with contextlib.redirect_stdout(io.StringIO()) as said:
            code = byol(command)
        assert code == 0, said.getvalue()


def _in_own_folder(place: int, job: Job) -> Result:
    folder = Path(f"job-{place}").absolute()
    folder.mkdir()
    os.chdir(folder)
    write_images(Path(IMAGES))
    start_s = time.monotonic()
    result = job()
    lines = [f"{time.monotonic() - start_s:5.0f} s  {result.fault}: {result.tried} tried"]
    print(
        "\n".join([*lines, *(f"        BROKEN {text}" for text in result.problems)]),
        file=sys.stderr,
        flush=True,
    )
    return result
