"""Read a run folder into a `RunSummary` for report, card, comparison and explorer; missing files are None."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from byol.base.files import read_fields
from byol.config import Config, EvaluationConfig, write_override
from byol.encoder.spec import SPEC_NAME, EncoderSpec, read_spec
from byol.evaluation.splits import TEST_PART
from byol.method.views import WEAK_CROP_AREA
from byol.metrics import verdict
from byol.runfolder import environment
from byol.runfolder.settings import read_config
from byol.training import best, rollback
from byol.training import initial_weights as start
from byol.training.runlog import Metrics, count_seconds, read_metrics
from byol.training.skipped import MAX_RECORDS, list_steps

Json = dict[str, Any]

_OPTIONS = ("labels", "train", "test", "weights", "folds", "groups")  # options of `byol eval`
_MOST_STEPS = 5  # that are listed
_OF_TABLE = ("split", "num_train", "num_test", "num_classes", "rows")
_OF_MEASURES = ("verdict", "encoders", "neighbours", "prototypes", "outliers", "metadata")


@dataclass(frozen=True)
class Accuracy:
    """A row of `eval.json` (format 1 or 2). Accuracies are fractions of the test images, 0..1."""

    features: str
    classifier: str
    top1: float
    low95: float
    high95: float
    balanced: float

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Accuracy":
        """Make it from a row of the file."""
        shares = {name: float(row[name]) for name in ("top1", "low95", "high95", "balanced")}
        return cls(str(row["features"]), str(row["classifier"]), **shares)


@dataclass(frozen=True)
class Table:
    """The content of `eval.json` (format 1 or 2)."""

    fields: Json  # as docs/files.md describes them
    rows: tuple[Accuracy, ...]
    options: str | None  # of `byol eval`, for example " --labels FILE"; None: not recorded

    @property
    def has_folds(self) -> bool:
        """Whether the evaluation used cross-validation, instead of one test split."""
        return str(self.fields.get("protocol", TEST_PART)) != TEST_PART

    @property
    def images(self) -> str:
        """The numbers of images and classes, in words."""
        fields = self.fields
        if self.has_folds:
            return f"{fields['num_test']:,} images, each tested once, {fields['num_classes']} classes"
        return (
            f"{fields['num_train']:,} training and {fields['num_test']:,} test images, "
            f"{fields['num_classes']} classes"
        )

    @property
    def resampled(self) -> str:
        """What the bootstrap of the intervals resampled, in words."""
        group = str(self.fields.get("protocol", TEST_PART)).partition(" by ")[2]
        if group:
            return f"groups (images of one {group})"
        return "all images" if self.has_folds else "the test images"


@dataclass(frozen=True)
class RunSummary:
    """The content of a run folder. None: the file does not exist."""

    run_dir: Path
    config: Config
    metrics: tuple[Metrics, ...]
    encoder: EncoderSpec | None
    start: start.InitialWeights | None
    table: Table | None
    measures: Json | None  # measures.json, as docs/files.md describes it
    best: best.Marked | None
    environment: environment.Environment | None
    rollback: rollback.Rollback | None
    skipped: tuple[int, ...]  # steps with a record in `skipped/`, which were not applied

    @property
    def name(self) -> str:
        """The name of the run folder."""
        return self.run_dir.resolve().name

    @property
    def data_name(self) -> str:
        """The name of the training images, without their path."""
        return Path(self.config.data.source).name

    @property
    def done(self) -> int:
        """The number of finished steps in the last line of the log."""
        return self.metrics[-1].done if self.metrics else 0

    @property
    def hours(self) -> float | None:
        """Training time summed over all starts, without pauses; None: nothing was logged."""
        if not self.metrics:
            return None
        return count_seconds(self.metrics, batch_size=self.config.batch_size) / 3600.0

    @property
    def additions(self) -> str:
        """A sentence about what the training had that BYOL does not have; "" if there is nothing."""
        found = []
        if weight := self.config.trainer.vicreg_weight:
            found.append(
                "the variance and covariance terms of VICReg (arXiv 2105.04906) on the online projections, "
                f"with a weight that falls from {weight:g} to 0 in the first half of the run"
            )
        if self.config.data_transforms.target_view == "weak":
            area = f"{100 * WEAK_CROP_AREA[0]:g} %"
            found.append(
                f"a weak view for the target network (crops of {area} of the area or more, colours "
                "unchanged), which both other views predict"
            )
        return f"More than BYOL: {'; '.join(found)}." if found else ""

    @property
    def incidents(self) -> tuple[str, ...]:
        """Sentences about steps that were not applied, and about going back to a checkpoint; (): none."""
        found = []
        if self.skipped:
            number = len(self.skipped)
            least = "At least " if number >= MAX_RECORDS else ""
            several = "steps were" if number > 1 else "step was"
            listed = ", ".join(f"{step:,}" for step in self.skipped[:_MOST_STEPS])
            more = ", ..." if number > _MOST_STEPS else ""
            found.append(
                f"{least}{number:,} {several} not applied, because loss or gradient was not finite ({listed}"
                f"{more})."
            )
        if (back := self.rollback) is not None:
            found.append(
                f"After step {back.failed_at:,} the training went back to its checkpoint of step "
                f"{back.back_to:,} and continued with {back.lr_share:g} times the learning rate."
            )
        return tuple(found)

    @property
    def num_images(self) -> int | None:
        """The number of training images; in runs of early versions, those of one epoch's full batches."""
        if self.environment is not None:
            return self.environment.num_images
        if not self.metrics:
            return None
        return round(self.done / self.metrics[-1].epoch) * self.config.batch_size

    @property
    def verdicts(self) -> tuple[verdict.Verdict, ...]:
        """One verdict per classifier of the table; () if there is no table, or if it is outdated."""
        if self.table is None or self.outdated_table is not None:
            return ()
        return verdict.judge(self.table.rows)

    @property
    def outdated_table(self) -> str | None:
        """Why eval.json does not belong to the current encoder, with the command to repeat; None: it does."""
        return self._find_outdated(None if self.table is None else self.table.fields)

    @property
    def outdated_measures(self) -> str | None:
        """The same for measures.json."""
        return self._find_outdated(self.measures)

    def _find_outdated(self, results: Json | None) -> str | None:
        """Compare step numbers, because training may have continued after an evaluation."""
        measured = None if results is None else results.get("done")
        if self.encoder is None or measured is None or measured == self.encoder.done:
            return None
        options = "" if self.table is None else self.table.options or ""
        return (
            f"measured after step {measured:,}, but the encoder is of step {self.encoder.done:,}: "
            f"byol eval {shlex.quote(str(self.run_dir))}{options}"
        )


def read_summary(run_dir: Path, overrides: Sequence[str] = ()) -> RunSummary:
    """Read a run folder. `overrides` change its configuration, as in `evaluate`.

    Raises:
        CheckpointError: the folder holds no run, or one of its files is damaged or has an unknown format.
        ConfigError: an override is not valid or cannot be changed.
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
        rollback=rollback.read(run_dir),
        skipped=tuple(list_steps(run_dir)),
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
    """Return the arguments that make `byol eval` use `settings` for a run whose own settings are `own`."""
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
