"""Neighbours are exact whatever the tiles, copies count once, prototypes stand for their clusters."""

import numpy as np
import pytest
import torch

from byol.base.errors import DataError
from byol.metrics import neighbours as neighbours_file
from byol.metrics.neighbours import Distinct, Neighbours, find_neighbours, find_outliers, find_prototypes


def make_features(num: int, *, dim: int = 6, seed: int = 0) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(seed).normal(size=(num, dim)).astype(np.float32)


def search_by_force(features: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    unit = features.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    likeness = unit @ unit.T
    np.fill_diagonal(likeness, -np.inf)
    index = np.argsort(-likeness, axis=1, kind="stable")[:, :k]
    return index, np.take_along_axis(likeness, index, axis=1)


# ---- Neighbours


@pytest.mark.parametrize("num", [2, 4, 7, 8, 9, 23, 24, 25])  # one tile, whole tiles, a last tile of one
@pytest.mark.parametrize("tile", [4, 8])
def test_neighbours_are_exact_across_tiles(num: int, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours_file, "TILE", tile)
    features = make_features(num, seed=num)
    found = find_neighbours(features, k=6)
    index, likeness = search_by_force(features, min(6, num - 1))
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_allclose(found.similarity, likeness, atol=1e-6)
    assert found.index.dtype == np.int64 and found.similarity.dtype == np.float32


def test_no_image_is_its_own_neighbour_and_length_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours_file, "TILE", 5)
    features = make_features(13)
    features[7] = 3.0 * features[2]  # one direction
    features[4] = 0.0  # no direction: as like to all
    before = features.copy()
    found = find_neighbours(features, k=12)
    for row, others in enumerate(found.index.tolist()):
        assert sorted(others) == [other for other in range(13) if other != row]
    assert (found.index[2, 0], found.index[7, 0]) == (7, 2)
    assert found.similarity[2, 0] == pytest.approx(1.0)
    assert np.array_equal(found.similarity[4], np.zeros(12))
    np.testing.assert_array_equal(features, before)  # they may be the caller's


# ---- Copies


def test_copies_count_once_and_the_first_stands_for_them() -> None:
    one, two, three = make_features(3)
    distinct = Distinct.of(np.stack([two, one, two, three, one, two]))
    assert distinct.rows.tolist() == [0, 1, 3]
    assert distinct.member.tolist() == [0, 1, 0, 2, 1, 0]
    nearly = np.nextafter(one, np.float32(9))
    assert Distinct.of(np.stack([one, nearly])).rows.tolist() == [0, 1]


def test_views_of_a_larger_array_are_compared_as_what_they_show() -> None:
    features = make_features(4, dim=6)
    features[3, ::2] = features[1, ::2]
    assert Distinct.of(features[:, ::2]).rows.tolist() == [0, 1, 2]


@pytest.mark.parametrize("num", [1, 5])
def test_features_that_are_all_equal_are_one_clear_line(num: int) -> None:
    with pytest.raises(DataError, match=f"all {num} images have the same features: .* collapsed") as caught:
        Distinct.of(np.ones((num, 3), dtype=np.float32))
    assert "\n" not in str(caught.value)


# ---- Prototypes


