"""Probes against scikit-learn and closed forms; choosing never sees the test split."""

import inspect

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from byol.base.errors import DataError
from byol.metrics import neighbours, probes
from byol.metrics import sgd as sgd_file
from byol.metrics.logistic import Problem
from byol.metrics.probes import Validation
from byol.metrics.sgd import choose_sgd, sgd

CLASSIFIERS = (probes.knn, probes.whitened_knn, probes.logistic_regression, sgd)

Features = NDArray[np.float32]
Labels = NDArray[np.int64]


def make_features(
    num_images: int, *, seed: int, num_classes: int = 5, spread: float = 1.5
) -> tuple[Features, Labels]:
    """Overlapping clouds, one a class; the classes are the same for every seed."""
    centres = np.random.default_rng(99).normal(size=(num_classes, 16))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num_images)
    features = centres[labels] + spread * rng.normal(size=(num_images, 16))
    return features.astype(np.float32), labels


# ---- kNN


def knn_predict(
    train: np.ndarray, labels: np.ndarray, *, test: np.ndarray, k: int, temperature: float
) -> np.ndarray:
    return probes.knn_rank(train, labels, test=test, k=k, temperature=temperature)[:, 0]


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("k", [1, 7, 50])
def test_knn_is_exactly_that_of_scikit_learn(k: int, temperature: float) -> None:
    (train, labels), (test, _) = make_features(300, seed=0), make_features(200, seed=1)
    labels = labels * 10 + 3  # labels are names, not indices
    reference = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1.0 - d) / temperature))
    expected = reference.fit(train, labels).predict(test)
    np.testing.assert_array_equal(
        knn_predict(train, labels, test=test, k=k, temperature=temperature), expected
    )


def test_knn_in_blocks_is_knn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    (train, labels), (test, _) = make_features(300, seed=0), make_features(100, seed=1)
    whole = knn_predict(train, labels, test=test, k=20, temperature=0.1)
    chosen = probes.choose_knn(train, labels, seed=0)
    monkeypatch.setattr(neighbours, "BLOCK", 300 * 7)
    np.testing.assert_array_equal(knn_predict(train, labels, test=test, k=20, temperature=0.1), whole)
    assert probes.choose_knn(train, labels, seed=0) == chosen


def test_knn_choice_is_the_best_on_the_validation_part() -> None:
    train, labels = make_features(400, seed=0)
    part = Validation.of(labels, seed=3)
    right = {
        (k, temperature): np.mean(
            knn_predict(
                train[part.fit], labels[part.fit], test=train[part.held_out], k=k, temperature=temperature
            )
            == labels[part.held_out]
        )
        for k in probes.NEIGHBOURS
        for temperature in probes.TEMPERATURES
    }
    assert probes.choose_knn(train, labels, seed=3) == max(right, key=lambda setting: right[setting])


def test_knn_extremes_neither_overflow_nor_divide_by_zero() -> None:
    train = np.array([[1, 0], [0, 1], [0, 0]], dtype=np.float32)
    labels, test = np.array([0, 1, 1]), np.array([[2, 0], [0, 0], [0.1, 5]], dtype=np.float32)
    predicted = knn_predict(train, labels, test=test, k=1000, temperature=1e-4)
    np.testing.assert_array_equal(predicted, [0, 1, 1])
    assert knn_predict(train, labels, test=test[:0], k=1, temperature=0.1).shape == (0,)


# ---- Logistic regression


def test_logistic_regression_is_that_of_scikit_learn() -> None:
    (train, labels), (test, _) = make_features(500, seed=0), make_features(400, seed=1)
    predicted = probes.logistic_regression(train, labels, test=test, seed=0)
    mean, std = train.mean(axis=0), train.std(axis=0)
    reference = LogisticRegression(C=predicted.chosen["C"], max_iter=1000, tol=1e-6)
    expected = reference.fit((train - mean) / std, labels).predict((test - mean) / std)
    assert np.mean(predicted.labels == expected) >= 0.995  # away from ties; tolerances of L-BFGS differ


