"""Results of fine-tuning: a row per classifier trained on the same labels, and a verdict in words.

byol writes them as `finetune.json`; docs/files.md describes the format.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from byol.base.files import write_fields
from byol.base.text_table import percent, percent_range, render_columns

FORMAT = 1

_HEADINGS = ("start", "labels", "top-1", "95 % interval", "balanced", "epochs", "chosen")


@dataclass(frozen=True)
class FinetuneRow:
    """A classifier and its accuracy on the test images. Accuracies are fractions, 0..1."""

    start: str  # "byol online", "byol target", "scratch"; ", frozen" if only the classifier was trained
    fraction: float  # of the training labels
    num_labels: int
    top1: float
    low95: float  # bootstrap interval over the test images, or Wilson's interval if that is wider
    high95: float
    balanced: float  # accuracy of each class, averaged over classes
    epochs: int  # passes over the labelled images; 0: the encoder was not changed
    chosen: dict[str, str | int | float]  # settings, chosen on a validation split of the training images
    seconds: float  # to choose and to train


@dataclass(frozen=True)
class FinetuneResult:
    """The content of `finetune.json`."""

    split: str
    num_test: int
    num_classes: int
    rows: tuple[FinetuneRow, ...]

    def render(self) -> str:
        """Return the rows as a plain-text table, with the verdict below it."""
        cells = [_HEADINGS, *map(_to_cells, self.rows)]
        lines = render_columns(cells, left=[name in ("start", "chosen") for name in _HEADINGS])
        about = f"{self.split}; {self.num_test} test images, {self.num_classes} classes"
        return "\n".join([about, "", *lines, "", self.verdict()])

    def save(self, path: Path) -> None:
        """Write the results as JSON. The file is complete or absent.

        Raises:
            CheckpointError: the file cannot be written.
        """
        write_fields(path, {"format": FORMAT, **asdict(self)}, indent=2)

    def verdict(self) -> str:
        """Compare the first row with each other row, a sentence each."""
        return "\n".join(_judge(self.rows[0], other) for other in self.rows[1:])


# ---- Words


def _to_cells(row: FinetuneRow) -> tuple[str, ...]:
    interval = percent_range(row.low95, row.high95)
    chosen = ", ".join(
        f"{name} = {value if isinstance(value, str) else format(value, 'g')}"
        for name, value in row.chosen.items()
    )
    numbers = percent(row.top1), interval, percent(row.balanced), str(row.epochs)
    return (row.start, str(row.num_labels), *numbers, chosen)


def _judge(row: FinetuneRow, other: FinetuneRow) -> str:
    figures = f"{row.start} {percent(row.top1)}, {other.start} {percent(other.top1)}"
    if row.epochs == 0 and other.start == f"{row.start}, frozen":
        return (
            "Kept the frozen encoder: fine-tuning was worse by more than one standard error on the "
            "validation split, or diverged."
        )
    if row.high95 < other.low95:
        return f"Worse than {other.start}; the intervals do not overlap: {figures}."
    if row.top1 <= other.top1:
        return f"Not better than {other.start}; the intervals overlap: {figures}."
    if other.high95 >= row.low95:
        return f"Ahead of {other.start}, but the difference is not certain; the intervals overlap: {figures}."
    return f"Better than {other.start}; the intervals do not overlap: {figures}."
