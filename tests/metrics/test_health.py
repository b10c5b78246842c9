"""Health: closed-form values of each measure, and the word for each kind of projections."""

import math

import pytest
import torch

from byol.metrics.health import (
    Measures,
    compare,
    describe_loss,
    judge,
    measure_alignment,
    measure_feature_std,
    measure_knn,
    measure_rank,
    measure_retrieval,
    measure_uniformity,
)


def test_feature_std_of_even_directions_is_one_over_root_d() -> None:
    torch.manual_seed(0)
    std = float(measure_feature_std(torch.randn(20_000, 64)))
    assert std == pytest.approx(1 / math.sqrt(64), rel=0.02)


def test_feature_std_ignores_length() -> None:
    torch.manual_seed(0)
    projection = torch.randn(100, 8)
    lengths = torch.rand(100, 1) + 0.1
    torch.testing.assert_close(measure_feature_std(projection * lengths), measure_feature_std(projection))


def test_rank_counts_directions() -> None:
    """Points at +-e_i for i < 5, equally often: mean 0, five equal singular values."""
    basis = torch.eye(16)[:5]
    projection = torch.cat([basis, -basis]).repeat(4, 1)
    assert float(measure_rank(projection)) == pytest.approx(5.0, rel=1e-4)


def test_one_common_direction_does_not_count() -> None:
    torch.manual_seed(0)
    projection = torch.randn(256, 32)
    shifted = projection / projection.norm(dim=1, keepdim=True) + torch.full((32,), 0.1)
    assert float(measure_rank(shifted)) == pytest.approx(float(measure_rank(projection)), rel=0.05)


@pytest.mark.parametrize(
    ("spread", "dimensions", "verdict"),
    [
        (1.0, 64, "healthy"),
        (0.2, 64, "weak"),
        (0.08, 64, "collapsing"),
        (0.001, 64, "collapsed"),
        (1.0, 1, "collapsing"),
    ],
)
def test_the_word(spread: float, dimensions: int, verdict: str) -> None:
    """Directions around a common one, ever closer to it; or all on one line."""
    torch.manual_seed(0)
    common = torch.nn.functional.normalize(torch.ones(64), dim=0)
    noise = torch.randn(256, 64) / 8.0
    noise[:, dimensions:] = 0.0
    if dimensions == 1:
        noise = noise * 8.0
    assert judge((1 - spread) * common + spread * noise).verdict == verdict


def test_equal_projections_are_collapsed() -> None:
    health = judge(torch.ones(32, 8))
    assert health.verdict == "collapsed" and health.feature_std == pytest.approx(0.0, abs=1e-6)


def test_retrieval_is_the_share_of_views_found() -> None:
    torch.manual_seed(0)
    first = torch.randn(40, 16)
    second = 3.0 * first + 0.01 * torch.randn(40, 16)  # lengths do not matter
    assert float(measure_retrieval(first, second)) == 1.0
    second[:10] = second[:10].roll(1, dims=0)
    assert float(measure_retrieval(first, second)) == pytest.approx(0.75)


def test_alignment_is_the_squared_distance_of_the_views() -> None:
    first = torch.eye(4)
    assert float(measure_alignment(first, 3.0 * first)) == 0.0  # lengths do not matter
    assert float(measure_alignment(first, -first)) == pytest.approx(4.0)
    assert float(measure_alignment(first, first.roll(1, dims=0))) == pytest.approx(2.0)


def test_uniformity_of_a_simplex_and_of_one_point() -> None:
    """Every pair of corners is at a squared distance of 2: log exp(-4)."""
    assert float(measure_uniformity(torch.eye(5))) == pytest.approx(-4.0)
    assert float(measure_uniformity(torch.ones(5, 3))) == pytest.approx(0.0, abs=1e-6)


def test_knn_is_that_of_scikit_learn() -> None:
    from sklearn.model_selection import LeaveOneOut, cross_val_predict
    from sklearn.neighbors import KNeighborsClassifier

    torch.manual_seed(0)
    labels = torch.arange(60) % 2  # of two classes five votes are never equal
    features = torch.randn(60, 8) + labels[:, None]
    classifier = KNeighborsClassifier(5, metric="cosine")
    predicted = cross_val_predict(classifier, features.numpy(), labels.numpy(), cv=LeaveOneOut())
    unknown = torch.cat([labels, torch.full((7,), -1)])
    found = measure_knn(torch.cat([features, torch.randn(7, 8)]), unknown)
    assert found == pytest.approx(float((predicted == labels.numpy()).mean()))


def test_knn_needs_two_classes() -> None:
    assert measure_knn(torch.randn(6, 4), torch.tensor([-1, -1, -1, 0, 0, 0])) is None
    assert measure_knn(torch.randn(6, 4), torch.tensor([0, 0, 0, 0, 0, 1])) is None


def test_worse_and_better_than_before() -> None:
    before = Measures(0.5, 40.0, 0.3)
    assert describe_loss(Measures(0.39, 40.0, None), before) == "view-retrieval accuracy 50.0 % -> 39.0 %"
    assert describe_loss(Measures(0.5, 19.0, None), before) == "effective rank 40.0 -> 19.0"
    assert describe_loss(Measures(0.41, 21.0, 0.0), before) is None  # labels do not count
    assert describe_loss(Measures(0.01, 40.0, None), Measures(0.05, 40.0, None)) is None
    text = "view-retrieval accuracy 50.0 % -> 75.0 %, effective rank 40.0 -> 41.0, "
    text += "kNN accuracy 30.0 % -> 60.0 %"
    assert compare(Measures(0.75, 41.0, 0.6), before)[1] == text
    assert "kNN" not in compare(Measures(0.75, 41.0, None), before)[1]