def test_one_label_of_each_of_many_classes_is_no_cause_for_a_warning() -> None:
    features = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    ranked = probes.fit_logistic(features, np.arange(40), test=features, inverse_penalty=1.0)
    assert (ranked[:, 0] == np.arange(40)).mean() > 0.5


def test_logistic_choice_is_the_best_on_the_validation_part() -> None:
    train, labels = make_features(300, seed=0, spread=3.0)
    part = Validation.of(labels, seed=0)
    right = {
        c: LogisticRegression(C=c, max_iter=1000)
        .fit(train[part.fit], labels[part.fit])
        .score(train[part.held_out], labels[part.held_out])
        for c in probes.INVERSE_PENALTIES
    }
    chosen = probes.choose_logistic(train, labels, seed=0)
    # Started from the last penalty's solution, L-BFGS ends at most one image away from a cold start.
    assert right[chosen] >= max(right.values()) - 1 / len(part.held_out) - 1e-9


def test_logistic_sweep_works_on_a_bounded_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    make = Problem.of

    def count(train: Features, truth: Labels, *, num_classes: int) -> Problem:
        sizes.append(len(train))
        return make(train, truth, num_classes=num_classes)

    monkeypatch.setattr(Problem, "of", count)
    monkeypatch.setattr(probes, "SWEEP_ROWS", 100)
    (train, labels), (test, _) = make_features(500, seed=0), make_features(10, seed=1)
    probes.logistic_regression(train, labels, test=test, seed=0)
    assert max(sizes[:-1]) < 100 and sizes[-1] == 500


def test_strong_overfitting_still_converges(monkeypatch: pytest.MonkeyPatch) -> None:
    """More features than images, separable, one feature constant: no ConvergenceWarning (an error here)."""
    monkeypatch.setattr(probes, "INVERSE_PENALTIES", (1.0,))
    rng = np.random.default_rng(0)
    train = rng.normal(size=(60, 200)).astype(np.float32)
    train[:, 0] = 7.0
    labels = np.arange(60) % 3
    predicted = probes.logistic_regression(train, labels, test=train, seed=0)
    assert np.mean(predicted.labels == labels) == 1.0


def test_accuracy_is_that_of_scikit_learn() -> None:
    """Within 0.3 points of a reference that is fitted to a far smaller tolerance, on 3,000 test images."""
    (train, labels), (test, truth) = make_features(1000, seed=0), make_features(3000, seed=1)
    predicted = probes.logistic_regression(train, labels, test=test, seed=0)
    mean, std = train.mean(axis=0), train.std(axis=0)
    reference = LogisticRegression(C=predicted.chosen["C"], max_iter=10_000, tol=1e-8)
    expected = reference.fit((train - mean) / std, labels).score((test - mean) / std, truth)
    assert np.mean(predicted.labels == truth) == pytest.approx(expected, abs=0.003)


def test_five_classes_are_named_in_the_order_of_their_scores() -> None:
    (train, labels), (test, _) = make_features(400, seed=0, num_classes=8), make_features(50, seed=1)
    labels = labels * 10
    model = LogisticRegression(C=0.01, max_iter=1000).fit(train, labels)
    ranked = probes.fit_logistic(train, labels, test=test, inverse_penalty=0.01)
    expected = model.classes_[np.argsort(-model.predict_proba(test), axis=1)[:, :5]]
    assert ranked.shape == (50, 5) and np.mean(ranked == expected) > 0.99
    two = labels % 20
    ranked = probes.fit_logistic(train, two, test=test, inverse_penalty=0.01)
    model = LogisticRegression(C=0.01, max_iter=1000).fit(train, two)
    np.testing.assert_array_equal(ranked[:, 0], model.predict(test))
    np.testing.assert_array_equal(ranked.sum(axis=1), 10)


