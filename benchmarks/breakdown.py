"""Where the time of one of our training steps goes, and how near it is to what the hardware can compute.

    python benchmarks/breakdown.py --setting a --out benchmarks/results/breakdown
    python benchmarks/breakdown.py --setting a --tiny --out runs/breakdown        # does it work at all?

On a GPU the host waits at the end of each part, so that the parts are longer together than the step.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from measure import describe_command, describe_machine, limit_cores, machine_lines
from pictures import make_files
from settings import SETTINGS
from systems import Job
from systems.ours import System, configure
from torch.utils.flop_counter import FlopCounterMode

from byol.config import Config
from byol.method.networks import Byol

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
_DTYPES = (torch.bfloat16, torch.float32)
_PRODUCT_SIDE = {"cpu": 2048, "cuda": 8192}


def main() -> int:
    options = _parse()
    threads = limit_cores(options.threads)
    torch.set_num_threads(threads)
    device = torch.device(options.device)
    setting = SETTINGS[options.setting].sized(batch=options.batch, tiny=options.tiny)
    options.work.mkdir(parents=True, exist_ok=True)
    files = make_files(setting, options.work)
    packs = options.work / f"packs-{setting.name}{'-tiny' if options.tiny else ''}"
    job = Job("ours", setting, options.device, threads, 0, files, packs)
    system = System(job)
    system.prepare()
    num_warm_up, num_steps = (1, 2) if options.tiny else (3, options.steps)
    for _ in range(num_warm_up):
        system.step()
    step_ms = _time_steps(system, num_steps, device=device)
    parts_ms = _time_parts(system, num_steps, device=device)
    flops = count_flops(configure(job), batch=setting.batch)
    side = 128 if options.tiny else _PRODUCT_SIDE[device.type]
    products = {str(t).removeprefix("torch."): _time_product(side, t, device) for t in _DTYPES}
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
            **{f"product {name}": rate for name, rate in products.items()},
        },
        "product_side": side,
    }
    system.close()
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"breakdown-{setting.name}-{options.device}"
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(render(result), encoding="utf-8")
    print(render(result))
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--setting", choices=tuple(SETTINGS), required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, help="instead of the setting's")
    parser.add_argument("--steps", type=int, default=10, help="timed, of each kind; medians are reported")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "byol-benchmarks")
    parser.add_argument("--tiny", action="store_true", help="a smoke test: the figures mean nothing")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


# ---- Times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _median_ms(run: Callable[[], object], count: int, *, device: torch.device) -> float:
    """Of `count` runs, one after another, each until the device is done."""
    seconds = []
    for _ in range(count):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds)


def _time_steps(system: System, count: int, *, device: torch.device) -> float:
    return _median_ms(system.step, count, device=device)


def _time_parts(system: System, count: int, *, device: torch.device) -> dict[str, float]:
    """Milliseconds of each part, medians over steps."""
    times: dict[str, list[float]] = defaultdict(list)
    with _Watch(system.byol, device) as watch:
        for _ in range(count):
            watch.start()
            system.step(watch.mark)
            for part in PARTS:
                times[part].append(1e3 * watch.seconds[part])
    return {part: statistics.median(times[part]) for part in PARTS}


class _Watch:
    """Seconds between marks; those of the two networks by hooks, the rest of the forward is "loss"."""

    def __init__(self, byol: Byol, device: torch.device) -> None:
        self._device = device
        self._handles = []
        for branch, part in ((byol.online, "forward online"), (byol.target, "forward target")):
            self._handles.append(branch.register_forward_pre_hook(lambda *_: self.mark("loss")))
            self._handles.append(branch.register_forward_hook(lambda *_, part=part: self.mark(part)))

    def __enter__(self) -> "_Watch":
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def start(self) -> None:
        _wait(self._device)
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self._last = time.perf_counter()

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


def _time_product(side: int, dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a product of two square matrices."""
    one, two = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    one @ two
    return 2 * side**3 / (_median_ms(lambda: one @ two, 5, device=device) / 1e3)


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
