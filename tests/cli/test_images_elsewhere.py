"""Images that have been moved or deleted since a run began, and a run folder that cannot be written."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from byol.base import files
from byol.cli.main import main
from byol.config import load_config
from command_line import TINY, Capture, contents, fail, succeed


@pytest.fixture
def stopped(copied: Path) -> Path:
    """A run of which the last checkpoint is lost."""
    newest = max((copied / "checkpoints").glob("*.pt"))
    newest.unlink()
    return copied


@pytest.mark.parametrize("how", ["copy", "rename", "times"])
def test_the_same_images_elsewhere_continue_the_run(
    capsys: Capture, stopped: Path, place: Path, how: str
) -> None:
    if how == "times":
        for path in Path("images").rglob("*.png"):
            os.utime(path, (1e9, 1e9))
    elif how == "copy":
        shutil.copytree("images", "elsewhere")
    else:
        Path("images").rename("elsewhere")
    source = "images" if how == "times" else "elsewhere"
    said = succeed(capsys, "train", source, "-o", stopped, *TINY, "trainer.checkpoint_interval=1")
    assert ("elsewhere holds the same images as images, so the run continues" in said) == (how != "times")
    assert "step 4/4" in said and "already finished" not in said
    assert load_config(stopped / "config.yaml", [], preset=None).data.source == source
    succeed(capsys, "eval", stopped)


def test_other_images_are_refused_and_change_nothing(capsys: Capture, stopped: Path, place: Path) -> None:
    shutil.copytree("images", "more")
    shutil.copyfile("images/red/00.png", "more/red/zz.png")
    shutil.copytree("images", "other")
    shutil.copyfile("images/red/00.png", "other/red/01.png")
    before = contents(stopped)
    said = fail(capsys, "train", "more", "-o", stopped, *TINY, "trainer.checkpoint_interval=1")
    assert f"{stopped}: was trained on 20 images of images, more holds 21; give the same images" in said
    said = fail(capsys, "train", "other", "-o", stopped, *TINY, "trainer.checkpoint_interval=1")
    assert f"{stopped}: its images have changed since it started" in said
    assert contents(stopped) == before


@pytest.mark.parametrize("is_empty", [False, True])
def test_a_pack_takes_the_place_of_images_that_are_gone(
    capsys: Capture, stopped: Path, place: Path, is_empty: bool
) -> None:
    """Also below an empty mount point; labels from a file are matched with the names in the pack."""
    rows = [f"{path.relative_to('images')},{path.parent.name}" for path in Path("images").rglob("*.png")]
    Path("labels.csv").write_text("\n".join(["file,label", *rows]) + "\n")
    Path("images").rename("gone")
    if is_empty:
        Path("images").mkdir()
    note = "images is gone: byol takes the images from the pack "
    said = succeed(capsys, "train", "images", "-o", stopped, *TINY, "trainer.checkpoint_interval=1")
    assert note in said and "step 4/4" in said
    for labels in ([], ["--labels", "labels.csv"]):
        said = succeed(capsys, "eval", stopped, *labels)
        assert note in said and "byol online" in said
    assert note in succeed(capsys, "report", stopped)
    shutil.rmtree("runs/packs")
    assert "images: " in fail(
        capsys, "train", "images", "-o", stopped, *TINY, "trainer.checkpoint_interval=1"
    )


def test_a_run_folder_that_cannot_be_written_is_evaluated_all_the_same(
    capsys: Capture, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.tempfile.mkstemp

    def refuse(*, prefix: str, dir: Path) -> object:
        if Path(dir).is_relative_to(copied):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(prefix=prefix, dir=dir)

    before = contents(copied)
    monkeypatch.setattr(files.tempfile, "mkstemp", refuse)
    capsys.readouterr()
    assert main(["eval", str(copied)]) == 1
    said = capsys.readouterr()
    assert "byol online" in said.out and "saved in" not in said.out
    assert said.err == (
        f"byol: results not saved: {copied}/measures.json: cannot be written (Read-only file system); free "
        "space or choose another place\n"
    )
    assert contents(copied) == before
