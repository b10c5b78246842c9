"""Loggers: each gets the same points as metrics.jsonl; a missing package is told before all else."""

import io
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from byol.auto import resolve
from byol.base.errors import ConfigError
from byol.config import diff_configs, load_config, load_partial
from byol.training import loggers, loop
from byol.training.loggers import Embedding, Run, check_loggers, open_loggers
from byol.training.runlog import read_metrics

PICTURE = np.zeros((4, 6, 3), dtype=np.uint8)
TINY = [
    "network.name=test_resnet",
    "network.stem=standard",
    "network.projection_head.mlp_hidden_size=32",
    "network.projection_head.projection_size=16",
    "data_transforms.input_shape=[16,16,3]",
    "trainer.batch_size=8",
    "trainer.max_epochs=1",
    "trainer.log_interval=2",
    "trainer.precision=fp32",
    "trainer.num_workers=1",
]


def make_run(folder: Path, *, first_step: int = 0) -> Run:
    return Run(folder, "ab" * 16, first_step, {"trainer.seed": 0, "data.channels": None})


class Service(ModuleType):
    """A package that writes down how it is called."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, Any]] = []
        self.fails = False
        self.__spec__ = SimpleNamespace(name=name)  # type: ignore[assignment]

    def note(self, name: str, *values: Any) -> None:
        if self.fails:
            raise RuntimeError("no network\nmore of it")
        self.calls.append((name, *values))


class FakeWandb(Service):
    def init(self, **settings: Any) -> "FakeWandb":
        self.note("init", settings)
        return self

    def define_metric(self, name: str, *, step_metric: str) -> None:
        self.note("define_metric", name, step_metric)

    def log(self, values: Mapping[str, Any]) -> None:
        self.note("log", dict(values))

    def Image(self, picture: np.ndarray) -> tuple[int, ...]:
        return picture.shape

    def finish(self) -> None:
        self.note("finish")


class FakeTrackio(Service):
    def init(self, **settings: Any) -> None:
        self.note("init", settings)

    def log(self, values: Mapping[str, Any], *, step: int) -> None:
        self.note("log", dict(values), step)

    def Image(self, picture: np.ndarray) -> tuple[int, ...]:
        return picture.shape

    def finish(self) -> None:
        self.note("finish")


class FakeMlflow(Service):
    """Runs by their tag, as a tracking server keeps them."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.runs: dict[str, str] = {}
        self.entities = SimpleNamespace(Param=lambda key, value: (key, value))

    def MlflowClient(self) -> "FakeMlflow":
        return self

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str) -> str:
        return name

    def search_runs(self, experiments: list[str], query: str, *, max_results: int) -> list[SimpleNamespace]:
        found = [run for run, key in self.runs.items() if f"'{key}'" in query]
        return [SimpleNamespace(info=SimpleNamespace(run_id=run)) for run in found]

    def create_run(self, experiment: str, *, run_name: str, tags: dict[str, str]) -> SimpleNamespace:
        run_id = f"run{len(self.runs)}"
        self.runs[run_id] = tags["byol.run"]
        self.note("create_run", experiment, run_name)
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def update_run(self, run: str, status: str) -> None:
        self.note("update_run", run, status)

    def log_batch(self, run: str, *, params: list[tuple[str, str]]) -> None:
        self.note("params", run, params)

    def log_metric(self, run: str, name: str, value: float, *, step: int) -> None:
        self.note("log", run, name, value, step)

    def log_image(self, run: str, picture: np.ndarray, *, key: str, step: int) -> None:
        self.note("image", run, key, picture.shape, step)

    def set_terminated(self, run: str) -> None:
        self.note("finish", run)


def install(monkeypatch: pytest.MonkeyPatch, service: Service) -> None:
    monkeypatch.setitem(sys.modules, service.__name__, service)


def use(name: str, folder: Path, *, first_step: int = 0) -> list[str]:
    said: list[str] = []
    (logger,) = open_loggers([name], make_run(folder, first_step=first_step), say=said.append)  # type: ignore[list-item]
    logger.add_scalars({"loss": 1.5}, step=first_step + 2)
    logger.add_picture("views", PICTURE, step=first_step)
    logger.end(None)
    return said


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb("wandb")
    install(monkeypatch, fake)
    assert use("wandb", tmp_path / "cells") == []
    (_, settings), *rest = fake.calls
    assert (settings["id"], settings["name"], settings["resume"]) == ("ab" * 16, "cells", "allow")
    assert settings["config"] == {"trainer.seed": 0, "data.channels": None}
    assert rest == [
        ("define_metric", "*", "done"),
        ("log", {"loss": 1.5, "done": 2}),
        ("log", {"views": (4, 6, 3), "done": 0}),
        ("finish",),
    ]


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTrackio("trackio")
    install(monkeypatch, fake)
    assert use("trackio", tmp_path / "cells") == []
    (_, settings), *rest = fake.calls
    assert (settings["name"], settings["resume"]) == ("cells-abababab", "allow")
    assert rest == [("log", {"loss": 1.5}, 2), ("log", {"views": (4, 6, 3)}, 0), ("finish",)]


def test_mlflow_goes_on_with_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeMlflow("mlflow")
    install(monkeypatch, fake)
    assert use("mlflow", tmp_path / "cells") == use("mlflow", tmp_path / "cells", first_step=2) == []
    assert fake.calls == [
        ("create_run", "byol", "cells"),
        ("params", "run0", [("trainer.seed", "0"), ("data.channels", "None")]),
        ("log", "run0", "loss", 1.5, 2),
        ("image", "run0", "views", (4, 6, 3), 0),
        ("finish", "run0"),
        ("update_run", "run0", "RUNNING"),
        ("log", "run0", "loss", 1.5, 4),
        ("image", "run0", "views", (4, 6, 3), 2),
        ("finish", "run0"),
    ]


