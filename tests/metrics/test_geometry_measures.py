"""Measures against closed forms, and when an encoder is called better."""

import numpy as np
import pytest

from byol.metrics.geometry import Geometry, judge, measure


def test_views_that_agree_and_lie_at_right_angles() -> None:
    eye = np.eye(8, dtype=np.float32)
    found = measure(eye, eye, second=eye, seed=0)
    # The centred simplex of 8 corners has 7 equal singular values.
    assert found.rank == pytest.approx(7.0, rel=1e-4) and found.max_rank == 7
    assert found.alignment == 0.0
    assert found.uniformity == pytest.approx(-4.0, rel=1e-5)  # every squared distance is 2
    assert (found.retrieval, found.retrieval_high95) == (1.0, 1.0)
    assert found.retrieval_low95 == pytest.approx(8 / (8 + 1.96**2), abs=1e-4)  # Wilson's, of 8 of 8


def test_the_whole_images_give_the_rank_and_the_views_the_rest() -> None:
    eye = np.eye(4, dtype=np.float32)
    line = np.outer(np.arange(1, 5), [1, 0, 0, 0]).astype(np.float32) + np.float32([0, 1, 0, 0])
    assert measure(line, line, second=line, seed=0).rank < 2.0
    found = measure(line, eye, second=-eye, seed=0)
    assert found.rank < 2.0 and found.max_rank == 3
    assert found.alignment == pytest.approx(4.0)  # opposite points
    assert found.retrieval == 0.0


def test_a_share_that_is_found_again_has_an_interval() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=(200, 64)).astype(np.float32)
    second = first.copy()
    second[:100] = rng.normal(size=(100, 64))
    found = measure(first, first, second=second, seed=0)
    assert 0.5 <= found.retrieval < 0.55
    half = 1.96 * np.sqrt(found.retrieval * (1 - found.retrieval) / 200)
    assert found.retrieval_high95 - found.retrieval == pytest.approx(half, abs=0.02)
    assert found.retrieval - found.retrieval_low95 == pytest.approx(half, abs=0.02)
    assert measure(first, first, second=second, seed=0) == found


# ---- The verdict


def make_geometry(
    retrieval: float, *, alignment: float = 0.3, rank: float = 40.0, half: float = 0.02
) -> Geometry:
    return Geometry(rank, 95, alignment, -2.0, retrieval, retrieval - half, retrieval + half)


@pytest.mark.parametrize(
    ("trained", "sentence"),
    [
        (
            make_geometry(0.51, alignment=0.1),
            "Judged without labels, the trained encoder is better than the untrained one, because alignment "
            "+ uniformity, the deciding measure, is lower: alignment + uniformity -1.90 (untrained "
            "-1.70; lower is better), view-retrieval accuracy 51.0 % "
            "(untrained 50.0 %; higher is better).",
        ),
        (
            make_geometry(0.52),
            "Judged without labels, the trained encoder is not better than the untrained one: for that, "
            "alignment + uniformity, the deciding measure, must be lower by more than 0.1: ",
        ),
        (
            make_geometry(0.52, alignment=0.5),
            "Judged without labels, the trained encoder is WORSE than the untrained one, because alignment + "
            "uniformity, the deciding measure, is higher: ",
        ),
        (
            make_geometry(0.2, alignment=0.1),
            "Judged without labels, the trained encoder is WORSE than the untrained one, because its "
            "view-retrieval accuracy is lower and the intervals do not overlap: ",
        ),
        (
            make_geometry(0.8, alignment=0.1, rank=9.0),
            "Measures without labels cannot tell whether the trained encoder is better than the untrained "
            "one, because it lost more than three quarters of its effective rank: 9 (untrained 40), ",
        ),
    ],
    ids=["better", "not better", "worse", "views lost", "rank lost"],
)
def test_the_verdict_is_plain(trained: Geometry, sentence: str) -> None:
    assert judge(trained, make_geometry(0.5)).startswith(sentence)


def test_an_encoder_that_gives_every_image_the_same_is_not_better() -> None:
    collapsed = Geometry(1.0, 95, 0.0, 0.0, 0.01, 0.0, 0.02)
    assert "WORSE" in judge(collapsed, make_geometry(0.5))
