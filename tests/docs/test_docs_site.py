"""The site: built without a warning, its links lead somewhere, and nothing comes from the network."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import docs_pages
import pytest
from pages import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    pytest.importorskip("material", reason="the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [str(ROOT / "scripts" / "docs"), "-d", str(folder)],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "WARNING" not in said, said
    return folder


class Page(HTMLParser):
    """What a page links to, what it loads, and the ids in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links, self.loaded, self.ids = list[str](), list[str](), {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.loaded.append(given["href"])
        elif tag in ("img", "script", "iframe", "source", "video") and "src" in given:
            self.loaded.append(given["src"])


def test_every_page_is_built(site: Path) -> None:
    for name in docs_pages.list_pages():
        assert (site / name).with_suffix(".html").is_file()


def test_links_lead_to_pages_and_headings(site: Path) -> None:
    pages = {
        path: Page(path) for path in site.glob("*.html") if path.name not in ("404.html", "demo-report.html")
    }
    assert len(pages) == len(docs_pages.list_pages())
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path.name}: {link}"
            if target in pages and parts.fragment:
                assert unquote(parts.fragment) in pages[target].ids, f"{path.name}: {link}"


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for path in site.glob("*.html"):
        for source in Page(path).loaded:
            assert not urlsplit(source).netloc, f"{path.name} loads {source}"
            if not source.startswith("data:"):
                assert (path.parent / unquote(urlsplit(source).path)).exists() or path.name == "404.html", (
                    source
                )
    for path in (site / "assets").rglob("*.css"):
        for source in re.findall(r"url\(['\"]?(?!data:)([^)'\"]+)", path.read_text(encoding="utf-8")):
            assert not urlsplit(source).netloc, f"{path.name} loads {source}"


def test_search_finds_settings_and_functions(site: Path) -> None:
    index = (site / "search" / "search_index.json").read_text(encoding="utf-8")
    for words in ("trainer.max_epochs", "byol.evaluate", "byol finetune"):
        assert words in index
