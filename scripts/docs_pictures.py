"""Draw the pictures of docs/numbers.md into docs/pictures, from byol's own functions and two short runs.

    PYTHONPATH=src python scripts/docs_pictures.py        # about two minutes on one core

The same seeds give the same pictures. Nothing in them is drawn by hand: every number comes from the function
that `byol train` or `byol eval` calls.
"""

import argparse
import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

import byol
from byol.metrics import health
from byol.metrics.probes import bootstrap_interval
from byol.metrics.verdict import judge
from byol.pictures.charts import Series, draw_lines
from byol.training.runlog import Metrics, read_metrics

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "pictures"
_STYLE = """<style>
text { font: 11px system-ui, sans-serif; fill: #555; }
text.title { font-weight: 600; fill: #111; font-size: 13px; }
text.main { fill: #2459c9; font-weight: 600; } text.second { fill: #b3401f; font-weight: 600; }
.grid { stroke: #ddd; } .line { fill: none; stroke-width: 1.8; }
.line.main { stroke: #2459c9; } .line.second { stroke: #b3401f; }
.fill.main { fill: #2459c9; } .fill.second { fill: #b3401f; }
.circle { fill: none; stroke: #ccc; } .pair { stroke: #999; }
.whisker { fill: none; stroke: #111; stroke-width: 1.5; }
</style>"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the pictures of docs/numbers.md.")
    parser.add_argument("-o", "--output", type=Path, default=FOLDER, help="folder (%(default)s)")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        runs = train_two(Path(work))
        curves = [(name, read_metrics(folder)) for name, folder in runs.items()]
        for curve in CURVES:
            write(options.output / f"curve-{curve.name}.svg", draw_curve(curve, curves))
        draw_neighbours(runs["healthy"], options.output / "neighbours.png")
    for kind in SPHERES:
        write(options.output / f"sphere-{kind}.svg", draw_sphere(kind))
    write(options.output / "verdicts.svg", draw_verdicts())


def write(path: Path, svg: str) -> None:
    path.write_text(svg + "\n", encoding="utf-8")
    print(f"{path} ({path.stat().st_size / 1000:.1f} kB)")


# ---- A healthy run, and one that loses its dimensions


def train_two(work: Path, *, epochs: int = 4, images: str = "motifs") -> dict[str, Path]:
    """The run folders of the demo's recipe, and of the same with so much weight decay that it collapses."""
    folders = {}
    for name, overrides in (("healthy", {}), ("collapsed", {"optimizer.params.weight_decay": 1.0})):
        folders[name] = work / name
        with suppress(byol.CollapsedError):
            byol.train(
                images,
                preset="demo",
                output=folders[name],
                overrides={
                    "trainer.max_epochs": epochs,
                    "trainer.log_interval": 10,
                    "trainer.health_interval": 10,
                    "data.packs": str(work / "packs"),
                    **overrides,
                },
                progress=False,
            )
    return folders


@dataclass(frozen=True)
class Curve:
    """One chart: which number of the log it shows, and how."""

    name: str
    title: str
    value: Callable[[Metrics], float | None]
    show: Callable[[float], str]


CURVES = (
    Curve("loss", "Loss", lambda line: line.loss, lambda value: f"{value:.1f}"),
    Curve("rank", "Rank of the projections", lambda line: line.rank, lambda value: f"{value:.0f}"),
    Curve("knn", "kNN accuracy", lambda line: line.knn, lambda value: f"{value:.0%}"),
)


def draw_curve(curve: Curve, runs: Sequence[tuple[str, Sequence[Metrics]]]) -> str:
    """One number of two runs against the step."""
    series = []
    for (name, lines), kind in zip(runs, ("main", "second"), strict=True):
        points = [(line.done, curve.value(line)) for line in lines]
        known = [(done, value) for done, value in points if value is not None]
        series.append(Series(name, [float(done) for done, _ in known], [value for _, value in known], kind))
    chart = draw_lines(series, title=curve.title, x_label="step", show=curve.show)
    chart = chart.replace("<svg ", '<svg y="20" width="340" height="190" ', 1)
    title = f'<text class="title" x="46" y="14">{escape(curve.title)}</text>'
    return _picture(340, 215, [title, chart], f"{curve.title} of two runs")


# ---- Features on a sphere


