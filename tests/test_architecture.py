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
        "method.onednn_faults",
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
        "data.arrays",
        "data.codecs",
        "data.fitting",
        "data.foreign",
        "data.index",
        "data.mapped",
        "data.missing",
        "data.opened",
        "data.place",
        "data.rows",
        "data.tiff_samples",
        "evaluation.finetune_table",
        "evaluation.kept",
        "evaluation.probes",
        "method.prefixes",
        "method.trial",
    },
    3: {
        "data.dicom",
        "data.given",
        "data.parallel",
        "data.partial",
        "data.spelling",
        "data.tables",
        "data.tiff",
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
        "data.readers",
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
        "data.decode",
        "data.labels",
        "method.networks",
    },
    6: {
        "data.sources",
        "data.survey",
        "evaluation.metadata",
        "training.probe",
    },
    7: {
        "choices",
        "data.doctor",
        "data.packed",
        "evaluation.description",
    },
    8: {
        "artifacts.encoder",
        "artifacts.thumbnails",
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
        "told",
        "training.opening",
        "training.start",
    },
    10: {
        "__init__",
        "artifacts.embedding_map",
        "artifacts.facts",
        "evaluation.unlabelled",
        "evaluation.weights",
        "training.alarms",
        "training.settle",
        "training.supervised",
    },
    11: {
        "artifacts.card",
        "artifacts.compare",
        "artifacts.report_parts",
        "check_report",
        "evaluation.rows",
        "evaluation.tuning",
        "training.demo",
        "training.loop",
    },
    12: {
        "artifacts.report",
        "check",
        "evaluation.finetune",
        "evaluation.low_shot",
    },
    13: {
        "artifacts.explorer",
        "evaluation.table",
    },
    14: {
        "commands",
    },
    15: {
        "cli",
    },
    16: {
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
        "import sys\nfrom byol.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'sklearn' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, capture_output=True)
