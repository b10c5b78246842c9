"""Links, anchors, figures and settings that README and documentation name exist."""

import ast
import json
import re
import tomllib

import docs_pages
import pytest
from pages import DOCS, ROOT, Link, anchors_of, list_links, read_pages, without_code

import byol
from byol.config import keys


@pytest.mark.parametrize("link", list_links(), ids=str)
def test_links_lead_somewhere(link: Link) -> None:
    path, _, anchor = link.target.partition("#")
    folder = (ROOT / link.page).parent
    page = (folder / path).resolve().relative_to(ROOT).as_posix() if path else link.page
    assert page in read_pages() or (ROOT / page).exists(), f"{link}: there is no {page}"
    if anchor:
        assert anchor in anchors_of(page), f"{link}: {page} has no heading {anchor}"


def test_anchors_are_those_of_python_markdown() -> None:
    """Compared with what the site's own library makes of hard headings."""
    assert (
        docs_pages.slugify("Continue, start from weights, fine-tune")
        == "continue-start-from-weights-fine-tune"
    )
    assert docs_pages.slugify("`trainer.max_epochs`") == "trainermax_epochs"
    assert docs_pages.slugify("What is left?  Größe") == "what-is-left-groe"
    toc = pytest.importorskip("markdown.extensions.toc")
    for heading in (
        "One line each: predicted, measured",
        "3\u00d73 layers \u2013 on CPUs",
        "[A](b.md) & c_d",
    ):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        assert docs_pages.slugify(heading) == toc.slugify(plain, "-")


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    in_navigation = re.findall(r": ([\w-]+\.md)$", text.partition("\nnav:\n")[2], re.MULTILINE)
    assert sorted(in_navigation) == list(docs_pages.list_pages())


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 8000


def test_settings_that_are_named_exist() -> None:
    known = {
        *keys.leaves(),
        *keys.sections(),
        *(f"{keys.BOTH_VIEWS}.{x}" for x in keys.sections()[keys.BOTH_VIEWS]),
    }
    pattern = re.compile(
        r"\b(?:network|data_transforms|data|trainer|optimizer|evaluation)(?:\.[a-z]\w*)+\b(?!\()"
    )
    for page, text in read_pages().items():
        if page == "docs/decisions.md":  # which names settings that were rejected
            continue
        named = {name for code in re.findall(r"`([^`\n]+)`", text) for name in pattern.findall(code)}
        wrong = {name for name in named - known if not name.endswith((".py", ".md", ".json", ".csv", ".npy"))}
        assert not wrong, f"{page} names settings that do not exist: {wrong}"


def test_commands_that_are_named_exist() -> None:
    known = {name for name, _, _ in docs_pages.list_subparsers(docs_pages.make_parser())} | {
        "COMMAND",
        "online",
        "target",
    }
    for page, text in read_pages().items():
        named = set(re.findall(r"`byol ([a-zA-Z]+)", text))
        assert named <= known, f"{page} names commands that do not exist: {named - known}"


def test_every_public_name_is_on_the_page_of_python() -> None:
    documented = {
        name.removeprefix("byol.") for name in anchors_of("docs/api.md") if name.startswith("byol.")
    }
    assert documented == set(byol.__all__) - {"__version__"}


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_extras_are_explained(page: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    table = re.search(r"\| extra \|.*?\n\n", read_pages()[page], re.DOTALL)
    assert table is not None
    first_cells = [line.split("|")[1] for line in table[0].strip().splitlines()[2:]]
    named = {name for cell in first_cells for name in re.findall(r"`([\w-]+)`", cell)}
    assert named == set(project["optional-dependencies"])


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
@pytest.mark.parametrize("name", ["default/cifar10", "default/plankton", "cellcycle16"])
def test_figures_are_those_of_the_committed_results(page: str, name: str) -> None:
    table = json.loads((ROOT / "benchmarks" / "results" / name / "eval.json").read_text(encoding="utf-8"))
    for features in ("pixels", "untrained", "byol online"):
        by_classifier = {
            row["classifier"]: row["top1"] for row in table["rows"] if row["features"] == features
        }
        shown = f"{100 * by_classifier['logistic regression']:.1f} / {100 * by_classifier['knn']:.1f} %"
        assert shown in read_pages()[page].replace("**", ""), f"{name}, {features}"


def test_pictures_of_the_pages_are_small() -> None:
    pictures = sorted((DOCS / "pictures").iterdir())
    assert pictures and sum(path.stat().st_size for path in pictures) < 300_000
    shown = " ".join(text for page, text in read_pages().items() if page.startswith("docs/"))
    for path in pictures:
        assert f"pictures/{path.name}" in shown, f"{path.name} is on no page"


def test_code_is_not_taken_for_text() -> None:
    text = "a [b](c)\n```sh\n[d](e)\n```\n`[f](g)` end\n"
    assert without_code(text) == "a [b](c)\n\n\n\n`` end"


def test_messages_that_are_explained_exist() -> None:
    """Each part between the dots is in one text of the package, in this order."""
    table = read_pages()["docs/troubleshooting.md"].partition("## By message")[2]
    fragments = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert len(fragments) > 20
    texts = list_texts()
    for fragment in fragments:
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in fragment.split("…")), re.DOTALL)
        assert any(pattern.search(text) for text in texts), (
            f"no message contains {fragment!r}: change the page"
        )


def list_texts() -> list[str]:
    """Every text in the sources of the package, with dots for what is filled in."""
    texts = []
    for path in (ROOT / "src" / "byol").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                texts.append("".join(map(str, parts)))
    return texts


def test_decisions_are_indexed() -> None:
    text = read_pages()["docs/decisions.md"]
    index = list(docs_pages.list_headings(text))
    assert docs_pages.INDEX in text and len(index) > 80
    anchors = [re.findall(r"\(#([\w-]+)\)", line)[0] for line in index]
    assert len(set(anchors)) == len(anchors) and set(anchors) <= anchors_of("docs/decisions.md")
    below = text.partition("\n## ")[2]
    assert not re.search(r"^# ", below, re.MULTILINE)
    for section in re.split(r"^## ", below, flags=re.MULTILINE):  # every decision has a heading
        assert section.partition("\n")[2].lstrip().startswith("### "), section[:80]


def test_tests_that_are_named_exist() -> None:
    """Each promise names its tests."""
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(test_\w+))?`", (DOCS / "reliability.md").read_text())
    assert len(named) > 15
    for path, test in named:
        assert f"def {test}(" in (ROOT / path).read_text() if test else (ROOT / path).is_file(), (path, test)
