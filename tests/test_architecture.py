"""The rooms and their one-way doors: a module imports only from a lower level."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "byol"
LEVELS = {
    0: {
        "config_schema",
        "config_text",
        "data.content",
        "data.duplicates",
        "data.jpeg",
        "data.left_out",
        "data.motifs",
        "data.reading",
        "data.statistics",
        "data.upright",
        "errors",
        "evaluation.columns",
        "evaluation.logistic",
        "evaluation.verdict",
        "method.cpu",
        "method.eager",
        "method.inert_pickle",
        "method.layouts",
        "method.library_faults",
        "method.pixelwise",
        "training.health",
        "training.memory",
    },
    1: {
        "artifacts.charts",
        "artifacts.page",
        "config_keys",
        "console",
        "data.disk",
        "data.formats",
        "data.official",
        "data.summary",
        "data.text_files",
        "devices",
        "evaluation.folds",
        "evaluation.neighbours",
        "files",
        "method.kernels",
        "method.weight_files",
    },
    2: {
        "artifacts.feature_file",
        "config",
        "data.given",
        "data.index",
        "data.mapped",
        "data.opened",
        "data.place",
        "data.rows",
        "evaluation.finetune_table",
        "evaluation.kept",
        "evaluation.probes",
        "method.prefixes",
        "method.trial",
    },
    3: {
        "data.decode",
        "data.parallel",
        "data.partial",
        "data.spelling",
        "data.tables",
        "data.walk",
        "evaluation.geometry",
        "evaluation.scores",
        "evaluation.settings",
        "evaluation.sgd",
        "method.normalisation",
        "method.pretrained",
        "method.views",
        "method.winograd",
        "plan",
        "training.checkpoint",
        "training.distributed",
        "training.loggers",
    },
    4: {
        "artifacts.sheets",
        "data.matching",
        "data.survey",
        "data.tally",
        "data.value_range",
        "method.convolution",
        "method.optim",
        "training.best",
        "training.environment",
        "training.pace",
        "training.runlog",
        "training.step",
    },
    5: {
        "data.doctor",
        "data.labels",
        "data.packed",
        "method.networks",
    },
    6: {
        "artifacts.thumbnails",
        "data.batches",
        "data.findings",
        "data.sources",
        "evaluation.copies",
        "evaluation.metadata",
        "training.fixed_images",
        "training.introduction",
        "training.probe",
    },
    7: {
        "artifacts.encoder",
        "choices",
        "data.images",
        "evaluation.description",
    },
    8: {
        "artifacts.classifier",
        "evaluation.features",
        "evaluation.splits",
        "told",
        "training.opening",
        "training.start",
    },
    9: {
        "__init__",
        "artifacts.embedding_map",
        "artifacts.facts",
        "evaluation.unlabelled",
        "evaluation.weights",
        "training.alarms",
        "training.settle",
        "training.supervised",
    },
    10: {
        "artifacts.card",
        "artifacts.compare",
        "artifacts.report_parts",
        "check_report",
        "evaluation.rows",
        "evaluation.tuning",
        "training.demo",
        "training.loop",
    },
    11: {
        "artifacts.report",
        "check",
        "evaluation.finetune",
        "evaluation.low_shot",
    },
    12: {
        "artifacts.explorer",
        "evaluation.table",
    },
    13: {
        "commands",
    },
    14: {
        "cli",
    },
    15: {
        "__main__",
    },
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
