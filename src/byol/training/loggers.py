"""Where curves go besides `metrics.jsonl` (`trainer.loggers`): TensorBoard, W&B, Trackio, MLflow.

`metrics.jsonl` is the source of truth, all of these are copies. Each package but TensorBoard is an extra, and
imported when a run asks for it. A copy that fails on the way is said once and left out from then on; the
training goes on.
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

PROJECT = "byol"  # the name of the project or experiment that runs are put into


@dataclass(frozen=True)
class Run:
    """What a logger is told of a run at its start."""

    folder: Path
    key: str  # the same at every start of a run, and of no other run
    first_step: int  # finished before this start; points of later steps are repeated
    settings: Mapping[str, Any]  # by dotted key


@dataclass(frozen=True)
class Embedding:
    """The fixed images as the encoder sees them at the end of a run."""

    step: int
    features: Float[Tensor, "image feature"]
    thumbnails: Float[Tensor, "image 3 side side"]  # 0..1
    names: Sequence[str]


@runtime_checkable
class Logger(Protocol):
    """A copy of a run's curves."""

    def add_scalars(self, values: Mapping[str, float], *, step: int) -> None:
        """One point on each curve."""

    def add_picture(self, name: str, picture: UInt8[np.ndarray, "height width 3"], *, step: int) -> None:
        """A picture beside the curves."""

    def end(self, embedding: Embedding | None) -> None:
        """Write what is held back, with the embedding where there is one and it can be shown."""


def check_loggers(names: Sequence[LoggerName]) -> None:
    """Refuse loggers whose package is missing, before anything is packed or trained.

    Raises:
        ConfigError: names the package and how to install it.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"trainer.loggers: {name} is not installed; {install_command(name)}, or leave it out: "
                "trainer.loggers=[tensorboard]"
            )


def open_loggers(names: Sequence[LoggerName], run: Run, *, say: Say) -> list[Logger]:
    """The loggers of a run, in the order of their names; `say` hears of one that fails later.

    Raises:
        ConfigError: a service does not let the run in; its own words are in the message.
    """
    loggers: list[Logger] = []
    for name in names:
        try:
            logger = _MAKERS[name](run)
        except Exception as error:  # whatever a foreign package raises, it is about its service
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
    """Event files in `tensorboard/` of the run folder; the embedding is in its projector."""

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
            # One that a killed start has left would be listed twice.
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
        """Of its writing thread a failure comes back with the next call: no need for a traceback as well."""
        if type(failed.thread).__module__ == "tensorboard.summary.writer.event_file_writer":
            self._restore_hook()
        else:
            self._hook(failed)

    def _restore_hook(self) -> None:
        if threading.excepthook == self._report_thread:
            threading.excepthook = self._hook


class Wandb:
    """A run of Weights & Biases. Steps that a continued run repeats are drawn twice, at the same place."""

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
    """A run of Trackio, on this machine unless its settings say otherwise."""

    def __init__(self, run: Run) -> None:
        import trackio

        self._trackio = trackio
        # A run is known by its name alone.
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
    """A run of MLflow, in the experiment `byol` of the tracking server that its environment names."""

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
    """A logger of a foreign service, whose failures do not end the training."""

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
    """A file name as a line of a table: names may hold any bytes."""
    return " ".join(name.encode("utf-8", "replace").decode().split())


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
