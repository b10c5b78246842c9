"""What a run folder says of itself, for those who sum it up; parts that are missing are None."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from byol.config import Config, load_config
from byol.errors import CheckpointError
from byol.training import best, environment
from byol.training.runlog import Metrics, count_seconds, read_metrics

ONLINE, BASELINES = "byol online", ("pixels", "untrained")


@dataclass(frozen=True)
class Accuracy:
    """A row of `eval.json`, of either format: shares of the test images."""

    features: str
    classifier: str
    top1: float
    low95: float
    high95: float
    balanced: float

    def __str__(self) -> str:
        return f"{100 * self.top1:.1f} % ({100 * self.low95:.1f} to {100 * self.high95:.1f})"


@dataclass(frozen=True)
class Facts:
    """The contents of a run folder that others may want to know."""

    run_dir: Path
    config: Config
    metrics: tuple[Metrics, ...]
    encoder: Mapping[str, Any] | None  # encoder.json
    table: Mapping[str, Any] | None  # eval.json, of format 1 or 2
    measures: Mapping[str, Any] | None  # measures.json
    best: best.Marked | None
    environment: environment.Environment | None

    @property
    def name(self) -> str:
        """The folder's."""
        return self.run_dir.resolve().name

    @property
    def done(self) -> int:
        """Finished steps, as far as they are logged."""
        return self.metrics[-1].done if self.metrics else 0

    @property
    def hours(self) -> float | None:
        """From first to last step, all starts together; None if nothing was logged."""
        if not self.metrics:
            return None
        return count_seconds(self.metrics, batch_size=self.config.batch_size) / 3600.0

    @property
    def num_images(self) -> int | None:
        """Images that were trained on; of a run of an earlier version those of an epoch's whole batches."""
        if self.environment is not None:
            return self.environment.num_images
        if not self.metrics:
            return None
        return round(self.done / self.metrics[-1].epoch) * self.config.batch_size

    @property
    def accuracies(self) -> tuple[Accuracy, ...]:
        """The rows of the table; () without one."""
        rows = [] if self.table is None else self.table["rows"]
        fields = Accuracy.__dataclass_fields__
        return tuple(Accuracy(**{name: row[name] for name in fields}) for row in rows)

    def judge(self, classifier: str) -> tuple[Accuracy, Accuracy] | None:
        """The online encoder by a classifier, and the better of the baselines; None if not both are there."""
        rows = [row for row in self.accuracies if row.classifier == classifier]
        online = next((row for row in rows if row.features == ONLINE), None)
        baselines = [row for row in rows if row.features in BASELINES]
        return None if online is None or not baselines else (online, max(baselines, key=lambda row: row.top1))


def read_facts(run_dir: Path) -> Facts:
    """Read a run folder.

    Raises:
        CheckpointError: it holds no run, or one of its files is damaged.
    """
    if not (run_dir / "config.yaml").is_file():
        raise CheckpointError(
            f"{run_dir}: holds no run (no config.yaml); name a run's folder, or train one: "
            "byol train IMAGES/ -o runs/NAME"
        )
    table = _read_json(run_dir / "eval.json", formats=(1, 2), again="byol eval RUN")
    facts = Facts(
        run_dir=run_dir,
        config=load_config(run_dir / "config.yaml", [], preset=None),
        metrics=tuple(read_metrics(run_dir)),
        encoder=_read_json(run_dir / "encoder.json", formats=(1, 2), again="byol train"),
        table=table,
        measures=_read_json(run_dir / "measures.json", formats=(1,), again="byol eval RUN"),
        best=best.read(run_dir),
        environment=environment.read(run_dir),
    )
    try:
        _ = facts.accuracies
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{run_dir / 'eval.json'}: has no {error}; make it again: byol eval RUN"
        ) from None
    return facts


def _read_json(path: Path, *, formats: tuple[int, ...], again: str) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
        found = content["format"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); make it again: {again}") from None
    if found not in formats:
        raise CheckpointError(
            f"{path}: is of format {found}, this version of byol reads {formats[-1]}; update byol"
        )
    result: Mapping[str, Any] = content
    return result
