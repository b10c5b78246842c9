"""The page: all that is given is escaped, pictures lie inside, nothing comes from elsewhere."""

from byol.pictures import page
from html_reader import read


def test_text_is_escaped_everywhere() -> None:
    evil = "<script>alert('\"&')</script>"
    parts = [
        page.heading(evil),
        page.paragraph(evil, kind="bad"),
        page.paragraph(evil),
        page.items([evil], kind="warn"),
        page.table([evil], [[evil, "2"]]),
        page.picture(b"png", title=evil),
    ]
    reader = read(page.make_page(evil, parts))
    assert "script" not in reader.tags
    assert reader.text.count(evil) == 8
    assert ("alt", evil) in reader.attributes
    assert ("src", "data:image/png;base64,cG5n") in reader.attributes


def test_names_that_no_line_can_hold() -> None:
    names = ["a\nb", "\udcff.png", "tab\t", "ö \u202e"]
    assert [page.printable(name) for name in names] == ["a\\nb", "\\xff.png", "tab\\t", "ö \\u202e"]
    assert "a\\nb" in read(page.make_page("t", [page.items(names)])).text
