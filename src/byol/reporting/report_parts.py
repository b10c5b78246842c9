"""Make the text and numbers of a report: verdict, table, curves, low-shot curve, confusions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import Int64
from PIL import Image

from byol.base.text_table import percent, percent_range
from byol.metrics.verdict import ONLINE, show_classifier
from byol.pictures import charts
from byol.pictures.charts import Series
from byol.reporting.run_summary import Json, RunSummary
from byol.training.runlog import Metrics

MOST_CELLS = 25  # most classes for a confusion matrix with numbers; with more classes it is a picture
_MOST_PAIRS = 12


@dataclass(frozen=True)
class Chart:
    """A figure: its title, a note beside the title, and the SVG."""

    title: str
    note: str
    svg: str


# ---- The verdict


@dataclass(frozen=True)
class Summary:
    """The first sentence of the report, further sentences, and the kind: "good", "warn", "bad" or ""."""

    kind: str
    sentence: str
    rest: tuple[str, ...]


def summarise(run: RunSummary) -> Summary:
    """Summarise a run by its accuracies, else by label-free measures, else by the health of the training."""
    if run.verdicts:
        first, *others = run.verdicts
        return Summary(first.kind, first.sentence, tuple(verdict.sentence for verdict in others))
    if run.outdated_table is not None:
        known = run.measures is not None and run.outdated_measures is None
        rest = (str(run.measures["verdict"]),) if run.measures is not None and known else ()
        return Summary("warn", f"The accuracies are for other weights: {run.outdated_table}.", rest)
    if run.outdated_measures is not None:
        return Summary("warn", f"The measures are for other weights: {run.outdated_measures}.", ())
    if run.measures is not None:
        return Summary("", str(run.measures["verdict"]), ("No labels were used for this.",))
    unknown = "Whether BYOL helped has not been measured yet"
    if not run.metrics:
        return Summary("warn", f"{unknown}, and nothing was logged.", ())
    health = f"The training was {run.metrics[-1].verdict} at the end."
    return Summary("warn", f"{unknown}, after {run.done:,} steps.", (health,))


# ---- The table


def describe_rows(evaluation: Json) -> list[Json]:
    """Return a group per classifier: its name, and the cells of its rows of the table."""
    groups = []
    for classifier in dict.fromkeys(row["classifier"] for row in evaluation["rows"]):
        rows = [_describe_row(row) for row in evaluation["rows"] if row["classifier"] == classifier]
        groups.append({"classifier": show_classifier(classifier), "rows": rows})
    return groups


def _describe_row(row: Json) -> Json:
    name = _name_features(row)
    interval = percent_range(row["low95"], row["high95"])
    return {
        "name": name[:1].upper() + name[1:],
        "is_ours": row["features"] == ONLINE,
        "dimensions": row["dimensions"],
        "top1": percent(row["top1"]),
        "interval": interval,
        "top5": percent(row["top5"]) if row.get("top5") is not None else None,
        "balanced": percent(row["balanced"]),
        "chosen": ", ".join(f"{key} {_show_chosen(value)}" for key, value in row["chosen"].items()),
        "bar": charts.draw_bar(
            row["top1"],
            row["low95"],
            row["high95"],
            kind=_kind(row["features"]),
            title=f"{name}: {interval} %",
        ),
    }


def _name_features(row: Mapping[str, Any]) -> str:
    """Return the name of the features of a row, for the reader."""
    name = str(row["features"])
    if name == "pixels":
        return "pixels" if row.get("transform", "none") == "none" else f"pixels ({row['transform']})"
    return {
        "untrained": "untrained encoder",
        ONLINE: "BYOL encoder",
        "byol target": "BYOL's target network",
    }.get(name, name)


def _show_chosen(value: object) -> str:
    if isinstance(value, list):
        low, high = min(value), max(value)
        return f"{low:g}" if low == high else f"{low:g} to {high:g}"
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _kind(features: str) -> str:
    return {ONLINE: "main", "byol target": "second"}.get(features, "quiet")


# ---- Low-shot


def draw_low_shot(evaluation: Json) -> Chart | None:
    """Draw accuracy against labels per class; None: it was not measured."""
    points = evaluation.get("low_shot") or []
    series = []
    for features in dict.fromkeys(point["features"] for point in points):
        mine = sorted((p for p in points if p["features"] == features), key=lambda p: p["per_class"])
        x, y, std = ([float(point[key]) for point in mine] for key in ("per_class", "mean", "std"))
        name = {"untrained": "untrained", ONLINE: "BYOL", "byol target": "target"}.get(features, features)
        series.append(Series(name, x, y, _kind(features), spread=std, has_dots=True))
    if not series:
        return None
    svg = charts.draw_lines(
        series,
        title="accuracy by labelled images per class",
        x_label="labelled images per class",
        show=lambda value: f"{100 * value:.0f} %",
        x_ticks=sorted({x for one in series for x in one.x}),
        log_x=len({x for one in series for x in one.x}) > 1,
    )
    draws = max(point["num_draws"] for point in points)
    return Chart("Few labels", f"top-1, mean ± std of {draws} draws", svg)


# ---- Confusions


def describe_confusion(evaluation: Json) -> Json | None:
    """Return the confusion matrix as cells, or as a picture for many classes, and the worst pairs."""
    confusion = evaluation.get("confusion")
    if not confusion:
        return None
    counts = np.array(confusion["counts"], dtype=np.int64)
    names = [str(name) for name in evaluation["class_names"]]
    totals = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    pairs = [
        {
            "truth": names[truth],
            "predicted": names[predicted],
            "count": int(counts[truth, predicted]),
            "share": f"{100 * counts[truth, predicted] / totals[truth, 0]:.0f} %",
        }
        for truth, predicted in _find_pairs(counts)
    ]
    few = len(names) <= MOST_CELLS
    return {
        "about": f"{show_classifier(confusion['classifier'])} on the {_name_features(confusion)}",
        "names": names,
        "cells": [
            [(count, round(count / totals[row, 0], 3)) for count in line]
            for row, line in enumerate(counts.tolist())
        ]
        if few
        else None,
        "heat": None if few else _draw_heat(counts / totals),
        "pairs": pairs,
    }


def _find_pairs(counts: Int64[np.ndarray, "truth predicted"]) -> Iterator[tuple[int, int]]:
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    for place in np.argsort(-wrong, axis=None, kind="stable")[:_MOST_PAIRS].tolist():
        truth, predicted = divmod(place, len(counts))
        if wrong[truth, predicted]:
            yield truth, predicted


def _draw_heat(shares: np.ndarray) -> bytes:
    """Draw a PNG with one pixel per cell, for light and dark pages; opacity is the root of the fraction."""
    cells = np.empty((*shares.shape, 4), np.uint8)
    cells[..., :3] = (70, 120, 235)
    cells[..., 3] = np.rint(255 * np.sqrt(shares))
    file = BytesIO()
    Image.fromarray(cells).save(file, "PNG")
    return file.getvalue()


# ---- Curves


def draw_curves(run: RunSummary) -> list[Chart]:
    """Draw the curves of the log. Logs of earlier versions have no measures of the encoder."""
    ideal = run.config.network.projection_head.projection_size**-0.5
    draw = partial(_draw_curve, run)
    curves = (
        draw("Loss", "sum of both directions, 0 to 8", "loss"),
        draw(
            "View-retrieval accuracy",
            "on fixed images",
            "retrieval",
            factor=100.0,
            form="{:.0f} %",
            from_start=True,
        ),
        draw("kNN", "accuracy on fixed images", "knn", factor=100.0, form="{:.0f} %", from_start=True),
        draw("Rank of the encoder", "effective dimensions", "encoder_rank", from_start=True),
        draw("Spread of projections", "1 is ideal, 0 collapse", "feature_std", factor=1 / ideal),
        draw("Rank of projections", "effective dimensions", "rank"),
        draw("Alignment", "distance of two views", "alignment", kind="second"),
        draw("Uniformity", "lower is more even", "uniformity", kind="second"),
        draw("Learning rate", "", "lr", form="{:.2g}"),
        draw("Target momentum", "tau", "tau", form="{:.4g}"),
        draw("Throughput", "images/s", "images_per_s", form="{:,.0f}"),
        draw("Waiting for data", "share of the time", "data_wait", factor=100.0, form="{:.2g} %"),
    )
    return [curve for curve in curves if curve is not None]


def _draw_curve(
    run: RunSummary,
    title: str,
    note: str,
    key: str,
    *,
    factor: float = 1.0,
    form: str = "{:.3g}",
    kind: str = "main",
    from_start: bool = False,
) -> Chart | None:
    """Draw a field of the metrics, with its value at step 0 if `from_start`; None: there is no value."""
    points = [(float(line.done), getattr(line, key)) for line in run.metrics]
    if from_start:
        before = None if run.start is None else run.start.measures
        points.insert(0, (0.0, getattr(before, key, None)))
    known = [(x, factor * y) for x, y in points if y is not None]
    if len(known) <= from_start:  # step 0 alone makes no curve
        return None
    x, y = zip(*known, strict=True)
    svg = charts.draw_lines([Series(title, x, y, kind)], title=title, x_label="step", show=form.format)
    return Chart(title, note, svg)


def describe_health(metrics: Sequence[Metrics]) -> str:
    """Describe at which steps the health check found a problem."""
    if not metrics:
        return ""
    odd = [line for line in metrics if line.verdict != "healthy"]
    if not odd:
        return "Healthy at every check."
    words = ", ".join(dict.fromkeys(line.verdict for line in odd))
    last = f"the last check says {metrics[-1].verdict}"
    return f"Not always healthy: {words} between steps {odd[0].done:,} and {odd[-1].done:,}; {last}."