def test_knn_names_only_classes_with_a_vote() -> None:
    train = np.array([[1, 0], [1, 0.1], [0.9, 0.5], [0, 1]], dtype=np.float32)
    labels, test = np.array([7, 3, 7, 5]), np.array([[1, 0.05], [0, 1]], dtype=np.float32)
    ranked = probes.knn_rank(train, labels, test=test, k=3, temperature=0.1)
    assert ranked.tolist() == [[7, 3, -1], [5, 7, 3]]


# ---- Linear by SGD


@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_sgd_agrees_with_logistic_regression(spread: float) -> None:
    """Within a point on 3,000 test images, for classes well apart and for classes that overlap a lot."""
    (train, labels), (test, truth) = (
        make_features(num, seed=seed, num_classes=8, spread=spread) for num, seed in ((4000, 0), (3000, 1))
    )
    shares = [
        np.mean(classify(train, labels, test=test, seed=0).labels == truth)
        for classify in (sgd, probes.logistic_regression)
    ]
    assert shares[0] == pytest.approx(shares[1], abs=0.01)


def test_sgd_rates_trained_side_by_side_are_those_trained_alone() -> None:
    train, labels = make_features(300, seed=0)
    several = sgd_file.train_classifiers(train, labels, lrs=(0.01, 0.1), num_classes=5, seed=3)
    alone = sgd_file.train_classifiers(train, labels, lrs=(0.1,), num_classes=5, seed=3)
    for one, other in zip(several, alone, strict=True):
        np.testing.assert_allclose(one[1:], other, rtol=1e-4, atol=1e-5)


def test_sgd_choice_is_the_best_on_the_validation_part_of_a_bounded_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sgd_file, "SWEEP_ROWS", 300)
    train, labels = make_features(500, seed=0)
    drawn = probes.draw(500, 300, seed=0)
    train300, labels300 = train[drawn], labels[drawn]
    part = Validation.of(labels300, seed=0)
    right = {}
    for lr in sgd_file.LEARNING_RATES:
        weights, biases = sgd_file.train_classifiers(
            train300[part.fit], labels300[part.fit], lrs=(lr,), num_classes=5, seed=0
        )
        scores = train300[part.held_out] @ weights[0].numpy().T + biases[0].numpy()
        right[lr] = np.mean(scores.argmax(axis=1) == labels300[part.held_out])
    assert right[choose_sgd(train, labels, seed=0)] == max(right.values())


# ---- Choosing without the test split


def test_nothing_that_chooses_or_fits_has_a_parameter_for_test_labels() -> None:
    for choose in (probes.choose_knn, probes.choose_logistic, choose_sgd):
        assert list(inspect.signature(choose).parameters) == ["train", "labels", "seed", "groups"]
    for classify in CLASSIFIERS:
        parameters = [name for name in inspect.signature(classify).parameters if name != "scale"]
        assert parameters == ["train", "labels", "test", "seed", "groups"]


@pytest.mark.parametrize("classify", CLASSIFIERS)
def test_what_is_chosen_does_not_depend_on_the_test_images(classify: object) -> None:
    assert callable(classify)
    train, labels = make_features(200, seed=0)
    test, _ = make_features(40, seed=1)
    one = classify(train, labels, test=test, seed=0)
    other = classify(train, labels, test=test[::-1] * 3, seed=0)
    assert one.chosen == other.chosen


def test_validation_holds_out_a_fifth_of_each_class() -> None:
    labels = np.repeat([0, 1, 2, 3], [50, 10, 2, 1])
    part = Validation.of(labels, seed=0)
    assert sorted([*part.fit, *part.held_out]) == list(range(63))
    assert [int((labels[part.held_out] == label).sum()) for label in range(4)] == [10, 2, 1, 0]
    other = Validation.of(labels, seed=1)
    np.testing.assert_array_equal(part.held_out, Validation.of(labels, seed=0).held_out)
    assert not np.array_equal(part.held_out, other.held_out)


