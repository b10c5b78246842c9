"""What fine-tuning chooses, and by which images; its classifier is that of scikit-learn."""

import inspect
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from byol.base.errors import DataError
from byol.config import load_config
from byol.data.pack.images import open_images
from byol.encoder.classifier import Linear
from byol.encoder.spec import EncoderSpec
from byol.evaluation.splits import Split
from byol.finetuning import supervised, tuning
from byol.finetuning.supervised import Setting, mild
from byol.finetuning.tuning import Look, Recipe, Trained, draw_fraction, fit_linear, train_classifier
from byol.method.networks import build_encoder
from byol.method.views import Pixels

PX = 16
COLOURS = {"dark": (60, 60, 60), "light": (90, 90, 90), "red": (90, 60, 60)}
CONFIG = load_config(
    None, [f"data_transforms.input_shape=[{PX}, {PX}, 3]", "trainer.num_workers=1"], preset="default"
)
_HERE = (supervised.__name__, tuning.__name__)
RECIPE = Recipe(rates=(3e-3,), epochs=3, layer_decay=0.75)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Split:
    folder = tmp_path_factory.mktemp("supervised")
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / "images" / name).mkdir(parents=True)
        for index in range(10):
            image = np.array(colour) + rng.normal(0.0, 30.0, size=(PX, PX, 3))
            path = folder / "images" / name / f"{index:02d}.png"
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)
    config = CONFIG.model_copy(
        update={"data": CONFIG.data.model_copy(update={"source": str(folder / "images")})}
    )
    images = open_images(config, folder / "run", console=None, stored_px=PX)
    return Split(images, np.arange(len(images)), images.labels)


@pytest.fixture(scope="module")
def setting() -> Setting:
    half = (0.3, 0.3, 0.3)
    spec = EncoderSpec(
        name="test_resnet", stem="standard", channels=3, view_px=PX, stored_px=PX, num_features=96,
        pixels=Pixels((0.0,) * 3, (255.0,) * 3, half, half), which="online", done=0, byol_version="0",
        data_fingerprint="", data_name="",
    )  # fmt: skip
    transforms = mild(CONFIG.data_transforms)
    return Setting(spec, transforms, 3, torch.float32, torch.device("cpu"), 0)


@pytest.fixture(scope="module")
def start() -> nn.Module:
    torch.manual_seed(0)
    return build_encoder("test_resnet", channels=3, view_px=PX, stem="standard").eval()


def train(
    start: nn.Module, data: Split, setting: Setting, recipe: Recipe = RECIPE
) -> tuple[Trained, list[Look], int]:
    looks: list[Look] = []
    ticks: list[None] = []
    trained = train_classifier(
        start, data, recipe=recipe, setting=setting, note=looks.append, tick=lambda: ticks.append(None)
    )
    return trained, looks, len(ticks)


def test_training_is_repeatable_and_leaves_the_start_alone(
    start: nn.Module, data: Split, setting: Setting
) -> None:
    before = {key: value.clone() for key, value in start.state_dict().items()}
    trained, looks, num_epochs = train(start, data, setting)
    again, looks_again, _ = train(start, data, setting)
    assert looks == looks_again and trained.chosen == again.chosen
    assert all(torch.equal(value, before[key]) for key, value in start.state_dict().items())
    for one, other in zip(trained.module.parameters(), again.module.parameters(), strict=True):
        assert torch.equal(one, other)
    np.testing.assert_array_equal(trained.linear.weight, again.linear.weight)

    # A training on four fifths, a look at the frozen encoder, then a training on all.
    assert [(look.stage, look.epoch) for look in looks] == [
        *(("choose", epoch) for epoch in (1, 2, 3, 0)),
        *(("final", epoch) for epoch in (1, 2, 3)),
    ]
    assert num_epochs == 6 and trained.epochs == 3 and trained.chosen["lr"] == 3e-3
    assert all(isinstance(look.loss, float) for look in looks if look.epoch)
    assert [look.epoch for look in looks if look.logistic is not None] == [3, 0]
    assert [look.epoch for look in looks if look.trained is not None] == [3]


def test_what_is_tried_first_stays_unless_another_exceeds() -> None:
    def candidate(*right: bool) -> tuning.Candidate:
        return tuning.Candidate(1e-3, "trained", np.array(right))

    first = candidate(False, False, False, True)
    assert candidate(True, True, True, True).exceeds(first)  # 3 more, standard error 1.7
    assert candidate(True, True, False, True).exceeds(first)  # 2 more, 1.4
    assert not candidate(True, False, False, True).exceeds(first)  # 1 more, 1
    assert not candidate(True, True, False, False).exceeds(first)  # 1 more, 1.7
    assert not first.exceeds(first)


