"""Health: closed-form values of std and rank, and the word for each kind of projections."""

import math

import pytest
import torch

from byol.training.health import judge, measure_feature_std, measure_rank


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