@pytest.mark.parametrize("classify", CLASSIFIERS)
def test_a_class_with_one_image_is_no_obstacle(classify: object) -> None:
    assert callable(classify)
    train, labels = make_features(40, seed=0, num_classes=3)
    labels[0] = 77
    test = train[:1]
    assert classify(train, labels, test=test, seed=0).labels.shape == (1,)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "no image has a label; give --labels FILE.csv with the columns file,label"),
        ([1, 1, 1], r"labels have one class only \('cat', 3 images\): .* label images of another one"),
        ([0, 1], "labels have one image of each of 2 classes: .* label more images"),
    ],
)
def test_labels_that_cannot_be_learnt_are_refused(labels: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        probes.check_classes(np.array(labels, dtype=np.int64), ("dog", "cat"))


# ---- Features to features


def test_standardise_uses_the_training_statistics() -> None:
    rng = np.random.default_rng(0)
    train = rng.normal(5.0, 3.0, size=(100, 4)).astype(np.float32)
    train[:, 3] = 1234.5
    test = rng.normal(size=(10, 4)).astype(np.float32)
    new_train, new_test = probes.standardise(train, test)
    np.testing.assert_allclose(new_train.mean(axis=0), 0.0, atol=1e-6)
    np.testing.assert_allclose(new_train[:, :3].std(axis=0), 1.0, atol=1e-5)
    expected = (test[:, :3] - train[:, :3].mean(axis=0)) / train[:, :3].std(axis=0)
    np.testing.assert_allclose(new_test[:, :3], expected, atol=1e-4)
    np.testing.assert_allclose(new_train[:, 3], 0.0, atol=1e-3)


def test_rescale_keeps_the_ratios_of_features() -> None:
    rng = np.random.default_rng(0)
    train = (rng.normal(5.0, 1.0, size=(200, 3)) * [4.0, 2.0, 0.0]).astype(np.float32)
    new_train, new_test = probes.rescale(train, train[:7])
    std = train.std(axis=0)
    np.testing.assert_allclose(new_train.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(new_train.std(axis=0), std / np.sqrt(np.mean(std**2)), rtol=1e-4)
    np.testing.assert_array_equal(new_test, new_train[:7])
    np.testing.assert_array_equal(probes.rescale(np.ones_like(train), train)[0], np.zeros_like(train))


def test_whitened_training_features_are_uncorrelated_with_variance_1(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    train = (rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6)) + 5.0).astype(np.float32)
    monkeypatch.setattr(probes, "RIDGE", 0.0)
    whitened, first = probes.whiten(train, train[:7], seed=0)
    np.testing.assert_allclose(whitened.mean(axis=0), 0.0, atol=1e-4)
    np.testing.assert_allclose(np.cov(whitened.T, bias=True), np.eye(6), atol=1e-3)
    np.testing.assert_allclose(first, whitened[:7], atol=1e-5)
    monkeypatch.setattr(probes, "WHITENED_DIMENSIONS", 4)
    assert probes.whiten(train, train[:7], seed=0)[1].shape == (7, 4)


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_whitening_keeps_directions_without_variance_small(spread: float) -> None:
    """Fewer images than features, or images that are all equal: finite, and no larger than the others."""
    train = (spread * np.random.default_rng(0).normal(size=(5, 20))).astype(np.float32)
    for part in probes.whiten(train, train + np.float32(1e-4), seed=0):
        assert np.isfinite(part).all() and np.abs(part).max() < 3.0


def test_whitened_knn_sees_classes_that_a_strong_direction_hides() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    features = rng.normal(size=(400, 3)).astype(np.float32) * np.float32([30.0, 30.0, 0.1])
    features[:, 2] += labels
    train, test = features[:200], features[200:]
    plain, whitened = (
        (classify(train, labels[:200], test=test, seed=0).labels == labels[200:]).mean()
        for classify in (probes.knn, probes.whitened_knn)
    )
    assert plain < 0.7 < 0.9 < whitened


def test_pca_keeps_the_variance_of_an_exact_decomposition() -> None:
    train, _ = make_features(200, seed=0)
    model = probes.fit_pca(train, dimensions=4, seed=0)
    singular = np.linalg.svd(train - train.mean(axis=0), compute_uv=False)[:4]
    np.testing.assert_allclose(np.linalg.norm(model.transform(train), axis=0), singular, rtol=1e-3)


def test_pca_dimensions_are_capped_by_images_and_features(monkeypatch: pytest.MonkeyPatch) -> None:
    train, _ = make_features(30, seed=0)

    def count(rows: int) -> int:
        return len(probes.fit_pca(train[:rows], dimensions=256, seed=0).components_)

    assert count(30) == 16
    assert count(6) == 6
    monkeypatch.setattr(probes, "PCA_ROWS", 8)
    assert count(30) == 8


# ---- How good, and how sure


def test_balanced_accuracy_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice([1, 4, 9], size=100, p=[0.8, 0.15, 0.05])
    predicted = np.where(rng.random(100) < 0.7, labels, 1)
    expected = balanced_accuracy_score(labels, predicted)
    assert probes.balanced_accuracy(predicted, labels) == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.3, 0.85])
