"""Compare runs in one table: results, label-free measures, time, and the settings that differ."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from byol.base.errors import ConfigError
from byol.base.text_table import percent, percent_range, render_columns
from byol.config import diff_configs, keys
from byol.metrics.verdict import Judged, show_classifier
from byol.reporting.run_summary import RunSummary, read_summary

_NONE = "-"
_TEST = ("train", "test", "labels", "folds", "groups", "seed")  # the settings that choose the test images
_MEASURES = (("rank", ".1f"), ("retrieval", ".0%"), ("alignment", ".3f"), ("uniformity", ".3f"))


def compare(run_dirs: Sequence[Path]) -> str:
    """Return a table for the terminal with a column per run; "-" marks values that a run does not have.

    Raises:
        ConfigError: fewer than two runs are named, or one run is named twice.
        CheckpointError: a folder holds no run, or one of its files is damaged.
    """
    if len(run_dirs) < 2 or len({path.resolve() for path in run_dirs}) < len(run_dirs):
        raise ConfigError("compare: name two or more different runs: byol compare RUN RUN")
    runs = [read_summary(path) for path in run_dirs]
    groups = [
        _list_sizes(runs),
        _list_training(runs),
        _list_measures(runs),
        _list_results(runs),
        _list_settings(runs),
    ]
    lines = [["", *_name(run_dirs)], *(row for group in groups for row in group)]
    return "\n".join([*render_columns(lines, left=[True] * len(lines[0])), *_list_notes(runs)])


Row = list[str]


def _row(label: str, runs: Sequence[RunSummary], tell: Callable[[RunSummary], str | None]) -> list[Row]:
    """Return a row of the table, or nothing if no run has a value."""
    cells = [tell(run) for run in runs]
    return [] if all(cell is None for cell in cells) else [[label, *(cell or _NONE for cell in cells)]]


def _name(run_dirs: Sequence[Path]) -> list[str]:
    """Return the names of the folders, or their paths if two folders have the same name."""
    names = [path.resolve().name for path in run_dirs]
    return names if len(set(names)) == len(names) else [str(path) for path in run_dirs]


def _list_sizes(runs: Sequence[RunSummary]) -> list[Row]:
    return [
        *_row("images", runs, lambda run: None if run.num_images is None else f"{run.num_images:,}"),
        *_row("steps", runs, lambda run: f"{run.done:,}"),
        *_row("hours", runs, lambda run: None if run.hours is None else f"{run.hours:.2f}"),
    ]


def _list_training(runs: Sequence[RunSummary]) -> list[Row]:
    """Return the values of the last line of metrics.jsonl, and the best step."""

    def tell(name: str, form: str) -> Callable[[RunSummary], str | None]:
        def cell(run: RunSummary) -> str | None:
            value = getattr(run.metrics[-1], name) if run.metrics else None
            return None if value is None else format(value, form).replace("%", " %")

        return cell

    shown = (
        ("loss", "loss", ".3f"),
        ("health", "verdict", ""),
        ("fixed images: view retrieval", "retrieval", ".0%"),
        ("fixed images: encoder's rank", "encoder_rank", ".1f"),
        ("fixed images: alignment", "alignment", ".3f"),
        ("fixed images: uniformity", "uniformity", ".3f"),
        ("fixed images: kNN", "knn", ".0%"),
    )
    rows = [row for label, name, form in shown for row in _row(label, runs, tell(name, form))]
    best = _row(
        "best step, without labels", runs, lambda run: None if run.best is None else f"{run.best.done:,}"
    )
    return [*rows, *best]


def _list_measures(runs: Sequence[RunSummary]) -> list[Row]:
    """Return the label-free measures of the online encoder on all images, from measures.json."""

    def tell(name: str, form: str) -> Callable[[RunSummary], str | None]:
        def cell(run: RunSummary) -> str | None:
            if run.measures is None or run.outdated_measures is not None:
                return None
            encoders = run.measures["encoders"]
            values = [encoder[name] for encoder in encoders if encoder["features"] == "byol online"]
            return format(values[0], form).replace("%", " %") if values else None

        return cell

    return [row for name, form in _MEASURES for row in _row(f"all images: {name}", runs, tell(name, form))]


def _list_results(runs: Sequence[RunSummary]) -> list[Row]:
    """Return the accuracies of each classifier: on the online encoder, and on the best baseline."""
    found = [{verdict.classifier: verdict for verdict in run.verdicts} for run in runs]
    rows: list[Row] = []
    for classifier in dict.fromkeys(name for verdicts in found for name in verdicts):
        verdicts = [of_run.get(classifier) for of_run in found]
        online = [_NONE if one is None else _show_top1(one.online) for one in verdicts]
        baseline = [
            _NONE if one is None else f"{_show_top1(one.baseline)} {one.baseline.features}"
            for one in verdicts
        ]
        rows += [[f"{show_classifier(classifier)}: byol", *online], ["  best baseline", *baseline]]
    return rows


def _show_top1(row: Judged) -> str:
    return f"{percent(row.top1)} ({percent_range(row.low95, row.high95)})"


def _list_settings(runs: Sequence[RunSummary]) -> list[Row]:
    """Return the settings in which any run differs from the first."""
    changes = [change for run in runs[1:] for change in diff_configs(runs[0].config, run.config)]
    values = [dict(keys.flatten(run.config.model_dump())) for run in runs]
    changed = dict.fromkeys(change.partition(":")[0] for change in changes)
    rows = {key: [_show(value.get(key)) for value in values] for key in changed}
    for key in changed:  # one row if view1 and view2 have the same values
        both = [key.replace(".view2.", f".{view}.") for view in ("view1", "view2")]
        if ".view2." in key and rows[key] == rows.get(both[0]):
            del rows[key]
            rows = {k.replace(".view1.", ".view.") if k == both[0] else k: row for k, row in rows.items()}
    return [[key, *row] for key, row in rows.items()]


def _show(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_show, value))}]"
    return "null" if value is None else str(value)


def _list_notes(runs: Sequence[RunSummary]) -> list[str]:
    """Return notes that a reader needs before comparing the numbers."""
    notes = []
    tables = [run.table.fields for run in runs if run.table is not None]
    if any(_differ(tables, key) for key in ("split", "num_test", "num_classes", "class_names")):
        notes.append("the runs were tested on different images: accuracies cannot be compared")
    tests = [_find_test(run) for run in runs if run.table is not None and "settings" in run.table.fields]
    if unlike := [f"{key} {_list_values(tests, key)}" for key in _TEST if _differ(tests, key)]:
        notes.append(f"the runs were tested differently ({'; '.join(unlike)}): accuracies cannot be compared")
    prints = {run.encoder.data_fingerprint for run in runs if run.encoder is not None}
    if len(prints) > 1:
        notes.append("the runs were trained on different images: loss and measures cannot be compared")
    for run in runs:
        if (outdated := run.outdated_table or run.outdated_measures) is not None:
            notes.append(f"{run.run_dir} was {outdated}")
    notes += [
        f"{run.run_dir} has not been evaluated: byol eval {run.run_dir}" for run in runs if run.table is None
    ]
    return ["", *notes] if notes else []


def _find_test(run: RunSummary) -> dict[str, Any]:
    """Return the settings that chose the test images and the folds of an evaluated run."""
    settings = {} if run.table is None else run.table.fields["settings"]
    test: dict[str, Any] = {key: settings.get(key) for key in _TEST}
    if test["train"] is None:
        test["train"] = run.config.data.source
    for key in ("train", "test", "labels"):  # one path may be written in several ways
        if test[key] is not None and Path(test[key]).exists():
            test[key] = str(Path(test[key]).resolve())
    return test


def _differ(tests: Sequence[Mapping[str, Any]], key: str) -> bool:
    """Return whether the runs that have this key have different values."""
    values = [test[key] for test in tests if key in test]
    return any(value != values[0] for value in values)


def _list_values(tests: Sequence[Mapping[str, Any]], key: str) -> str:
    return ", ".join(dict.fromkeys(_show(test[key]) for test in tests))
