"""The notebook is committed without outputs, and it goes the whole way with pictures."""

import ast
import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from byol.base.packages import REQUIRED

nbformat = pytest.importorskip("nbformat")
NOTEBOOK = Path(__file__).parents[2] / "examples" / "own_images.ipynb"
# Two seconds of training on a few images, in place of the notebook's own length.
SHORT = "HOURS, NUM_IMAGES, NUM_LABELS, NUM_NEW, FINETUNE_EPOCHS = 0.0006, 160, 100, 24, 1"


@pytest.fixture
def notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def list_code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_committed_without_outputs(notebook: Any) -> None:
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    for cell in list_code(notebook):
        assert cell.outputs == [] and cell.execution_count is None
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


def test_it_needs_nothing_but_byol(notebook: Any) -> None:
    tree = ast.parse("\n".join(cell.source for cell in list_code(notebook)))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    roots = {str(module).partition(".")[0] for module in modules}
    assert "byol" in roots and roots - {"byol", "csv", "pathlib"} <= set(REQUIRED.values())


def test_the_short_parameters_are_those_of_the_notebook(notebook: Any) -> None:
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    names = {name.strip() for name in SHORT.partition("=")[0].split(",")}
    assert names <= set(re.findall(r"^([A-Z_]+) = ", cell.source, re.MULTILINE))


@pytest.mark.slow
def test_it_runs_and_shows_pictures(notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = pytest.importorskip("nbclient")
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    place = tmp_path / "place"
    place.mkdir()
    (index,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    notebook.cells.insert(index + 1, nbformat.v4.new_code_cell(SHORT))
    client.execute(notebook, cwd=str(place), timeout=600, kernel_name="python3")

    outputs = [output for cell in list_code(notebook) for output in cell.outputs]
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    sizes = []
    for picture in pictures:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB"))
        assert pixels.std() > 20.0  # not blank
        sizes.append(pixels.shape[:2])
    assert sizes == [(128, 768), (384, 576), (800, 800)]  # some images, neighbours, the map
    said = "\n".join(
        str(output.get("text", output.get("data", {}).get("text/plain", ""))) for output in outputs
    )
    for words in ("160 images, 100 of them with a label", "training may start", "byol online", "<byol.Run"):
        assert words in said
    assert len(re.findall(r"^\d+ % of the new images", said, re.MULTILINE)) == 2
    assert (place / "own_images" / "run" / "report.html").stat().st_size > 10_000
    assert [path.name for path in place.iterdir()] == ["own_images"]
