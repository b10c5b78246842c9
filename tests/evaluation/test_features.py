"""Features are made once, belong to their weights and images, and the untrained encoder is the run's own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from byol.base.errors import DataError
from byol.config import Config
from byol.data.pack.images import open_images
from byol.data.pack.packed import Packed
from byol.encoder.encoder import Encoder, load
from byol.evaluation import features as features_file
from byol.evaluation.features import features_of, pixel_components, trained, untrained
from byol.method.networks import Byol
from byol.method.schedule import Plan
from byol.method.views import whole_view
from runs import PX, make_run, write_images


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    write_images(folder / "images", num=5)
    make_run(folder / "runs" / "one", folder / "images", target=False)
    return folder / "runs" / "one"


@pytest.fixture
def config(run_dir: Path) -> Config:
    from byol.config import load_config

    return load_config(run_dir / "config.yaml", [], preset=None)


@pytest.fixture
def images(run_dir: Path, config: Config) -> Packed:
    return open_images(config, run_dir, console=None)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that any encoder has seen."""
    sizes: list[int] = []
    encode = Encoder.encode

    def count(self: Encoder, squares: torch.Tensor) -> torch.Tensor:
        sizes.append(len(squares))
        return encode(self, squares)

    monkeypatch.setattr(Encoder, "encode", count)
    return sizes


def test_features_are_those_of_the_encoder_and_made_once(
    run_dir: Path, images: Packed, encoded: list[int], tmp_path: Path
) -> None:
    encoder, rows = load(run_dir), np.array([4, 0, 9])
    expected = encoder.embed_packed(images, rows=rows)
    heard: list[tuple[int, int]] = []
    del encoded[:]
    for _ in range(2):
        made = features_of(
            images,
            rows,
            encoder=trained(encoder),
            cache_folder=tmp_path,
            progress=lambda done, total: heard.append((done, total)),
        )
        np.testing.assert_array_equal(made, expected)
    assert encoded == [3] and heard == [(3, 3)]
    assert len(list(tmp_path.iterdir())) == 1


def test_another_encoder_other_rows_or_another_scale_are_made_anew(
    run_dir: Path, images: Packed, encoded: list[int], tmp_path: Path
) -> None:
    encoder, rows = load(run_dir), np.arange(4)
    first = features_of(images, rows, encoder=trained(encoder), cache_folder=tmp_path)
    features_of(images, rows[:3], encoder=trained(encoder), cache_folder=tmp_path)
    brighter = replace(encoder.spec, pixels=replace(encoder.spec.pixels, high=(99.0, 99.0, 99.0)))
    scaled = features_of(
        images, rows, encoder=trained(Encoder(brighter, encoder.module)), cache_folder=tmp_path
    )
    with torch.no_grad():
        next(encoder.module.parameters()).mul_(1.01)
    changed = features_of(images, rows, encoder=trained(encoder), cache_folder=tmp_path)
    assert encoded == [4, 3, 4, 4]
    assert np.abs(first - scaled).max() > 1e-4 and np.abs(first - changed).max() > 1e-4


def test_a_damaged_cache_is_made_anew(run_dir: Path, images: Packed, tmp_path: Path) -> None:
    encoder, rows = trained(load(run_dir)), np.arange(4)
    expected = features_of(images, rows, encoder=encoder, cache_folder=tmp_path)
    (path,) = tmp_path.iterdir()
    for content in (b"", path.read_bytes()[:200], b"no array"):
        path.write_bytes(content)
        again = features_of(images, rows, encoder=encoder, cache_folder=tmp_path)
        np.testing.assert_array_equal(again, expected)
        np.testing.assert_array_equal(np.load(path), expected)


def test_features_that_are_not_finite_are_refused(run_dir: Path, images: Packed, tmp_path: Path) -> None:
    encoder = load(run_dir)
    with torch.no_grad():
        next(encoder.module.parameters()).fill_(float("nan"))
    with pytest.raises(DataError, match=r"dark/002\.png: the features of this image are not finite \(2 such"):
        features_of(images, np.array([2, 3]), encoder=trained(encoder), cache_folder=tmp_path)
    assert not list(tmp_path.iterdir())


# ---- The untrained encoder


