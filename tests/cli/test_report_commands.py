"""`byol compare`, `card`, `report` and `explore`; `demo` and `run`, which end with the table."""

import json
from pathlib import Path

import pytest

import byol
from command_line import TINY, Capture, fail, succeed, write_images


def test_compare_and_card(capsys: Capture, copied: Path) -> None:
    """Of two finished runs, and the best of one is an encoder like any other."""
    said = succeed(capsys, "compare", "runs/a", "runs/b").splitlines()
    assert said[0].split() == ["a", "b"] and any(line.startswith("fixed images: alignment") for line in said)
    assert said[-2:] == [f"runs/{name} has not been evaluated: byol eval runs/{name}" for name in "ab"]
    said = succeed(capsys, "card", "runs/b")
    assert "\n# b\n" in said and said.endswith("\nsaved in runs/b/card.md\n")
    assert said.startswith(Path("runs/b/card.md").read_text())
    best = json.loads(Path("runs/b/best.json").read_text())
    encoder = byol.load("runs/b/best")
    assert encoder.spec.done == best["done"] and encoder.embed("images").shape == (20, 96)


@pytest.mark.parametrize("command", ["report", "explore"])
def test_metadata_of_other_images_is_refused_for_a_map(capsys: Capture, copied: Path, command: str) -> None:
    lines = [f"dark/{index:02d}.png,one" for index in range(10)]
    lines += [f"other/{index:02d}.tif,two" for index in range(10, 14)]
    Path("plates.csv").write_text("\n".join(["file,plate", *lines]) + "\n")
    arguments = (command, "runs/b", "--metadata", "plates.csv")
    said = fail(capsys, *arguments)
    assert said.startswith("plates.csv: 4 of its 14 files") and "evaluation.max_unmatched=1" in said
    if command == "report":
        said = succeed(capsys, *arguments, "evaluation.max_unmatched=0.5")
        assert "4 of the 14 rows in plates.csv" in said


@pytest.mark.slow
def test_demo_and_run(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both train and print the table; the demo's own images would take minutes, so it gets a folder."""
    write_images(Path("images"))
    said = succeed(capsys, "demo", "data.source=images", "data.stored_px=16", *TINY)
    assert "byol online" in said and "saved in runs/demo: eval.json" in said
    Path("mine.yaml").write_text("preset: default\ndata:\n  source: images\n  packs: runs/packs\n")
    said = succeed(capsys, "run", "mine.yaml", *TINY)
    assert "byol online" in said and "saved in runs/mine: eval.json" in said
