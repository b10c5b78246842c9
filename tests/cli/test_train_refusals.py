"""`byol train` stopped, out of disk, or in a folder of other things: nothing is damaged, and it resumes."""

import os
import signal
import time
from pathlib import Path

import pytest

from byol.cli.main import main
from byol.runfolder import checkpoint
from byol.training import loop, setup
from command_line import TINY, Capture, contents, cut_in_half, fail, succeed, write_images


def test_output_folders_that_cannot_be_used(capsys: Capture, finished: Path) -> None:
    images = finished / "images"
    Path("file").write_text("mine")
    said = fail(capsys, "train", images, "-o", "file", *TINY)
    assert said == "file: is a file, not a folder; choose another name with -o\n"
    said = fail(capsys, "train", images, "-o", "file/run", *TINY)
    assert "file/run: cannot be written (a file is where a folder must be)" in said
    said = fail(capsys, "train", images, "-o", "run", *TINY, "data.packs=file")
    assert "cannot be written (a file is where a folder must be)" in said and "data.packs=FOLDER" in said
    said = fail(capsys, "embed", finished / "runs" / "a", images, "-o", "file/f.csv")
    assert said.startswith("file/f.csv: cannot be written (a file is where a folder must be)")
    for command in ("embed", "predict"):  # the place is looked at before anything is read
        assert fail(capsys, command, "nowhere", images, "-o", "file/f.csv") == said
        assert "nowhere: no such folder" in fail(capsys, command, "nowhere", images, "-o", "new/place/f.csv")
    assert not Path("new").exists()
    Path("f.csv").mkdir()
    said = fail(capsys, "embed", "nowhere", images, "-o", "f.csv")
    assert said.startswith("f.csv: cannot be written (Is a directory)")
    assert Path("file").read_text() == "mine"


@pytest.mark.parametrize("name", ["thesis.txt", "config.yaml"])
def test_an_output_folder_of_other_things_is_left_alone(
    name: str, capsys: Capture, finished: Path, place: Path
) -> None:
    """Also one with a configuration that somebody has written by hand."""
    Path("mine").mkdir()
    Path("mine", name).write_text("trainer:\n  max_epochs: 3 # enough\n")
    before = contents(place)
    said = fail(capsys, "train", finished / "images", "-o", "mine", *TINY)
    assert said == "mine: holds files but no run; choose another folder with -o\n"
    assert contents(place) == before


def test_a_run_of_another_configuration_or_of_other_images(capsys: Capture, copied: Path) -> None:
    before = contents(copied)
    said = fail(capsys, "train", "images", "-o", copied, *TINY, "trainer.seed=3", "trainer.m=0.5")
    assert "holds a run with another configuration (" in said and "choose another folder with -o" in said
    assert "trainer.seed: 0 -> 3" in said and "trainer.m: null -> 0.5" in said
    Path("images/red/00.png").unlink()
    said = fail(capsys, "train", "images", "-o", copied, *TINY)
    assert f"{copied}: its images have changed since it started; restore them" in said
    assert contents(copied) == before


def test_checkpoints_cut_in_half(capsys: Capture, copied: Path) -> None:
    """The one before is used, and gives the same end; without any the run is refused."""
    arguments = ["train", "images", "-o", "runs/b", *TINY, "trainer.checkpoint_interval=1"]
    before = (copied / "encoder.safetensors").read_bytes()
    newest = checkpoint.list_checkpoints(copied)[0]
    cut_in_half(newest)
    said = succeed(capsys, *arguments)
    assert said.startswith(
        "runs/b/checkpoints/step-00000004.pt: is damaged (its checksum differs); continuing"
    )
    assert "continuing after step 3 of 4" in said
    assert (copied / "encoder.safetensors").read_bytes() == before
    for path in checkpoint.list_checkpoints(copied):
        cut_in_half(path)
    whole = contents(copied)
    said = fail(capsys, *arguments)
    assert "step-00000003.pt: is damaged" in said and "start again in another folder with -o" in said
    assert contents(copied) == whole


def test_a_full_disk(capsys: Capture, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the second checkpoint is written: the first stays, and the same command finishes later."""
    arguments = ["train", str(finished / "images"), "-o", "runs/c", *TINY, "trainer.checkpoint_interval=2"]
    original = checkpoint.save

    def fill_the_disk(file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:

        def save(run_dir: Path, done: int, **others: object) -> Path:
            if done == 4:
                patch.setattr(os, "fsync", fill_the_disk)
            return original(run_dir, done, **others)  # type: ignore[arg-type]

        patch.setattr(checkpoint, "save", save)
        assert main(arguments) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "cannot be written (No space left on device); free space" in err
    assert [path.name for path in checkpoint.list_checkpoints(Path("runs/c"))] == ["step-00000002.pt"]
    assert not [path for path in Path("runs").rglob(".*") if not path.name.endswith(".lock")]
    assert "continuing after step 2 of 4" in succeed(capsys, *arguments)


def test_ctrl_c_while_training(capsys: Capture, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["train", str(finished / "images"), "-o", "runs/c", *TINY]
    make_views = loop.make_training_views
    calls = 0

    def press(*arguments: object, **others: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return make_views(*arguments, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "make_training_views", press)
    assert main(arguments) == 130
    said = capsys.readouterr()
    last = said.out.splitlines()[-1]
    assert (
        said.err == ""
        and "stopped by Ctrl-C after step 2 of 4" in last
        and "runs/c; run the same command" in last
    )
    assert "continuing after step 2 of 4" in succeed(capsys, *arguments)
    weights = Path("runs/c/encoder.safetensors").read_bytes()
    assert weights == (finished / "runs" / "a" / "encoder.safetensors").read_bytes()


def test_ctrl_c_while_packing(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packing can take an hour: it is left at once, and continued by the same command."""
    write_images(Path("images"))
    pack = setup.open_images

    def press(*arguments: object, **others: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        return pack(*arguments, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(setup, "open_images", press)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        said = fail(capsys, "train", "images", "-o", "runs/c", *TINY, code=130)
    finally:
        signal.signal(signal.SIGINT, before)
    assert said.count("\n") == 1 and "same command again" in said
    assert "interrupted by Ctrl-C before training had saved anything" in said
    monkeypatch.setattr(setup, "open_images", pack)
    assert "step 4/4" in succeed(capsys, "train", "images", "-o", "runs/c", *TINY)
