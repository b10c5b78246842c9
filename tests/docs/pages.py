"""README and documentation as the tests see them: code blocks, links, and the anchors of headings."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import docs_pages

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TYPES_ONLY = "types only"  # how a comment begins that keeps the next block from being run


@dataclass(frozen=True)
class Block:
    """A code block: where its first line is, its language, and the comment in the line before it."""

    page: str
    line: int
    language: str
    text: str
    remark: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        return not self.remark.startswith(TYPES_ONLY)


@dataclass(frozen=True)
class Link:
    """A link or picture of a page, and the line that it is in."""

    page: str
    line: int
    target: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.target}"


@cache
def read_pages() -> dict[str, str]:
    """Every page by its path in the repository, those in docs/ included."""
    written = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in written}


def list_blocks() -> list[Block]:
    """The code blocks of all pages, those that are indented included."""
    return [block for page, text in read_pages().items() for block in find_blocks(page, text)]


def find_blocks(page: str, text: str) -> Iterator[Block]:
    lines, start, before = text.splitlines(), None, ""
    for number, line in enumerate(lines, start=1):
        if not line.lstrip().startswith("```"):
            continue
        if start is None:
            start, before = number, lines[number - 2] if number > 1 else ""
            continue
        language = lines[start - 1].strip().removeprefix("```")
        remark = re.fullmatch(r"<!-- (.*) -->", before)
        content = "\n".join(lines[start : number - 1]) + "\n"
        yield Block(page, start + 1, language, content, remark[1] if remark else "")
        start = None
    assert start is None, f"{page}:{start}: the code block has no end"


def without_code(text: str) -> str:
    """The text with the lines of code blocks, and code in a line, left empty."""
    lines, inside = [], False
    for line in text.splitlines():
        fence = line.lstrip().startswith("```")
        inside = inside != fence
        lines.append("" if inside or fence else re.sub(r"`[^`]*`", "``", line))
    return "\n".join(lines)


def list_links() -> list[Link]:
    """The links and pictures of all pages that point into the repository."""
    return [
        Link(page, number, target)
        for page, text in read_pages().items()
        for number, line in enumerate(without_code(text).splitlines(), start=1)
        for target in re.findall(r"\]\(([^)\s]+)\)", line)
        if not re.match(r"https?://|mailto:", target)
    ]


@cache
def anchors_of(page: str) -> set[str]:
    """The anchors of a page's headings, as the site makes them, and the names of its Python objects."""
    text = read_pages()[page]
    inside, found = False, set[str]()
    for line in text.splitlines():
        inside = inside != line.lstrip().startswith("```")
        heading = None if inside else re.match(r"#{1,6} (.*?)(?:\{ ?#([\w-]+) ?\})?\s*$", line)
        if heading is not None:
            slug = heading[2] or docs_pages.slugify(heading[1])
            number = 1
            while slug in found:
                slug, number = f"{docs_pages.slugify(heading[1])}_{number}", number + 1
            found.add(slug)
        elif line.startswith("::: "):
            found.add(line.removeprefix("::: ").strip())
    return found
