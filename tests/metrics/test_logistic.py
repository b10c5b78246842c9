"""Logistic regression against scikit-learn's, fitted to a far smaller tolerance."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from byol.metrics.logistic import Problem


def make_features(
    num_images: int, num_features: int, num_classes: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Much alike, as an encoder's are: variances fall from 1 to 1e-6 in directions of their own."""
    rng = np.random.default_rng(num_images)
    labels = np.arange(num_images) % num_classes
    scale = np.logspace(0, -3, num_features)
    mixing, _ = np.linalg.qr(rng.normal(size=(num_features, num_features)))
    hidden = (
        rng.normal(size=(num_images, num_features))
        + 0.7 * rng.normal(size=(num_classes, num_features))[labels]
    )
    return (3.0 + (hidden * scale) @ mixing).astype(np.float32), labels


@pytest.mark.parametrize("inverse_penalty", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize(
    ("num_images", "num_features", "num_classes"), [(300, 20, 5), (300, 20, 2), (30, 80, 3), (12, 40, 2)]
)
def test_weights_and_biases_are_those_of_scikit_learn(
    num_images: int, num_features: int, num_classes: int, inverse_penalty: float
) -> None:
    features, labels = make_features(num_images, num_features, num_classes)
    problem = Problem.of(features, labels, num_classes=num_classes)
    model = problem.fit(inverse_penalty=inverse_penalty)
    reference = LogisticRegression(C=inverse_penalty, solver="newton-cg", max_iter=1000, tol=1e-8)
    reference.fit(features.astype(np.float64), labels)
    expected = reference.decision_function(features.astype(np.float64))
    scores = model.score(features)
    if num_classes == 2:
        np.testing.assert_allclose(scores[:, 1] - scores[:, 0], expected, rtol=1e-3, atol=2e-3)
    else:
        centred = expected - expected.mean(axis=1, keepdims=True)
        scores -= scores.mean(axis=1, keepdims=True)
        np.testing.assert_allclose(scores, centred, rtol=1e-3, atol=2e-3)


def test_where_it_starts_does_not_change_where_it_ends() -> None:
    features, labels = make_features(200, 30, 4)
    problem = Problem.of(features, labels, num_classes=4)
    weak, strong = (problem.fit(inverse_penalty=c) for c in (1e-4, 0.1))
    again = problem.fit(inverse_penalty=0.1, start=weak)
    np.testing.assert_allclose(again.score(features), strong.score(features), atol=1e-3)
    assert not np.allclose(weak.score(features), strong.score(features), atol=0.1)


def test_features_that_say_nothing_get_no_weight() -> None:
    """Constant ones, and the same one twice: no division by a variance of 0."""
    features, labels = make_features(60, 3, 2)
    constant = np.full((60, 4), 7.0, dtype=np.float32)
    model = Problem.of(np.concatenate([features, constant, features], axis=1), labels, num_classes=2).fit(
        inverse_penalty=1.0
    )
    np.testing.assert_allclose(model.weights[:, 3:7], 0.0, atol=1e-9)
    np.testing.assert_allclose(model.weights[:, :3], model.weights[:, 7:], atol=1e-9)
    nothing = Problem.of(constant, labels, num_classes=2).fit(inverse_penalty=1.0)
    np.testing.assert_array_equal(nothing.weights, 0.0)
