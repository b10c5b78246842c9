"""A page: all that is given is escaped, and what no line can hold is written out."""

from pathlib import Path

from byol.pictures.page import render_page, to_address
from html_reader import read

TEMPLATE = (
    "<html><title>{{ title }}</title><p title=\"{{ title }}\">{{ title }}</p>{{ include_raw('a.js') }}</html>"
)


def make_page(folder: Path, title: str) -> bytes:
    (folder / "page.html").write_text(TEMPLATE)
    (folder / "a.js").write_text("<b>as it is</b>")
    return render_page(folder / "page.html", {"title": title})


def test_text_is_escaped_everywhere(tmp_path: Path) -> None:
    evil = "<script>alert('\"&')</script>"
    reader = read(make_page(tmp_path, evil))
    assert reader.tags == ["html", "title", "p", "b"]
    assert reader.text.count(evil) == 2 and ("title", evil) in reader.attributes


def test_names_that_no_line_can_hold(tmp_path: Path) -> None:
    text = read(make_page(tmp_path, "a\nb \udcff.png tab\t \u202e")).text
    assert "a\\nb \\xff.png tab\\t \\u202e" in text


def test_a_picture_lies_in_the_page() -> None:
    assert to_address(b"png", "png") == "data:image/png;base64,cG5n"
