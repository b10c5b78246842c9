"""The rooms and their one-way doors: a module imports only from a lower level."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "byol"
LEVELS = {
    0: {
        "artifacts.page",
        "config_schema",
        "config_text",
        "data.duplicates",
        "data.motifs",
        "data.statistics",
        "data.upright",
        "errors",
        "evaluation.columns",
        "evaluation.verdict",
        "method.kernels",
        "method.pixelwise",
        "training.health",
        "training.memory",
    },
    1: {
        "artifacts.charts",
        "config_keys",
        "data.formats",
        "data.official",
        "data.rows",
        "evaluation.folds",
        "evaluation.neighbours",
        "files",
        "method.normalisation",
        "method.pretrained",
        "method.winograd",
    },
    2: {
        "artifacts.feature_file",
        "config",
        "data.arrays",
        "data.codecs",
        "data.fitting",
        "data.foreign",
        "data.index",
        "data.missing",
        "data.place",
        "data.tiff_samples",
        "evaluation.finetune_table",
        "evaluation.kept",
        "evaluation.probes",
        "method.convolution",
    },
    3: {"data.dicom", "data.tiff"},
    4: {"data.readers"},
    5: {
        "data.decode",
        "data.given",
        "data.labels",
        "data.parallel",
        "data.partial",
        "evaluation.geometry",
        "evaluation.scores",
        "evaluation.settings",
        "evaluation.sgd",
        "method.networks",
        "method.views",
        "plan",
        "training.checkpoint",
        "training.distributed",
        "training.loggers",
    },
    6: {
        "artifacts.sheets",
        "data.sources",
        "data.survey",
        "data.tally",
        "data.value_range",
        "evaluation.metadata",
        "method.optim",
        "training.best",
        "training.environment",
        "training.pace",
        "training.runlog",
        "training.step",
    },
    7: {"data.doctor", "data.packed", "evaluation.description", "training.probe"},
    8: {
        "artifacts.encoder",
        "artifacts.thumbnails",
        "choices",
        "data.batches",
        "data.findings",
        "data.images",
        "evaluation.copies",
        "training.fixed_images",
        "training.introduction",
    },
    9: {
        "artifacts.classifier",
        "evaluation.features",
        "evaluation.splits",
        "training.opening",
        "training.settle",
        "training.start",
    },
    10: {
        "artifacts.embedding_map",
        "artifacts.facts",
        "check_report",
        "evaluation.unlabelled",
        "evaluation.weights",
        "training.alarms",
        "training.supervised",
    },
    11: {
        "artifacts.card",
        "artifacts.compare",
        "artifacts.report_parts",
        "check",
        "evaluation.rows",
        "evaluation.tuning",
        "training.loop",
    },
    12: {"artifacts.report", "evaluation.finetune", "evaluation.low_shot"},
    13: {"artifacts.explorer", "evaluation.table"},
    14: {"commands"},
    15: {"__init__", "cli"},
    16: {"__main__"},
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