def test_untrained_is_what_the_run_began_with(run_dir: Path, config: Config, images: Packed) -> None:
    spec = load(run_dir).spec
    frozen = untrained(config, spec, images=images, rows=np.arange(len(images)))
    key = Plan.of(config, num_images=len(images)).key("init", 0)
    expected = Byol.of(config, channels=3, seed_key=key).online.encoder
    made = frozen.make()
    for (name, one), (_, other) in zip(
        made.module.named_parameters(), expected.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name
    assert made is frozen.make() and made.spec.done == 0


def test_norms_of_the_untrained_encoder_are_those_of_the_training_images(
    run_dir: Path, config: Config, images: Packed
) -> None:
    spec, rows = load(run_dir).spec, np.arange(10)
    made = untrained(config, spec, images=images, rows=rows).make()
    convolution, norm = (
        next(layer for layer in made.module.modules() if isinstance(layer, kind))
        for kind in (nn.Conv2d, nn.BatchNorm2d)
    )
    squares = torch.from_numpy(images.images[rows]).permute(0, 3, 1, 2)
    with torch.no_grad():
        maps = convolution(whole_view(squares, spec.seen_px, pixels=spec.pixels))
    assert norm.running_mean is not None and norm.running_var is not None
    torch.testing.assert_close(norm.running_mean, maps.mean(dim=(0, 2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(norm.running_var, maps.var(dim=(0, 2, 3)), atol=1e-5, rtol=1e-3)


def test_untrained_features_are_cached_before_the_encoder_is_calibrated(
    run_dir: Path,
    config: Config,
    images: Packed,
    encoded: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec, rows = load(run_dir).spec, np.arange(len(images))
    made = [
        features_of(
            images, rows, encoder=untrained(config, spec, images=images, rows=rows), cache_folder=tmp_path
        )
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*made)
    assert len(encoded) == 1
    monkeypatch.setattr(Packed, "read", None)  # would fail if an image were read again
    features_of(
        images, rows, encoder=untrained(config, spec, images=images, rows=rows), cache_folder=tmp_path
    )


# ---- Pixels


def test_components_are_those_of_the_whole_views(
    run_dir: Path, images: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sklearn.decomposition import PCA

    spec = load(run_dir).spec
    train_rows, test_rows = np.arange(0, 15, 2), np.arange(1, 15, 2)

    def components(cache_folder: Path | None = tmp_path) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
        return pixel_components(
            images,
            images,
            train_rows=train_rows,
            test_rows=test_rows,
            spec=spec,
            dimensions=3,
            seed=0,
            cache_folder=cache_folder,
        )

    monkeypatch.setattr(features_file, "BATCH", 3)
    train, test = components()
    squares = torch.from_numpy(np.array(images.images)).permute(0, 3, 1, 2)
    pixels = whole_view(squares, PX, pixels=spec.pixels).flatten(1).numpy()
    reference = PCA(3, svd_solver="full").fit(pixels[train_rows])
    for made, rows in ((train, train_rows), (test, test_rows)):
        expected = reference.transform(pixels[rows])
        np.testing.assert_allclose(np.abs(made), np.abs(expected), atol=0.05 * np.abs(expected).max())
    kept = sorted(tmp_path.iterdir())
    again = components(cache_folder=None)  # nothing is read or written
    np.testing.assert_array_equal(again[0], train)
    monkeypatch.setattr(features_file, "fit_pca", None)  # not called where both parts are kept
    np.testing.assert_array_equal(components()[1], test)
    assert len(kept) == 2 and sorted(tmp_path.iterdir()) == kept


def test_components_of_many_images_are_fitted_on_some(
    run_dir: Path, images: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    fit = features_file.fit_pca

    def count(train: np.ndarray, *, dimensions: int, seed: int) -> object:  # type: ignore[type-arg]
        sizes.append(len(train))
        return fit(train, dimensions=dimensions, seed=seed)

    monkeypatch.setattr(features_file, "fit_pca", count)
    monkeypatch.setattr(features_file, "PCA_VALUES", 6 * 3 * PX * PX)
    rows = np.arange(15)
    train, test = pixel_components(
        images,
        images,
        train_rows=rows,
        test_rows=rows[:2],
        spec=load(run_dir).spec,
        dimensions=4,
        seed=0,
        cache_folder=tmp_path,
    )
    assert sizes == [6] and train.shape == (15, 4) and test.shape == (2, 4)