def test_a_rate_at_which_the_loss_is_lost_is_not_chosen(
    start: nn.Module, data: Split, setting: Setting
) -> None:
    trained, _, _ = train(start, data, setting, replace(RECIPE, rates=(1e30,)))
    assert trained.epochs == 0 and trained.module is start and trained.linear is trained.frozen
    assert trained.chosen == {"classifier": "logistic regression", "C": trained.frozen_penalty}
    other, _, _ = train(start, data, setting, replace(RECIPE, rates=(1e30, 3e-3)))
    assert other.chosen["lr"] == 3e-3


def test_features_that_are_not_finite(start: nn.Module, data: Split, setting: Setting) -> None:
    broken = build_encoder("test_resnet", channels=3, view_px=PX, stem="standard")
    nn.init.constant_(next(broken.parameters()), float("nan"))
    with pytest.raises(DataError, match="not finite: its training diverged"):
        train(broken, data, setting)


def test_nothing_here_has_a_parameter_for_test_images() -> None:
    members = [member for module in (supervised, tuning) for _, member in inspect.getmembers(module)]
    own = [member for member in members if getattr(member, "__module__", "") in _HERE and callable(member)]
    own = [member for member in own if member is not supervised.LostError]
    own += [method for member in own for _, method in inspect.getmembers(member, inspect.isfunction)]
    names = {name for function in own for name in inspect.signature(function).parameters}
    assert len(own) > 8 and not [name for name in names if "test" in name]


# ---- How much, how fast


def test_the_recipe_goes_by_the_number_of_labels() -> None:
    few, many = (Recipe.of(num, epochs=None, pretrained=True) for num in (100, 50_000))
    assert (len(few.rates), few.epochs) == (3, 20) and (len(many.rates), many.epochs) == (1, 10)
    assert Recipe.of(800, epochs=None, pretrained=True).epochs == 12
    assert Recipe.of(100, epochs=7, pretrained=True).epochs == 7
    assert few.layer_decay < 1.0 and Recipe.of(100, epochs=None, pretrained=False).layer_decay == 1.0


def test_a_share_of_every_class() -> None:
    labels = np.repeat([0, 1, 2], [100, 10, 1])
    drawn = draw_fraction(labels, 0.1, seed=0)
    assert np.bincount(labels[drawn]).tolist() == [10, 1, 1] and (np.diff(drawn) > 0).all()
    np.testing.assert_array_equal(drawn, draw_fraction(labels, 0.1, seed=0))
    assert not np.array_equal(drawn, draw_fraction(labels, 0.1, seed=1))
    np.testing.assert_array_equal(draw_fraction(labels, 1.0, seed=0), np.arange(111))


def test_one_label_of_each_of_many_classes_is_no_cause_for_a_warning() -> None:
    features = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    assert len(fit_linear(features, np.arange(40), inverse_penalty=0.1, num_classes=40).bias) == 40


@pytest.mark.parametrize("num_classes", [2, 4])
def test_the_classifier_is_that_of_scikit_learn(num_classes: int) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(80) % num_classes
    features = (5.0 + rng.normal(size=(80, 6)) * [1, 10, 0.1, 3, 1, 0] + labels[:, None]).astype(np.float32)
    features[:, 5] = 2.0
    linear = fit_linear(features, labels, inverse_penalty=0.1, num_classes=num_classes)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=10_000))
    wanted = model.fit(features.astype(np.float64), labels).predict_proba(features.astype(np.float64))
    found = torch.from_numpy(linear.logits(features)).softmax(dim=1).numpy()
    np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_a_class_that_is_not_known_is_never_chosen() -> None:
    """All its images may be of a group that is held out."""
    rng = np.random.default_rng(0)
    for known in ([0, 2], [0, 2, 3]):
        labels = rng.choice(known, 60)
        features = (rng.normal(size=(60, 5)) + labels[:, None]).astype(np.float32)
        linear = fit_linear(features, labels, inverse_penalty=0.1, num_classes=4)
        chosen = linear.logits(features).argmax(axis=1)
        assert set(chosen) <= set(known) and (chosen == labels).mean() > 0.5


def test_two_images_of_two_classes(start: nn.Module, data: Split, setting: Setting) -> None:
    """After the validation part is taken there is one of each: nothing to choose C on."""
    some = np.array([0, 1, 20, 21])
    few = Split(data.images, data.rows[some], np.array([0, 0, 1, 1]))
    trained, _, _ = train(start, few, replace(setting, num_classes=2), replace(RECIPE, epochs=1))
    assert trained.linear.weight.shape == (2, 96)


def test_logistic_regression_is_fitted_on_a_bounded_number(
    start: nn.Module, data: Split, setting: Setting, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tuning, "CLASSIFIER_IMAGES", 15)
    seen: list[int] = []

    def note(features: np.ndarray, labels: np.ndarray, **options: object) -> Linear:
        seen.append(len(features))
        return fit_linear(features, labels, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(tuning, "fit_linear", note)
    train(start, data, setting, replace(RECIPE, epochs=1))
    assert set(seen) == {15}
