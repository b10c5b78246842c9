"""Where the time of one of our training steps goes, and how near it is to what the hardware can compute.

    python benchmarks/breakdown.py --setting a --out benchmarks/results/breakdown
    python benchmarks/breakdown.py --setting a --tiny --out runs/breakdown        # does it work at all?

On a GPU the host waits at the end of each part, so that the parts are longer together than the step.
"""

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from command import new_parser, save_result
from measure import describe_command, describe_machine, limit_cores, machine_lines
from settings import SETTINGS
from systems import Job
from systems.ours import System, configure
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

from byol.config import Config
from byol.method.networks import Byol
from pictures import make_folders

# In the order of a step; "loss" is what the networks' forward takes beside the two: predictor and loss.
PARTS = (
    "data wait",
    "views",
    "forward online",
    "forward target",
    "loss",
    "backward",
    "optimizer",
    "target update",
)
_NETWORK = ("forward online", "forward target", "loss", "backward")
_PRODUCTS = {"product bfloat16": torch.bfloat16, "product float32": torch.float32}
_PRODUCT_SIDE = {"cpu": 2048, "cuda": 8192}


def main() -> int:
    options = _parse()
    threads = limit_cores(options.threads)
    torch.set_num_threads(threads)
    device = torch.device(options.device)
    setting = SETTINGS[options.setting].sized(batch=options.batch, tiny=options.tiny)
    files, packs = make_folders(setting, options.work, tiny=options.tiny)
    job = Job("ours", setting, options.device, threads, 0, files, packs)
    system = System(job)
    system.prepare()
    num_warm_up, num_steps = (1, 2) if options.tiny else (3, options.steps)
    for _ in range(num_warm_up):
        system.step()
    side = 128 if options.tiny else _PRODUCT_SIDE[device.type]
    times = _measure(system, num_steps, side=side, device=device)
    step_ms, parts_ms = times["step"], {part: times[part] for part in PARTS}
    flops = count_flops(configure(job), batch=setting.batch)
    result = {
        "format": 1,
        **describe_command(),
        "tiny": options.tiny,
        "device": options.device,
        "setting": asdict(setting) | {"description": setting.describe()},
        "machine": describe_machine(threads=threads),
        "computes_in": str(system.ranks.dtype).removeprefix("torch."),
        "steps": num_steps,
        "step_ms": step_ms,
        "parts_ms": parts_ms,
        "flop_a_step": flops,
        "flop_per_s": {
            "step": flops / (step_ms / 1e3),
            "networks": flops / (sum(parts_ms[part] for part in _NETWORK) / 1e3),
            **{name: 2 * side**3 / (times[name] / 1e3) for name in _PRODUCTS},
        },
        "product_side": side,
    }
    system.close()
    save_result(result, render(result), options.out / f"breakdown-{setting.name}-{options.device}")
    return 0


def _parse() -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--setting", choices=tuple(SETTINGS), required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, help="instead of the setting's")
    parser.add_argument("--steps", type=int, default=10, help="timed, of each kind; medians are reported")
    return parser.parse_args()


# ---- Times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _time(run: Callable[[], object], device: torch.device) -> float:
    """Seconds until the device is done."""
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _measure(system: System, count: int, *, side: int, device: torch.device) -> dict[str, float]:
    """Milliseconds, medians of `count`: a step, its parts, and products of two square matrices.

    One after another, again and again: what else the machine does disturbs all alike.
    """
    pairs = {
        name: [torch.randn(side, side, device=device).to(dtype) for _ in range(2)]
        for name, dtype in _PRODUCTS.items()
    }
    times: dict[str, list[float]] = defaultdict(list)
    for number in range(count + 1):
        seconds = {"step": _time(system.step, device)}
        with _Watch(system.byol, device) as watch:
            system.step(watch.mark)
        seconds |= watch.seconds
        seconds |= {name: _time(partial(torch.mm, *pair), device) for name, pair in pairs.items()}
        if number > 0:  # the first product is slow
            for name, value in seconds.items():
                times[name].append(1e3 * value)
    return {name: statistics.median(values) for name, values in times.items()}


class _Watch:
    """Seconds between marks; those of the two networks by hooks, the rest of the forward is "loss"."""

    def __init__(self, byol: Byol, device: torch.device) -> None:
        self._byol, self._device = byol, device
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "_Watch":
        for branch, part in ((self._byol.online, "forward online"), (self._byol.target, "forward target")):
            self._handles += [
                branch.register_forward_pre_hook(lambda *_: self.mark("loss")),
                branch.register_forward_hook(lambda *_, part=part: self.mark(part)),
            ]
        _wait(self._device)
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._last = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def mark(self, part: str) -> None:
        """`part` ends here; it began where the one before ended."""
        _wait(self._device)
        now = time.perf_counter()
        self.seconds[part] += now - self._last
        self._last = now


# ---- Operations


def count_flops(config: Config, *, batch: int) -> float:
    """Of a step: multiplications and additions of convolutions and matrix products, two views, both networks.

    Counted on the library's convolutions, however they are computed.
    """
    plain = config.model_copy(
        update={"trainer": config.trainer.model_copy(update={"convolution": "library"})}
    )
    byol = Byol.of(plain, channels=3, seed_key=0)
    view = torch.zeros(2, 3, config.view_px, config.view_px)
    with FlopCounterMode(display=False) as counter:
        byol(view, view)[0].backward()
    return counter.get_total_flops() * batch / len(view)


# ---- The table


def render(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    parts, step_ms = result["parts_ms"], result["step_ms"]
    total = sum(parts.values())
    rates = result["flop_per_s"]
    lines = [
        f"# Where a step goes, setting ({result['setting']['name']}): {result['setting']['description']}",
        "",
        *machine_lines(result["machine"]),
        f"- {result['date']}, `{result['command']}`",
        f"- networks in {result['computes_in']}; medians of {result['steps']} steps",
        "",
        "| part | ms | share |",
        "|---|---|---|",
        *(f"| {part} | {parts[part]:.1f} | {100 * parts[part] / total:.1f} % |" for part in PARTS),
        f"| all parts | {total:.1f} | 100 % |",
        f"| a step without looking | {step_ms:.1f} | |",
        "",
        f"{result['setting']['batch'] * 1e3 / step_ms:.1f} images/s; "
        f"{result['flop_a_step'] / 1e9:,.0f} GFLOP a step.",
        "",
        "| | GFLOP/s |",
        "|---|---|",
        *(f"| {name} | {rate / 1e9:,.0f} |" for name, rate in rates.items()),
        "",
        f"Products are of two {result['product_side']}x{result['product_side']} matrices, in the same run.",
    ]
    if result["tiny"]:
        lines.append("A smoke test: the figures mean nothing.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
