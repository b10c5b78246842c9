"""`byol.evaluate`: measure how good an encoder is, in Python."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from byol.api.arguments import AnyPath, Overrides, list_evaluation
from byol.api.run import Run
from byol.base.console import make_say, open_console, show_bar
from byol.base.errors import NoLabelsError

if TYPE_CHECKING:
    from byol.evaluation.description import Description
    from byol.evaluation.rows import Row
    from byol.evaluation.table import Table


_TRUST = "With labels, trust the table of accuracies below more than these measures."


@dataclass(frozen=True, repr=False)
class Evaluation:
    """The result of `byol.evaluate`; also in `measures.json` and `eval.json` in the run folder.

    If the run folder cannot be written, only this object holds the result; then `unsaved` says why.
    """

    folder: Path
    measures: "Description"  # label-free results: measures of the features, neighbours, outliers
    table: "Table | None"  # None: there are no labels
    unsaved: tuple[str, ...] = ()  # why files are not in the run folder, one line each

    def __repr__(self) -> str:
        if self.table is None:
            return f"<byol.Evaluation of {self.folder}: without labels>"
        return (
            f"<byol.Evaluation of {self.folder}: {len(self.rows)} rows, {self.table.num_test:,} test images, "
            f"{self.table.num_classes} classes>"
        )

    @property
    def rows(self) -> "list[Row]":
        """One row for each kind of features and each classifier, with intervals; [] without labels."""
        return [] if self.table is None else list(self.table.rows)

    @property
    def verdict(self) -> str:
        """A sentence: is the encoder better than the baselines? Without labels, from label-free measures."""
        return self.measures.verdict if self.table is None else self.table.verdict()

    def to_pandas(self) -> Any:
        """Return the rows as a pandas.DataFrame.

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas

        return pandas.DataFrame([asdict(row) for row in self.rows])

    def render(self) -> str:
        """Return everything as plain text, as `byol eval` prints it."""
        if self.table is None:
            return self.measures.render()
        return f"{self.measures.render()}\n{_TRUST}\n\n{self.table.render()}"


# Longer than 60 lines, because half of them describe the arguments.
def evaluate(
    run: Run | AnyPath,
    *,
    labels: AnyPath | None = None,
    train: AnyPath | None = None,
    test: AnyPath | None = None,
    weights: AnyPath | None = None,
    folds: int | str | None = None,
    groups: str | None = None,
    metadata: AnyPath | None = None,
    overrides: Overrides = None,
    progress: bool | None = None,
) -> Evaluation:
    """Measure how good the encoder of a run is, and compare it with pixels and an untrained encoder.

    Args:
        run: a `Run` or a run folder.
        labels: CSV with the columns file,label; not all images need one.
        train: labelled images to fit on; by default the run's own.
        test: labelled images to test on; by default the test split, or a fifth of the images.
        weights: other weights to compare with: a run folder, a file, or "timm:MODEL".
        folds: k of k-fold cross-validation, in which every image is tested once.
        groups: column of the labels, or "folder": images of one group stay on one side of a split.
        metadata: CSV file with the column file and others, to measure whether the features encode them.
        overrides: settings that begin with `evaluation.`, or that say where the images are (`data.`).
        progress: whether to print and draw a bar; None: in a terminal or a notebook.

    Raises:
        CheckpointError: the folder holds no run or no encoder yet.
        ConfigError: a setting is unknown, or would change what the run was.
        DataError: images, labels or metadata cannot be read, or are too few.
    """
    from byol.evaluation.table import check_labels
    from byol.evaluation.table import evaluate as make_table
    from byol.evaluation.unlabelled import describe

    folder = folder_of(run)
    chosen = list_evaluation(
        overrides, labels=labels, train=train, test=test, weights=weights, folds=folds, groups=groups
    )
    console = open_console(progress)
    say = make_say(console)
    has_labels = check_labels(folder, overrides=chosen)
    unsaved: list[str] = []
    with show_bar(console, "computing features") as count:
        measures = describe(
            folder,
            overrides=chosen,
            metadata=None if metadata is None else Path(metadata),
            say=say,
            progress=count,
            unsaved=unsaved,
        )
    trust = [_TRUST] if has_labels else []
    for line in "\n".join([measures.render(), *trust, ""]).split("\n"):
        say(line)
    try:
        with show_bar(console, "computing features") as count:
            table = make_table(folder, overrides=chosen, say=say, progress=count, unsaved=unsaved)
    except NoLabelsError as error:
        say(f"no accuracy: {error}")
        return Evaluation(folder, measures, None, tuple(unsaved))
    return Evaluation(folder, measures, table, tuple(unsaved))


def folder_of(run: Run | AnyPath) -> Path:
    """Return the folder of a run, which is given as `Run` or as folder."""
    return run.folder if isinstance(run, Run) else Path(run)
