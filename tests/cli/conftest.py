"""A folder of its own for each test, and a finished run on a few images."""

import subprocess
from pathlib import Path

import pytest

from byol.cli.main import main
from command_line import TINY, write_images


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `images/` and a run of 4 steps on them, `runs/a`; tests that change it copy it."""
    folder = tmp_path_factory.mktemp("finished")
    write_images(folder / "images")
    assert main(["train", str(folder / "images"), "-o", str(folder / "runs" / "a"), *TINY]) == 0
    return folder


@pytest.fixture
def copied(finished: Path, place: Path) -> Path:
    """A run of the test's own, on the same images."""
    subprocess.run(["cp", "-a", f"{finished}/images", f"{finished}/runs", str(place)], check=True)
    assert main(["train", "images", "-o", "runs/b", *TINY, "trainer.checkpoint_interval=1"]) == 0
    return place / "runs" / "b"
