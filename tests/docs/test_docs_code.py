"""Every code block of README and documentation works.

Python blocks run in a folder with images, labels and runs of the names that the pages use. Those with the
remark "types only" are only checked by mypy, which checks the others as well. Each line of a shell block must
be a command that exists: `byol` commands go through the real parser and the real configuration.
"""

import subprocess
import sys
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pages import ROOT, Block, find_blocks, list_blocks
from PIL import Image

import byol
from byol.cli.main import main
from byol.config import load_config
from byol.encoder.encoder import save_encoder
from byol.method.networks import build_encoder
from runs import make_spec
from shell_commands import check_command, split_commands

BLOCKS = list_blocks()
PYTHON = [block for block in BLOCKS if block.language == "python"]
SHELL = [block for block in BLOCKS if block.language == "sh"]
# Languages that are read by other tests, or by nobody: output, a reference.
OTHERS = {"yaml", "json", "text", "bibtex", "r"}
# What is open in the preset `default`, so that the commands of the pages continue these runs.
OPEN = {
    "network.name": "test_resnet",
    "data_transforms.domain": "photo",
    "data_transforms.input_shape": [16, 16, None],
    "trainer.batch_size": 8,
    "trainer.accumulation_steps": 1,
    "trainer.max_epochs": 2,
}


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages name: IMAGES/, NEW/, cells.csv, and trained runs."""
    folder = tmp_path_factory.mktemp("pages")
    rng = np.random.default_rng(0)
    lines = ["file,label"]
    for number in range(60):
        label, colour = ("red", (200, 60, 60)) if number % 2 else ("blue", (60, 60, 200))
        values = np.clip(rng.normal(colour, 40, (16, 16, 3)), 0, 255).astype(np.uint8)
        for name in [f"IMAGES/{label}/{number:02d}.png", *([f"NEW/{number:02d}.png"] if number < 12 else [])]:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
        lines.append(f"{label}/{number:02d}.png,{label}")
    (folder / "cells.csv").write_text("\n".join(lines) + "\n")
    with chdir(folder):
        byol.train("IMAGES/", output="runs/cells", overrides=OPEN)
    resnet = build_encoder("resnet18", channels=3, view_px=96, stem="standard")
    save_encoder(folder / "runs" / "mine", resnet, replace(make_spec(), name="resnet18", num_features=512))
    with chdir(folder):
        for output in ("new.parquet", "new.csv", "new.h5ad", "vectors.parquet --columns vector"):
            name, *columns = output.split()
            assert main(["embed", "runs/cells", "NEW/", "-o", name, *columns]) == 0
    return folder


@pytest.mark.filterwarnings("ignore")  # those of other libraries
@pytest.mark.parametrize("block", [block for block in PYTHON if block.is_run], ids=str)
def test_python_blocks_run(block: Block, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})


@pytest.mark.slow
def test_python_blocks_have_the_right_types(tmp_path: Path) -> None:
    """All in one run of mypy, with one wrong line that shows that it knows the types of byol."""
    pytest.importorskip("mypy")
    (tmp_path / "mypy.ini").write_text(
        f"[mypy]\nmypy_path = {ROOT / 'src'}\ncheck_untyped_defs = true\n"
        "[mypy-timm.*,sklearn.*,IPython.*,onnxruntime.*,transformers.*,pandas.*,polars.*,duckdb.*,anndata.*,"
        "fiftyone.*,napari.*]\nignore_missing_imports = true\nfollow_imports = skip\n"
    )
    (tmp_path / "wrong.py").write_text("import byol\n\nbyol.load(3)\n")
    names = {"wrong.py": "wrong.py"}
    for number, block in enumerate(PYTHON):
        path = tmp_path / f"block_{number}.py"
        path.write_text(block.text, encoding="utf-8")
        names[path.name] = str(block)
    files = [str(tmp_path / name) for name in names]
    config, cache = f"--config-file={tmp_path / 'mypy.ini'}", f"--cache-dir={tmp_path / 'cache'}"
    # In a process of its own: mypy raises the recursion limit of its process.
    command = [sys.executable, "-m", "mypy", config, cache, "--no-error-summary", *files]
    done = subprocess.run(command, capture_output=True, text=True)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    wrong = [line for line in errors if "wrong.py" in line]
    assert len(wrong) == 1 and errors == wrong, "\n".join(
        f"{names.get(Path(line.partition(':')[0]).name)}: {line}" for line in errors
    )
    assert not done.stderr


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_shell_blocks_are_commands(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    commands = list(split_commands(block.text))
    assert commands, f"{block}: no command"
    for words in commands:
        check_command(words)


def test_every_block_has_a_language() -> None:
    for block in BLOCKS:
        assert block.language in {"python", "sh", *OTHERS}, f"{block}: {block.language!r}"
        assert not block.remark.startswith("types") or block.language == "python", str(block)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "yaml"], ids=str)
def test_yaml_blocks_are_configurations(block: Block, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(block.text, encoding="utf-8")
    load_config(tmp_path / "a.yaml", [], preset=None)


# ---- The checks themselves


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("byol trian IMAGES/", "invalid choice"),
        ("byol train IMAGES/ trainer.max_epoch=3", "did you mean"),
        ("byol train IMAGES/ --hours two", "max_hours"),
        ("byol eval runs/a --folds 1", "folds"),
        ('pip install "byol[dicom]"', "package index"),
        ('pip install ".[gpu]"', "gpu"),
        ("python benchmarks/gone.py", "is not there"),
        ("python benchmarks/budget.py --weeks 2", "no option --weeks"),
        ("rm -r runs", "no program"),
        ("torchrun --nproc-per-node=2 -m byol train", "required"),
    ],
)
def test_a_wrong_command_is_found(line: str, problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    (words,) = split_commands(line)
    with pytest.raises((AssertionError, byol.ConfigError, SystemExit)) as caught:
        check_command(words)
    assert problem in f"{caught.value}{capsys.readouterr().err}"


def test_blocks_are_found_with_their_remarks() -> None:
    text = "a\n<!-- types only: long -->\n```python\nx = 1\n```\n\n- b\n\n  ```sh\n  ls\n  ```\n"
    blocks = list(find_blocks("p.md", text))
    assert [(block.line, block.language, block.is_run) for block in blocks] == [
        (4, "python", False),
        (10, "sh", True),
    ]
    with pytest.raises(AssertionError, match="no end"):
        list(find_blocks("p.md", "```\n"))


def test_commands_are_split() -> None:
    text = "A=b byol demo -n  # a remark\nx && y \\\n  z > file &\n\n"
    assert list(split_commands(text)) == [["byol", "demo", "-n"], ["x"], ["y", "z", ">", "file"]]
