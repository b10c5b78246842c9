"""`byol config`, overrides, and configurations that are refused."""

from pathlib import Path

import pytest
import yaml

from command_line import Capture, fail, succeed


def test_an_open_configuration_is_printed_as_such(capsys: Capture) -> None:
    printed = yaml.safe_load(succeed(capsys, "config", "--preset", "default"))
    assert printed["network"]["name"] == printed["data_transforms"]["domain"] == "auto"
    assert printed["trainer"]["batch_size"] is None and "view1" not in printed["data_transforms"]


def test_the_printed_configuration_can_be_run_again(capsys: Capture) -> None:
    first = succeed(capsys, "config", "--preset", "paper", "trainer.max_epochs=7", "data.source=here")
    Path("again.yaml").write_text(first)
    assert succeed(capsys, "config", "again.yaml") == first
    assert yaml.safe_load(first)["trainer"]["max_epochs"] == 7


def test_three_ways_to_write_an_override(capsys: Capture) -> None:
    printed = {
        succeed(capsys, "config", *override)
        for override in (
            ["trainer.max_epochs=7", "data_transforms.input_shape=(32,32,3)"],
            ["--trainer.max_epochs=7", "--data_transforms.input_shape=(32,32,3)"],
            ["--trainer.max_epochs", "7", "--data_transforms.input_shape", "(32,32,3)"],
            ["--trainer.max-epochs", "7", "data_transforms.input_shape=[32, 32, 3]"],
        )
    }
    assert len(printed) == 1 and "max_epochs: 7" in printed.pop()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n- b\n", "c.yaml: holds a list; expected sections such as 'trainer:'"),
        ("", "c.yaml: is empty; expected sections such as 'trainer:'"),
        ("trainer:\n\tm: 0.9\n", "c.yaml:2: not valid YAML: a tab; indent with spaces"),
        ("trainer: {m: 0.9}\ntrainer: {m: 0.8}\n", "c.yaml:2: trainer: set twice, first in line 1"),
        ("trainer:\n  batchsize: 4\n", "c.yaml:2: trainer.batchsize: unknown key; did you mean"),
        ("trainer:\n  m: high\n", "c.yaml:2: trainer.m: got 'high', allowed: "),
        ("preset: papre\n", "c.yaml:1: preset: got 'papre', allowed: one of classic, paper, default, demo"),
    ],
)
def test_configurations_that_are_refused(text: str, said: str, capsys: Capture, place: Path) -> None:
    Path("c.yaml").write_text(text)
    for command in ("train", "run", "config"):
        assert said in fail(capsys, command, "c.yaml", code=2)
    assert [path.name for path in place.iterdir()] == ["c.yaml"]


def test_all_problems_are_told_at_once(capsys: Capture) -> None:
    Path("c.yaml").write_text(
        "trainer:\n  batchsize: 4\n  max_epochs: many\noptimizer:\n  params: {lr: -1}\n"
    )
    said = fail(capsys, "run", "c.yaml", "data.memory=disk", code=2, lines=4)
    for part in ("trainer.batchsize", "trainer.max_epochs", "optimizer.params.lr", "data.memory=disk"):
        assert part in said
