"""The page: all that is given is escaped, pictures lie inside, nothing comes from elsewhere."""

from html.parser import HTMLParser

from byol.artifacts import page

_VOID = {"meta", "img"}


class Reader(HTMLParser):
    """Refuses what is not closed; keeps tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(content: bytes) -> Reader:
    reader = Reader()
    reader.feed(content.decode("utf-8"))
    reader.close()
    assert not reader.open
    return reader


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
