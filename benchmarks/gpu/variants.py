"""Ways to run the networks' step and to make the views, to choose the defaults on a GPU by.

    python benchmarks/gpu/variants.py --setting a --device cuda --out runs/variants

Networks, on two given views:
    eager             as the training loop does it
    compiled          torch.compile of forward and backward
    reduce-overhead   the same in CUDA graphs made by torch.compile
    graph             forward, backward, optimizer and target update as one CUDA graph
    tuned-graph       the same, with cuDNN's search for the fastest convolution
    compiled-graph    the same as graph, of the compiled networks
Views, from stored images, random numbers included:
    views             make_views
    views-masked      every operation on every image, with numbers that change nothing where it was not drawn
    views-compiled    the same, each operation compiled
    draws             their random numbers alone, on the host

The losses of the first steps show that all network variants compute the same; they drift apart by rounding.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu.images import draw
from gpu.masked_views import MaskedViews
from measure import describe_machine, spread
from settings import SETTINGS, Setting
from systems import Job
from systems.ours import configure

from byol.config import Config
from byol.device.devices import choose_dtype
from byol.method.networks import Byol
from byol.method.optimizers import build_optimizer
from byol.method.schedule import Plan
from byol.method.views import Pixels, draw_views, make_views

_FIRST_STEPS = 10  # not measured
_WINDOWS = 5
_NETWORKS = ("eager", "compiled", "reduce-overhead", "graph", "tuned-graph", "compiled-graph")
_VIEWS = ("views", "views-masked", "views-compiled", "draws")
_GRAPHS = ("graph", "tuned-graph", "compiled-graph")


def main() -> int:
    options = _parse()
    setting = SETTINGS[options.setting].sized(batch=None, tiny=options.tiny)
    if options.tiny:
        setting = replace(setting, network="resnet10t", view_px=16)
    bench = Bench(setting, torch.device(options.device), seconds=0.0 if options.tiny else 1.0)
    bench.backend = "eager" if options.tiny else "inductor"
    rows: dict[str, dict[str, Any]] = {}
    options.out.mkdir(parents=True, exist_ok=True)
    for name in (*_VIEWS, *_NETWORKS):
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows[name] = bench.try_variant(name)
        result = {"setting": setting.describe(), "machine": describe_machine(threads=torch.get_num_threads())}
        (options.out / "variants.json").write_text(json.dumps(result | {"variants": rows}, indent=1) + "\n")
        (options.out / "variants.md").write_text(render(setting, rows))
    print(render(setting, rows))
    return 0 if all("error" not in row for row in rows.values()) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--setting", choices=tuple(SETTINGS), required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--tiny", action="store_true", help="a smoke test: sizes and times mean nothing")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


class Bench:
    """Measures one variant after the other, each from the same weights and images."""

    backend = "inductor"  # of torch.compile

    def __init__(self, setting: Setting, device: torch.device, *, seconds: float) -> None:
        self._setting, self._device, self._seconds = setting, device, seconds
        self._config = configure(
            Job(
                system="ours",
                setting=setting,
                device=device.type,
                threads=torch.get_num_threads(),
                workers=1,
                files=Path("files"),
                packs=Path("packs"),
            )
        )
        self._plan = Plan.of(self._config, num_images=100 * setting.batch)
        stored_px = min(115 * setting.view_px // 100, setting.file_height) // 8 * 8
        images = torch.from_numpy(draw(setting.batch, stored_px, seed=0))
        self._images = images.to(device).permute(0, 3, 1, 2)
        self._sizes = torch.full((setting.batch, 2), float(setting.view_px))
        self._pixels = Pixels((0.0,) * 3, (255.0,) * 3, (0.5,) * 3, (0.25,) * 3)

    def try_variant(self, name: str) -> dict[str, Any]:
        """The figures of a variant, or what is against it."""
        if name in (*_GRAPHS, "reduce-overhead") and self._device.type != "cuda":
            return {"left out": "needs CUDA"}
        try:
            return self._measure(name)
        except Exception as error:  # of whatever kind: the others go on
            return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        finally:
            torch.backends.cudnn.benchmark = False
            torch.compiler.reset()
            gc.collect()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _measure(self, name: str) -> dict[str, Any]:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        step, losses = (self._make_views(name), []) if name in _VIEWS else self._make_network(name)
        while len(losses) < _FIRST_STEPS:
            losses.append(step())
        self._wait()
        row: dict[str, Any] = {"warm_up_s": time.perf_counter() - start}
        if name in _NETWORKS:
            row["losses"] = [float(loss) for loss in losses]
        each = self._time(step)
        row |= {
            "ms": 1e3 * statistics.median(each),
            "images_per_s": spread([self._setting.batch / s for s in each]),
        }
        if self._device.type == "cuda":
            row["device_bytes"] = torch.cuda.max_memory_reserved()
        return row

    def _time(self, step: Callable[[], object]) -> list[float]:
        """Seconds a step in each of several windows."""
        start = time.perf_counter()
        step()
        self._wait()
        steps = max(1, round(self._seconds / (time.perf_counter() - start)))
        each = []
        for _ in range(_WINDOWS):
            start = time.perf_counter()
            for _ in range(steps):
                step()
            self._wait()
            each.append((time.perf_counter() - start) / steps)
        return each

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    # ---- Views

    def _make_views(self, name: str) -> Callable[[], object]:
        transforms, rows = self._config.data_transforms, slice(0, self._setting.batch)
        counter = iter(range(2**40))

        def draws() -> object:
            return draw_views(next(counter), sizes=self._sizes, transforms=transforms, channels=3)

        def views() -> object:
            return make_views(
                self._images, self._sizes, transforms, key=next(counter), rows=rows, pixels=self._pixels
            )

        if name in ("draws", "views"):
            return draws if name == "draws" else views
        masked = MaskedViews(
            self._images.shape[-1],
            self._setting.view_px,
            pixels=self._pixels,
            dtype=choose_dtype(self._config.trainer.precision, device=self._device),
            device=self._device,
            backend=self.backend if name == "views-compiled" else None,
        )

        def masked_views() -> object:
            pair = draw_views(next(counter), sizes=self._sizes, transforms=transforms, channels=3)
            return [masked(self._images, one) for one in pair]

        return masked_views

    # ---- Networks

    def _make_network(self, name: str) -> tuple[Callable[[], Tensor], list[Tensor]]:
        """A step that returns its loss, and the losses of the steps that have been made already."""
        torch.backends.cudnn.benchmark = name == "tuned-graph"
        learner = Learner(self._config, self._plan, self._device)
        if name in ("compiled", "reduce-overhead", "compiled-graph"):
            mode = "reduce-overhead" if name == "reduce-overhead" else None
            learner.network = torch.compile(learner.network, backend=self.backend, mode=mode)
        rows = slice(0, self._setting.batch)
        views = make_views(
            self._images, self._sizes, self._config.data_transforms, key=0, rows=rows, pixels=self._pixels
        )
        if name not in _GRAPHS:
            return lambda: learner.step(*views), []
        return learner.capture(*views)


class Learner:
    """The networks and their optimizer, and a step on two views."""

    _CAPTURED_AFTER = 3  # eager steps, which allocate, tune and compile

    def __init__(self, config: Config, plan: Plan, device: torch.device) -> None:
        self._plan, self._device = plan, device
        self._dtype = choose_dtype(config.trainer.precision, device=device)
        self.byol = Byol.of(config, channels=3, seed_key=0).to(device, memory_format=torch.channels_last)
        self.network: Callable[..., tuple[Tensor, Tensor]] = self.byol
        self._optimizer = build_optimizer(self.byol, config.optimizer, plan=plan)

    def _backward(self, view1: Tensor, view2: Tensor) -> Tensor:
        enabled = self._dtype != torch.float32
        total = torch.zeros((), device=self._device)
        for view, other in ((view1, view2), (view2, view1)):
            with torch.autocast(self._device.type, self._dtype, enabled=enabled):
                loss, _ = self.network(view, other, symmetric=False)
            loss.backward()
            total += loss.detach()
        return total

    def step(self, view1: Tensor, view2: Tensor) -> Tensor:
        """As the training loop."""
        torch.compiler.cudagraph_mark_step_begin()
        loss = self._backward(view1, view2).clone()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.byol.update_target(self._plan.tau(0))
        return loss

    def capture(self, view1: Tensor, view2: Tensor) -> tuple[Callable[[], Tensor], list[Tensor]]:
        """The whole step as a CUDA graph, and the losses of the eager steps before it.

        Rate and tau are tensors, so that a schedule can change them.
        """
        lr = torch.tensor(self._plan.lr(0), device=self._device)
        tau = torch.tensor(self._plan.tau(0), device=self._device)
        groups = [
            {"params": group["params"], "weight_decay": group["weight_decay"]}
            for group in self._optimizer.param_groups
        ]
        momentum = self._optimizer.param_groups[0]["momentum"]
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, fused=True)
        online, target = [*self.byol.online.parameters()], [*self.byol.target.parameters()]

        def whole_step() -> Tensor:
            loss = self._backward(view1, view2)
            optimizer.step()
            with torch.no_grad():
                torch._foreach_mul_(target, tau)
                torch._foreach_add_(target, torch._foreach_mul(online, 1.0 - tau))
            return loss

        losses: list[Tensor] = []
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(self._CAPTURED_AFTER):
                losses.append(whole_step())
                optimizer.zero_grad(set_to_none=True)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph
        ):  # the gradients are allocated in the graph, and written anew by each replay
            loss = whole_step()

        def replay() -> Tensor:
            lr.fill_(self._plan.lr(0))
            tau.fill_(self._plan.tau(0))
            graph.replay()
            return loss.clone()

        return replay, losses


def render(setting: Setting, rows: dict[str, dict[str, Any]]) -> str:
    """The figures as Markdown."""
    lines = [
        f"# Variants, setting ({setting.name}): {setting.describe()}",
        "",
        "| variant | ms | images/s, median (min-max) | warm-up s | device memory | losses 1, 5, 10 |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        if "ms" not in row:
            lines.append(f"| {name} | {row.get('error') or row['left out']} | | | | |")
            continue
        rate = row["images_per_s"]
        memory = f"{row['device_bytes'] / 1e6:,.0f} MB" if "device_bytes" in row else ""
        losses = ", ".join(f"{row['losses'][i]:.4f}" for i in (0, 4, 9)) if "losses" in row else ""
        speed = f"{rate['median']:.0f} ({rate['min']:.0f}-{rate['max']:.0f})"
        lines.append(f"| {name} | {row['ms']:.3f} | {speed} | {row['warm_up_s']:.1f} | {memory} | {losses} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
