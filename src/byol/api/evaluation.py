"""How good an encoder is, in Python."""

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


@dataclass(frozen=True, repr=False)
class Evaluation:
    """The result of `byol.evaluate`. `measures.json` and `eval.json` in the run folder hold the same.

    If the run folder cannot be written, only this object holds it; then `unsaved` says why.
    """

    folder: Path
    measures: "Description"  # what needs no labels: measures of the features, neighbours, outliers
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
        """In words: is the encoder better than the baselines? Without labels it uses the other measures."""
        return self.measures.verdict if self.table is None else self.table.verdict()

    def to_pandas(self) -> Any:
        """The rows as a pandas.DataFrame.

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas

        return pandas.DataFrame([asdict(row) for row in self.rows])

    def render(self) -> str:
        """Everything as plain text, as `byol eval` prints it."""
        parts = [self.measures.render()]
        if self.table is not None:
            parts.append(self.table.render())
        return "\n\n".join(parts)


# Longer than 60 lines, because half of it is the arguments and what they mean.
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
        metadata: CSV file with the column file and others. Do the features encode what they hold?
        overrides: settings that begin with `evaluation.`, or that say where the images are (`data.`).
        progress: print and draw a bar? None: in a terminal or a notebook.

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
    check_labels(folder, overrides=chosen)
    unsaved: list[str] = []
    with show_bar(console, "features") as count:
        measures = describe(
            folder,
            overrides=chosen,
            metadata=None if metadata is None else Path(metadata),
            say=say,
            progress=count,
            unsaved=unsaved,
        )
    for line in f"{measures.render()}\n".split("\n"):
        say(line)
    try:
        with show_bar(console, "features") as count:
            table = make_table(folder, overrides=chosen, say=say, progress=count, unsaved=unsaved)
    except NoLabelsError as error:
        say(f"no table: {error}")
        return Evaluation(folder, measures, None, tuple(unsaved))
    return Evaluation(folder, measures, table, tuple(unsaved))


def folder_of(run: Run | AnyPath) -> Path:
    """The folder of a run, given as either."""
    return run.folder if isinstance(run, Run) else Path(run)
