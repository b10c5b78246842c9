"""Charts are well-formed, inside of their box, and labelled."""

import xml.etree.ElementTree as ElementTree

import pytest

from byol.pictures.charts import Series, draw_bar, draw_lines


def places(svg: str) -> list[tuple[float, float]]:
    lines = [e for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("polyline")]
    pairs = " ".join(line.get("points", "") for line in lines).split()
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in pairs)]


@pytest.mark.parametrize(
    "values",
    [
        [0.0, 1.0, 2.0],
        [5.0, 5.0],
        [0.0, 0.0],
        [1e-6, 1e6],
        [-3.0, -2.0],
        [7.0],
        [float(at) for at in range(5000)],
    ],
)
def test_curves_stay_inside(values: list[float]) -> None:
    svg = draw_lines(
        [Series("a", [float(at) for at in range(len(values))], values)], title="t", x_label="step"
    )
    assert 0 < len(places(svg)) <= 402
    assert all(46 <= x <= 340 and 10 <= y <= 160.05 for x, y in places(svg))


def test_the_label_at_the_end_has_name_and_value_and_names_are_escaped() -> None:
    svg = draw_lines(
        [Series("<b>", [1.0, 2.0], [0.1, 0.5]), Series("other\n", [1.0, 2.0], [0.1, 0.5])],
        title="t",
        x_label="step",
        show=lambda value: f"{100 * value:.0f} %",
    )
    root = ElementTree.fromstring(svg)
    ends = [e for e in root.iter() if "end" in e.get("class", "").split()]
    assert sorted(e.text or "" for e in ends) == ["<b> 50 %", "other\\n 50 %"]
    heights = sorted(float(e.get("y", "0")) for e in ends)
    assert heights[1] - heights[0] >= 13  # they do not overlap


def test_logarithmic_places_are_even_for_equal_factors() -> None:
    svg = draw_lines([Series("a", [1.0, 10.0, 100.0], [1.0, 2.0, 3.0])], title="t", x_label="n", log_x=True)
    (first, _), (second, _), (third, _) = places(svg)
    assert second - first == pytest.approx(third - second, abs=0.2)


def test_a_bar_and_its_whisker_have_their_lengths() -> None:
    root = ElementTree.fromstring(draw_bar(0.5, 0.25, 0.75, kind="main", title="a < b"))
    (bar,) = (e for e in root.iter() if e.tag.endswith("rect"))
    (whisker,) = (e for e in root.iter() if e.tag.endswith("path"))
    assert float(bar.get("width", "0")) == 120 and (whisker.get("d") or "").startswith("M60.0 9.0H180.0")
    assert root.get("aria-label") == "a < b"