def make_features(kind: str, *, num: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of two views of `num` images on the unit circle, as an encoder of this kind gives them."""
    draw = torch.Generator().manual_seed(seed)
    spread = torch.arange(num) / num * 2 * math.pi
    noise1, noise2 = (torch.randn(num, generator=draw) for _ in range(2))
    angles = {
        "good": (spread + 0.03 * noise1, spread + 0.03 * noise2),
        "collapsed": (0.8 + 0.02 * noise1, 0.8 + 0.02 * noise2),
        "random": (spread, spread[torch.randperm(num, generator=draw)]),
        "crowded": (0.8 + 0.35 * noise1, 0.8 + 0.35 * noise1 + 0.03 * noise2),
    }[kind]
    first, second = (torch.stack([torch.cos(angle), torch.sin(angle)], dim=1) for angle in angles)
    return first, second


SPHERES = {
    "collapsed": "Collapsed",
    "crowded": "Crowded",
    "random": "Views do not match",
    "good": "Good",
}


def draw_sphere(kind: str) -> str:
    """The features of one encoder, with the measures that byol prints."""
    (first, second), middle, radius = make_features(kind), (115.0, 115.0), 85.0

    def at(point: Float[Tensor, "2"], share: float) -> tuple[float, float]:
        return middle[0] + share * radius * float(point[0]), middle[1] - share * radius * float(point[1])

    parts = [f'<text class="title" x="{middle[0]}" y="16" text-anchor="middle">{SPHERES[kind]}</text>']
    parts.append(f'<circle class="circle" cx="{middle[0]}" cy="{middle[1]}" r="{radius}"/>')
    for one, two in zip(first, second, strict=True):
        (x1, y1), (x2, y2) = at(one, 1.0), at(two, 0.88)
        parts.append(f'<line class="pair" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
        parts.append(f'<circle class="fill main" cx="{x1:.1f}" cy="{y1:.1f}" r="2.5"/>')
        parts.append(f'<circle class="fill second" cx="{x2:.1f}" cy="{y2:.1f}" r="2.5"/>')
    uniformity = float(health.measure_uniformity(first))
    measures = (
        f"alignment {float(health.measure_alignment(first, second)):.2f}",
        f"uniformity {0.0 if abs(uniformity) < 0.005 else uniformity:.2f}",
        f"rank {float(health.measure_rank(first)):.1f} of 2",
        f"view retrieval {float(health.measure_retrieval(first, second)):.0%}",
    )
    for line, text in enumerate(measures):
        parts.append(f'<text x="{middle[0]}" y="{225 + 16 * line}" text-anchor="middle">{text}</text>')
    return _picture(230, 285, parts, f"{SPHERES[kind]}: features of two views on the unit circle")


# ---- Verdicts


@dataclass(frozen=True)
class Row:
    """A row of the table, as the verdict needs it."""

    features: str
    classifier: str
    top1: float
    low95: float
    high95: float


# Right answers of 200 test images: BYOL, untrained, pixels.
_CASES = ((170, 120, 100), (132, 120, 100), (118, 120, 100), (80, 120, 100))


def make_rows(right: Sequence[int], *, num: int = 200) -> list[Row]:
    """Rows with the intervals that `byol eval` gives so many right answers."""
    rows = []
    for features, count in zip(("byol online", "untrained", "pixels"), right, strict=True):
        low, high = bootstrap_interval(np.arange(num) < count, seed=0, num=2000)
        rows.append(Row(features, "logistic regression", count / num, low, high))
    return rows


def draw_verdicts() -> str:
    """The four verdicts, each over the rows that lead to it."""
    parts = []
    for place, right in enumerate(_CASES):
        rows, top = make_rows(right), 95 * place
        sentence = judge(rows)[0].sentence.partition(":")[0]
        parts.append(f'<text class="title" x="10" y="{top + 16}">{escape(sentence)}</text>')
        for line, row in enumerate(rows):
            y = top + 36 + 20 * line
            name = {"byol online": "BYOL"}.get(row.features, row.features)
            parts.append(f'<text x="72" y="{y + 4}" text-anchor="end">{name}</text>')
            left, value, right_end = (80 + 200 * share for share in (row.low95, row.top1, row.high95))
            kind = "main" if row.features == "byol online" else "second"
            parts.append(f'<path class="whisker" d="M{left:.1f} {y}H{right_end:.1f}"/>')
            parts.append(f'<circle class="fill {kind}" cx="{value:.1f}" cy="{y}" r="4"/>')
            shown = f"{row.top1:.0%} ({row.low95:.0%} to {row.high95:.0%})"
            parts.append(f'<text x="290" y="{y + 4}">{shown}</text>')
    return _picture(410, 95 * len(_CASES), parts, "Four verdicts and the intervals behind them")


# ---- Neighbours


def draw_neighbours(run: Path, path: Path, *, num_rows: int = 4) -> None:
    """The first rows of the run's neighbours.png: an image and the eight most similar ones."""
    byol.evaluate(run, overrides={"evaluation.num_bootstrap": 10}, progress=False)
    with Image.open(run / "neighbours.png") as sheet:
        height = sheet.height * num_rows // 12
        cut = sheet.convert("RGB").crop((0, 0, sheet.width, height))
    cut.quantize(128).save(path, optimize=True)
    print(f"{path} ({path.stat().st_size / 1000:.1f} kB)")


def _picture(width: int, height: int, parts: Sequence[str], title: str) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{escape(title)}">'
    )
    return "\n".join([head, _STYLE, *parts, "</svg>"])


if __name__ == "__main__":
    main()
