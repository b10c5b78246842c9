"""The results of evaluating a run without labels: rendered for the terminal and saved as `measures.json`.

docs/files.md describes the file format.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from byol.base.errors import printable
from byol.base.files import write_fields
from byol.base.text_table import percent, percent_range, render_columns, wrap
from byol.evaluation.metadata import ColumnScore

FORMAT = 1
FILE_NAME = "measures.json"
SHEET_NAME = "neighbours.png"
PROTOTYPES_NAME = "prototypes.csv"

_MOST_COLUMNS = 6  # metadata columns shown on the terminal
_MOST_OUTLIERS = 3


@dataclass(frozen=True)
class EncoderMeasures:
    """The label-free measures of one encoder; `geometry.Geometry` defines each one."""

    features: str  # "byol online", "untrained"
    rank: float
    max_rank: int
    alignment: float
    uniformity: float
    retrieval: float
    retrieval_low95: float
    retrieval_high95: float


@dataclass(frozen=True)
class Neighbour:
    """One of the nearest neighbours of an image."""

    row: int  # row in the packed set
    name: str
    similarity: float  # cosine similarity


@dataclass(frozen=True)
class Query:
    """An image and its nearest neighbours, the most similar first."""

    row: int
    name: str
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True)
class Prototype:
    """The image nearest to a cluster's centre, and the number of images in that cluster."""

    row: int
    name: str
    size: int


@dataclass(frozen=True)
class Outlier:
    """An image and its mean cosine distance to its 10 nearest neighbours, 0 .. 2."""

    row: int
    name: str
    distance: float


@dataclass(frozen=True)
class Description:
    """The content of `measures.json`."""

    num_images: int  # images searched for neighbours, prototypes, outliers and metadata
    num_copies: int  # how many of these exactly duplicate an earlier image
    num_measured: int  # how many of these the encoders are compared on
    done: int  # training steps of the encoder
    seconds: float
    encoders: tuple[EncoderMeasures, ...]
    verdict: str
    neighbours: tuple[Query, ...]
    prototypes: tuple[Prototype, ...]
    outliers: tuple[Outlier, ...]
    metadata: tuple[ColumnScore, ...]

    def save(self, path: Path) -> None:
        """Write the results as JSON. The write is atomic.

        Raises:
            CheckpointError: the file cannot be written.
        """
        write_fields(path, {"format": FORMAT, **asdict(self)})

    def render(self) -> str:
        """Return plain text for a terminal: the measures, the verdict, metadata scores and outliers.

        The text fits on one screen.
        """
        duplicates = f" ({self.num_copies:,} exact duplicates)" if self.num_copies else ""
        of_all = f"{self.num_images:,} training images{duplicates}"
        about = f"without labels, on the {of_all}"
        if self.num_measured < self.num_images:
            about = f"without labels; the first table is of {self.num_measured:,} of the {of_all}"
        legend = wrap(
            "view-retrieval accuracy: how often a view finds the other view of its image (by chance 1 in "
            f"{self.num_measured:,}); alignment: distance between two views of an image; uniformity: low if "
            "images spread evenly (lower is better for both)."
        )
        lines = [about, "", *self._render_encoders(), "", *legend, ""]
        lines += wrap(self.verdict)
        if self.metadata:
            lines += ["", *self._render_metadata()]
        names = ", ".join(
            f"{printable(one.name)} ({one.distance:.2f})" for one in self.outliers[:_MOST_OUTLIERS]
        )
        return "\n".join(
            [*lines, "", f"most unusual images (mean cosine distance to the 10 nearest): {names}"]
        )

    def _render_encoders(self) -> list[str]:
        cells = [
            [
                "features",
                "view-retrieval accuracy",
                "95 % interval",
                "effective rank",
                "alignment",
                "uniformity",
            ]
        ]
        for one in self.encoders:
            interval = percent_range(one.retrieval_low95, one.retrieval_high95)
            rank = f"{one.rank:.0f} (at most {one.max_rank:,})"
            spread = f"{one.alignment:.3f}", f"{one.uniformity:.2f}"
            cells.append([one.features, percent(one.retrieval), interval, rank, *spread])
        return render_columns(cells, left=[True, *(False for _ in cells[0][1:])])

    def _render_metadata(self) -> list[str]:
        """List columns with warnings first. A single warning text keeps the output on one screen."""
        columns = sorted(self.metadata, key=lambda one: not one.warning)
        about = (
            "can features tell the folder (or plate, ...)? Yes, if accuracy is far above chance: "
            "good for classes, bad for plates"
        )
        cells = [["column", "values", "balanced accuracy", "95 % interval", "chance", ""]]
        for one in columns[:_MOST_COLUMNS]:
            interval = percent_range(one.low95, one.high95)
            numbers = str(one.num_values), percent(one.accuracy), interval, percent(one.chance)
            cells.append([one.column, *numbers, "batch effect?" if one.warning else ""])
        lines = [about, "", *render_columns(cells, left=[True, False, False, False, False, True])]
        if len(columns) > _MOST_COLUMNS:
            lines.append(f"and {len(columns) - _MOST_COLUMNS} more columns in {FILE_NAME}")
        if columns[0].warning:
            lines += wrap(
                f"WARNING: the features predict {columns[0].column!r} far better than chance. If that is "
                "not what you want to study, compare images within one value of it, or evaluate with "
                "--groups."
            )
        return lines
