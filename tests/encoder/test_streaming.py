"""Rows of images on the disk: every image once and in order, however often the work is broken off."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import byol
from byol.base.errors import CheckpointError, DataError
from byol.cli.main import main
from byol.data.sources.opening import FileSource
from byol.encoder import partial_rows
from byol.encoder.encoder import Encoder, gather, save_encoder
from byol.encoder.feature_file import write_features
from byol.encoder.partial_rows import PartialRows
from byol.encoder.streaming import stream_rows
from byol.method.networks import build_encoder
from runs import PX, make_spec

BATCH = 4
BROKEN = (2, 3, 9)  # these images cannot be read


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(make_spec(), build_encoder("test_resnet", channels=3, view_px=PX, stem="standard"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(18):
        path = tmp_path / "images" / f"{index:02d}.png"
        if index in BROKEN:
            path.write_bytes(b"broken")
        else:
            Image.fromarray(rng.integers(0, 255, (PX, PX, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many batches of few images, each saved at once."""
    monkeypatch.setattr("byol.encoder.streaming.BATCH", BATCH)
    monkeypatch.setattr(partial_rows, "SAVE_INTERVAL_S", 0.0)


def open_folder(folder: Path) -> FileSource:
    found = gather(folder, make_spec())
    assert isinstance(found, FileSource)
    return found


class Broken(BaseException):
    """Ends the work as Ctrl-C does."""


def work(
    encoder: Encoder, folder: Path, *, stop_at: int | None = None, width: int = 96
) -> tuple[list[str], np.ndarray, list[int]]:
    """Names, features, and how far each batch was; `stop_at` images it is broken off."""
    told: list[int] = []

    def count(done: int, total: int) -> None:
        told.append(done)
        if done == stop_at:
            raise Broken

    output = folder.parent / "f.csv"
    with stream_rows(
        encoder, open_folder(folder), output, skip_unreadable=False, width=width, progress=count
    ) as found:
        return list(found.names), found.values[:], told


