"""The generated data set: what is promised of its arrays, and that pixels alone do not solve it."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from byol.data.sources import motifs
from byol.data.sources.motifs import CLASS_NAMES, NUM_TEST, NUM_TRAIN, SIZE_PX, load_motifs, make_motifs


@pytest.fixture(scope="module")
def splits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {"train": load_motifs("train"), "test": load_motifs("test")}


def test_shapes_dtypes_and_range() -> None:
    images, labels = make_motifs(23, seed=5)
    assert images.shape == (23, SIZE_PX, SIZE_PX, 3) and images.dtype == np.uint8
    assert labels.shape == (23,) and labels.dtype == np.int64
    assert images.min() < 30 and images.max() > 225
    assert make_motifs(0, seed=5)[0].shape == (0, SIZE_PX, SIZE_PX, 3)


def test_sizes_and_balance_of_the_splits(splits) -> None:
    assert [len(labels) for _, labels in splits.values()] == [NUM_TRAIN, NUM_TEST]
    for _, labels in splits.values():
        assert np.bincount(labels).tolist() == [len(labels) // 10] * 10
    assert np.bincount(make_motifs(17, seed=0)[1], minlength=10).tolist() == [2] * 7 + [1] * 3


def test_the_same_seed_is_the_same_data_and_leaves_global_randomness_alone() -> None:
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    (images, labels), (again, labels_again) = make_motifs(40, seed=3), make_motifs(40, seed=3)
    assert np.array_equal(images, again) and np.array_equal(labels, labels_again)
    assert np.array_equal(np.random.get_state()[1], before)
    assert not np.array_equal(images, make_motifs(40, seed=4)[0])


def test_labels_are_shuffled(splits) -> None:
    _, labels = splits["train"]
    assert abs(np.corrcoef(np.arange(len(labels)), labels)[0, 1]) < 0.05


def test_no_image_is_in_both_splits_or_twice(splits) -> None:
    digests = [image.tobytes() for images, _ in splits.values() for image in images]
    assert len(set(digests)) == NUM_TRAIN + NUM_TEST
    others = {image.tobytes() for image in load_motifs("test", seed=1)[0]}
    assert others.isdisjoint(digests)


def test_chunks_do_not_show(monkeypatch) -> None:
    """More images of a class than are made at once: every image is written."""
    monkeypatch.setattr(motifs, "IMAGES_AT_ONCE", 3)
    images, _ = make_motifs(75, seed=0)
    assert (images.reshape(75, -1).std(axis=1) > 5).all()


def test_classes_differ_in_shape_not_in_colour(splits) -> None:
    """The spectrum of the grey image tells classes apart; its colours (mean and spread) hardly do."""
    (images, labels), (test_images, test_labels) = splits["train"], splits["test"]

    def spectrum(x: np.ndarray) -> np.ndarray:
        grey = x.mean(axis=3)
        grey = (grey - grey.mean((1, 2), keepdims=True)) / grey.std((1, 2), keepdims=True)
        return np.log1p(np.abs(np.fft.rfft2(grey))[:, :16, :16]).reshape(len(x), -1)

    def colours(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x.mean((1, 2)), x.std((1, 2))], axis=1) / 255.0

    def accuracy(features) -> float:
        probe = LogisticRegression(max_iter=300).fit(features(images[:2000]), labels[:2000])
        return float(probe.score(features(test_images[:1000]), test_labels[:1000]))

    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 10
    assert accuracy(spectrum) > 0.6
    assert accuracy(colours) < 0.25


def test_pixels_are_a_poor_representation(splits) -> None:
    (images, labels), (test_images, test_labels) = splits["train"], splits["test"]
    pixels, test_pixels = (
        images[:1500].reshape(1500, -1) / 255.0,
        test_images[:1000].reshape(1000, -1) / 255.0,
    )
    pca = PCA(64, svd_solver="randomized", random_state=0).fit(pixels)
    probe = LogisticRegression(max_iter=200).fit(pca.transform(pixels), labels[:1500])
    assert probe.score(pca.transform(test_pixels), test_labels[:1000]) < 0.4
