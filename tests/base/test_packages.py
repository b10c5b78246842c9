"""byol names the packages that it declares, and no text sends pip to a name that is not ours."""

import re
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from byol.base.packages import OPTIONAL, REQUIRED, install_command

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FOR_WORKING_ON_IT = ("dev", "docs")  # extras that the program itself never uses
TEXTS = (".py", ".md", ".html", ".js", ".yaml", ".yml", ".sh", ".ipynb", "")
FROM_INDEX = re.compile(r"pip install [^\n`]*?(?<![\w./-])byol(?![\w./-])")


def names_of(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~ \[;]", line)[0] for line in requirements}


def list_texts() -> list[Path]:
    folders = (ROOT / name for name in ("src", "docs", "examples", "benchmarks", "scripts", ".github"))
    found = [path for folder in folders for path in folder.rglob("*") if path.suffix in TEXTS]
    return [path for path in [*found, *ROOT.glob("*.md")] if path.is_file()]


def test_the_lists_are_those_of_the_project() -> None:
    assert set(REQUIRED) == names_of(PROJECT["dependencies"])
    extras = PROJECT["optional-dependencies"]
    used = [line for extra, lines in extras.items() if extra not in FOR_WORKING_ON_IT for line in lines]
    assert set(OPTIONAL) == names_of(used)


def test_each_module_is_that_of_its_package() -> None:
    known = packages_distributions()
    installed = {name: module for name, module in {**REQUIRED, **OPTIONAL}.items() if module in known}
    assert set(REQUIRED) <= set(installed)
    for name, module in installed.items():
        assert name.replace("-", "_") in {found.lower().replace("-", "_") for found in known[module]}


def test_no_text_installs_byol_from_the_index() -> None:
    """Extras are installed from the source folder: pip install ".[dicom]"."""
    assert FROM_INDEX.search('pip install "byol[dicom]"') and FROM_INDEX.search("pip install -U byol")
    assert not FROM_INDEX.search("pip install byol-pytorch") and not FROM_INDEX.search("pip install .")
    texts = list_texts()
    assert len(texts) > 150
    assert [path for path in texts if FROM_INDEX.search(path.read_text(encoding="utf-8"))] == []


def test_the_command() -> None:
    assert install_command("pydicom") == "pip install pydicom"
    assert install_command("a", "b") == "pip install a b"
