"""The pictures of docs/numbers.md: drawn from byol's own functions, and equal to the committed ones."""

import xml.etree.ElementTree as ET

import docs_pictures
import pytest
from pages import DOCS

from byol.training.runlog import Metrics


@pytest.mark.parametrize("kind", docs_pictures.SPHERES)
def test_spheres_are_the_committed_ones(kind: str) -> None:
    assert_same(docs_pictures.draw_sphere(kind), f"sphere-{kind}.svg")


def test_verdicts_are_the_committed_ones() -> None:
    svg = docs_pictures.draw_verdicts()
    assert_same(svg, "verdicts.svg")
    for words in ("BYOL helps", "not certain", "not better than the best baseline", "does not help here"):
        assert words in svg


def test_the_spheres_show_what_the_page_says() -> None:
    """Collapsed features align and are not uniform, mixed-up ones the other way round; good ones do both."""
    measures = {}
    for kind in docs_pictures.SPHERES:
        first, second = docs_pictures.make_features(kind)
        health = docs_pictures.health
        measures[kind] = (
            float(health.measure_alignment(first, second)),
            float(health.measure_uniformity(first)),
        )
    assert measures["collapsed"][0] < 0.01 and measures["collapsed"][1] > -0.01
    assert measures["random"][0] > 1.0 and measures["random"][1] < -1.5
    assert measures["good"][0] < 0.01 and measures["good"][1] < -1.5
    assert measures["good"][1] < measures["crowded"][1] < measures["collapsed"][1]


def test_curves_show_both_runs() -> None:
    def log(*losses: float) -> list[Metrics]:
        fields = {name: 0.0 for name in Metrics.__dataclass_fields__}
        return [
            Metrics(**{**fields, "done": 10 * at, "loss": loss, "rank": 5.0, "knn": 0.2, "verdict": "weak"})
            for at, loss in enumerate(losses, start=1)
        ]

    for curve in docs_pictures.CURVES:
        svg = docs_pictures.draw_curve(curve, [("healthy", log(2.0, 1.0)), ("collapsed", log(2.0, 0.1))])
        root = ET.fromstring(svg)
        assert svg.count("<polyline") == 2 and "healthy" in svg and "collapsed" in svg
        assert root.get("aria-label", "").startswith(curve.title)


def assert_same(svg: str, name: str) -> None:
    """Equal but for the last digit of coordinates, which CPUs round differently."""
    ours, committed = (
        list(ET.fromstring(text).iter()) for text in (svg, (DOCS / "pictures" / name).read_text())
    )
    assert [(one.tag, one.text) for one in ours] == [(two.tag, two.text) for two in committed]
    for one, two in zip(ours, committed, strict=True):
        for key in ("x", "y", "cx", "cy"):
            assert float(one.get(key, 0)) == pytest.approx(float(two.get(key, 0)), abs=0.2)
