"""The baseline of k-means on patches: its features, when it is left out, and how it is switched off."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from byol.data.pack.images import open_images
from byol.data.pack.packed import Packed
from byol.encoder.encoder import load
from byol.encoder.spec import EncoderSpec
from byol.evaluation import patches
from byol.evaluation.patches import (
    Dictionary,
    choose_px,
    count_encoder_work,
    count_work,
    find_obstacle,
    patch_encoder,
    patch_features,
)
from byol.evaluation.table import evaluate
from byol.method.views import whole_view
from byol.metrics.probes import knn
from byol.runfolder.settings import read_config
from runs import make_run, write_images


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patches")
    write_images(folder / "images", num=5)
    make_run(folder / "runs" / "one", folder / "images", target=False)
    return folder / "runs" / "one"


@pytest.fixture
def images(run_dir: Path) -> Packed:
    return open_images(read_config(run_dir, []), run_dir, console=None)


@pytest.fixture
def spec(run_dir: Path) -> EncoderSpec:
    return load(run_dir).spec


def draw_stripes(num: int, *, px: int, channels: int = 3, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:  # type: ignore[type-arg]
    """Stripes along rows (class 0) or columns (class 1), of random phase and strength, with noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % 2
    waves = np.sin(1.5 * np.arange(px)[None, :] + rng.uniform(0, 6.3, (num, 1)))
    grid = np.broadcast_to(waves[:, :, None], (num, px, px)).copy()
    grid[labels == 1] = grid[labels == 1].transpose(0, 2, 1)
    grid *= rng.uniform(0.3, 3.0, (num, 1, 1))
    views = grid[:, None] * rng.uniform(0.5, 1.0, (1, channels, 1, 1)) + rng.normal(
        0, 0.1, (num, channels, px, px)
    )
    return torch.from_numpy(views).float(), labels


