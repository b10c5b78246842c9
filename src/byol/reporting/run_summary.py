"""What a run folder says of itself, for those who sum it up; parts that are missing are None."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from byol.base.files import read_fields
from byol.config import Config, EvaluationConfig, write_override
from byol.encoder.spec import SPEC_NAME, EncoderSpec, read_spec
from byol.evaluation.splits import TEST_PART
from byol.metrics import verdict
from byol.runfolder import environment
from byol.runfolder.settings import read_config
from byol.training import best
from byol.training import initial_weights as start
from byol.training.runlog import Metrics, count_seconds, read_metrics

Json = dict[str, Any]

_OPTIONS = ("labels", "train", "test", "weights", "folds", "groups")  # of `byol eval`
_OF_TABLE = ("split", "num_train", "num_test", "num_classes", "rows")
_OF_MEASURES = ("verdict", "encoders", "neighbours", "prototypes", "outliers", "metadata")


@dataclass(frozen=True)
class Accuracy:
    """A row of `eval.json`, of either format: shares of the test images."""

    features: str
    classifier: str
    top1: float
    low95: float
    high95: float
    balanced: float

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Accuracy":
        """From the file's values."""
        shares = {name: float(row[name]) for name in ("top1", "low95", "high95", "balanced")}
        return cls(str(row["features"]), str(row["classifier"]), **shares)


@dataclass(frozen=True)
class Table:
    """The contents of `eval.json`, of either format."""

    fields: Json  # as docs/files.md has them
    rows: tuple[Accuracy, ...]
    options: str | None  # " --labels FILE": with them `byol eval` makes the like; None: not recorded

    @property
    def has_folds(self) -> bool:
        """Whether each image was predicted once, instead of those of a test part."""
        return str(self.fields.get("protocol", TEST_PART)) != TEST_PART

    @property
    def images(self) -> str:
        """How many images it is of, in words."""
        fields = self.fields
        if self.has_folds:
            return f"{fields['num_test']:,} images, each tested once, {fields['num_classes']} classes"
        return (
            f"{fields['num_train']:,} training and {fields['num_test']:,} test images, "
            f"{fields['num_classes']} classes"
        )

    @property
    def resampled(self) -> str:
        """What the intervals are over, in words."""
        group = str(self.fields.get("protocol", TEST_PART)).partition(" by ")[2]
        if group:
            return f"groups (images of one {group})"
        return "all images" if self.has_folds else "the test images"


@dataclass(frozen=True)
class RunSummary:
    """The contents of a run folder that others may want to know."""

    run_dir: Path
    config: Config
    metrics: tuple[Metrics, ...]
    encoder: EncoderSpec | None
    start: start.InitialWeights | None
    table: Table | None
    measures: Json | None  # measures.json, as docs/files.md has it
    best: best.Marked | None
    environment: environment.Environment | None

    @property
    def name(self) -> str:
        """The folder's."""
        return self.run_dir.resolve().name

    @property
    def data_name(self) -> str:
        """The name of what it was trained on, without the path to it."""
        return Path(self.config.data.source).name

    @property
    def done(self) -> int:
        """Finished steps, as far as they are logged."""
        return self.metrics[-1].done if self.metrics else 0

    @property
    def hours(self) -> float | None:
        """Of training, without pauses, all starts together; None if nothing was logged."""
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
    def verdicts(self) -> tuple[verdict.Verdict, ...]:
        """Of the table, one a classifier; () without one, or if it is of another encoder than the run's."""
        if self.table is None or self.outdated_table is not None:
            return ()
        return verdict.judge(self.table.rows)

    @property
    def outdated_table(self) -> str | None:
        """That eval.json is not of the run's encoder, with the command that mends it; None: it is."""
        return self._find_outdated(None if self.table is None else self.table.fields)

    @property
    def outdated_measures(self) -> str | None:
        """The same of measures.json."""
        return self._find_outdated(self.measures)

    def _find_outdated(self, results: Json | None) -> str | None:
        """Encoders are saved at every checkpoint: one that was evaluated may have been trained further."""
        measured = None if results is None else results.get("done")
        if self.encoder is None or measured is None or measured == self.encoder.done:
            return None
        options = "" if self.table is None else self.table.options or ""
        return (
            f"measured after step {measured:,}, but the encoder is of step {self.encoder.done:,}: "
            f"byol eval {shlex.quote(str(self.run_dir))}{options}"
        )


def read_summary(run_dir: Path, overrides: Sequence[str] = ()) -> RunSummary:
    """Read a run folder; `overrides` of its configuration are those that `evaluate` takes.

    Raises:
        CheckpointError: it holds no run, or one of its files is damaged or of an unknown format.
        ConfigError: an override is not valid, or would change what the run was.
    """
    own = read_config(run_dir, ()).evaluation
    again = f"write it again: byol eval {shlex.quote(str(run_dir))}"
    return RunSummary(
        run_dir=run_dir,
        config=read_config(run_dir, overrides),
        metrics=tuple(read_metrics(run_dir)),
        encoder=read_spec(run_dir / SPEC_NAME) if (run_dir / SPEC_NAME).exists() else None,
        start=start.read(run_dir),
        table=read_fields(
            run_dir / "eval.json", versions=(1, 2), make=lambda fields: _make_table(fields, own), advice=again
        ),
        measures=read_fields(
            run_dir / "measures.json",
            versions=(1,),
            make=lambda fields: _require(fields, _OF_MEASURES),
            advice=again,
        ),
        best=best.read(run_dir),
        environment=environment.read(run_dir),
    )


def _require(fields: Json, names: Sequence[str]) -> Json:
    for name in names:
        _ = fields[name]
    return fields


def _make_table(fields: Json, own: EvaluationConfig) -> Table:
    rows = tuple(Accuracy.of(row) for row in _require(fields, _OF_TABLE)["rows"])
    settings = fields.get("settings")
    return Table(fields, rows, None if settings is None else _name_options(settings, own.model_dump()))


def _name_options(settings: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """The arguments of `byol eval` by which a run with its own settings is evaluated with these."""
    words = []
    for key, value in settings.items():
        if value == own.get(key):
            continue
        if key not in _OPTIONS or value is None:
            words.append(write_override(f"evaluation.{key}", value))
        elif str(value).startswith("-") or "=" in str(value):  # alone it would be an option or an override
            words.append(f"--{key}={value}")
        else:
            words += [f"--{key}", str(value)]
    return "".join(f" {shlex.quote(word)}" for word in words)
