"""Training steps and embedding with byol's convolutions and with PyTorch's own, alternating in one process.

    python benchmarks/steps.py --threads 1 --out runs/steps
    python benchmarks/steps.py --isa avx2 --threads 1 --out benchmarks/results/steps-avx2

A step is that of `byol train -n`: views, both networks, optimizer and target, on random stored images.
"""

import argparse
import copy
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
from command import new_parser, save_result
from isa import RESTRICTIONS, list_available, restrict
from measure import (
    describe_command,
    describe_machine,
    limit_cores,
    machine_lines,
    paired_ratios,
    show_range,
    spread,
)

from byol.config import Config, load_config
from byol.device.devices import choose_dtype
from byol.device.ranks import Ranks, keep_freed_memory
from byol.kernels.build import explain_kernels
from byol.kernels.convolution import accelerate
from byol.kernels.winograd import constant_weights
from byol.training.step_benchmark import RandomImages, make_step

WAYS = ("fast", "library")
CPU = torch.device("cpu")
_SMALL = ["network.stem=small", "data_transforms.input_shape=(32,32,3)"]
STEPS: dict[str, tuple[str, list[str]]] = {
    "demo": ("demo", []),
    "ResNet-10-T, 64 px, batch 64": (
        "classic",
        ["network.name=resnet10t", "data_transforms.input_shape=(64,64,3)"],
    ),
    "setting (a): ResNet-18, 96 px, batch 64": ("classic", []),
    "setting (b): ResNet-18 small stem, 32 px, batch 256": ("classic", [*_SMALL, "trainer.batch_size=256"]),
}
EMBEDDINGS = {"ResNet-10-T at 96 px": ("resnet10t", 96), "ResNet-18 at 96 px": ("resnet18", 96)}
_RESTRICTED = "BYOL_BENCHMARK_ISA"  # of a process that has begun as this kind of CPU
_EMBEDDED, _AT_ONCE = 256, 64


def main() -> int:
    options = _parse()
    if options.isa is not None and os.environ.get(_RESTRICTED) != options.isa:
        if options.isa not in list_available():
            sys.exit(f"--isa {options.isa}: this CPU can stand for {', '.join(list_available())} alone")
        environment = restrict(options.isa) | {_RESTRICTED: options.isa}
        return subprocess.run([sys.executable, *sys.argv], env=environment).returncode
    threads = limit_cores(options.threads)
    torch.set_num_threads(threads)
    keep_freed_memory()
    jobs: dict[str, dict[str, Callable[[], object]]] = {}
    for name, (preset, overrides) in list(STEPS.items())[: 1 if options.tiny else None]:
        jobs[f"step, {name}"] = {
            way: _make(preset, [*overrides, f"trainer.convolution={way}"]) for way in WAYS
        }
    for name, (network, px) in list(EMBEDDINGS.items())[: 1 if options.tiny else None]:
        jobs[f"embedding, {name}"] = _make_embedding(network, 32 if options.tiny else px)
    result: dict[str, Any] = {
        "format": 1,
        **describe_command(),
        "tiny": options.tiny,
        "machine": describe_machine(threads=threads),
        "kernels": explain_kernels(),
        "seconds": {name: _alternate(ways, rounds=options.rounds) for name, ways in jobs.items()},
    }
    save_result(result, render(result), options.out / "steps")
    return 0


def _parse() -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--isa", choices=tuple(RESTRICTIONS), help="as a CPU of this kind")
    options = parser.parse_args()
    if options.tiny:
        options.rounds = 2
    return options


def _make(preset: str, overrides: list[str]) -> Callable[[], object]:
    config: Config = load_config(None, overrides, preset=preset)
    ranks = Ranks(0, 1, CPU, choose_dtype(config.trainer.precision, device=CPU))
    images = RandomImages(channels=3, stored_px=round(1.15 * config.view_px), bits=8)
    return make_step(config, images, ranks=ranks, num_images=config.batch_size, num_microbatches=1)


def _make_embedding(network: str, px: int) -> dict[str, Callable[[], object]]:
    library = timm.create_model(network, num_classes=0).eval().requires_grad_(False)
    library = library.to(memory_format=torch.channels_last)
    images = torch.randn(_EMBEDDED, 3, px, px).contiguous(memory_format=torch.channels_last)

    def embed(module: torch.nn.Module) -> torch.Tensor:
        with torch.inference_mode(), constant_weights():
            return torch.cat([module(part) for part in images.split(_AT_ONCE)])

    fast = accelerate(copy.deepcopy(library))
    return {"fast": lambda: embed(fast), "library": lambda: embed(library)}


def _alternate(ways: dict[str, Callable[[], object]], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round after one that is not counted."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(1 + rounds):
        for way, work in ways.items():
            start = time.perf_counter()
            work()
            if number:
                seconds[way].append(time.perf_counter() - start)
    return seconds


def render(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "# byol's convolutions and PyTorch's own",
        "",
        *machine_lines(result["machine"]),
        f"- {result['date']}, `{result['command']}`; {result['kernels']}",
        "",
        "| | seconds, byol | PyTorch's time / byol's |",
        "|---|---|---|",
    ]
    for name, seconds in result["seconds"].items():
        ratios = paired_ratios(seconds["library"], seconds["fast"])
        lines.append(f"| {name} | {show_range(spread(seconds['fast']))} | {show_range(spread(ratios))} |")
    if result["tiny"]:
        lines.append("\nA smoke test: the figures mean nothing.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
