"""Copy the curves of `metrics.jsonl` to loggers (`trainer.loggers`): TensorBoard, W&B, Trackio, MLflow.

All packages except TensorBoard are optional and imported only if a run uses them. If a logger fails during
training, byol prints one warning, stops using it, and continues to train.
"""

import importlib.util
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from byol.base.console import Say
from byol.base.errors import ConfigError
from byol.base.packages import install_command
from byol.config import LoggerName

PROJECT = "byol"  # name of the project or experiment


@dataclass(frozen=True)
class Run:
    """What a logger needs to know about a run when it starts."""

    folder: Path
    key: str  # identifies the run; the same at every start
    first_step: int  # finished steps at this start; later points of an earlier start are written again
    settings: Mapping[str, Any]  # by dotted key


@dataclass(frozen=True)
class Embedding:
    """Features and thumbnails of the fixed images at the end of a run."""

    step: int
    features: Float[Tensor, "image feature"]
    thumbnails: Float[Tensor, "image 3 side side"]  # 0..1
    names: Sequence[str]


@runtime_checkable
class Logger(Protocol):
    """Receives the curves of a run."""

    def add_scalars(self, values: Mapping[str, float], *, step: int) -> None:
        """Add a point to each curve."""

    def add_picture(self, name: str, picture: UInt8[np.ndarray, "height width 3"], *, step: int) -> None:
        """Add a picture."""

    def end(self, embedding: Embedding | None) -> None:
        """Write buffered data, and the embedding if there is one and the logger can show it."""


def check_loggers(names: Sequence[LoggerName]) -> None:
    """Refuse loggers whose package is missing, before byol packs or trains.

    Raises:
        ConfigError: a package is missing; the message says how to install it.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"trainer.loggers: {name} is not installed; {install_command(name)}, or leave it out: "
                "trainer.loggers=[tensorboard]"
            )


def open_loggers(names: Sequence[LoggerName], run: Run, *, say: Say) -> list[Logger]:
    """Open the loggers of a run, in the given order. `say` receives a warning if one fails later.

    Raises:
        ConfigError: a logger does not start; the message quotes its error.
    """
    loggers: list[Logger] = []
    for name in names:
        try:
            logger = _MAKERS[name](run)
        except Exception as error:  # packages raise any kind of exception if their service fails
            if name == "tensorboard" and isinstance(error, OSError):
                say(f"warning: {name} does not start ({_first_line(error)}); the curves are in metrics.jsonl")
                continue
            for opened in loggers:
                opened.end(None)
            raise ConfigError(
                f"trainer.loggers: {name} does not start ({_first_line(error)}); set it up, or leave it out: "
                "trainer.loggers=[tensorboard]"
            ) from None
        loggers.append(Guarded(name, logger, say=say))
    return loggers


class TensorBoard:
    """Writes event files to `tensorboard/` in the run folder, and the embedding for its projector."""

    def __init__(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = run.folder / "tensorboard"
        self._hook = threading.excepthook
        threading.excepthook = self._report_thread
        self._board = SummaryWriter(str(self._folder), purge_step=run.first_step + 1)

    def add_scalars(self, values: Mapping[str, float], *, step: int) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def add_picture(self, name: str, picture: UInt8[np.ndarray, "height width 3"], *, step: int) -> None:
        self._board.add_image(name, picture, step, dataformats="HWC")

    def end(self, embedding: Embedding | None) -> None:
        if embedding is not None:
            # Remove the embedding of a killed start, which would be listed twice.
            (self._folder / "projector_config.pbtxt").unlink(missing_ok=True)
            for folder in self._folder.glob("[0-9]*/"):
                shutil.rmtree(folder)
            self._board.add_embedding(
                embedding.features,
                metadata=[_to_cell(name) for name in embedding.names],
                label_img=embedding.thumbnails,
                global_step=embedding.step,
                tag="fixed_images",
            )
        try:
            self._board.close()
        finally:
            self._restore_hook()

    def _report_thread(self, failed: threading.ExceptHookArgs) -> None:
        """Print no traceback of TensorBoard's writer thread, because the next call raises its error."""
        if type(failed.thread).__module__ == "tensorboard.summary.writer.event_file_writer":
            self._restore_hook()
        else:
            self._hook(failed)

    def _restore_hook(self) -> None:
        if threading.excepthook == self._report_thread:
            threading.excepthook = self._hook


