"""What each optimisation of a step on CPU gains: the time of a step without it, over that of a step with all.

    python benchmarks/ablation.py --setting a --out benchmarks/results/ablation
    python benchmarks/ablation.py --setting a --tiny --out runs/ablation        # does it work at all?

One after another, again and again, in one process and on the same networks.
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from typing import Any
from unittest.mock import patch

import torch
from command import new_parser, save_result
from measure import describe_command, describe_machine, limit_cores, machine_lines, paired_ratios, spread
from settings import SETTINGS
from systems import Job, ours
from systems.ours import System

from byol.kernels import convolution, normalisation
from pictures import make_folders

Switch = Callable[[System], Any]  # a context in which one optimisation is off


@contextmanager
def _in_float32(system: System) -> Iterator[None]:
    ranks = system.ranks
    system.ranks = replace(ranks, dtype=torch.float32)
    yield
    system.ranks = ranks


def _never(*arguments: object, **keywords: object) -> None:
    return None


SWITCHES: dict[str, Switch] = {
    "all": lambda system: nullcontext(),
    "bfloat16": _in_float32,
    "Winograd's convolution": lambda system: patch.object(convolution, "choose_tile", _never),
    "kernels packed once a pass": lambda system: patch.object(ours, "constant_weights", nullcontext),
    "products for narrow maps": lambda system: patch.object(
        convolution, "choose_ways", lambda *_: convolution._LIBRARY
    ),
    "norm, addition and ReLU in one": lambda system: patch.object(normalisation, "can_fuse", _never),
    "norm, ReLU and pooling in one": lambda system: patch.object(normalisation, "is_plain_pool", _never),
}


def main() -> int:
    options = _parse()
    threads = limit_cores(options.threads)
    torch.set_num_threads(threads)
    setting = SETTINGS[options.setting].sized(batch=options.batch, tiny=options.tiny)
    files, packs = make_folders(setting, options.work, tiny=options.tiny)
    system = System(Job("ours", setting, "cpu", threads, 0, files, packs))
    system.prepare()
    seconds: dict[str, list[float]] = defaultdict(list)
    for number in range(1 + (2 if options.tiny else options.alternations)):
        for name, switch in SWITCHES.items():
            with switch(system):
                start = time.perf_counter()
                system.step()
                if number > 0:  # the first time is for warming up
                    seconds[name].append(time.perf_counter() - start)
    system.close()
    result = {
        "format": 1,
        **describe_command(),
        "tiny": options.tiny,
        "setting": asdict(setting) | {"description": setting.describe()},
        "machine": describe_machine(threads=threads),
        "seconds": seconds,
        "gains": {
            name: spread(paired_ratios(values, seconds["all"]))
            for name, values in seconds.items()
            if name != "all"
        },
    }
    save_result(result, render(result), options.out / f"ablation-{setting.name}-cpu")
    return 0


def _parse() -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--setting", choices=tuple(SETTINGS), required=True)
    parser.add_argument("--batch", type=int, help="instead of the setting's")
    parser.add_argument("--alternations", type=int, default=9)
    return parser.parse_args()


def render(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    images = result["setting"]["batch"]
    rates = spread([images / value for value in result["seconds"]["all"]])
    lines = [
        f"# What each optimisation gains, setting ({result['setting']['name']}): "
        f"{result['setting']['description']}",
        "",
        *machine_lines(result["machine"]),
        f"- {result['date']}, `{result['command']}`",
        f"- with all {rates['median']:.1f} images/s; {len(result['seconds']['all'])} alternations",
        "",
        "| without | a step takes, times (quartiles) |",
        "|---|---|",
        *(
            f"| {name} | {gain['median']:.2f} ({gain['low_quartile']:.2f}-{gain['high_quartile']:.2f}) |"
            for name, gain in result["gains"].items()
        ),
    ]
    if result["tiny"]:
        lines += ["", "A smoke test: the figures mean nothing."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
