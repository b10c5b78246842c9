"""What a run has left behind, read for its report, and what it means in one sentence."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from byol.artifacts.encoder import SPEC_NAME
from byol.config import Config
from byol.errors import CheckpointError
from byol.evaluation.settings import read_config
from byol.training.runlog import Metrics, count_seconds, read_metrics

ONLINE = "byol online"
_FORMATS = {"eval.json": (1, 2), "measures.json": (1,), "start.json": (1,), "best.json": (1,)}
_AGAIN = {
    "eval.json": "byol eval",
    "measures.json": "byol eval",
    "start.json": "byol train",
    "best.json": "byol train",
}

Json = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Record:
    """The files of a run; None where one is missing."""

    run_dir: Path
    config: Config
    config_text: str
    metrics: list[Metrics]
    evaluation: Json | None  # eval.json
    measures: Json | None
    start: Json | None
    best: Json | None
    has_encoder: bool

    @property
    def training_s(self) -> float:
        """Seconds of training that the log accounts for; the time of pauses is not among them."""
        return count_seconds(self.metrics, batch_size=self.config.batch_size)


@dataclass(frozen=True)
class Verdict:
    """The first sentence of the report, what follows it, and "good", "warn" or "bad"."""

    kind: str
    sentence: str
    rest: tuple[str, ...]


def read_record(run_dir: Path, overrides: Sequence[str]) -> Record:
    """All that the run folder holds.

    Raises:
        CheckpointError: the folder holds no run, or a file of it is damaged or of an unknown format.
        ConfigError: an override is not valid, or would change what the run was.
    """
    config = read_config(run_dir, overrides)
    files = {name: _read_json(run_dir / name) for name in _FORMATS}
    return Record(
        run_dir=run_dir,
        config=config,
        config_text=(run_dir / "config.yaml").read_text(encoding="utf-8"),
        metrics=read_metrics(run_dir),
        evaluation=files["eval.json"],
        measures=files["measures.json"],
        start=files["start.json"],
        best=files["best.json"],
        has_encoder=(run_dir / SPEC_NAME).is_file(),
    )


def _read_json(path: Path) -> Json | None:
    command = f"{_AGAIN[path.name]} writes it anew"
    try:
        content = json.loads(path.read_bytes())
        version = content["format"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: is damaged ({type(error).__name__}); {command}") from None
    if version not in _FORMATS[path.name]:
        raise CheckpointError(f"{path}: has format {version}, which this version does not read; {command}")
    return dict(content)


# ---- The verdict


def judge(record: Record) -> Verdict:
    """By labels if there are any, else by the label-free measures, else by the health of the training."""
    if record.evaluation is not None:
        found = [*_judge_rows(record.evaluation["rows"])]
        if found:
            (kind, sentence), *others = found
            return Verdict(kind, sentence, tuple(text for _, text in others))
    if record.measures is not None:
        return Verdict("", str(record.measures["verdict"]), ("No labels were used for this.",))
    trained = f"after {record.metrics[-1].done:,} steps" if record.metrics else "and nothing was logged"
    health = f"The training was {record.metrics[-1].verdict} at the end." if record.metrics else ""
    return Verdict(
        "warn", f"Whether BYOL helped has not been measured yet, {trained}.", (health,) if health else ()
    )


def _judge_rows(rows: Sequence[Json]) -> Iterator[tuple[str, str]]:
    """(kind, sentence) for each classifier, the first one's in full."""
    for classifier in dict.fromkeys(row["classifier"] for row in rows):
        mine = [row for row in rows if row["classifier"] == classifier]
        byol = next((row for row in mine if row["features"] == ONLINE), None)
        others = [row for row in mine if not row["features"].startswith("byol ")]
        if byol is not None and others:
            yield _compare(byol, sorted(others, key=lambda row: -row["top1"]), classifier=classifier)


def _compare(byol: Json, others: Sequence[Json], *, classifier: str) -> tuple[str, str]:
    """`others` are what BYOL has to beat, the best first."""
    against = " and ".join(f"{100 * row['top1']:.1f} % with {name_features(row)}" for row in others)
    own = f"{show_classifier(classifier)} is right for {100 * byol['top1']:.1f} % of the test images"
    figures = f"{own}, against {against}"
    overlapping = [name_features(row) for row in others if row["high95"] >= byol["low95"]]
    if byol["top1"] <= others[0]["top1"]:
        return "bad", f"BYOL does not help here: {figures}."
    if overlapping:
        return (
            "warn",
            f"BYOL is ahead, but not surely: {figures}; the 95 % interval overlaps that of {overlapping[0]}.",
        )
    return "good", f"BYOL helps: {figures}."


def show_classifier(name: str) -> str:
    """As people write it."""
    return "kNN" if name == "knn" else name


def name_features(row: Mapping[str, Any]) -> str:
    """The features of a row, in words."""
    name = str(row["features"])
    if name == "pixels":
        return "pixels" if row.get("transform", "none") == "none" else f"pixels ({row['transform']})"
    return {
        "untrained": "the untrained encoder",
        ONLINE: "the BYOL encoder",
        "byol target": "BYOL's target network",
    }.get(name, name)
