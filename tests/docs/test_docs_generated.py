"""The generated pages are up to date and hold every command and setting, with examples that work."""

import re

import docs_pages
import pytest
from pages import read_pages

from byol.config import examples, keys, load_partial

COMMANDS, SETTINGS = read_pages()["docs/cli.md"], read_pages()["docs/settings.md"]


@pytest.mark.parametrize("name", docs_pages.PAGES)
def test_the_page_in_the_repository_is_up_to_date(name: str) -> None:
    is_same = read_pages()[f"docs/{name}"] == docs_pages.PAGES[name]()
    assert is_same, f"docs/{name} differs from the program: run python scripts/docs_pages.py"


def test_every_command_and_argument_is_there() -> None:
    for name, summary, parser in docs_pages.list_subparsers(docs_pages.make_parser()):
        section = re.search(rf"^## byol {name}$(.*?)(?=^## |\Z)", COMMANDS, re.MULTILINE | re.DOTALL)
        assert section is not None and summary
        options = [option for action in parser._actions for option in action.option_strings]
        for option in set(options) - {"-h", "--help"}:
            assert f"`{option}`" in section[1], f"byol {name} {option}"
        for line in section[1].splitlines():
            assert not re.fullmatch(r"\| .* \|  ?\|", line), (
                f"byol {name}: an argument without a text: {line}"
            )
        assert "%(" not in section[1]


@pytest.mark.parametrize("key", keys.leaves())
def test_every_setting_is_explained(key: str) -> None:
    shown = key.replace("view1.", "view.").replace("view2.", "view.")
    section = re.search(rf"^### `{re.escape(shown)}`$(.*?)(?=^##|\Z)", SETTINGS, re.MULTILINE | re.DOTALL)
    assert section is not None
    assert keys.leaves()[key]["description"] in section[1]
    for line in ("- Type: ", "- Default: ", f"- Example: `{shown}={examples.example_of(key)}`"):
        assert line in section[1]
    assert f"(#{docs_pages.anchor_of(key.replace('view2.', 'view1.'))})" in SETTINGS


@pytest.mark.parametrize("key", keys.leaves())
def test_every_example_is_accepted(key: str) -> None:
    load_partial(None, [f"{key}={examples.example_of(key)}"], preset="default")


def test_there_is_no_example_of_an_unknown_setting() -> None:
    known = {key.replace("view1.", "view.").replace("view2.", "view.") for key in keys.leaves()}
    assert set(examples.EXAMPLES) == known


def test_types_and_defaults_in_words() -> None:
    assert (
        docs_pages.show_type(keys.leaves()["trainer.max_epochs"]) == "an integer from 1 to 1000000 or `null`"
    )
    assert docs_pages.show_type(keys.leaves()["trainer.m_schedule"]) == "`constant` or `cosine`"
    assert "- Default: `null` (default), `40` (classic), `1000` (paper), `24` (demo)" in SETTINGS
    assert "`0.5` and `0.1` (default)" in SETTINGS  # blur, which differs between the views
    assert re.search(r"^\| `crop_area` \| \[0.2, 1\] .* \[0.7, 0.7\] ", SETTINGS, re.MULTILINE)


def test_links_out_of_the_site_become_paths() -> None:
    text = "see [results](../benchmarks/results/isa) and [`run.py`](../run.py), [a](b.md)"
    shown = docs_pages.name_repository_files(text, repository="")
    assert shown == "see results (`benchmarks/results/isa`) and `run.py`, [a](b.md)"
    linked = docs_pages.name_repository_files(text, repository="https://example.org/byol/")
    assert "[results](https://example.org/byol/blob/main/benchmarks/results/isa)" in linked
