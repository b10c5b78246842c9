"""Accuracies against scikit-learn, and intervals against closed forms and plain resampling."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, top_k_accuracy_score

from byol.evaluation.scores import balanced_interval, count_confusions, group_intervals, score


def make_answers(counts: dict[int, int], shares: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """So many images of each class, of which exactly such a share is right."""
    labels = np.repeat(list(counts), list(counts.values()))
    correct = np.concatenate([np.arange(num) < shares[label] * num for label, num in counts.items()])
    return correct, labels


def test_balanced_interval_agrees_with_the_normal_approximation() -> None:
    """Variance of a mean over K classes of independent shares: sum of p (1 - p) / n, over K squared."""
    counts, shares = {0: 2000, 3: 300, 7: 50}, {0: 0.9, 3: 0.6, 7: 0.5}
    correct, labels = make_answers(counts, shares)
    low, high = balanced_interval(correct, labels, seed=0, num=20_000)
    variance = sum(shares[label] * (1 - shares[label]) / num for label, num in counts.items())
    half, middle = 1.96 * np.sqrt(variance) / 3, np.mean([0.9, 0.6, 0.5])
    assert (low, high) == (pytest.approx(middle - half, abs=2e-3), pytest.approx(middle + half, abs=2e-3))


def test_balanced_interval_agrees_with_resampling_each_class() -> None:
    correct, labels = make_answers({0: 30, 1: 10}, {0: 0.8, 1: 0.4})
    rng = np.random.default_rng(0)
    parts = [correct[labels == label] for label in (0, 1)]
    drawn = [part[rng.integers(0, len(part), (20_000, len(part)))].mean(axis=1) for part in parts]
    expected = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975])
    assert balanced_interval(correct, labels, seed=0, num=20_000) == pytest.approx(tuple(expected), abs=0.01)


def test_group_intervals_know_that_images_of_a_group_are_right_together() -> None:
    """40 groups of 25 images, each all right or all wrong: as sure as 40 images, not as 1,000."""
    correct, groups = np.repeat(np.arange(40) < 28, 25), np.repeat(np.arange(40), 25)
    labels = np.tile([0, 1, 1, 0, 1], 200)
    top1, balanced = group_intervals(correct, labels, groups=groups, seed=0, num=20_000)
    half = 1.96 * np.sqrt(0.7 * 0.3 / 40)
    for low, high in (top1, balanced):
        assert (low, high) == (pytest.approx(0.7 - half, abs=0.02), pytest.approx(0.7 + half, abs=0.02))


def test_groups_of_one_image_are_images() -> None:
    correct, labels = make_answers({0: 120, 1: 80}, {0: 0.75, 1: 0.5})
    top1, balanced = group_intervals(correct, labels, groups=np.arange(200)[::-1], seed=1, num=20_000)
    half = 1.96 * np.sqrt(0.65 * 0.35 / 200)
    assert top1 == (pytest.approx(0.65 - half, abs=5e-3), pytest.approx(0.65 + half, abs=5e-3))
    assert balanced == pytest.approx(balanced_interval(correct, labels, seed=0, num=20_000), abs=5e-3)


def test_a_class_of_a_single_group_may_miss_in_a_resample() -> None:
    correct, labels, groups = np.array([True, True, False]), np.array([0, 0, 1]), np.array([0, 0, 1])
    _, (low, high) = group_intervals(correct, labels, groups=groups, seed=0, num=500)
    assert (low, high) == (0.0, 1.0)


def test_top5_is_that_of_scikit_learn_and_missing_below_six_classes() -> None:
    rng = np.random.default_rng(0)
    votes, labels = rng.random((200, 8)), rng.integers(0, 8, 200)
    ranked = np.argsort(-votes, axis=1)[:, :5]
    scores = score(ranked, labels, num_classes=8, seed=0, num_bootstrap=100)
    assert scores.top5 == pytest.approx(top_k_accuracy_score(labels, votes, k=5))
    assert scores.top1 == pytest.approx(np.mean(ranked[:, 0] == labels))
    assert scores.low95 < scores.top1 < scores.high95
    assert scores.balanced_low95 < scores.balanced < scores.balanced_high95
    assert score(ranked, labels, num_classes=5, seed=0, num_bootstrap=100).top5 is None


def test_groups_change_the_intervals_alone() -> None:
    correct, groups = np.repeat(np.arange(20) < 10, 10), np.repeat(np.arange(20), 10)
    labels = np.arange(200) % 2
    ranked = np.where(correct, labels, 1 - labels)[:, None]
    images, whole = (
        score(ranked, labels, num_classes=2, seed=0, num_bootstrap=500, groups=given)
        for given in (None, groups)
    )
    assert (images.top1, images.balanced) == (whole.top1, whole.balanced)
    assert whole.high95 - whole.low95 > 2 * (images.high95 - images.low95)


def test_confusions_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = rng.choice([0, 2, 3], 100), rng.choice([0, 1, 3], 100)
    expected = confusion_matrix(labels, predicted, labels=range(5))
    np.testing.assert_array_equal(count_confusions(predicted, labels, num_classes=5), expected)
