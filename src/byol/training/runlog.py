"""Log a run: `metrics.jsonl`, the loggers, and progress on the terminal.

`metrics.jsonl` is the source of truth, with one JSON object per logged step. A resumed run first deletes the
lines of steps that it repeats. Terminals and notebooks show a progress bar; elsewhere byol prints lines.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

import numpy as np
from jaxtyping import Float, UInt8
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from torch import Tensor

from byol.base.console import draws_bars, print_line
from byol.base.disk import read_bytes
from byol.base.errors import CheckpointError
from byol.base.files import write_atomically
from byol.base.text_table import whole_percent
from byol.training.loggers import Embedding, Logger

FORMAT = 1
FILE_NAME = "metrics.jsonl"
_PLAIN_INTERVAL_S = 15.0  # seconds between plain lines
_GRID_IMAGES = 8


@dataclass(frozen=True)
class Metrics:
    """One line of `metrics.jsonl`; docs/files.md gives the units."""

    done: int  # finished steps
    epoch: float  # finished passes over the images
    loss: float  # mean over images, 0..8
    lr: float
    tau: float
    feature_std: float  # std of the projections over the batch; 1/sqrt(D) is ideal
    images_per_s: float
    data_wait: float  # fraction of the time spent waiting for images, 0..1
    verdict: str  # of the latest health check
    rank: float  # effective rank at the latest health check, 1..D
    # `health.Measures` of the encoder at the latest health check; None in logs of early versions.
    retrieval: float | None = None  # view-retrieval accuracy on the fixed images, 0..1
    encoder_rank: float | None = None  # effective rank of the features, 1..features
    knn: float | None = None  # kNN accuracy on the fixed images, 0..1; None: no labels
    alignment: float | None = None  # of the two views of each fixed image, 0..4
    uniformity: float | None = None  # of the first views of the fixed images, -4..0


class RunLog:
    """Writes and prints the log. Does nothing on ranks other than the first."""

    def __init__(
        self,
        run_dir: Path,
        console: Console | None,
        *,
        first_step: int,
        end: int,
        steps_per_epoch: int,
        active: bool,
        open_loggers: Callable[[], Sequence[Logger]] = tuple,
    ) -> None:
        """`console`: None prints nothing. `end`: expected steps of the run.

        `open_loggers` is called at the start of the `with` block.
        """
        self._console, self._active, self._open_loggers = console, active, open_loggers
        self._path = run_dir / FILE_NAME
        self._embedding: Embedding | None = None
        self._first_step, self._end, self._steps_per_epoch = first_step, end, steps_per_epoch
        self._loggers: Sequence[Logger] = ()
        self._progress: Progress | None = None
        self._last_line_s = -math.inf

    def __enter__(self) -> "RunLog":
        if not self._active:
            return self
        kept = [metrics for metrics in read_metrics(self._path.parent) if metrics.done <= self._first_step]
        write_atomically(self._path, "".join(map(_to_line, kept)).encode())
        self.file = self._path.open("a", encoding="utf-8")
        try:
            self._loggers = self._open_loggers()
        except BaseException:
            self.file.close()
            raise
        if draws_bars(self._console):
            self._progress = _make_progress(self._console)
            self._progress.start()
            self._task = self._progress.add_task("", total=self._end, completed=self._first_step)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._active:
            return
        if self._progress is not None:
            with suppress(OSError):  # the terminal may be gone
                self._progress.refresh()  # in a notebook, `stop` does not redraw the bar
                self._progress.stop()
        closes: list[Callable[[], None]] = [self.file.close]
        closes += [partial(logger.end, self._embedding) for logger in self._loggers]
        for close in closes:  # closing writes buffered data
            try:
                close()
            except OSError as failure:
                if error is None:
                    raise self._unwritable(failure) from None

    def write(self, metrics: Metrics, *, end: int, left_s: float) -> None:
        """Write a line to the file, add a point to each curve of the loggers, and update the display.

        The display shows the current estimates: a run of `end` steps that takes `left_s` more seconds.

        Raises:
            CheckpointError: the file cannot be written.
        """
        if not self._active:
            return
        try:
            self.file.write(_to_line(metrics))
            self.file.flush()
            for logger in self._loggers:
                logger.add_scalars(_to_scalars(metrics), step=metrics.done)
        except OSError as error:
            raise self._unwritable(error) from None
        self._show(metrics, end=end, left=format_time(left_s))

    def add_views(self, *views: Float[Tensor, "b c s s"]) -> None:
        """Send the loggers a grid with the views of the first images, one above the other."""
        for logger in self._loggers:
            logger.add_picture("views", tile_views(*views), step=self._first_step)

    def keep_embedding(self, embedding: Embedding) -> None:
        """Keep the embedding, which the loggers receive at the end."""
        self._embedding = embedding

    def say(self, text: str) -> None:
        """Print one line."""
        if self._active and self._console is not None:
            print_line(self._console, text)

    def _unwritable(self, error: OSError) -> CheckpointError:
        return CheckpointError(f"{self._path}: byol cannot write it ({error.strerror}); free disk space")

    def _show(self, metrics: Metrics, *, end: int, left: str) -> None:
        epochs = f"{end / self._steps_per_epoch:.1f}".removesuffix(".0")
        text = (
            f"epoch {metrics.epoch:.1f}/{epochs}  loss {metrics.loss:.3f}  "
            f"projection rank {metrics.rank:.0f}  "
            f"{metrics.images_per_s:.0f} images/s  data wait {whole_percent(metrics.data_wait)}  "
            f"{left} left  {metrics.verdict}"
        )
        if self._progress is not None:
            self._progress.update(self._task, completed=metrics.done, total=end, description=text)
            return
        now = time.monotonic()
        if now - self._last_line_s >= _PLAIN_INTERVAL_S or metrics.done == end:
            self._last_line_s = now
            self.say(f"step {metrics.done:,}/{end:,}  {text}")


def read_metrics(run_dir: Path) -> list[Metrics]:
    """Read the lines of `metrics.jsonl`, oldest first. Skip an incomplete last line of a killed process.

    Raises:
        CheckpointError: a line has another format.
    """
    path = run_dir / FILE_NAME
    if not path.exists():
        return []
    try:
        lines = read_bytes(path).decode().split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: is not UTF-8 text (byte {error.start}); delete it") from None
    metrics = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            fields = json.loads(line)
            if fields.pop("format") != FORMAT:
                raise ValueError(f"format is not {FORMAT}")
            metrics.append(Metrics(**fields))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{path}:{number}: is not a line of metrics ({error}); delete it") from None
    return metrics


def count_seconds(metrics: Sequence[Metrics], *, batch_size: int) -> float:
    """Return the training time of these lines in seconds, without pauses between starts."""
    seconds, done = 0.0, 0
    for line in metrics:
        if line.images_per_s > 0:
            seconds += (line.done - done) * batch_size / line.images_per_s
        done = line.done
    return seconds


def tile_views(*views: Float[Tensor, "b c s s"]) -> UInt8[np.ndarray, "height width 3"]:
    """Draw the views of the first images in one row each, each view stretched to 0..255.

    The first three channels are shown as colours, or the first one as grey if there are fewer than three.
    """
    rows = []
    for view in views:
        pixels = (255.0 * stretch(view[:_GRID_IMAGES])).byte()
        rows.append(np.concatenate(list(pixels.permute(0, 2, 3, 1).numpy()), axis=1))
    return np.concatenate(rows)


def stretch(images: Float[Tensor, "image channel side side"]) -> Float[Tensor, "image 3 side side"]:
    """Return 3-channel images on the CPU, each stretched to 0..1; channels as in `tile_views`."""
    shown = images.detach().float().cpu()
    shown = shown[:, :3] if shown.shape[1] >= 3 else shown[:, :1].expand(-1, 3, -1, -1)
    low, high = shown.amin((1, 2, 3), keepdim=True), shown.amax((1, 2, 3), keepdim=True)
    return (shown - low) / (high - low).clamp_min(1e-6)


def format_time(seconds: float) -> str:
    """Format a time as 1:05 (minutes and seconds) or 2:01:05 (with hours)."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _to_scalars(metrics: Metrics) -> dict[str, float]:
    fields = asdict(metrics)
    return {k: v for k, v in fields.items() if k not in ("done", "verdict") and v is not None}


def _to_line(metrics: Metrics) -> str:
    return json.dumps({"format": FORMAT, **asdict(metrics)}) + "\n"


def _make_progress(console: Console | None) -> Progress:
    return Progress(
        BarColumn(bar_width=20),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.description}"),
        console=console,
    )
