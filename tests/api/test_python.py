"""From Python, as in a notebook: the functions of `byol`, twice in one process, without a print."""

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import byol

TINY = {
    "network.name": "resnet10t",
    "network.projection_head": {"mlp_hidden_size": 32, "projection_size": 16},
    "data_transforms.input_shape": [16, 16, 3],
    "data_transforms.domain": "photo",
    "trainer": {"batch_size": 8, "max_epochs": 1, "num_workers": 1, "precision": "fp32"},
    "evaluation.num_bootstrap": 50,
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """48 images of noise around one of two colours, in a folder a class."""
    rng = np.random.default_rng(0)
    for number in range(48):
        name, colour = ("red", (200, 60, 60)) if number % 2 else ("blue", (60, 60, 200))
        values = np.clip(rng.normal(colour, 40, (16, 16, 3)), 0, 255).astype(np.uint8)
        path = tmp_path / "images" / name / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
    return tmp_path / "images"


@pytest.mark.slow
def test_a_notebook_goes_the_whole_way_twice(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for number in range(2):
        place = tmp_path / str(number)
        checked = byol.check(images, output=place / "check", overrides=TINY)
        assert checked.is_fit and (checked.folder / "report.html").is_file()
        run = byol.train(images, output=place / "run", overrides=TINY)
        assert (run.done, run.total_steps, run.stopped_by) == (6, 6, None)
        assert [line.done for line in run.metrics][-1] == 6
        assert byol.train(images, output=place / "run", overrides=TINY) == run  # it is finished
        features = run.embed(str(images))
        assert features.shape == (48, run.encoder.spec.num_features) and features.dtype == np.float32
        assert np.array_equal(byol.load(run.folder).embed(str(images)), features)
        evaluation = byol.evaluate(run)
        assert {row.features for row in evaluation.rows} >= {"byol online", "untrained"}
        assert evaluation.table is not None and evaluation.verdict == evaluation.table.verdict()
        assert byol.evaluate(run.folder).rows == evaluation.rows
        finetuned = byol.finetune(run, output=place / "classifier", epochs=1)
        predicted = finetuned.classifier.predict(str(images))
        assert set(predicted.labels) <= {"red", "blue"} and len(predicted.labels) == 48
        assert byol.load_classifier(finetuned.folder).class_names == finetuned.classifier.class_names
        assert byol.report(run).stat().st_size > 10_000
        shown = [checked, run, run.encoder, evaluation, finetuned, finetuned.classifier]
        assert all(repr(one).startswith("<byol.") and "\n" not in repr(one) for one in shown)
        found.append(features)
    assert np.array_equal(*found)
    assert capsys.readouterr() == ("", "")


def test_training_in_a_thread(images: Path, tmp_path: Path) -> None:
    """Signals are for the main thread to hear; everything else works."""
    runs: list[byol.Run] = []
    thread = threading.Thread(
        target=lambda: runs.append(byol.train(images, output=tmp_path / "run", overrides=TINY))
    )
    thread.start()
    thread.join()
    assert [run.done for run in runs] == [6]
    assert byol.open_run(tmp_path / "run") == runs[0]


def test_progress_is_printed_if_asked_for(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    byol.train(images, output=tmp_path / "run", overrides=TINY, progress=True)
    assert "step 6/6" in capsys.readouterr().out


def test_overrides_are_texts_or_a_mapping(images: Path, tmp_path: Path) -> None:
    texts = ["trainer.batch_size=8", "trainer.max_epochs=1", "data_transforms.input_shape=(16,16,3)"]
    with pytest.raises(byol.ConfigError, match=r"trainer\.max_epoch.*max_epochs"):
        byol.train(images, output=tmp_path / "run", overrides=[*texts, "trainer.max_epoch=1"])
    with pytest.raises(byol.ConfigError, match=r"trainer\.max_epoch.*max_epochs"):
        byol.train(images, output=tmp_path / "run", overrides={"trainer": {"max_epoch": 1}})


def test_errors_are_those_that_are_exported(images: Path, tmp_path: Path) -> None:
    with pytest.raises(byol.DataError, match="nowhere"):
        byol.train(tmp_path / "nowhere", output=tmp_path / "run")
    with pytest.raises(byol.CheckpointError, match="nowhere"):
        byol.evaluate(tmp_path / "nowhere")
    with pytest.raises(byol.CheckpointError, match="nowhere"):
        byol.open_run(tmp_path / "nowhere")
    with pytest.raises(byol.ConfigError, match="preset"):
        byol.check(images, output=tmp_path / "check", preset="nope")
    assert issubclass(byol.NoLabelsError, byol.DataError) and issubclass(byol.DataError, byol.ByolError)
    with pytest.raises(AttributeError, match="nope"):
        byol.nope  # noqa: B018
    assert set(byol.__all__) <= set(dir(byol))
    assert [name for name in byol.__all__ if not hasattr(byol, name)] == []


def test_features_and_classes_of_a_folder_go_to_a_file(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `byol embed`: an image that cannot be read is left out, which `Encoder.embed` refuses."""
    run = byol.train(images, output=tmp_path / "run", overrides=TINY, progress=False)
    (images / "red" / "broken.png").write_text("text")
    with pytest.raises(byol.DataError, match=r"broken\.png"):
        run.embed(str(images))
    written = byol.embed(run, images, output=tmp_path / "f.npz", prototypes=3, progress=False)
    assert written == byol.Written(tmp_path / "f.npz", 48, 1, 0)
    with np.load(written.path) as content:
        features = content["features"]
        assert [str(name) for name in content["names"]][:2] == ["blue/00.png", "blue/02.png"]
    (images / "red" / "broken.png").unlink()
    np.testing.assert_allclose(features, run.embed(str(images)), rtol=1e-5, atol=1e-6)
    assert "red/broken.png" in (tmp_path / "f.left_out.csv").read_text()
    assert len((tmp_path / "f.prototypes.csv").read_text().splitlines()) == 4
    assert capsys.readouterr() == ("", "")
    byol.embed(run, images, output=tmp_path / "f.csv", progress=True)
    assert "wrote 48 rows (images) with" in capsys.readouterr().out
    finetuned = byol.finetune(run, output=tmp_path / "classifier", epochs=1, progress=False)
    classes = byol.predict(finetuned.folder, images, output=tmp_path / "c.csv", progress=False)
    assert classes.num_images == 48 and len(classes.path.read_text().splitlines()) == 49
    with pytest.raises(byol.ConfigError, match=r"trainer\.m=1.*takes no settings"):
        byol.embed(run, images, output=tmp_path / "g.csv", overrides={"trainer.m": 1})