def test_interval_agrees_with_the_normal_approximation(share: float) -> None:
    correct = np.arange(2000) < 2000 * share
    low, high = probes.bootstrap_interval(correct, seed=0, num=20_000)
    half = 1.96 * np.sqrt(share * (1 - share) / 2000)
    assert (low, high) == (pytest.approx(share - half, abs=1e-3), pytest.approx(share + half, abs=1e-3))


def test_interval_agrees_with_resampling_the_images() -> None:
    correct = np.arange(50) < 40
    rng = np.random.default_rng(0)
    means = correct[rng.integers(0, 50, size=(20_000, 50))].mean(axis=1)
    expected = np.quantile(means, [0.025, 0.975])
    assert probes.bootstrap_interval(correct, seed=0, num=20_000) == pytest.approx(tuple(expected), abs=0.021)


def test_interval_at_the_ends() -> None:
    """All right: Wilson's is n / (n + z^2) to 1. A bootstrap alone would say 1 to 1."""
    low, high = probes.bootstrap_interval(np.ones(12, dtype=bool), seed=0, num=100)
    assert (low, high) == (pytest.approx(12 / (12 + 1.959964**2)), 1.0) and low == pytest.approx(
        0.7575, abs=1e-4
    )
    low, high = probes.bootstrap_interval(np.zeros(12, dtype=bool), seed=0, num=100)
    assert (low, high) == (0.0, pytest.approx(1 - 0.7575, abs=1e-4))
    low, high = probes.bootstrap_interval(np.ones(1, dtype=bool), seed=0, num=100)
    assert 0.2 < low < 0.21 and high == 1.0
    first = probes.bootstrap_interval(np.arange(30) < 20, seed=4, num=500)
    assert probes.bootstrap_interval(np.arange(30) < 20, seed=4, num=500) == first


@pytest.mark.parametrize(("right", "num"), [(0, 5), (1, 1), (12, 12), (37, 50), (990, 1000)])
def test_wilson_is_that_of_scipy(right: int, num: int) -> None:
    expected = binomtest(right, num).proportion_ci(method="wilson")
    assert probes.wilson_interval(right / num, num) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_interval_of_many_images_is_the_bootstrap(share: float) -> None:
    low, high = probes.bootstrap_interval(np.arange(10_000) < 10_000 * share, seed=0, num=2000)
    drawn = np.random.default_rng(0).binomial(10_000, share, size=2000) / 10_000
    assert (low, high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=1e-3)


@pytest.mark.parametrize(("num", "share"), [(12, 0.9), (20, 0.95), (30, 0.97), (100, 0.99), (1000, 0.6)])
def test_interval_holds_the_truth_where_it_should(num: int, share: float) -> None:
    """Over the exact probabilities of so many right answers. Bootstraps alone: 60 to 75 %, 95 of 1,000."""
    covered = 0.0
    for right in range(num + 1):
        low, high = probes.bootstrap_interval(np.arange(num) < right, seed=0, num=1000)
        covered += binom.pmf(right, num, share) * (low <= share <= high)
    assert covered > 0.94
