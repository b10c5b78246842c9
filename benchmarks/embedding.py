"""Images a second of embedding: this package beside onnxruntime and plain PyTorch, in one run, alternating.

    python benchmarks/embedding.py --threads 1 --out benchmarks/results/embedding
    python benchmarks/embedding.py --networks resnet18 --px 96 --batch 64 --threads 1 --out runs/embedding
    python benchmarks/embedding.py --tiny --threads 1 --out runs/embedding    # does it work at all?

What is timed goes from normalised views in memory to features: `Encoder.encode_views`, which `Encoder.embed`
calls, against onnxruntime on the same weights exported by torch.onnx, and against the network as timm has it.
Reading and resizing of files is the same for all and is left out. The features are compared first.
onnxruntime and onnxscript come from benchmarks/requirements.txt.
"""

import argparse
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command import new_parser, save_result
from measure import (
    describe_command,
    describe_machine,
    limit_cores,
    machine_lines,
    paired_ratios,
    show_range,
    spread,
)

from byol.encoder.encoder import Encoder
from byol.encoder.spec import EncoderSpec
from byol.method.networks import build_encoder, count_features, resolve_stem
from byol.method.views import Pixels

NETWORKS = ("resnet10t", "resnet18", "resnet50", "convnext_atto", "vit_tiny_patch16_224")
_OURS, _ONNX = "byol", "onnxruntime"
Embed = Callable[[], np.ndarray]


def main() -> int:
    options = _parse()
    threads = limit_cores(options.threads)
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import onnxruntime

    result: dict[str, Any] = {
        "format": 1,
        **describe_command(),
        "tiny": options.tiny,
        "px": options.px,
        "batch": options.batch,
        "seconds": options.seconds,
        "machine": describe_machine(threads=threads) | {_ONNX: onnxruntime.__version__},
        "networks": {name: _measure(name, options, threads=threads) for name in options.networks.split(",")},
    }
    save_result(result, render(result), options.out / "embedding")
    return 0


def _parse() -> argparse.Namespace:
    parser = new_parser(__doc__, threads_help="cores for each system")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="of timm, with commas between")
    parser.add_argument("--px", type=int, default=96, help="side of the views; 224 for a ViT")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--alternations", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one system in one alternation")
    options = parser.parse_args()
    if options.tiny:
        options.networks, options.px, options.batch = "resnet10t", 32, 4
        options.alternations, options.seconds = 2, 0.0
    return options


def _measure(name: str, options: argparse.Namespace, *, threads: int) -> dict[str, Any]:
    """Images a second of each system in each alternation, and how far their features differ."""
    px = 224 if name.endswith("_224") else options.px
    systems = _make_systems(name, options, px=px, threads=threads)
    expected = systems["pytorch"]()
    differences = {
        system: float(np.abs(embed() - expected).max() / np.abs(expected).max())
        for system, embed in systems.items()
    }
    rates: dict[str, list[float]] = {system: [] for system in systems}
    for _ in range(options.alternations):
        for system, embed in systems.items():
            rates[system].append(options.batch * _count_a_second(embed, options.seconds))
    return {
        "px": px,
        "num_features": expected.shape[1],
        "difference": differences,
        "images_per_s": {system: spread(each) | {"each": each} for system, each in rates.items()},
        "ours_over": {
            system: spread(paired_ratios(rates[_OURS], rates[system]))
            for system in systems
            if system != _OURS
        },
    }


def _make_systems(name: str, options: argparse.Namespace, *, px: int, threads: int) -> dict[str, Embed]:
    """Functions that embed the same views, each once called."""
    import onnxruntime

    torch.manual_seed(0)
    stem = resolve_stem("standard", name=name, view_px=px)

    def build() -> torch.nn.Module:
        return build_encoder(name, channels=3, view_px=px, stem=stem).eval()

    plain = build()
    num_features = count_features(plain, channels=3, view_px=px)
    half = (0.5,) * 3
    pixels = Pixels(low=(0.0,) * 3, high=(255.0,) * 3, mean=half, std=half)
    spec = EncoderSpec(name, stem, 3, px, px, num_features, pixels, "online", 0, "0", "", "made by a script")
    ours = build()
    ours.load_state_dict(plain.state_dict())
    encoder = Encoder(spec, ours)
    views = torch.randn(options.batch, 3, px, px)
    laid = views.contiguous(memory_format=torch.channels_last)  # as the encoder's own views are
    path = options.work / f"{name}-{px}-{options.batch}.onnx"
    _export(plain, views, path)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    fed = {session.get_inputs()[0].name: views.numpy()}

    def embed_plainly() -> np.ndarray:
        with torch.inference_mode():
            return plain(laid).numpy()

    systems: dict[str, Embed] = {
        _OURS: lambda: encoder.encode_views(laid).numpy(),
        _ONNX: lambda: session.run(None, fed)[0],
        "pytorch": embed_plainly,
    }
    for embed in systems.values():
        embed()
    return systems


def _export(module: torch.nn.Module, views: torch.Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own dependencies
        torch.onnx.export(module, (views,), path, dynamo=True, verbose=False)


def _count_a_second(embed: Embed, seconds: float) -> float:
    """Calls a second, of as many as fit into the time, at least one."""
    start, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - start < seconds:
        embed()
        calls += 1
    return calls / (time.perf_counter() - start)


def render(result: dict[str, Any]) -> str:
    """As Markdown."""
    systems = list(next(iter(result["networks"].values()))["images_per_s"])
    lines = [
        "# Embedding beside onnxruntime",
        "",
        f"`{result['command']}`, {result['date']}",
        "",
        *(["Made with --tiny: the figures mean nothing.", ""] if result["tiny"] else []),
        *machine_lines(result["machine"]),
        f"- onnxruntime {result['machine'][_ONNX]}; batch {result['batch']}, {result['seconds']:g} s of each "
        "system in each alternation",
        "",
        f"| network, px | {' | '.join(f'{system} images/s' for system in systems)} | byol / onnxruntime | "
        "byol / pytorch | difference |",
        f"|---|{'---|' * len(systems)}---|---|---|",
    ]
    for name, one in result["networks"].items():
        rates = " | ".join(show_range(one["images_per_s"][system]) for system in systems)
        ratios = " | ".join(show_range(one["ours_over"][system]) for system in (_ONNX, "pytorch"))
        largest = max(one["difference"].values())
        lines.append(f"| {name}, {one['px']} | {rates} | {ratios} | {largest:.1e} |")
    slowest = min(one["ours_over"][_ONNX]["median"] for one in result["networks"].values())
    mean = statistics.geometric_mean(one["ours_over"][_ONNX]["median"] for one in result["networks"].values())
    lines += [
        "",
        "Medians, with the ends in brackets; ratios are taken within each alternation. The difference is the "
        "largest of any feature from PyTorch's, over the largest feature.",
        f"byol over onnxruntime: {slowest:.2f} at least, {mean:.2f} in the geometric mean of the networks.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
