"""CITATION.cff, SECURITY.md and the issue forms are what GitHub reads, and name nobody."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from byol.cli.parser import make_parser

ROOT = Path(__file__).parents[1]
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")
# What the schema of version 1.2.0 allows at the top, and what it requires.
CFF_REQUIRED = {"authors", "cff-version", "message", "title"}
CFF_KEYS = CFF_REQUIRED | {
    "abstract", "commit", "contact", "date-released", "doi", "identifiers", "keywords", "license",
    "license-url", "preferred-citation", "references", "repository", "repository-artifact",
    "repository-code", "type", "url", "version",
}  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def test_the_citation_is_that_of_the_package() -> None:
    citation = read(ROOT / "CITATION.cff")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(citation) >= CFF_REQUIRED and set(citation) <= CFF_KEYS
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    for key in ("authors", "license", "keywords", "version"):
        assert citation[key] == project[key], key
    assert citation["title"] == project["name"]
    assert all(
        isinstance(value, str) for key, value in citation.items() if key not in ("authors", "keywords")
    )


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_is_one_that_github_shows(path: Path) -> None:
    form = read(path)
    assert set(form) == {"name", "description", "title", "labels", "body"}
    assert len({field["id"] for field in form["body"]}) == len(form["body"])
    assert any(field["validations"]["required"] for field in form["body"])
    for field in form["body"]:
        assert set(field) == {"type", "id", "attributes", "validations"} and field["type"] == "textarea"
        assert re.fullmatch(r"[a-z]+", field["id"])
        assert "label" in field["attributes"] and set(field["attributes"]) <= {
            "label",
            "description",
            "render",
        }
        assert set(field["validations"]) == {"required"}


def test_there_is_a_form_for_each_kind_and_a_bug_asks_for_the_environment() -> None:
    assert [path.stem for path in FORMS] == ["bug", "feature", "question"]
    fields = {field["id"]: field for field in read(ROOT / ".github/ISSUE_TEMPLATE/bug.yml")["body"]}
    assert "`byol env`" in fields["environment"]["attributes"]["label"]
    assert fields["environment"]["validations"]["required"]
    assert fields["environment"]["attributes"]["render"] == "text"


@pytest.mark.parametrize(
    "path", [ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md", *FORMS], ids=lambda path: path.name
)
def test_commands_that_are_named_exist(path: Path) -> None:
    known = next(iter(make_parser()._subparsers._group_actions)).choices  # type: ignore[union-attr]
    named = re.findall(r"`byol ([a-z]+)", path.read_text(encoding="utf-8"))
    assert set(named) <= set(known)  # type: ignore[arg-type]


def test_no_person_and_no_address() -> None:
    for name in ("CITATION.cff", "SECURITY.md", "CONTRIBUTING.md", "LICENSE", "pyproject.toml"):
        assert re.search(r"[\w.]+@[\w-]+\.\w+", (ROOT / name).read_text(encoding="utf-8")) is None, name
    assert "private reporting" in (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_security_says_what_the_code_does() -> None:
    """A class that could be unpickled, or a checkpoint opened without weights_only, would make it untrue."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    calls = re.findall(r"torch\.load\(((?:[^()]|\([^()]*\))*)\)", source)
    assert calls and all("weights_only=True" in call for call in calls)