def test_a_service_that_fails_is_said_once_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, said = FakeTrackio("trackio"), list[str]()
    install(monkeypatch, fake)
    (logger,) = open_loggers(["trackio"], make_run(tmp_path), say=said.append)
    fake.fails = True
    for step in (1, 2):
        logger.add_scalars({"loss": 1.5}, step=step)
    logger.end(None)
    assert said == [
        "warning: trackio no longer receives curves (no network); they are still in metrics.jsonl"
    ]


def test_a_service_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, earlier = FakeWandb("wandb"), FakeTrackio("trackio")
    fake.fails = True
    install(monkeypatch, fake)
    install(monkeypatch, earlier)
    with pytest.raises(
        ConfigError, match=r"^trainer\.loggers: wandb does not start \(no network\); set it up"
    ):
        open_loggers(["trackio", "wandb"], make_run(tmp_path), say=print)
    assert earlier.calls[-1] == ("finish",)


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_a_missing_package_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda package: None)
    overrides = [f"trainer.loggers=[{name}]", "data.source=nowhere"]
    config = load_config(None, overrides, preset="demo")
    with pytest.raises(ConfigError) as caught:
        loop.train(config, tmp_path / "run", console=Console(file=io.StringIO()))
    with pytest.raises(ConfigError, match="is not installed"):
        resolve.preview(load_partial(None, overrides, preset="demo"), tmp_path / "run", say=print)
    assert str(caught.value) == (
        f"trainer.loggers: {name} is not installed; pip install {name}, or leave it out: "
        "trainer.loggers=[tensorboard]"
    )
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_needs_no_check() -> None:
    check_loggers(["tensorboard"])


def test_the_projector_of_tensorboard(tmp_path: Path) -> None:
    """One embedding, also where an earlier start has left one; names of any bytes are one line each."""
    names = ["a.png", "b\tc\n.png", "d\udcff.png"]
    embedding = Embedding(7, torch.rand(3, 5), torch.rand(3, 3, 8, 8), names)
    for step in (7, 9):
        (logger,) = open_loggers(["tensorboard"], make_run(tmp_path), say=print)
        logger.end(Embedding(step, *list(vars(embedding).values())[1:]))
    config = (tmp_path / "tensorboard" / "projector_config.pbtxt").read_text()
    assert config.count("embeddings {") == 1
    (folder,) = (tmp_path / "tensorboard").glob("0*")
    assert folder.name == "00009"
    (cells,) = folder.rglob("metadata.tsv")
    assert cells.read_text().splitlines() == ["a.png", "b c .png", "d?.png"]
    assert list(folder.rglob("sprite.png")) and list(folder.rglob("tensors.tsv"))


def test_a_board_that_cannot_be_written_is_said_once_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    before = threading.excepthook
    (logger,) = open_loggers(["tensorboard"], make_run(tmp_path), say=said.append)

    def fail(self: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tensorboard.compat.tensorflow_stub.io.gfile.GFile.flush", fail)
    monkeypatch.setattr(
        "tensorboard.compat.tensorflow_stub.io.gfile.GFile.write", lambda self, text: fail(self)
    )
    for step in range(200):
        logger.add_scalars({"loss": 1.0}, step=step)
    logger.end(None)
    assert len(said) == 1 and "tensorboard" in said[0] and "No space left on device" in said[0]
    assert "Traceback" not in capsys.readouterr().err and threading.excepthook == before


def test_a_board_that_cannot_be_begun_is_said(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").touch()
    said: list[str] = []
    assert open_loggers(["tensorboard"], make_run(tmp_path), say=said.append) == []
    assert len(said) == 1 and "tensorboard" in said[0]


def test_a_run_writes_to_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTrackio("trackio")
    install(monkeypatch, fake)
    np.save(tmp_path / "i.npy", np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8))
    overrides = [f"data.source={tmp_path}/i.npy", *TINY, "trainer.loggers=[tensorboard,trackio]"]
    config = load_config(None, overrides, preset="demo")
    for _ in range(2):  # the second start has nothing to do, and adds nothing
        loop.train(config, tmp_path / "run", console=Console(file=io.StringIO()))
    lines = read_metrics(tmp_path / "run")
    assert [call[0] for call in fake.calls] == ["init", "log", *["log"] * len(lines), "finish"]
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    for (_, values, step), line in zip(fake.calls[2:-1], lines, strict=True):
        assert step == line.done and values["loss"] == line.loss and values["alignment"] == line.alignment
    assert [event.step for event in board.Scalars("uniformity")] == [line.done for line in lines]
    assert len((tmp_path / "run" / "tensorboard" / "projector_config.pbtxt").read_text()) > 0


def test_none_at_all(tmp_path: Path) -> None:
    assert open_loggers([], make_run(tmp_path), say=print) == [] and list(tmp_path.iterdir()) == []


def test_loggers_are_no_part_of_what_a_run_is() -> None:
    one, other = (
        load_config(None, [f"trainer.loggers={names}"], preset="demo") for names in ("[]", "[wandb]")
    )
    assert diff_configs(one, other) == []
    for wrong in ("[tensorboard,tensorboard]", "[tensorbord]", "wandb"):
        with pytest.raises(ConfigError, match=r"trainer\.loggers"):
            load_config(None, [f"trainer.loggers={wrong}"], preset="demo")