def make_clusters() -> np.ndarray:  # type: ignore[type-arg]
    """30, 20 and 10 images around three directions, the first of each exactly on it."""
    rng = np.random.default_rng(0)
    blocks = []
    for axis, num in enumerate((20, 30, 10)):
        block = np.zeros((num, 5))
        block[:, axis] = 4.0
        noise = rng.normal(scale=0.2, size=((num - 1) // 2, 5))
        block[1 : 1 + len(noise)] += noise  # in pairs, so that the direction is the centre
        block[1 + len(noise) : 1 + 2 * len(noise)] -= noise
        blocks.append(block)
    return np.concatenate(blocks).astype(np.float32)


def test_prototypes_are_nearest_to_the_centres_and_the_largest_comes_first() -> None:
    features = make_clusters()
    features[19] += 0.01  # were copies of the first otherwise: the pairs leave one over
    features[49] += 0.01
    features[59] += 0.01
    found = find_prototypes(features, Distinct.of(features), num=3, seed=0)
    assert found.sizes.tolist() == [30, 20, 10]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for row, (first, last) in zip(found.rows.tolist(), ((20, 50), (0, 20), (50, 60)), strict=True):
        centre = unit[first:last].mean(axis=0)
        assert row == first + np.argmin(np.square(unit[first:last] - centre).sum(axis=1))
    again = find_prototypes(features, Distinct.of(features), num=3, seed=0)
    assert again.rows.tolist() == found.rows.tolist()


def test_clusters_found_on_a_sample_hold_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    features = make_clusters()
    sizes = find_prototypes(features, Distinct.of(features), num=3, seed=0).sizes
    monkeypatch.setattr(neighbours_file, "MOST_FITTED", 12)
    found = find_prototypes(features, Distinct.of(features), num=3, seed=0)
    assert found.sizes.tolist() == sizes.tolist()
    assert [int(np.searchsorted([0, 20, 50], row, side="right")) for row in found.rows] == [2, 1, 3]


def test_copies_do_not_move_a_centre_but_are_counted() -> None:
    features = make_features(12, seed=3)
    alone = find_prototypes(features, Distinct.of(features), num=4, seed=0)
    repeated = np.concatenate([features, np.repeat(features[5:6], 50, axis=0)])
    found = find_prototypes(repeated, Distinct.of(repeated), num=4, seed=0)
    assert set(found.rows.tolist()) == set(alone.rows.tolist())
    assert alone.sizes.sum() == 12 and found.sizes.sum() == 62
    assert found.sizes[0] >= 51 and sorted(found.sizes, reverse=True) == found.sizes.tolist()


def test_fewer_images_than_clusters() -> None:
    features = make_features(5)
    found = find_prototypes(features, Distinct.of(features), num=100, seed=0)
    assert sorted(found.rows.tolist()) == [0, 1, 2, 3, 4] and found.sizes.tolist() == [1] * 5


def test_images_of_one_direction_leave_clusters_empty(recwarn: pytest.WarningsRecorder) -> None:
    one, two = np.eye(2, dtype=np.float32)
    features = np.stack([one, 2 * one, 4 * one, two])
    found = find_prototypes(features, Distinct.of(features), num=4, seed=0)
    assert found.sizes.tolist() == [3, 1] and found.rows.tolist()[1] == 3
    assert not recwarn.list


# ---- Outliers


def test_outliers_are_furthest_from_their_nearest() -> None:
    features = np.ones((12, 4), dtype=np.float32) + 0.1 * make_features(12, dim=4)
    features[8] = -1.0
    features[3] = [3.0, -1.0, 0.0, 0.0]
    found = find_neighbours(features, k=3)
    rows, distances = find_outliers(found, num=5)
    assert rows.tolist()[:2] == [8, 3] and len(rows) == 5
    assert np.all(np.diff(distances) <= 0)
    _, likeness = search_by_force(features, 3)
    assert distances[0] == pytest.approx(1.0 - likeness[8].mean(), abs=1e-5)


def test_outliers_of_few_images_are_all_of_them() -> None:
    similarity = np.array([[0.5], [0.9], [0.5]], dtype=np.float32)
    rows, _ = find_outliers(Neighbours(np.zeros((3, 1), dtype=np.int64), similarity), num=20)
    assert rows.tolist() == [0, 2, 1]  # of equals the first


def test_nearest_are_exact_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours_file, "BLOCK", 100)
    x = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    found = neighbours_file.find_nearest(x, torch.from_numpy(unit), k=5)
    cosines, rows = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    likeness = unit @ unit.T
    assert (rows == np.argsort(-likeness, axis=1)[:, :5]).all()
    np.testing.assert_allclose(cosines, np.sort(likeness, axis=1)[:, ::-1][:, :5], rtol=1e-5)
