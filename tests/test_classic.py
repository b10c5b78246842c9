"""The classic config.yaml, unchanged, on a small STL-10 in the official files; resnet50, the big heads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from byol.cli.main import main
from byol.config import load_config
from byol.data.pack.packed import open_pack
from byol.runfolder.checkpoint import read_latest
from byol.training.runlog import read_metrics
from stl10 import write_stl10

REPOSITORY = Path(__file__).parents[1]
BIG_ENOUGH = {"train": 40, "unlabeled": 50, "test": 20}  # 90 for training: one batch of 64
FAST = ["evaluation.num_bootstrap=20", "trainer.log_interval=1"]
# Sixteen images and a small input, where it is not the classic size that is tested.
SMALL = ["data_transforms.input_shape=(32,32,3)", "data.stored_px=32", "trainer.batch_size=8"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place as the classic user has it: config.yaml as it is in the repository, and a folder to be."""
    (tmp_path / "config.yaml").write_bytes((REPOSITORY / "config.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_sixteen(folder: Path) -> None:
    write_stl10(
        folder / "datasets" / "stl10_binary", num={"train": 10, "unlabeled": 6, "test": 4}, labels=(1, 2)
    )


def test_the_documentation_shows_the_configuration_that_is_there() -> None:
    assert (REPOSITORY / "config.yaml").read_text() in (REPOSITORY / "docs" / "classic.md").read_text()


@pytest.mark.slow
def test_config_yaml_unchanged_for_two_epochs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_stl10(folder / "datasets" / "stl10_binary", num=BIG_ENOUGH, labels=(1, 2, 3, 4))
    assert main(["run", "config.yaml", "trainer.max_epochs=2", *FAST]) == 0

    run = folder / "runs" / "config"
    metrics = read_metrics(run)
    assert [line.done for line in metrics] == [1, 2]
    assert {line.lr for line in metrics} == {0.03} and {line.tau for line in metrics} == {0.996}
    state, _ = read_latest(run)
    assert state is not None and state["done"] == 2
    assert {group["weight_decay"] for group in state["optimizer"]["param_groups"]} == {0.0004, 0.0}
    assert {group["momentum"] for group in state["optimizer"]["param_groups"]} == {0.9}
    assert state["byol"]["online.projector.0.weight"].shape == (512, 512)
    assert state["byol"]["predictor.3.weight"].shape == (128, 512)
    (trained_on,) = (folder / "runs" / "packs").glob("stl-10-train-unlabeled-*")
    assert open_pack(trained_on).images.shape == (90, 96, 96, 3)

    table = json.loads((run / "eval.json").read_text())
    assert (table["num_train"], table["num_test"], table["num_classes"]) == (40, 20, 4)
    assert {(row["features"], row["classifier"]) for row in table["rows"]} == {
        (features, classifier)
        for features in ("pixels", "untrained", "byol online", "byol target")
        for classifier in ("logistic regression", "knn", "whitened knn")
    }
    assert all(0.0 <= row["low95"] <= row["top1"] <= row["high95"] <= 1.0 for row in table["rows"])
    timm.create_model("resnet18", num_classes=0).load_state_dict(
        load_file(run / "encoder.safetensors"), strict=True
    )

    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.startswith("90 images") and said.out.partition("\n")[0].count("96 px") == 2
    assert (
        "learning rate 0.03" in said.out and "EMA decay of the target network (trainer.m) 0.996" in said.out
    )
    assert "classifiers trained on 40 images and tested on 20; 4 classes" in said.out
    assert all(row["features"] in said.out for row in table["rows"])


def test_the_file_means_what_it_meant(folder: Path) -> None:
    """STL-10 train+unlabeled, SGD, constant rate and tau, both views of one family."""
    config = load_config(folder / "config.yaml", [], preset=None)
    assert (config.preset, config.data.source, config.data.split) == ("classic", "stl10", None)
    assert (config.optimizer.name, config.optimizer.schedule) == ("sgd", "constant")
    assert (config.trainer.m_schedule, config.optimizer.derive) == ("constant", None)
    assert config.data_transforms.view1 == config.data_transforms.view2
    assert config.data_transforms.input_shape == (96, 96, 3)


@pytest.mark.slow
def test_resnet50_and_the_papers_heads(folder: Path) -> None:
    write_sixteen(folder)
    text = (folder / "config.yaml").read_text()
    for old, new in (
        ("resnet18", "resnet50"),
        ("mlp_hidden_size: 512", "mlp_hidden_size: 4096"),
        ("projection_size: 128", "projection_size: 256"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    (folder / "paper.yaml").write_text(text)
    assert main(["train", "paper.yaml", "trainer.max_epochs=1", *SMALL, *FAST]) == 0
    state, _ = read_latest(folder / "runs" / "paper")
    assert state is not None and state["done"] == 2
    assert state["byol"]["online.projector.0.weight"].shape == (4096, 2048)
    assert state["byol"]["predictor.3.weight"].shape == (256, 4096)
    timm.create_model("resnet50", num_classes=0).load_state_dict(
        load_file(folder / "runs" / "paper" / "encoder.safetensors"), strict=True
    )


@pytest.mark.slow
def test_fine_tune_from_in_the_file_and_run_py(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`python run.py` as docs/classic.md has it; then with the line for an earlier run uncommented."""
    write_sixteen(folder)
    command = [sys.executable, str(REPOSITORY / "run.py"), "config.yaml", "trainer.max_epochs=1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY / "src")}
    done = subprocess.run([*command, *SMALL, *FAST], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "byol online" in done.stdout and (folder / "runs" / "config" / "eval.json").exists()

    text = (folder / "config.yaml").read_text()
    again = text.replace("# fine_tune_from: runs/earlier #", "fine_tune_from: runs/config #")
    assert again != text
    (folder / "again.yaml").write_text(again)
    assert main(["train", "again.yaml", "trainer.max_epochs=1", "optimizer.params.lr=1e-12", *SMALL]) == 0
    assert "starting from the networks of runs/config, step 2" in capsys.readouterr().out
    before, after = (read_latest(folder / "runs" / name)[0] for name in ("config", "again"))
    assert before is not None and after is not None
    weights = "online.encoder.layer1.0.conv1.weight"
    torch.testing.assert_close(before["byol"][weights], after["byol"][weights], atol=1e-7, rtol=1e-5)
