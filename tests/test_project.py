"""The project's own papers agree with the sources: file tree, dependencies, the classic configuration."""

import ast
import re
import tomllib
from pathlib import Path

import yaml

from byol.config import diff_configs, load_config

ROOT = Path(__file__).parents[1]
DESIGN, CLASSIC = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("design.md", "classic.md"))


def test_the_design_page_lists_every_folder_with_its_purpose() -> None:
    source = ROOT / "src" / "byol"
    purposes = {}
    for path in source.rglob("__init__.py"):
        if path.parent != source:
            doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            purposes[path.parent.relative_to(source).as_posix()] = (doc or "").splitlines()[0]
    assert dict(re.findall(r"^\| `([a-z/]+)` \| (.*) \|$", DESIGN, re.MULTILINE)) == purposes


def test_conda_and_pip_install_the_same() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    conda = yaml.safe_load((ROOT / "env.yml").read_text(encoding="utf-8"))["dependencies"]
    names = {line.replace("pytorch", "torch") for line in conda if isinstance(line, str)}
    assert names - {"python>=3.11", "pip"} == set(project["dependencies"])
    assert f"python{project['requires-python']}" in names


def test_the_classic_configuration_of_the_documentation_is_the_file() -> None:
    block = re.search(r"```yaml\n(.*?)```", CLASSIC, re.DOTALL)
    assert block is not None and block[1] == (ROOT / "config.yaml").read_text(encoding="utf-8")
    assert (
        diff_configs(
            load_config(None, [], preset="classic"), load_config(ROOT / "config.yaml", [], preset=None)
        )
        == []
    )


def test_benchmark_configurations_are_valid() -> None:
    for path in (ROOT / "benchmarks").glob("*.yaml"):
        assert load_config(path, [], preset=None).preset == "default"


def test_developers_can_build_the_documentation() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert set(extras["docs"]) <= set(extras["dev"])
