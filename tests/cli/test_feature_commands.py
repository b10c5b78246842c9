"""`byol embed` and `byol predict`: where images come from, and what is written beside the features."""

import io
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from byol.base import console
from byol.cli.main import main
from byol.encoder.encoder import load, save_encoder
from byol.method.networks import build_encoder
from runs import PX, make_spec, write_images

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with `images/` and an encoder in `run/`."""
    monkeypatch.chdir(tmp_path)
    write_images(Path("images"), num=3, classes=("dark", "red"))
    module = build_encoder("test_resnet", channels=3, view_px=PX, stem="standard")
    save_encoder(Path("run"), module, make_spec())
    return tmp_path


def embed(*arguments: str, code: int = 0) -> None:
    assert main(["embed", "run", *arguments, "--device", "cpu"]) == code


def test_a_list_on_standard_input(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["images/red/002.png", "images/dark/000.png", "gone.png"]
    stream = io.TextIOWrapper(io.BytesIO("\n".join(names).encode()))
    monkeypatch.setattr(sys, "stdin", stream)
    embed("-", "-o", "f.parquet")
    said = capsys.readouterr()
    assert said.out == "wrote 2 rows (images) with 96 features each to f.parquet, 1 left out\n"
    assert "1 file (gone.png): no such file" in said.err
    table = pyarrow.parquet.read_table("f.parquet")
    assert table["file"].to_pylist() == names[:2]
    read = np.stack([table[name].to_numpy() for name in table.column_names[1:]], axis=1)
    np.testing.assert_allclose(
        read, load("run", device="cpu").embed([Path(name) for name in names[:2]]), atol=1e-5
    )


def test_metadata_is_written_beside_the_features(capsys: Capture) -> None:
    Path("wells.csv").write_text("file,well,dose\nred/000.png,A1,0.5\nred/001.PNG,B2,2\n")
    embed("images", "-o", "f.csv", "--metadata", "wells.csv")
    head, *lines = Path("f.csv").read_text().splitlines()
    assert head.startswith("file,well,dose,f000,")
    assert [line.split(",")[:3] for line in lines[2:5]] == [
        ["dark/002.png", "", ""],
        ["red/000.png", "A1", "0.5"],
        ["red/001.png", "B2", "2"],
    ]
    assert "wells.csv" in capsys.readouterr().err  # a name that differs in case is told
    embed("images", "-o", "f.npz", "--metadata", "wells.csv", code=2)
    assert "--metadata" in capsys.readouterr().err and not Path("f.npz").exists()


def test_vectors_have_paths_and_labels(place: Path) -> None:
    embed("images", "-o", "f.parquet", "--columns", "vector")
    table = pyarrow.parquet.read_table("f.parquet")
    assert table.column_names == ["file", "filepath", "label", "embedding"]
    assert table["filepath"][0].as_py() == str(place / "images" / "dark" / "000.png")
    assert table["label"].to_pylist() == ["dark"] * 3 + ["red"] * 3
    expected = load("run", device="cpu").embed("images")
    np.testing.assert_allclose(np.array(table["embedding"].to_pylist()), expected, atol=1e-5)
    np.save("images.npy", np.zeros((2, PX, PX, 3), dtype=np.uint8))
    embed("images.npy", "-o", "g.parquet", "--columns", "vector")
    assert pyarrow.parquet.read_schema("g.parquet").names == ["file", "embedding"]


@pytest.mark.filterwarnings("ignore")  # those of AnnData's own dependencies
def test_anndata_has_labels_of_those_that_could_be_used() -> None:
    anndata = pytest.importorskip("anndata")
    Path("images/dark/001.png").write_bytes(b"broken")
    embed("images", "-o", "f.out", "--format", "h5ad")
    found = anndata.read_h5ad("f.out")
    assert found.obs["label"].tolist() == ["dark"] * 2 + ["red"] * 3
    assert found.obs_names.tolist()[1] == "dark/002.png" and found.shape == (5, 96)
    assert found.uns["byol"]["network"] == "test_resnet"


def test_long_work_is_told_where_no_bar_is(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.0, 30.0, 61.0, 62.0, 130.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(seconds))
    count = console.tell_each_minute("images")
    for done in (1000, 2000, 3000, 5000):
        count(done, 9000)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("2,000 of 9,000 images, 16 per second, ")
    assert second.startswith("5,000 of 9,000 images, 31 per second, 2 min left")


def test_an_unknown_format_is_refused_before_any_work(capsys: Capture) -> None:
    embed("images", "-o", "f.xlsx", code=2)
    assert "--format" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        embed("images", "-o", "f.csv", "--format", "xlsx")