def encode_directly(dictionary: Dictionary, view: torch.Tensor) -> np.ndarray:  # type: ignore[type-arg]
    """The features of one image in plain loops, from the definition."""
    side, size = view.shape[-1] - dictionary.patch_px + 1, dictionary.patch_px
    maps = np.empty((side, side, len(dictionary.centroids)))
    for row in range(side):
        for column in range(side):
            patch = view[:, row : row + size, column : column + size].flatten().double().numpy()
            patch = (patch - patch.mean()) / np.sqrt(patch.var() + 0.1)
            whitened = (patch - dictionary.mean.numpy()) @ dictionary.whitening.numpy()
            distances = np.sqrt(np.square(whitened - dictionary.centroids.numpy()).sum(axis=1))
            maps[row, column] = np.maximum(0.0, distances.mean() - distances)
    low, high = slice(0, (side + 1) // 2), slice(side // 2, side)
    return np.concatenate(
        [maps[rows, columns].mean(axis=(0, 1)) for rows in (low, high) for columns in (low, high)]
    )


@pytest.mark.parametrize(("px", "channels"), [(12, 3), (13, 1), (9, 5)])
def test_features_are_those_of_the_definition(px: int, channels: int) -> None:
    views, _ = draw_stripes(8, px=px, channels=channels)
    dictionary = Dictionary.fit(views, num_centroids=7, seed=0)
    assert dictionary.patch_px == min(6, px // 2) and len(dictionary.centroids) == 7
    expected = np.stack([encode_directly(dictionary, view) for view in views])
    np.testing.assert_allclose(dictionary.encode(views).numpy(), expected, rtol=1e-3, atol=1e-3)


def test_whitened_patches_have_no_correlation() -> None:
    views, _ = draw_stripes(60, px=16, channels=2)
    dictionary = Dictionary.fit(views, num_centroids=2, seed=0)
    values = patches.cut_patches(views, 6).flatten(0, 1)
    whitened = ((values - dictionary.mean) @ dictionary.whitening).numpy()
    assert whitened.shape[1] == 64 < values.shape[1]
    correlations = np.corrcoef(whitened[:, -20:].T)
    assert np.abs(correlations - np.eye(20)).max() < 0.1


def test_they_find_what_pixels_do_not() -> None:
    """Stripes of random phase: no pixel says anything, but a patch does."""
    train, labels = draw_stripes(80, px=16)
    test, truth = draw_stripes(80, px=16, seed=1)
    dictionary = Dictionary.fit(train, num_centroids=16, seed=0)
    found = knn(dictionary.encode(train).numpy(), labels, test=dictionary.encode(test).numpy(), seed=0)
    assert (found.labels == truth).mean() > 0.95


def test_blank_images_and_fewer_patches_than_centroids() -> None:
    views = torch.ones(5, 3, 16, 16)
    dictionary = Dictionary.fit(views, num_centroids=10, seed=0)
    assert len(dictionary.centroids) == 1
    assert torch.equal(dictionary.encode(views), torch.zeros(5, 4))


def test_the_seed_alone_changes_the_dictionary() -> None:
    views, _ = draw_stripes(40, px=16)
    one, same, other = (Dictionary.fit(views, num_centroids=9, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.centroids, same.centroids) and not torch.equal(one.centroids, other.centroids)


def test_features_are_made_once_for_the_same_images_and_settings(
    images: Packed, spec: EncoderSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compute(rows: list[int], *, num_centroids: int = 5, seed: int = 0, first: int = 0) -> np.ndarray:  # type: ignore[type-arg]
        encoder = patch_encoder(
            images, np.arange(first, 15, 2), spec=spec, num_centroids=num_centroids, seed=seed
        )
        return patch_features(images, np.array(rows), encoder=encoder, cache_folder=tmp_path)

    monkeypatch.setattr(patches, "BATCH", 2)
    made = compute([5, 0, 3])
    assert made.shape == (3, 20) and made.dtype == np.float32
    np.testing.assert_allclose(compute([3]), made[2:], atol=1e-5)
    others = compute([5, 0, 3], seed=1), compute([5, 0, 3], first=1)
    assert all(np.abs(made - other).max() > 1e-3 for other in others)
    assert compute([5, 0, 3], num_centroids=4).shape == (3, 16)
    monkeypatch.setattr(Dictionary, "fit", None)  # nothing is learned again
    np.testing.assert_array_equal(compute([5, 0, 3]), made)


def test_features_are_those_of_whole_views_of_at_most_32_px(
    images: Packed, spec: EncoderSpec, tmp_path: Path
) -> None:
    larger = replace(spec, view_px=64, mirrored=False)
    rows = np.arange(6)
    encoder = patch_encoder(images, rows, spec=larger, num_centroids=5, seed=0)
    squares = torch.from_numpy(np.array(images.images[:6])).permute(0, 3, 1, 2)
    views = whole_view(squares, 32, pixels=spec.pixels)
    expected = Dictionary.fit(views, num_centroids=5, seed=0).encode(views).numpy()
    made = patch_features(images, rows, encoder=encoder, cache_folder=tmp_path)
    np.testing.assert_allclose(made, expected, atol=1e-4)


def test_mirror_images_take_part_as_in_the_encoder(images: Packed, spec: EncoderSpec, tmp_path: Path) -> None:
    rows = np.arange(6)
    alone, both = (
        patch_encoder(images, rows, spec=replace(spec, mirrored=mirrored), num_centroids=5, seed=0)
        for mirrored in (False, True)
    )
    squares = torch.from_numpy(np.array(images.images[:6])).permute(0, 3, 1, 2)
    views = whole_view(squares, choose_px(spec), pixels=spec.pixels)
    expected = (alone.make().encode(views) + alone.make().encode(views.flip(3))).numpy() / 2.0
    made = patch_features(images, rows, encoder=both, cache_folder=tmp_path)
    np.testing.assert_allclose(made, expected, atol=1e-4)
    assert np.abs(made - patch_features(images, rows, encoder=alone, cache_folder=tmp_path)).max() > 1e-3


# ---- The rule


def test_work_is_counted_as_pytorch_counts_it(spec: EncoderSpec) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from byol.method.networks import build_encoder

    encoder = build_encoder(spec.name, channels=spec.channels, view_px=spec.view_px, stem=spec.stem).eval()
    with FlopCounterMode(display=False) as counter:
        encoder(torch.zeros(2, spec.channels, spec.seen_px, spec.seen_px))
    assert (
        count_encoder_work(spec) == counter.get_total_flops() // 4
    )  # a multiplication is two, of two images
    # 16 px: 11 x 11 patches of 6 x 6 x 3 = 108 values, 64 components
    small = replace(spec, view_px=16)
    assert count_work(small, num_centroids=100) == 121 * 64 * (108 + 100)
    assert count_work(replace(small, channels=1), num_centroids=100) == 121 * 36 * (36 + 100)
    assert count_work(replace(spec, view_px=500), num_centroids=9) == count_work(
        replace(spec, view_px=32), num_centroids=9
    )


def test_the_rule_bounds_work_and_memory(spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(*, num_images: int, num_centroids: int, num_classes: int = 3) -> str | None:
        return find_obstacle(
            spec, num_images=num_images, num_classes=num_classes, num_centroids=num_centroids
        )

    work = count_work(spec, num_centroids=400) + 3 * 4000 * (1600 - spec.num_features)
    monkeypatch.setattr(patches, "count_encoder_work", lambda _: work)
    assert find(num_images=1000, num_centroids=400) is None
    assert "times the work of the encoder" in str(find(num_images=1000, num_centroids=401))
    assert "times the work of the encoder" in str(find(num_images=1000, num_centroids=400, num_classes=4))
    most = 2**28 // 1600
    assert find(num_images=most, num_centroids=400) is None
    assert find(num_images=most + 1, num_centroids=400) == (
        "their features would take 1.0 GB, more than 1 GB"
    )


def test_a_row_that_costs_too_much_is_left_out_with_a_line(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patches, "count_encoder_work", lambda _: 2_000_000)
    said: list[str] = []
    table = evaluate(run_dir, overrides=["evaluation.num_centroids=1000"], say=said.append)
    (line,) = (line for line in said if "patches" in line)
    assert line.startswith("k-means on patches left out (")
    assert line.endswith("times the work of the encoder); to include it, add evaluation.num_centroids=31")
    assert "patches" not in {row.features for row in table.rows} and "patches" not in table.verdict()


def test_half_the_centroids_are_taken_if_all_cost_too_much(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patches, "count_encoder_work", lambda spec: count_work(spec, num_centroids=20))
    monkeypatch.setattr(patches, "FITS", 0)
    said: list[str] = []
    table = evaluate(run_dir, overrides=["evaluation.num_centroids=40"], say=said.append)
    assert "k-means on patches: 20 clusters instead of 40, to take no longer than the encoder" in said
    assert {row.dimensions for row in table.rows if row.features == "patches"} == {80}


def test_the_key_sets_the_number_and_switches_the_row_off(run_dir: Path) -> None:
    table = evaluate(run_dir, overrides=["evaluation.num_centroids=3"])
    (dimensions,) = {row.dimensions for row in table.rows if row.features == "patches"}
    assert dimensions == 12 and "patches" in table.verdict()
    said: list[str] = []
    table = evaluate(run_dir, overrides=["evaluation.num_centroids=null"], say=said.append)
    assert "patches" not in {row.features for row in table.rows}
    assert not [line for line in said if line.startswith("patches")]
