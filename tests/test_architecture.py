"""The rooms and their one-way doors: a module imports only from a lower level."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "byol"
LEVELS = {
    0: {"errors", "config_text", "config_schema"},
    1: {"artifacts.page", "config_keys", "files", "method.kernels", "method.pixelwise", "data.formats"},
    2: {
        "config",
        "data.decode",
        "data.duplicates",
        "data.index",
        "data.motifs",
        "data.place",
        "method.normalisation",
        "method.winograd",
    },
    3: {
        "plan",
        "method.convolution",
        "method.views",
        "data.given",
        "data.labels",
        "data.official",
        "data.parallel",
        "data.partial",
        "data.rows",
        "data.statistics",
        "data.upright",
    },
    4: {
        "data.sources",
        "data.survey",
        "data.tally",
        "data.value_range",
        "method.networks",
        "method.optim",
        "method.pretrained",
        "training.distributed",
        "training.checkpoint",
        "training.memory",
        "training.pace",
        "training.runlog",
        "training.health",
        "evaluation.finetune_table",
        "evaluation.probes",
        "artifacts.feature_file",
    },
    5: {"artifacts.sheets", "data.doctor", "data.packed", "training.step"},
    6: {"data.findings", "data.batches", "data.images", "artifacts.encoder", "training.fixed_images"},
    7: {
        "artifacts.classifier",
        "evaluation.features",
        "evaluation.splits",
        "training.probe",
        "training.start",
    },
    8: {"choices", "evaluation.table", "training.alarms", "training.supervised"},
    9: {"evaluation.tuning", "training.settle"},
    10: {"check_report", "evaluation.finetune", "training.loop"},
    11: {"check"},
    12: {"cli", "__init__"},
    13: {"__main__"},
}
LEVEL_OF = {module: level for level, modules in LEVELS.items() for module in modules}


def list_modules() -> dict[str, Path]:
    names = {}
    for path in SOURCE.rglob("*.py"):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        if not name.endswith(".__init__"):
            names[name] = path
    return names


def find_imports(path: Path) -> set[str]:
    """The byol modules that a file imports anywhere, inside functions and type-checking blocks included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    inside = {name.removeprefix("byol.") for name in found if name.startswith("byol.")}
    return inside & set(list_modules())


def test_every_module_has_a_level() -> None:
    assert set(list_modules()) == set(LEVEL_OF)


@pytest.mark.parametrize("module", sorted(LEVEL_OF))
def test_imports_go_down(module: str) -> None:
    if module == "__main__":
        return
    for imported in find_imports(list_modules()[module]):
        assert LEVEL_OF[imported] < LEVEL_OF[module], f"{module} imports {imported}"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["config", "--preset", "demo"], ["train", "--help"]]
)
def test_light_commands_do_not_load_torch(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom byol.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'sklearn' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, capture_output=True)
