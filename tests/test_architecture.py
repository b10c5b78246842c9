"""The rooms and their one-way doors: a folder imports only folders below it (see pyproject.toml)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("importlinter")
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command as c; c()",
        "--no-cache",
    ]
    environment = os.environ | {"PYTHONPATH": str(root / "src")}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


def test_folders_are_levels() -> None:
    outcome = lint(ROOT)
    assert outcome.returncode == 0, outcome.stdout
    assert outcome.stdout.count("KEPT") == 2


@pytest.mark.parametrize(
    ("module", "imported"),
    [("metrics/folds.py", "byol.training.loop"), ("data/labels/tables.py", "byol.data.pack.packed")],
)
def test_an_import_turned_round_is_found(module: str, imported: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "src" / "byol" / module).open("a") as file:
        file.write(f"\nimport {imported}\n")
    outcome = lint(tmp_path)
    assert outcome.returncode != 0 and imported in outcome.stdout


def test_every_folder_says_what_it_is_for() -> None:
    folders = [path.parent for path in (ROOT / "src" / "byol").rglob("*.py")]
    for folder in sorted(set(folders)):
        text = (folder / "__init__.py").read_text(encoding="utf-8")
        assert text.startswith('"""'), f"{folder}: its __init__.py has no docstring"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["config", "--preset", "demo"], ["train", "--help"]]
)
def test_light_commands_do_not_load_torch(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom byol.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'sklearn' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, capture_output=True)
