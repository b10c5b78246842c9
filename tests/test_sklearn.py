"""`ByolFeatures` in scikit-learn: its checks, pipelines and searches, forms of images, training in `fit`."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits, load_files
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline

import byol
from byol.encoder.encoder import load, save_encoder
from byol.method.networks import build_encoder
from byol.method.views import Pixels
from byol.sklearn import ByolFeatures
from runs import PX, make_spec, write_images

# What scikit-learn's checks ask for that images do not allow, where nothing is said of the shape of an image.
# Their tables have 1 to 20 columns. Where `image_shape=(1, -1)` makes each row an image, nothing is left.
_NO_SQUARE = "rows of 2, 5 or 10 numbers are no square images: refused"
_COLOUR = "rows of 3 numbers are one pixel in three colours, and the encoder is of grey images: refused"
EXPECTED_FAILURES = {
    "check_estimators_overwrite_params": _NO_SQUARE,
    "check_estimators_fit_returns_self": _NO_SQUARE,
    "check_readonly_memmap_input": _NO_SQUARE,
    "check_estimators_dtypes": _NO_SQUARE,
    "check_dtype_object": _NO_SQUARE,
    "check_fit2d_1sample": _NO_SQUARE,
    "check_fit_idempotent": _NO_SQUARE,
    "check_fit_check_is_fitted": _NO_SQUARE,
    "check_n_features_in": _NO_SQUARE,
    "check_fit_score_takes_y": _COLOUR,
    "check_pipeline_consistency": _COLOUR,
    "check_f_contiguous_array_estimator": _COLOUR,
    "check_transformer_data_not_an_array": _COLOUR,
    "check_transformer_general": _COLOUR,
    "check_methods_sample_order_invariance": _COLOUR,
    "check_methods_subset_invariance": _COLOUR,
    "check_dict_unchanged": _COLOUR,
    "check_estimators_pickle": "an image whose only pixel is NaN holds no measured value: refused",
}
TINY = {
    "network.name": "test_resnet",
    "network.projection_head.mlp_hidden_size": 8,
    "network.projection_head.projection_size": 4,
    "network.stem": "standard",
    "data_transforms.domain": None,
    "data_transforms.input_shape": [16, 16, None],
    "trainer.batch_size": 8,
    "trainer.accumulation_steps": 1,
    "trainer.max_epochs": 1,
    "trainer.precision": "fp32",
    "trainer.num_workers": 1,
}


def save(folder: Path, *, channels: int, **changes: object) -> Path:
    """A run folder with an encoder of first weights."""
    module = build_encoder("test_resnet", channels=channels, view_px=PX, stem="standard")
    save_encoder(folder, module, replace(make_spec(), channels=channels, **changes))  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("colour") / "run", channels=3)


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one channel of numbers in -5..5."""
    pixels = Pixels(low=(-5.0,), high=(5.0,), mean=(0.5,), std=(0.5,))
    return save(tmp_path_factory.mktemp("grey") / "run", channels=1, bits=32, pixels=pixels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "images"
    write_images(path, num=8, classes=("dark", "light"))
    return path


def make_images(num: int = 5, *, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (num, PX, PX, channels), dtype=np.uint8)


# ---- scikit-learn's own checks

# In a process of its own: here types are checked at run time, and the checks set parameters to nonsense.
_CHECK = """
import json, sys, warnings
from sklearn.utils.estimator_checks import check_estimator
from byol.sklearn import ByolFeatures
warnings.simplefilter("ignore")  # random numbers are not in the range of any training
run, image_shape, expected = json.loads(sys.argv[1])
estimator = ByolFeatures(run=run, image_shape=image_shape, device="cpu")
results = check_estimator(estimator, expected_failed_checks=expected, on_skip=None)
print(json.dumps([[one["check_name"], one["status"]] for one in results]))
"""


def check(run: Path, image_shape: tuple[int, int] | None, expected: dict[str, str]) -> dict[str, set[str]]:
    """The checks that passed, that failed as expected, and that were skipped."""
    arguments = json.dumps([str(run), image_shape, expected])
    environment = os.environ | {"PYTHONPATH": str(Path(byol.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", _CHECK, arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, set[str]] = {"passed": set(), "xfail": set(), "skipped": set()}
    for name, status in json.loads(done.stdout):  # and nothing else was printed
        found[status].add(name)
    return found


@pytest.mark.slow
def test_rows_as_images_pass_every_check(grey: Path) -> None:
    found = check(grey, (1, -1), {})
    assert found["passed"] >= set(EXPECTED_FAILURES) and len(found["passed"]) > 40
    assert found["skipped"] == {"check_array_api_input"}


@pytest.mark.slow
def test_without_a_shape_what_is_no_image_fails_and_nothing_else(grey: Path) -> None:
    assert check(grey, None, EXPECTED_FAILURES)["xfail"] == set(EXPECTED_FAILURES)


# ---- Images in any form


def test_forms_of_images(colour: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    images = make_images()
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    model = ByolFeatures(run=colour, device="cpu").fit(images)
    expected = load(colour, device="cpu").embed(images)
    names = [str(path) for path in paths]
    forms = [
        images,
        tmp_path,
        str(tmp_path),
        paths,
        tuple(names),
        np.array(names),
        np.array(names, dtype=object)[:, None],
        pandas.Series(names),
        pandas.DataFrame({"file": names}),
        list(images),
        [Image.fromarray(image) for image in images],
        torch.from_numpy(images).permute(0, 3, 1, 2),
        images.reshape(5, -1),
    ]
    for form in forms:
        features = model.fit(form).transform(form)
        np.testing.assert_allclose(features, expected, atol=1e-5)
        assert features.dtype == np.float32 and features.shape == (5, 96)


def test_grey_images(grey: Path) -> None:
    images = np.random.default_rng(0).normal(size=(4, PX, PX))
    model = ByolFeatures(run=grey, device="cpu")
    expected = load(grey, device="cpu").embed(images[..., None])
    for form in (images, images[..., None], images.reshape(4, -1), torch.from_numpy(images)):
        np.testing.assert_allclose(model.fit(form).transform(form), expected, atol=1e-5)
    wide = images.reshape(4, PX // 2, 2 * PX)
    rows = ByolFeatures(run=grey, image_shape=(PX // 2, -1), device="cpu").fit(wide.reshape(4, -1))
    np.testing.assert_allclose(rows.transform(wide.reshape(4, -1)), model.transform(wide), atol=1e-5)
    assert rows.n_features_in_ == PX * PX


def test_sizes_may_differ(colour: Path) -> None:
    images = [make_images(1)[0], make_images(1)[0][:9]]
    found = ByolFeatures(run=colour, device="cpu").fit_transform(images)
    np.testing.assert_allclose(found, load(colour, device="cpu").embed(images), atol=1e-5)


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        (np.zeros((3, 7)), byol.ConfigError, "image_shape: a row of 7 values, .*image_shape="),
        (np.zeros(7), ValueError, "1D array"),
        (np.zeros((2, 3, 4, 4, 3)), ValueError, "dim 5"),
        ([["a", "b"]], ValueError, "bytes/strings"),
        ([], ValueError, "1D array|0 sample"),
        (["nowhere.png"], byol.DataError, r"nowhere\.png: no such file"),
        (np.zeros((2, 8, 8), dtype=np.uint8), byol.DataError, "image 0: has 1 channels, .* trained on 3"),
    ],
)
def test_what_is_no_image(colour: Path, X: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ByolFeatures(run=colour, device="cpu").fit_transform(X)


@pytest.mark.parametrize("shape", [(5,), (4, 4, 2, 2), (3, -1), (-1, -1)])
def test_shapes_that_are_none(grey: Path, shape: object) -> None:
    with pytest.raises(byol.ConfigError, match="image_shape="):
        ByolFeatures(run=grey, image_shape=shape).fit(np.zeros((2, 16)))  # type: ignore[arg-type]


def test_a_run_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(byol.CheckpointError, match="no such folder"):
        ByolFeatures(run=tmp_path / "nowhere").fit(make_images())


# ---- In scikit-learn's tools


def test_parameters_are_those_of_the_constructor(colour: Path) -> None:
    model = ByolFeatures(run=colour, batch_size=7)
    copy = clone(model).set_params(device="cpu")
    assert copy.get_params() == model.get_params() | {"device": "cpu"} and copy.batch_size == 7
    with pytest.raises(ValueError, match="Invalid parameter"):
        model.set_params(epochs=3)


def test_a_search_over_a_classifier_behind_it(colour: Path, folder: Path) -> None:
    """Files and labels as `load_files` gives them; the classes are told apart."""
    files = load_files(folder, load_content=False, random_state=0)
    model = make_pipeline(ByolFeatures(run=colour, device="cpu"), LogisticRegression())
    search = GridSearchCV(model, {"logisticregression__C": [0.01, 1.0]}, cv=2)
    search.fit(files.filenames, files.target)
    assert search.best_score_ > 0.9 and search.score(files.filenames, files.target) > 0.9
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(again.predict(files.filenames), search.predict(files.filenames))


def test_beside_other_columns(colour: Path, folder: Path) -> None:
    pandas = pytest.importorskip("pandas")
    names = sorted(str(path) for path in folder.rglob("*.png"))[:3]
    table = pandas.DataFrame({"file": names, "dose": [1.0, 2.0, 3.0]})
    both = ColumnTransformer(
        [("image", ByolFeatures(run=colour, device="cpu"), ["file"]), ("dose", "passthrough", ["dose"])],
        verbose_feature_names_out=False,
    ).set_output(transform="pandas")
    found = both.fit_transform(table)
    assert list(found)[:2] == ["f000", "f001"] and list(found)[-1] == "dose" and found.shape == (3, 97)
    np.testing.assert_allclose(found["f001"], load(colour, device="cpu").embed(list(names))[:, 1], atol=1e-5)


# ---- Training


@pytest.mark.slow
def test_fit_trains_and_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """On digits as scikit-learn has them, in a search; nothing is printed, nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    digits, labels = load_digits(return_X_y=True)
    digits, labels = digits[:64], labels[:64]
    capfd.readouterr()
    model = make_pipeline(ByolFeatures(overrides=TINY, device="cpu"), KNeighborsClassifier(3))
    search = GridSearchCV(model, {"byolfeatures__overrides": [TINY, {**TINY, "trainer.seed": 1}]}, cv=2)
    search.fit(digits, labels)
    said = capfd.readouterr()
    assert said.out == said.err == "" and list(tmp_path.iterdir()) == []
    assert len(search.cv_results_["params"]) == 2
    encoder = search.best_estimator_[0].encoder_
    assert encoder.spec.done == 8 and encoder.spec.layout == "hwc"  # 64 images, batch 8
    assert search.best_estimator_[0].run_ is None


@pytest.mark.slow
@pytest.mark.parametrize("form", ["array", "paths", "folder", "pillow", "tensor"])
def test_fit_keeps_the_run_and_continues(form: str, folder: Path, tmp_path: Path) -> None:
    paths = sorted(folder.rglob("*.png"))
    images = np.stack([np.asarray(Image.open(path)) for path in paths])
    X = {
        "array": images,
        "paths": [str(path) for path in paths],
        "folder": folder,
        "pillow": [Image.fromarray(image) for image in images],
        "tensor": torch.from_numpy(images).permute(0, 3, 1, 2),
    }[form]
    model = ByolFeatures(output=tmp_path / "runs" / "a", overrides=TINY, device="cpu").fit(X)
    assert model.run_.done == model.run_.total_steps == 2 and model.run_.folder == tmp_path / "runs" / "a"
    features = model.transform(X)
    np.testing.assert_allclose(features, load(tmp_path / "runs" / "a", device="cpu").embed(folder), atol=1e-4)
    before = (tmp_path / "runs" / "a" / "metrics.jsonl").read_bytes()
    np.testing.assert_array_equal(clone(model).fit(X).transform(X), features)
    assert (tmp_path / "runs" / "a" / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_training_that_is_stopped_is_no_encoder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object, **others: object) -> byol.Run:
        return byol.Run(tmp_path, 1, 2, "SIGINT")

    monkeypatch.setattr("byol.sklearn.train", stop)
    model = ByolFeatures(output=tmp_path / "run")
    with pytest.raises(KeyboardInterrupt, match="SIGINT"):
        model.fit(folder)
    assert not hasattr(model, "encoder_")
