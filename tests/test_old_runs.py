"""A run and a pack of version 0.1 still continue, evaluate and embed; see fixtures/run-0.1/README.md."""

import csv
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

from byol.cli.main import main
from byol.weights.stem_mark import unmark_stem

_ARCHIVE = Path(__file__).parent / "fixtures" / "run-0.1" / "run.tar.xz"
_RUN = Path("runs/old")
_STOPPED, _END = 21, 24  # steps


@pytest.fixture
def old_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run folder; the working folder is the one that it was made in."""
    with tarfile.open(_ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path / _RUN


def test_embeds_as_before(old_run: Path) -> None:
    assert main(["embed", str(_RUN), "images", "-o", "now.npz", "--device", "cpu"]) == 0
    before, now = np.load("embedding.npz"), np.load("now.npz")
    assert now["names"].tolist() == before["names"].tolist()
    largest = np.abs(before["features"]).max()
    assert largest > 0.1
    # Fused operations round otherwise.
    np.testing.assert_allclose(now["features"], before["features"], rtol=0, atol=3e-5 * largest)


def test_continues_with_its_pack(old_run: Path) -> None:
    kept_lines = _read_metrics(old_run)
    config = (old_run / "config.yaml").read_bytes()
    pack = _read_times(old_run.parent / "packs")
    encoder = load_file(old_run / "encoder.safetensors")
    assert [line["done"] for line in kept_lines] == list(range(1, _STOPPED + 1))

    assert main(["train", str(_RUN / "config.yaml"), "-o", str(_RUN)]) == 0

    assert _read_times(old_run.parent / "packs") == pack
    lines = _read_metrics(old_run)
    assert lines[:_STOPPED] == kept_lines
    assert [line["done"] for line in lines[_STOPPED:]] == list(range(_STOPPED + 1, _END + 1))
    assert (old_run / "config.yaml").read_bytes() == config
    spec = json.loads((old_run / "encoder.json").read_bytes())
    # Features are those of the image alone, as before.
    assert (spec["done"], spec["mirrored"]) == (_END, False)
    newest = max((old_run / "checkpoints").glob("step-*.pt"))
    assert newest.name == f"step-{_END:08d}.pt"
    # A few steps at the end of the schedule: the weights have changed, and by little.
    state, _ = unmark_stem(load_torch(old_run / "encoder.safetensors"))  # files of then had no mark
    trained = {name: values.numpy() for name, values in state.items()}
    weights = [name for name in encoder if encoder[name].ndim == 4]
    changes = [np.abs(trained[name] - encoder[name]).max() for name in weights]
    assert trained.keys() == encoder.keys()
    assert 0.0 < max(changes) < 0.1


def test_evaluates(old_run: Path) -> None:
    assert main(["eval", str(_RUN), "evaluation.num_bootstrap=50"]) == 0
    table = json.loads((old_run / "eval.json").read_bytes())
    assert table["done"] == _STOPPED
    assert {row["features"] for row in table["rows"]} >= {
        "pixels",
        "untrained",
        "byol online",
        "byol target",
    }
    measures = json.loads((old_run / "measures.json").read_bytes())
    assert measures["num_images"] == 36
    with (old_run / "prototypes.csv").open(newline="", encoding="utf-8") as file:
        named = {row["file"] for row in csv.DictReader(file)}
    assert named and named <= {
        str(path.relative_to("images").as_posix()) for path in Path("images").rglob("*")
    }


def _read_times(packs: Path) -> dict[Path, int]:
    """When each file of a pack was written; one that is packed again has new times."""
    times = {path: path.stat().st_mtime_ns for path in packs.glob("*/*")}
    assert any(path.name == "images.npy" for path in times)
    return times


def _read_metrics(run_dir: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