def test_all_images_in_order(encoder: Encoder, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names, features, told = work(encoder, folder)
    used = [index for index in range(18) if index not in BROKEN]
    assert names == [f"{index:02d}.png" for index in used] and told == [4, 8, 12, 16, 18]
    np.testing.assert_allclose(features, encoder.embed([folder / name for name in names]), atol=1e-5)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["f.left_out.csv", "images"]
    with (folder.parent / "f.left_out.csv").open(newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["file", *(f"{index:02d}.png" for index in BROKEN)]
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("unreadable and left out: 3 of 18 images")


def test_broken_off_and_continued(encoder: Encoder, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After each batch once: the rows are those of one go, to the bit."""
    whole = work(encoder, folder)
    capsys.readouterr()
    with pytest.raises(Broken):
        work(encoder, folder, stop_at=4)
    for done in (8, 12, 16):
        with pytest.raises(Broken):
            work(encoder, folder, stop_at=done)
        assert f"after {done - 4} of 18 images" in capsys.readouterr().err
    names, features, told = work(encoder, folder)
    assert told == [18] and names == whole[0]
    np.testing.assert_array_equal(features, whole[1])
    said = capsys.readouterr().err.splitlines()
    assert said[1].startswith("unreadable and left out: 3 of 18 images")
    assert not list(folder.parent.glob("*.partial"))


def test_what_is_written_behind_the_mark_is_dropped(encoder: Encoder, folder: Path) -> None:
    """A process that is killed may have written more than it has marked as done."""
    whole = work(encoder, folder)
    with pytest.raises(Broken):
        work(encoder, folder, stop_at=8)
    partial = folder.parent / "f.csv.partial"
    for path in partial.iterdir():
        if path.suffix != ".json":
            with path.open("ab") as file:
                file.write(b"\1" * 1000)
    names, features, _ = work(encoder, folder)
    assert names == whole[0]
    np.testing.assert_array_equal(features, whole[1])


@pytest.mark.parametrize("damage", ["cut", "no json", "other format", "gone"])
def test_a_damaged_folder_is_not_continued(encoder: Encoder, folder: Path, damage: str) -> None:
    whole = work(encoder, folder)
    with pytest.raises(Broken):
        work(encoder, folder, stop_at=8)
    partial = folder.parent / "f.csv.partial"
    mark = partial / "progress.json"
    if damage == "cut":
        (partial / "values.f32").write_bytes(b"\0" * 10)
    elif damage == "no json":
        mark.write_text("{")
    elif damage == "other format":
        mark.write_text(json.dumps(json.loads(mark.read_text()) | {"format": 0}))
    else:
        mark.unlink()
    names, features, told = work(encoder, folder)
    assert told[0] == 4 and names == whole[0]
    np.testing.assert_array_equal(features, whole[1])


@pytest.mark.parametrize("what", ["image", "encoder"])
def test_other_images_or_another_encoder_begin_anew(
    encoder: Encoder, folder: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    with pytest.raises(Broken):
        work(encoder, folder, stop_at=8)
    if what == "image":
        Image.new("RGB", (PX, PX)).save(folder / "00.png")
    else:
        module = build_encoder("test_resnet", channels=3, view_px=PX, stem="standard")
        encoder = Encoder(make_spec(), module)
    capsys.readouterr()
    names, features, told = work(encoder, folder)
    assert "starting again" in capsys.readouterr().err and told[0] == 4
    np.testing.assert_allclose(features, encoder.embed([folder / name for name in names]), atol=1e-5)


def test_no_image_that_can_be_used(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"broken")
    with pytest.raises(DataError, match="images/: byol cannot use any of the 1 images"):
        work(encoder, tmp_path / "images")
    assert not list(tmp_path.glob("*.partial"))


def test_counts_of_what_was_changed_survive(encoder: Encoder, tmp_path: Path) -> None:
    """Each image is counted once, whether it was read before or after the work was broken off."""
    (tmp_path / "images").mkdir()
    for index in range(10):
        image = Image.new("RGBA", (PX, PX), (200, 40, index, 128))
        image.save(tmp_path / "images" / f"{index}.png")
    with pytest.raises(Broken):
        work(encoder, tmp_path / "images", stop_at=4)
    with PartialRows(tmp_path / "other", recipe="", width=96) as rows:
        assert rows.mark.seen.notes == {}
    mark = json.loads((tmp_path / "f.csv.partial" / "progress.json").read_text())
    counts = [few["count"] for few in mark["seen"]["notes"].values()]
    assert counts == [4] and mark["num_rows"] == 4


def test_a_place_that_cannot_be_written(encoder: Encoder, folder: Path) -> None:
    (folder.parent / "f.csv.partial").write_text("a file")
    with pytest.raises(
        CheckpointError, match=r"f\.csv\.partial: cannot be written .*then repeat the command"
    ):
        work(encoder, folder)


def test_a_second_process_of_the_same_output_is_refused(encoder: Encoder, folder: Path) -> None:
    """It would mix its rows with those of the first, which goes on undisturbed."""
    whole = work(encoder, folder)
    with PartialRows(folder.parent / "f.csv.partial", recipe="first", width=96) as rows:
        with pytest.raises(CheckpointError, match=r"f\.csv\.partial: .*same output.*another output"):
            work(encoder, folder)
        rows.save()
    names, features, _ = work(encoder, folder)
    assert names == whole[0] and not list(folder.parent.glob("*.partial"))
    np.testing.assert_array_equal(features, whole[1])


# ---- Processes that are killed


@pytest.fixture
def run_dir(encoder: Encoder, tmp_path: Path) -> Path:
    save_encoder(tmp_path / "run", encoder.module, encoder.spec)
    return tmp_path / "run"


_SLOWLY = """
import sys, time
from byol.cli.main import main
from byol.encoder import partial_rows, streaming
streaming.BATCH, partial_rows.SAVE_INTERVAL_S = 4, 0.0
finish = partial_rows.PartialRows.finish_block
def finish_slowly(self, *arguments, **named):
    finish(self, *arguments, **named)
    time.sleep(0.2)
partial_rows.PartialRows.finish_block = finish_slowly
sys.exit(main(sys.argv[1:]))
"""


def kill_when_some_are_done(command: list[str], partial: Path, number: int) -> int:
    """The exit code of a process that is sent a signal when it has marked a batch as done."""
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(Path(byol.__file__).parents[1])}
    )
    end = time.monotonic() + 120
    while not (partial / "progress.json").exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate()
    return process.returncode


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_command_continues(
    encoder: Encoder, folder: Path, run_dir: Path, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    output = folder.parent / "killed.csv"
    arguments = ["embed", str(run_dir), str(folder), "-o", str(output), "--device", "cpu"]
    code = kill_when_some_are_done(
        [sys.executable, "-c", _SLOWLY, *arguments], output.with_name("killed.csv.partial"), number
    )
    assert code != 0 and not output.exists()
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert "continuing from" in said.err and "wrote 15 rows (images) with 96 features each" in said.out
    with output.open(newline="") as file:
        _, *rows = csv.reader(file)
    used = [f"{index:02d}.png" for index in range(18) if index not in BROKEN]
    assert [row[0] for row in rows] == used
    expected = encoder.embed([folder / name for name in used])
    np.testing.assert_allclose(np.array([row[1:] for row in rows], dtype=np.float32), expected, atol=1e-5)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The features of all images would take 12 MB."""
    monkeypatch.setattr("byol.encoder.streaming.BATCH", 64)
    wide = torch.ones(1, 5000)
    monkeypatch.setattr(Encoder, "encode", lambda self, squares: wide.expand(len(squares), -1))
    np.save(tmp_path / "images.npy", np.zeros((600, 4, 4, 3), dtype=np.uint8))
    source = gather(tmp_path / "images.npy", make_spec())
    tracemalloc.start()
    try:
        with stream_rows(encoder, source, tmp_path / "f.npz", skip_unreadable=False, width=5000) as found:
            monkeypatch.setattr("byol.encoder.feature_file.GROUP_VALUES", 2**17)
            write_features(tmp_path / "f.npz", found.names, features=found.values)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6e6
    with np.load(tmp_path / "f.npz") as content:
        assert content["features"].shape == (600, 5000) and content["features"].all()
