"""What several processes exchange in a step, and how long the order of an epoch takes: for docs/scaling.md.

    python benchmarks/exchange.py --threads 1 --out benchmarks/results/exchange
    python benchmarks/exchange.py --tiny --threads 1 --out runs/exchange        # does it work at all?

Bytes are counted from the parameters and BatchNorm layers of the networks. Only the order is timed.
"""

import argparse
import sys
import time
from typing import Any

from command import new_parser, save_result
from measure import describe_command, describe_machine, limit_cores, machine_lines, show_range, spread
from torch.nn.modules.batchnorm import _BatchNorm

from byol.config import load_config
from byol.method.networks import Byol
from byol.method.order import permute

_NETWORKS, _TINY_NETWORKS = ("resnet18", "resnet50"), ("resnet10t",)
_IMAGES, _TINY_IMAGES = (1_000_000, 10_000_000, 100_000_000), (1000,)
_RANKS = (2, 8, 64)
_TIMES = 3


def main() -> int:
    options = _parse()
    threads = limit_cores(options.threads)
    result = {
        "format": 1,
        **describe_command(),
        "tiny": options.tiny,
        "machine": describe_machine(threads=threads),
        "networks": [_count(name) for name in (_TINY_NETWORKS if options.tiny else _NETWORKS)],
        "orders": [_time_order(num) for num in (_TINY_IMAGES if options.tiny else _IMAGES)],
    }
    save_result(result, render(result), options.out / "exchange")
    return 0


def _parse() -> argparse.Namespace:
    return new_parser(__doc__, threads_help="cores").parse_args()


def _count(name: str) -> dict[str, Any]:
    """With the heads of the preset "default", for colour images of 224 px."""
    overrides = [
        f"network.name={name}",
        "network.stem=standard",
        "network.projection_head.mlp_hidden_size=2048",
        "network.projection_head.projection_size=256",
        "data_transforms.input_shape=[224,224,3]",
        "data.stored_px=258",
    ]
    byol = Byol.of(load_config(None, overrides, preset="demo"), channels=3, seed_key=1)
    online, target = _channels_of(byol.online, byol.predictor), _channels_of(byol.target)
    # Two views. Forward: sums, squares and a count of each channel in double precision; backward: two sums.
    forward = [8 * (2 * channels + 1) for channels in (*online, *target)] * 2
    backward = [8 * 2 * channels for channels in online] * 2
    return {
        "network": name,
        "gradient_bytes": 4 * sum(one.numel() for one in byol.parameters() if one.requires_grad),
        "norm_exchanges": len(forward) + len(backward),
        "norm_bytes": sum(forward) + sum(backward),
    }


def _channels_of(*modules: Any) -> list[int]:
    """Channels of each BatchNorm layer."""
    return [norm.num_features for each in modules for norm in each.modules() if isinstance(norm, _BatchNorm)]


def _time_order(num: int) -> dict[str, Any]:
    seconds = []
    for key in range(_TIMES):
        start = time.process_time()
        permute.__wrapped__(num, key)  # not the kept one
        seconds.append(time.process_time() - start)
    return {"images": num, "cpu_s": spread(seconds), "bytes": 8 * num}


def ring_bytes(gradient_bytes: int, ranks: int) -> float:
    """What each process sends in a ring all-reduce, and receives."""
    return 2 * (ranks - 1) / ranks * gradient_bytes


def render(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "# What processes exchange in a step",
        "",
        *machine_lines(result["machine"]),
        f"- {result['date']}, `{result['command']}`",
        "",
        "| network | gradients | "
        + " | ".join(f"sent by each of {ranks}" for ranks in _RANKS)
        + " | BatchNorm exchanges | BatchNorm bytes |",
        f"|{'---|' * (4 + len(_RANKS))}",
    ]
    for one in result["networks"]:
        sent = [f"{ring_bytes(one['gradient_bytes'], ranks) / 1e6:.0f} MB" for ranks in _RANKS]
        lines.append(
            f"| {one['network']} | {one['gradient_bytes'] / 1e6:.1f} MB | {' | '.join(sent)} "
            f"| {one['norm_exchanges']} | {one['norm_bytes'] / 1e6:.2f} MB |"
        )
    lines += [
        "",
        "Gradients in fp32, once a step, by a ring all-reduce. BatchNorm over CPU processes, each step.",
        "",
        "| images | order of an epoch, CPU seconds | its memory |",
        "|---|---|---|",
        *(
            f"| {one['images']:,} | {show_range(one['cpu_s'])} | {one['bytes'] / 1e6:,.0f} MB |"
            for one in result["orders"]
        ),
    ]
    if result["tiny"]:
        lines += ["", "A smoke test: the figures mean nothing."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
