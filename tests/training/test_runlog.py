"""The run's log: lines that others parse, repeated steps dropped, TensorBoard, the terminal's lines."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from byol.base.errors import CheckpointError
from byol.training.loggers import Run, TensorBoard
from byol.training.runlog import Metrics, RunLog, format_time, read_metrics, tile_views

OF_THE_ENCODER = ("retrieval", "encoder_rank", "knn", "alignment", "uniformity")


def make_metrics(done: int) -> Metrics:
    return Metrics(
        done=done,
        epoch=done / 10,
        loss=1.5,
        lr=0.1,
        tau=0.99,
        feature_std=0.05,
        images_per_s=100.0,
        data_wait=0.01,
        verdict="healthy",
        rank=20.0,
    )


def make_log(
    run_dir: Path, *, first_step: int = 0, active: bool = True, output: io.StringIO | None = None
) -> RunLog:
    console = Console(file=output or io.StringIO(), width=200)

    def open_loggers() -> list[TensorBoard]:
        return [TensorBoard(Run(run_dir, "0", first_step, {}))]

    return RunLog(
        run_dir,
        console,
        first_step=first_step,
        end=30,
        steps_per_epoch=10,
        active=active,
        open_loggers=open_loggers,
    )


def write(log: RunLog, done: int, *, end: int = 30) -> None:
    log.write(make_metrics(done), end=end, left_s=30.0 - done)


def test_lines_have_the_documented_fields(tmp_path: Path) -> None:
    with make_log(tmp_path) as log:
        write(log, 10)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    fields = json.loads(line)
    wanted = "format done epoch loss lr tau feature_std images_per_s data_wait verdict rank"
    assert list(fields) == [*wanted.split(), *OF_THE_ENCODER] and fields["format"] == 1
    assert read_metrics(tmp_path) == [make_metrics(10)]


def test_lines_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """They lack what is measured of the encoder."""
    with make_log(tmp_path) as log:
        write(log, 10)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().replace("".join(f', "{name}": null' for name in OF_THE_ENCODER), ""))
    assert "retrieval" not in path.read_text() and read_metrics(tmp_path) == [make_metrics(10)]


def test_a_continued_run_drops_what_it_repeats(tmp_path: Path) -> None:
    with make_log(tmp_path) as log:
        for done in (10, 20, 30):
            write(log, done)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"format": 1, "done": 4')  # cut short by a kill
    with make_log(tmp_path, first_step=20) as log:
        write(log, 30)
    assert [metrics.done for metrics in read_metrics(tmp_path)] == [10, 20, 30]


def test_tensorboard_has_the_same_curves_and_the_views(tmp_path: Path) -> None:
    with make_log(tmp_path) as log:
        log.add_views(torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8))
        write(log, 10)
        write(log, 20)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert tags["images"] == ["views"]
    assert {"loss", "lr", "tau", "feature_std", "images_per_s", "data_wait", "rank"} <= set(tags["scalars"])
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(10, 1.5), (20, 1.5)]


def test_plain_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    output = io.StringIO()
    with make_log(tmp_path, output=output) as log:
        write(log, 10)
        write(log, 20)  # too soon after the first
        write(log, 30)  # the last is always shown
    first, last = output.getvalue().splitlines()
    assert first.startswith("step 10/30  epoch 1.0/3  loss 1.500") and first.endswith("healthy")
    assert last.startswith("step 30/30") and "0:20 left" in first and "0:00 left" in last


def test_the_end_may_move(tmp_path: Path) -> None:
    output = io.StringIO()
    with make_log(tmp_path, output=output) as log:
        write(log, 10, end=25)
    assert output.getvalue().startswith("step 10/25  epoch 1.0/2.5  loss")


def test_times() -> None:
    assert [format_time(s) for s in (0.4, 65.2, 3599.6, 7265.0)] == ["0:00", "1:05", "1:00:00", "2:01:05"]


def test_progress_on_a_terminal(tmp_path: Path) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=160)
    with RunLog(tmp_path, console, first_step=0, end=30, steps_per_epoch=10, active=True) as log:
        write(log, 30)
    assert "30/30" in output.getvalue() and "healthy" in output.getvalue()


def test_the_bar_knows_its_end_from_the_start(tmp_path: Path) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=160)
    with RunLog(tmp_path, console, first_step=14, end=78, steps_per_epoch=10, active=True):
        pass
    assert "14/78" in output.getvalue() and "None" not in output.getvalue()


def test_progress_in_a_notebook(tmp_path: Path, notebook: list[str]) -> None:
    """A notebook is no terminal. Its bar is a widget; without ipywidgets plain lines stand in for it."""
    console = Console(file=io.StringIO(), force_jupyter=True)
    assert not console.is_terminal
    with RunLog(tmp_path, console, first_step=0, end=30, steps_per_epoch=10, active=True) as log:
        write(log, 30)
    assert notebook[0] == "Output" and any("30/30" in text for text in notebook)


def test_a_notebook_without_widgets_gets_plain_lines(
    tmp_path: Path, notebook: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    console = Console(file=io.StringIO(), force_jupyter=True)
    with RunLog(tmp_path, console, first_step=0, end=30, steps_per_epoch=10, active=True) as log:
        write(log, 30)
    (line,) = notebook
    assert line.startswith("step 30/30")


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    output = io.StringIO()
    with make_log(tmp_path, active=False, output=output) as log:
        write(log, 10)
        log.say("hello")
        log.add_views(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4))
    assert list(tmp_path.iterdir()) == [] and output.getvalue() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here, the disk that is always full")
def test_a_full_disk_is_one_line_also_when_the_files_are_closed(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    with (
        pytest.raises(CheckpointError, match=r"metrics\.jsonl: .*No space left on device"),
        log,
    ):
        log.file.close()
        log.file = Path("/dev/full").open("a", encoding="utf-8")  # noqa: SIM115
        write(log, 10)


def test_a_foreign_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"format": 2, "done": 1}\n')
    with pytest.raises(
        CheckpointError, match=r"metrics\.jsonl:1: is not a line of metrics \(format is not 1\)"
    ):
        read_metrics(tmp_path)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_views_are_tiled(channels: int) -> None:
    view = torch.rand(10, channels, 6, 6)
    picture = tile_views(view, -view)
    assert picture.shape == (12, 48, 3)
    assert picture[:6, :6].max() == 255 and picture[:6, :6].min() == 0
