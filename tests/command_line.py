"""Run commands in tests: a tiny configuration, images, and what a command says on either stream."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import byol
import runs
from byol.cli.main import main

TINY = [*runs.TINY, "trainer.max_epochs=2", "evaluation.num_bootstrap=20"]


COLOURS = {"dark": (40, 40, 40), "red": (200, 40, 40)}


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(byol.__file__).parents[1])}


Capture = pytest.CaptureFixture[str]


def write_images(folder: Path, *, num: int = 10, classes: tuple[str, ...] = ("dark", "red")) -> Path:
    """`num` images of 16 px of each class, in class folders."""
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(num):
            image = np.array(COLOURS[name]) + rng.normal(0.0, 25.0, (16, 16, 3))
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / name / f"{index:02d}.png")
    return folder


def succeed(capsys: Capture, *arguments: str | Path) -> str:
    """What the command prints; nothing on stderr, no empty line first, nothing wider than need be."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    said = capsys.readouterr()
    assert said.err == "" and not said.out.startswith("\n")
    return said.out


def fail(capsys: Capture, *arguments: str | Path, code: int = 1, lines: int = 1) -> str:
    """What the command says on stderr: so many lines, each of the program's, and no traceback."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err and said.err.count("\n") == lines, said.err
    assert all(line.startswith("byol: ") for line in said.err.splitlines())
    return said.err.removeprefix("byol: ")


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, by checksum."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
