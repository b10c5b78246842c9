"""`byol.train` and `byol.open_run`: train a run, read its files and use its encoder, in Python."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from byol.api.arguments import AnyPath, Overrides, choose_folder, make_partial_config
from byol.base.console import open_console

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float32

    from byol.api.evaluation import Evaluation
    from byol.encoder.encoder import Encoder, ManyImages
    from byol.exporting.export import Exported
    from byol.training.runlog import Metrics


@dataclass(frozen=True)
class Run:
    """A run folder. byol reads its files when you ask for them."""

    folder: Path
    done: int = field(compare=False)  # finished steps
    total_steps: int = field(compare=False)
    stopped_by: str | None = field(default=None, compare=False)  # the signal that ended this training

    def __repr__(self) -> str:
        state = f"stopped by {self.stopped_by}" if self.stopped_by else "finished"
        state = state if self.stopped_by or self.done == self.total_steps else "not finished"
        return f"<byol.Run {self.folder}: step {self.done:,} of {self.total_steps:,}, {state}>"

    @cached_property
    def encoder(self) -> "Encoder":
        """The trained encoder.

        Raises:
            CheckpointError: no checkpoint has been written yet.
        """
        from byol.encoder.encoder import load

        return load(self.folder)

    def embed(self, images: "ManyImages") -> "Float32[np.ndarray, 'image feature']":
        """Compute the features of images in any form that `Encoder.embed` accepts; (N, F), float32."""
        return self.encoder.embed(images)

    @property
    def metrics(self) -> "list[Metrics]":
        """The lines of the log, oldest first: loss, learning rate, health, images per second."""
        from byol.training.runlog import read_metrics

        return read_metrics(self.folder)

    def evaluate(self, **options: Any) -> "Evaluation":
        """Call `byol.evaluate` for this run."""
        from byol.api.evaluation import evaluate

        return evaluate(self, **options)

    def export(self, **options: Any) -> "Exported":
        """Call `byol.export` for this run."""
        from byol.api.exporting import export

        return export(self, **options)

    def report(self, **options: Any) -> Path:
        """Call `byol.report` for this run."""
        from byol.api.reports import report

        return report(self, **options)


def train(
    images: AnyPath,
    *,
    output: AnyPath | None = None,
    hours: str | float | None = None,
    init: AnyPath | None = None,
    preset: str | None = None,
    overrides: Overrides = None,
    progress: bool | None = None,
) -> Run:
    """Train an encoder, or continue the run in `output`: the same call continues where it stopped.

    Args:
        images: a folder, a .txt or .csv list, a .npy array, a .tar file, the name of a known data set, or a
            configuration file (.yaml).
        output: the run folder; by default `runs/NAME`.
        hours: training time in hours; training then ends after this time.
        init: weights to start from: the folder of an earlier run, a file, or "timm:MODEL".
        preset: "default", "classic", "paper" or "demo".
        overrides: other settings, such as {"trainer.max_epochs": 3}.
        progress: whether to print and draw a bar; None: in a terminal or a notebook.

    In the main thread, Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 save and stop; see `Run.stopped_by`.

    Raises:
        ConfigError: a setting is unknown or impossible.
        DataError: the images cannot be read, or are too few.
        CheckpointError: the folder cannot be written, or holds something else.
        RunMismatchError: the folder holds a run with other settings.
        DivergedError, CollapsedError: the training failed. The message names the most likely cause.
    """
    from byol.auto.train import train as train_partial

    partial_config = make_partial_config(images, preset=preset, hours=hours, init=init, overrides=overrides)
    folder = choose_folder(images, output, place="runs")
    outcome = train_partial(partial_config, folder, console=open_console(progress, goes_on=True))
    return Run(folder, outcome.done, outcome.total_steps, outcome.stopped_by)


def open_run(folder: AnyPath) -> Run:
    """Open an existing run.

    Raises:
        CheckpointError: the folder holds no encoder, or the encoder is damaged.
    """
    from byol.encoder.spec import SPEC_NAME, read_spec
    from byol.training.runlog import read_metrics

    path = Path(folder)
    done = read_spec(path / SPEC_NAME).done
    metrics = read_metrics(path)
    return Run(path, done, max(done, metrics[-1].done if metrics else 0))
