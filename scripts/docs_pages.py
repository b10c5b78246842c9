#!/usr/bin/env python3
"""Write the generated pages `docs/cli.md` and `docs/settings.md`. Also a hook of mkdocs.

    python scripts/docs_pages.py

The commands come from the argument parser and the settings from the schema and the presets. A test fails if
the pages in docs/ are not those that this script writes. As a hook of mkdocs, the module replaces links to
files that are not part of the site; only these functions need mkdocs.
"""

import argparse
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from byol.cli.parser import make_parser
from byol.config import examples, keys, load_config, yaml_text
from byol.config.configuration import DOMAINS, PRESETS

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]

INDEX = "<!-- index -->"  # where a page wants a list of its headings

# ---- What mkdocs calls


def on_page_markdown(markdown: str, *, page: "Page", config: "MkDocsConfig", files: "Files") -> str:
    """Show links to files of the repository that are not part of the site as their paths."""
    markdown = name_repository_files(markdown, repository=config.repo_url or "")
    return markdown.replace(INDEX, "\n".join(list_headings(markdown)))


def list_headings(markdown: str) -> Iterator[str]:
    """A list of the headings of levels 2 and 3, each a link; no heading may occur twice."""
    for level, title in re.findall(r"^(##|###) (.+)$", markdown, re.MULTILINE):
        indent = "    " if level == "###" else ""
        text = re.sub(r"`", "", title)
        anchor = slugify(title)
        yield f"{indent}- **[{text}](#{anchor})**" if level == "##" else f"{indent}- [{text}](#{anchor})"


def slugify(heading: str) -> str:
    """The anchor of a heading, by the rule of Python-Markdown."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())


def name_repository_files(markdown: str, *, repository: str) -> str:
    """Replace links that leave the folder docs by links into the repository, or by paths if it has no URL."""

    def replace(match: re.Match[str]) -> str:
        text, path = match["text"], match["path"].rstrip("/")
        if repository:
            return f"[{text}]({repository.rstrip('/')}/blob/main/{path})"
        return f"`{path}`" if text.strip("`") == path else f"{text} (`{path}`)"

    return re.sub(r"\[(?P<text>[^\]\[]+)\]\(\.\./(?P<path>[^)#]+)\)", replace, markdown)


# ---- Commands


def render_commands() -> str:
    """The page of every command with its arguments."""
    parser = make_parser()
    subparsers = list_subparsers(parser)
    lines = [
        "# Command line",
        "",
        "This page is generated from the program's own argument parser. `byol COMMAND --help` prints the "
        "same.",
        "",
        "Append settings to a command as `section.key=value`, for example `trainer.max_epochs=100`. "
        "[Settings](settings.md) lists them all.",
        "",
        "| command | what it does |",
        "|---|---|",
        *(f"| [`byol {name}`](#byol-{name}) | {_cell(summary)} |" for name, summary, _ in subparsers),
        "",
        "The exit code is 0 if the command succeeded, 2 if a setting is wrong, 1 for any other error, and "
        "130 or 143 after Ctrl-C or SIGTERM.",
    ]
    for name, _, subparser in subparsers:
        lines += ["", *_render_command(name, subparser)]
    return "\n".join(lines) + "\n"


def list_subparsers(parser: argparse.ArgumentParser) -> list[tuple[str, str, argparse.ArgumentParser]]:
    """Name, summary and parser of every command."""
    actions = parser._actions
    commands = next(action for action in actions if isinstance(action, argparse._SubParsersAction))
    summaries = {action.dest: action.help or "" for action in commands._choices_actions}
    return [(name, summaries[name], subparser) for name, subparser in commands.choices.items()]


def _render_command(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f"## byol {name}"
    yield ""
    yield parser.description or ""
    yield ""
    yield "```text"
    yield from _usage_of(parser).splitlines()
    yield "```"
    yield ""
    yield '<div class="arguments" markdown>'
    yield ""
    yield "| argument | meaning |"
    yield "|---|---|"
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        yield f"| {_name_of(action)} | {_cell(_meaning_of(action, parser))} |"
    yield ""
    yield "</div>"
    example = (parser.epilog or "").partition("\n")[2].strip()
    if example:
        yield ""
        yield "```sh"
        yield from (line.strip() for line in example.splitlines())
        yield "```"


def _usage_of(parser: argparse.ArgumentParser) -> str:
    formatter = argparse.HelpFormatter(parser.prog, width=74)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups, prefix="")
    return formatter.format_help().strip()


def _name_of(action: argparse.Action) -> str:
    """The argument as it is typed, with a placeholder for its value."""
    value = action.metavar if isinstance(action.metavar, str) else (action.dest or "").upper()
    if not action.option_strings:
        return f"`{value if action.metavar else action.dest}`"
    names = [f"`{option}`" for option in action.option_strings]
    takes_value = action.nargs != 0
    return ", ".join(names) + (f" `{value}`" if takes_value else "")


def _meaning_of(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    formatter = argparse.HelpFormatter(parser.prog)
    text = formatter._expand_help(action) if action.help else ""
    if action.choices is not None:
        choices = ", ".join(f"`{choice}`" for choice in action.choices)
        text = f"{text}. One of {choices}" if text else f"one of {choices}"
        text += f"; default `{action.default}`" if action.default else ""
    return text[:1].upper() + text[1:]


def _cell(text: str) -> str:
    """Text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


