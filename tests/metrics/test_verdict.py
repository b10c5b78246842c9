"""The one rule by which BYOL helps or not, and its words."""

from dataclasses import dataclass

import pytest

from byol.metrics.verdict import Verdict, judge, show_classifier


@dataclass(frozen=True)
class Row:
    features: str
    top1: float
    classifier: str = "knn"

    @property
    def low95(self) -> float:
        return self.top1 - 0.02

    @property
    def high95(self) -> float:
        return self.top1 + 0.02


def judge_one(*rows: Row) -> Verdict:
    (verdict,) = judge(rows)
    return verdict


@pytest.mark.parametrize(
    ("shares", "kind", "sentence"),
    [
        (
            (0.236, 0.572, 0.844),
            "good",
            "BYOL helps: with kNN 84.4 % against untrained 57.2 % and pixels 23.6 %; "
            "the intervals do not overlap.",
        ),
        (
            (0.5, 0.58, 0.6),
            "warn",
            "BYOL is ahead, but the difference is not certain: with kNN 60.0 % against untrained 58.0 % and "
            "pixels 50.0 %; the intervals of BYOL and untrained overlap.",
        ),
        (
            (0.7, 0.5, 0.6),
            "bad",
            "BYOL does not help here: with kNN 60.0 % against untrained 50.0 % and pixels 70.0 %; "
            "the interval of BYOL lies below that of pixels.",
        ),
        (
            (0.63, 0.5, 0.6),
            "bad",
            "BYOL is not better than the best baseline: with kNN 60.0 % "
            "against untrained 50.0 % and pixels 63.0 %; "
            "the intervals of BYOL and pixels overlap.",
        ),
        (
            (0.5, 0.6, 0.6),
            "bad",
            "BYOL is not better than the best baseline: with kNN 60.0 % "
            "against untrained 60.0 % and pixels 50.0 %; "
            "the intervals of BYOL and untrained overlap.",
        ),
    ],
)
def test_the_verdict_is_plain(shares: tuple[float, float, float], kind: str, sentence: str) -> None:
    rows = [
        Row(name, share) for name, share in zip(("pixels", "untrained", "byol online"), shares, strict=True)
    ]
    verdict = judge_one(*rows)
    assert (verdict.kind, verdict.sentence) == (kind, sentence)
    assert verdict.online == rows[2] and verdict.baseline == max(rows[:2], key=lambda row: row.top1)


def test_other_weights_change_no_verdict_and_are_named_where_they_are_better() -> None:
    rows = [Row("pixels", 0.2), Row("untrained", 0.3), Row("byol online", 0.6), Row("byol target", 0.9)]
    plain = judge_one(*rows)
    assert plain == judge_one(*rows, Row("weights timm:resnet18", 0.6))
    better = judge_one(*rows, Row("weights timm:resnet18", 0.7))
    assert better.kind == "good"
    assert better.sentence == (
        plain.sentence.removesuffix(".") + "; weights timm:resnet18 reach 70.0 %, more than BYOL."
    )


def test_patches_are_a_baseline_like_the_others() -> None:
    rows = [Row("pixels", 0.2), Row("untrained", 0.3), Row("byol online", 0.6)]
    assert judge_one(*rows, Row("patches", 0.5)).sentence == (
        "BYOL helps: with kNN 60.0 % against untrained 30.0 %, pixels 20.0 % and patches 50.0 %; "
        "the intervals do not overlap."
    )
    verdict = judge_one(*rows, Row("patches", 0.7))
    assert (verdict.kind, verdict.baseline.features) == ("bad", "patches")
    assert verdict.sentence.endswith("; the interval of BYOL lies below that of patches.")


def test_each_classifier_that_has_judged_both_sides_has_a_verdict() -> None:
    rows = [Row(name, 0.5, classifier) for classifier in ("sgd", "knn") for name in ("pixels", "byol online")]
    assert [verdict.classifier for verdict in judge(rows)] == ["sgd", "knn"]
    assert [show_classifier(name) for name in ("sgd", "knn", "whitened knn")] == [
        "sgd",
        "kNN",
        "whitened kNN",
    ]
    assert judge(rows[:1]) == judge(rows[1:2]) == judge([]) == ()
