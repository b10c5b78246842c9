"""Accuracies against scikit-learn, and intervals against closed forms and plain resampling."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, top_k_accuracy_score

from byol.metrics.probes import wilson_interval
from byol.metrics.scores import balanced_interval, count_confusions, group_intervals, score


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
    correct, labels = make_answers({0: 300, 1: 100}, {0: 0.8, 1: 0.4})
    rng = np.random.default_rng(0)
    parts = [correct[labels == label] for label in (0, 1)]
    drawn = [part[rng.integers(0, len(part), (20_000, len(part)))].mean(axis=1) for part in parts]
    expected = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975])
    assert balanced_interval(correct, labels, seed=0, num=20_000) == pytest.approx(tuple(expected), abs=0.006)


def test_balanced_interval_of_one_class_or_of_all_right_is_that_of_images() -> None:
    one = balanced_interval(np.arange(12) < 11, np.full(12, 4), seed=0, num=500)
    assert one[0] == pytest.approx(wilson_interval(11 / 12, 12)[0])
    low, high = balanced_interval(np.ones(12, dtype=bool), np.arange(12) % 3, seed=0, num=500)
    assert (low, high) == (pytest.approx(wilson_interval(1.0, 12)[0]), 1.0)
    nearly = balanced_interval(np.zeros(12, dtype=bool), np.arange(12) % 3, seed=0, num=500)
    assert nearly == (0.0, pytest.approx(1.0 - low))


@pytest.mark.parametrize(
    ("counts", "shares"),
    [
        ([1] * 10, [0.9] * 10),
        ([1] * 50, [0.5] * 50),
        ([3] * 10, [0.95] * 10),
        ([200, 10, 2], [0.95, 0.7, 0.3]),
    ],
)
def test_balanced_interval_holds_the_truth_with_classes_of_few_images(
    counts: list[int], shares: list[float]
) -> None:
    """A bootstrap alone: 39, 11, 78 and 60 %."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(counts)), counts)
    covered = 0
    for _ in range(300):
        correct = rng.random(len(labels)) < np.repeat(shares, counts)
        low, high = balanced_interval(correct, labels, seed=0, num=200)
        covered += low <= np.mean(shares) <= high
    assert covered >= 270


@pytest.mark.parametrize("num_groups", [2, 3, 5, 8])
def test_group_intervals_hold_the_truth_of_further_groups(num_groups: int) -> None:
    """Groups' own shares are of a beta distribution, mean 0.8. A bootstrap of groups alone: 57 to 89 %."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(num_groups), 50)
    covered = np.zeros(2)
    for _ in range(300):
        shares = rng.beta(0.8 * 19, 0.2 * 19, num_groups)
        correct, labels = rng.random(len(groups)) < shares[groups], rng.integers(0, 2, len(groups))
        found = group_intervals(correct, labels, groups=groups, seed=0, num=200)
        covered += [low <= 0.8 <= high for low, high in found]
    assert (covered >= 276).all()


def test_group_intervals_are_never_surer_than_those_of_images() -> None:
    correct, labels = np.ones(12, dtype=bool), np.arange(12) % 2
    for groups in (np.zeros(12, dtype=np.int64), np.arange(12) // 4):
        found = group_intervals(correct, labels, groups=groups, seed=0, num=200)
        assert found == ((pytest.approx(0.7575, abs=1e-4), 1.0),) * 2


def test_group_intervals_are_wilsons_with_the_variance_between_groups() -> None:
    """Three groups of 100 images with 60, 80 and 70 right: standard deviation 0.1, quantile t(2) = 4.303."""
    correct = np.concatenate([np.arange(100) < right for right in (60, 80, 70)])
    labels = np.tile([0, 1], 150)
    top1, _ = group_intervals(correct, labels, groups=np.repeat([0, 1, 2], 100), seed=0, num=2000)
    num, quantile = 0.7 * 0.3 / (0.1**2 / 3), 4.302653
    assert top1 == pytest.approx(wilson_interval(0.7, num, quantile=quantile), abs=1e-6)


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