# ---- Settings

_SECTIONS = {
    "": "Preset",
    "network": "Network",
    "data_transforms": "Views",
    "data": "Images",
    "trainer": "Training",
    "optimizer": "Optimizer",
    "evaluation": "Evaluation",
}
_NUMBERS_OF_VIEWS = "Numbers of a view"


def render_settings() -> str:
    """The page of every setting: meaning, type, unit, default of each preset, and an example."""
    lines = [
        "# Settings",
        "",
        "This page is generated from the schema that checks every configuration. You need none of these "
        "settings to start: with `byol train IMAGES/` byol chooses what is open from your images and your "
        "machine, and prints what it chose.",
        "",
        "**On the command line** append settings as `key=value`: "
        "`byol train IMAGES/ trainer.max_epochs=100`. **In Python** pass them as a dictionary: "
        '`byol.train("IMAGES/", overrides={"trainer.max_epochs": 100})`. **In a file** write them as YAML; '
        "`byol config > mine.yaml` writes one to start from, and `byol config --schema` prints a JSON schema "
        "for your editor.",
        "",
        "**Which value counts?** The last one in this order: preset, domain, what byol chooses, file, "
        "command line. A file without a `preset` line uses the preset `classic`; `byol train IMAGES/` uses "
        "the preset `default`.",
        "",
        "`null` and `auto` leave a setting open: each description says what happens then. An unknown key is "
        "an error that names the nearest known key.",
        "",
        *_list_contents(),
    ]
    for key in keys.leaves():
        if key == _first_key_of(_section_of(key)):
            lines += ["", f"## {_section_of(key)}", *_introduce(_section_of(key))]
        if key.startswith(f"{keys.VIEWS[1]}."):
            continue  # described with the first view
        lines += ["", *_render_setting(key)]
    return "\n".join(lines) + "\n"


def anchor_of(key: str) -> str:
    """The anchor of a setting's heading, such as "trainermax_epochs"."""
    return slugify(_show_key(key))


def _section_of(key: str) -> str:
    return (
        _NUMBERS_OF_VIEWS
        if key.startswith(keys.VIEWS)
        else _SECTIONS[key.rpartition(".")[0].partition(".")[0]]
    )


def _first_key_of(section: str) -> str:
    return next(key for key in keys.leaves() if _section_of(key) == section)


def _list_contents() -> Iterator[str]:
    for section in dict.fromkeys(map(_section_of, keys.leaves())):
        shown = [
            f"[`{_show_key(key).rpartition('.')[2]}`](#{anchor_of(key)})"
            for key in keys.leaves()
            if _section_of(key) == section and not key.startswith(f"{keys.VIEWS[1]}.")
        ]
        yield f"- **{section}**: {' '.join(shown)}"


def _show_key(key: str) -> str:
    """The key as it is written; a number of both views in its short form."""
    return key.replace(keys.VIEWS[0], keys.BOTH_VIEWS)


