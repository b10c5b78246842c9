"""Help, versions, and arguments that are refused, of all commands."""

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import byol
from byol.cli.main import main, read_arguments
from command_line import ENVIRONMENT, TINY, Capture, fail, succeed

COMMANDS = (
    "demo",
    "check",
    "train",
    "run",
    "eval",
    "compare",
    "card",
    "report",
    "explore",
    "embed",
    "finetune",
    "predict",
    "config",
    "env",
)


def test_schema_version_and_help(capsys: Capture) -> None:
    assert json.loads(succeed(capsys, "config", "--schema"))["title"] == "byol configuration"
    for arguments in (["--version"], ["--help"], *([command, "--help"] for command in COMMANDS)):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        said = capsys.readouterr().out
        assert left.value.code == 0
        if "--version" in arguments:
            assert said == f"byol {byol.__version__}\n"
        else:
            assert "example" in said and f"  byol {arguments[0].strip('-') * (len(arguments) > 1)}" in said
            assert max(map(len, said.splitlines())) <= 100
    command = [sys.executable, "-c", "import sys, byol.cli.main; print('torch' in sys.modules)"]
    assert subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT).stdout == "False\n"


@pytest.mark.parametrize("arguments", [[], ["trian"], ["train"], ["embed", "runs/a", "images"]])
def test_a_command_that_is_not_whole(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2 and "usage: byol" in capsys.readouterr().err


def test_output_that_nobody_reads_to_its_end() -> None:
    command = f"{sys.executable} -m byol config --schema | head -c 10; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.stderr == "" and done.returncode in (0, 141)


def test_arguments_that_are_refused(capsys: Capture, finished: Path, place: Path) -> None:
    images, run = finished / "images", finished / "runs" / "a"
    assert "nowhere.yaml: no such file; `byol config" in fail(capsys, "run", "nowhere.yaml", code=2)
    assert "a value must follow" in fail(capsys, "train", images, "--trainer.max_epochs", code=2)
    assert "did you mean 'trainer.max_epochs'?" in fail(capsys, "train", images, "max_epochs=3", code=2)
    said = fail(capsys, "train", images, *TINY, "network.name=resnet19", code=2)
    assert "'resnet19' is unknown to timm and torchvision; did you mean 'resnet18'?" in said
    said = fail(capsys, "embed", run, images, "-o", "f.xyz", code=2)
    assert "f.xyz: byol writes features as .parquet, .npz, .csv" in said
    said = fail(capsys, "embed", run, images, "-o", "f.csv", "trainer.m=1", code=2)
    assert "override 'trainer.m=1': " in said and "leave it out" in said
    for command in (["card", run], ["compare", run, run]):
        assert "leave it out" in fail(capsys, *command, "trainer.m=1", code=2)
    assert "compare: name two or more different runs" in fail(capsys, "compare", run, code=2)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "function"),
    [
        (["check", "IMAGES"], byol.check),
        (["train", "IMAGES"], byol.train),
        (["eval", "RUN"], byol.evaluate),
        (["report", "RUN"], byol.report),
        (["finetune", "RUN"], byol.finetune),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_option_of_a_command_is_an_argument_of_its_function(
    command: list[str], function: Callable[..., object]
) -> None:
    """Options go to the function by their names: one that it lacks would be dropped."""
    options = vars(read_arguments(command))
    of_the_command = {"command", "source", "dry_run"}  # `source` becomes the first argument
    assert options.keys() - of_the_command <= inspect.signature(function).parameters.keys()