class Wandb:
    """Logs to Weights & Biases. Steps that a resumed run repeats are drawn twice, in the same place."""

    def __init__(self, run: Run) -> None:
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=PROJECT,
            name=run.folder.name,
            id=run.key,
            resume="allow",
            dir=str(run.folder),
            config=dict(run.settings),
        )
        self._run.define_metric("*", step_metric="done")

    def add_scalars(self, values: Mapping[str, float], *, step: int) -> None:
        self._run.log({**values, "done": step})

    def add_picture(self, name: str, picture: UInt8[np.ndarray, "height width 3"], *, step: int) -> None:
        self._run.log({name: self._wandb.Image(picture), "done": step})

    def end(self, embedding: Embedding | None) -> None:
        self._run.finish()


class Trackio:
    """Logs to Trackio, on this machine unless its settings say otherwise."""

    def __init__(self, run: Run) -> None:
        import trackio

        self._trackio = trackio
        # Trackio identifies a run only by its name.
        trackio.init(
            project=PROJECT,
            name=f"{run.folder.name}-{run.key[:8]}",
            resume="allow",
            config=dict(run.settings),
        )

    def add_scalars(self, values: Mapping[str, float], *, step: int) -> None:
        self._trackio.log(dict(values), step=step)

    def add_picture(self, name: str, picture: UInt8[np.ndarray, "height width 3"], *, step: int) -> None:
        self._trackio.log({name: self._trackio.Image(picture)}, step=step)

    def end(self, embedding: Embedding | None) -> None:
        self._trackio.finish()


class Mlflow:
    """Logs to MLflow, in the experiment `byol` of the tracking server that the environment names."""

    _TAG = "byol.run"

    def __init__(self, run: Run) -> None:
        import mlflow

        self._client = mlflow.MlflowClient()
        known = self._client.get_experiment_by_name(PROJECT)
        experiment = self._client.create_experiment(PROJECT) if known is None else known.experiment_id
        found = self._client.search_runs([experiment], f"tags.`{self._TAG}` = '{run.key}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, "RUNNING")
            return
        made = self._client.create_run(experiment, run_name=run.folder.name, tags={self._TAG: run.key})
        self._id = made.info.run_id
        settings = [mlflow.entities.Param(key, str(value)) for key, value in run.settings.items()]
        self._client.log_batch(self._id, params=settings)

    def add_scalars(self, values: Mapping[str, float], *, step: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def add_picture(self, name: str, picture: UInt8[np.ndarray, "height width 3"], *, step: int) -> None:
        self._client.log_image(self._id, picture, key=name, step=step)

    def end(self, embedding: Embedding | None) -> None:
        self._client.set_terminated(self._id)


class Guarded:
    """Wraps a logger so that its failures do not end the training."""

    def __init__(self, name: str, logger: Logger, *, say: Say) -> None:
        self._name, self._logger, self._say = name, logger, say
        self._failed = False

    def add_scalars(self, values: Mapping[str, float], *, step: int) -> None:
        self._try(lambda: self._logger.add_scalars(values, step=step))

    def add_picture(self, name: str, picture: UInt8[np.ndarray, "height width 3"], *, step: int) -> None:
        self._try(lambda: self._logger.add_picture(name, picture, step=step))

    def end(self, embedding: Embedding | None) -> None:
        self._try(lambda: self._logger.end(embedding))

    def _try(self, call: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            call()
        except Exception as error:  # as in open_loggers
            self._failed = True
            self._say(
                f"warning: {self._name} no longer receives curves ({_first_line(error)}); they are still in "
                "metrics.jsonl"
            )


_MAKERS: dict[LoggerName, Callable[[Run], Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
    "mlflow": Mlflow,
}


def _to_cell(name: str) -> str:
    """Convert a file name, which may hold any bytes, to one line of UTF-8 text for a table."""
    return " ".join(name.encode("utf-8", "replace").decode().split())


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