def _render_setting(key: str) -> Iterator[str]:
    schema = keys.leaves()[key]
    yield f"### `{_show_key(key)}`"
    yield ""
    yield schema["description"]
    yield ""
    yield f"- Type: {show_type(schema)}"
    if examples.unit_of(key):
        yield f"- Unit: {examples.unit_of(key)}"
    yield f"- Default: {_show_defaults(key)}"
    yield f"- Example: `{_show_key(key)}={examples.example_of(key)}`"


def show_type(schema: dict[str, Any]) -> str:
    """The type of a setting in words; values that are typed as they stand are marked as code."""
    choices = [choice for part in yaml_text.parts(schema) for choice in part.get("enum", [])]
    others = [part for part in yaml_text.parts(schema) if "enum" not in part and part.get("type") != "null"]
    words = [f"`{choice}`" for choice in choices]
    for part in others:
        const = part.get("const")
        words.append(f"`{const}`" if const else yaml_text.describe(part).replace("none", "`null`"))
    if any(part.get("type") == "null" for part in yaml_text.parts(schema)):
        words.append("`null`")
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _show_defaults(key: str) -> str:
    """One value if all presets agree, else that of each preset; of two views both where they differ."""
    shown = {preset: _show_default(preset, key) for preset in ("default", *PRESETS)}
    if len(set(shown.values())) == 1:
        return f"{shown['default']} in every preset"
    return ", ".join(f"{value} ({preset})" for preset, value in shown.items())


def _show_default(preset: str, key: str) -> str:
    values = _values_of(preset)
    both = [key, key.replace(*keys.VIEWS)]
    return " and ".join(dict.fromkeys(f"`{_show_value(values[one])}`" for one in both))


def _values_of(preset: str, *overrides: str) -> dict[str, Any]:
    config = load_config(None, overrides, preset=preset)
    return dict(keys.flatten(config.model_dump()))


def _show_value(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_show_value, value))}]"
    if isinstance(value, float):
        return f"{value:.3g}"
    return {None: "null", True: "true", False: "false"}.get(value, str(value))


def _introduce(section: str) -> Iterator[str]:
    if section == "Preset":
        yield ""
        yield "`default`: your own images; byol chooses what is open. `classic`: the recipe of the classic "
        yield "`config.yaml` ([The classic configuration](classic.md)). `paper`: the recipe of the BYOL "
        yield "paper, for many GPUs. `demo`: the generated images of `byol demo`."
    elif section == _NUMBERS_OF_VIEWS:
        yield ""
        yield "`data_transforms.view.X` sets number X of both views; `data_transforms.view1.X` and "
        yield "`data_transforms.view2.X` set it for one. Where a default shows two values, the first is "
        yield "that of view 1. [`data_transforms.domain`](#data_transformsdomain) replaces the defaults by "
        yield "the numbers of one kind of images:"
        yield ""
        yield from _render_domains()


def _render_domains() -> Iterator[str]:
    """A table of the numbers that each domain sets."""
    values = {name: _values_of("default", f"data_transforms.domain={name}") for name in DOMAINS}
    yield f"| number | {' | '.join(DOMAINS)} |"
    yield f"|---|{'---|' * len(DOMAINS)}"
    for key in keys.leaves():
        if key.startswith(f"{keys.VIEWS[0]}."):
            second = key.replace(*keys.VIEWS)
            cells = [
                " / ".join(dict.fromkeys((_show_value(values[name][key]), _show_value(values[name][second]))))
                for name in DOMAINS
            ]
            yield f"| `{key.rpartition('.')[2]}` | {' | '.join(cells)} |"


PAGES = {"cli.md": render_commands, "settings.md": render_settings}

if __name__ == "__main__":
    for name, render in PAGES.items():
        (ROOT / "docs" / name).write_text(render(), encoding="utf-8")


def list_pages(folder: Path = ROOT / "docs") -> Sequence[str]:
    """The pages of the site: those in the folder and the generated ones."""
    return sorted({*(path.relative_to(folder).as_posix() for path in folder.rglob("*.md")), *PAGES})
