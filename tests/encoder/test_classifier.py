"""A classifier's files: what comes back is what was saved, and what is damaged is one line."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import byol
from byol.base.errors import CheckpointError, ConfigError, DataError
from byol.encoder.classifier import (
    Classifier,
    ClassifierSpec,
    Linear,
    check_predictions_path,
    load_classifier,
    save_classifier,
    write_predictions,
)
from byol.encoder.encoder import Encoder, load
from byol.encoder.spec import EncoderSpec
from byol.method.networks import build_encoder
from byol.method.views import Pixels
from edits import edit_json

PX, NUM_FEATURES = 16, 96


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    grey = (0.5, 0.5, 0.5)
    encoder_spec = EncoderSpec(
        name="test_resnet", stem="standard", channels=3, view_px=PX, stored_px=PX, num_features=NUM_FEATURES,
        pixels=Pixels((0.0,) * 3, (255.0,) * 3, grey, grey), which="online", done=0, byol_version="0",
        data_fingerprint="", data_name="",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    linear = Linear(rng.normal(size=(3, NUM_FEATURES)).astype(np.float32), np.zeros(3, dtype=np.float32))
    spec = ClassifierSpec(("a", "b", "ß,c"), NUM_FEATURES, "byol online", 0.1, 30, 4, {"lr": 1e-3}, "0")
    module = build_encoder("test_resnet", channels=3, view_px=PX, stem="standard")
    save_classifier(folder, module, encoder_spec, linear=linear, spec=spec)
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def make_images(num: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, size=(PX, PX, 3), dtype=np.uint8) for _ in range(num)]


def test_weights_come_back_however_they_lie_in_memory(copy: Path) -> None:
    classifier = load_classifier(copy, device="cpu")
    encoder, transposed = classifier.encoder, np.asfortranarray(classifier.linear.weight)
    linear = Linear(transposed, classifier.linear.bias)
    save_classifier(copy, encoder.module, encoder.spec, linear=linear, spec=classifier.spec)
    np.testing.assert_array_equal(load_classifier(copy, device="cpu").linear.weight, transposed)


def test_predictions_are_the_linear_layer_on_the_features(folder: Path) -> None:
    classifier = byol.load_classifier(folder, device="cpu")
    assert isinstance(classifier, Classifier) and classifier.class_names == ("a", "b", "ß,c")
    images = make_images(7)
    features = load(folder, device="cpu").embed(images)
    logits = features @ classifier.linear.weight.T + classifier.linear.bias
    wanted = np.exp(logits - logits.max(axis=1, keepdims=True))
    wanted /= wanted.sum(axis=1, keepdims=True)
    said = classifier.predict(images, batch_size=3)
    np.testing.assert_allclose(said.probabilities, wanted, atol=1e-5)
    assert said.labels == [classifier.class_names[index] for index in logits.argmax(axis=1)]
    assert said.names == [f"image {index}" for index in range(3)] * 2 + ["image 6"] or len(said.names) == 7
    np.testing.assert_array_equal(said.confidences, said.probabilities.max(axis=1))
    assert classifier([]).probabilities.shape == (0, 3)


def test_files_that_are_broken_are_told_and_left_out(folder: Path, tmp_path: Path) -> None:
    for index, image in enumerate(make_images(2)):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    (tmp_path / "bad.png").write_bytes(b"not an image")
    classifier = load_classifier(folder, device="cpu")
    with pytest.raises(DataError, match=r"bad\.png: "):
        classifier.predict(tmp_path)
    bad: list[str] = []
    images = byol.encoder.encoder.gather(tmp_path, classifier.encoder.spec)  # type: ignore[attr-defined]
    blocks = list(classifier.predict_source(images, on_bad=lambda name, error: bad.append(name)))
    assert [name for block in blocks for name in block.names] == ["0.png", "1.png"] and bad == ["bad.png"]


def test_the_table_of_predictions(tmp_path: Path) -> None:
    choices = np.array([[1, 0.75], [0, 0.9]], dtype=np.float32)
    write_predictions(tmp_path / "p.csv", ["x, y.png", "\udcff.png"], choices=choices, classes=["a", "ß"])
    with (tmp_path / "p.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert list(csv.reader(file)) == [
            ["file", "label", "probability"],
            ["x, y.png", "ß", "0.7500"],
            ["\udcff.png", "a", "0.9000"],
        ]
    with pytest.raises(ConfigError, match=r"p\.parquet: byol writes predictions as \.csv"):
        check_predictions_path(tmp_path / "p.parquet")


def test_the_choice_is_the_most_probable_class(folder: Path) -> None:
    classifier = load_classifier(folder, device="cpu")
    images = make_images(5)
    said = classifier.predict(images)
    choices = classifier.choose(classifier.encoder.embed(images))
    assert [classifier.class_names[int(index)] for index in choices[:, 0]] == said.labels
    np.testing.assert_array_equal(choices[:, 1], said.confidences)
    other = Linear(classifier.linear.weight, classifier.linear.bias + 1)
    assert (
        Classifier(classifier.spec, classifier.encoder, linear=other).fingerprint()
        != classifier.fingerprint()
    )


def test_missing_files(folder: Path, copy: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder; name one that `byol finetune` wrote"):
        load_classifier(copy / "nowhere")
    for name in ("classifier.safetensors", "classifier.json", "encoder.json"):
        content = (copy / name).read_bytes()
        (copy / name).unlink()
        with pytest.raises(CheckpointError, match=f"has no {name}"):
            load_classifier(copy)
        (copy / name).write_bytes(content)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "has format 2, but this version of byol reads 1"),
        ({"class_names": 3}, "class_names: "),
        ({"class_names": ["a", "b"]}, r"has the shape \(3, 96\), .* need \(2, 96\)"),
        ({"num_features": 5}, "the encoder and the class names"),
    ],
)
def test_json_that_does_not_fit(copy: Path, changes: dict[str, object], message: str) -> None:
    edit_json(copy / "classifier.json", **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_classifier(copy)
    assert "\n" not in str(caught.value)


def test_files_that_are_damaged(copy: Path) -> None:
    path = copy / "classifier.safetensors"
    weights = load_file(path)
    save_file({"weight": weights["weight"]}, path)
    with pytest.raises(CheckpointError, match="is damaged or cut short"):
        load_classifier(copy)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CheckpointError, match="is damaged or cut short"):
        load_classifier(copy)
    (copy / "classifier.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_classifier(copy)


def test_an_encoder_never_lies_beside_the_classifier_of_another(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted while it is written, the folder holds no classifier."""
    classifier = load_classifier(copy, device="cpu")

    def press(*arguments: object, **others: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("byol.encoder.classifier.save_encoder", press)
    encoder: Encoder = classifier.encoder
    with pytest.raises(KeyboardInterrupt):
        save_classifier(copy, encoder.module, encoder.spec, linear=classifier.linear, spec=classifier.spec)
    with pytest.raises(CheckpointError, match=r"has no classifier\.json"):
        load_classifier(copy)
