"""The settings by dotted key (`trainer.batch_size`): their list, schema, and suggestions for wrong keys.

`data_transforms.view` is a short form for both `view1` and `view2`.
"""

import difflib
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import yaml

from byol.config import yaml_text
from byol.config.schema import Config, Section, View

MIN_LIKENESS = 1.2  # smallest similarity (0..2) of a wrong key to the suggested one
BOTH_VIEWS = "data_transforms.view"
VIEWS = ("data_transforms.view1", "data_transforms.view2")


@cache
def sections() -> dict[str, tuple[str, ...]]:
    """Return the keys of each section that may be written; "" is the whole configuration."""
    found = {prefix: tuple(section.model_fields) for prefix, section in _list_sections("", Config)}
    return found | {BOTH_VIEWS: tuple(View.model_fields)}


def _list_sections(prefix: str, section: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    yield prefix, section
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _list_sections(join(prefix, name), field.annotation)


@cache
def leaves() -> dict[str, dict[str, Any]]:
    """Return the JSON schema of each setting."""
    sections = dict(_list_sections("", Config))
    return {
        key: setting
        for prefix, section in sections.items()
        for name, setting in section.model_json_schema()["properties"].items()
        if (key := join(prefix, name)) not in sections
    }


def section_name(prefix: str) -> str:
    """Return the name of the section `prefix` in the JSON schema, such as "TrainerConfig"."""
    return dict(_list_sections("", Config))[prefix].__name__


def expand(key: str) -> tuple[str, ...]:
    """Return the settings that a written key means: itself, or both views; () if there is no such key."""
    if key.startswith(f"{BOTH_VIEWS}."):
        meant = tuple(view + key.removeprefix(BOTH_VIEWS) for view in VIEWS)
    else:
        meant = (key,)
    return meant if meant[0] in leaves() else ()


def leaf_of(location: tuple[int | str, ...]) -> str:
    """Return the setting of a pydantic error, whose location continues with positions and types."""
    return next(
        key
        for end in range(1, len(location) + 1)
        if (key := ".".join(str(part) for part in location[:end])) in leaves()
    )


def suggest(key: str) -> str:
    """Return "; did you mean ...?" with the nearest key of all sections (`batch_size`: `trainer.batch_size`).

    If no key is similar, return the keys that the section allows.
    """

    def likeness(candidate: str) -> float:
        ends = difflib.SequenceMatcher(None, key.rpartition(".")[2], candidate.rpartition(".")[2]).ratio()
        return ends + difflib.SequenceMatcher(None, key, candidate).ratio()

    short_forms = [f"{BOTH_VIEWS}.{name}" for name in sections()[BOTH_VIEWS]]
    best = max([*leaves(), *short_forms, *filter(None, sections())], key=likeness)
    if likeness(best) >= MIN_LIKENESS:
        return f"; did you mean {best!r}?"
    section = key.rpartition(".")[0]
    while section not in sections():
        section = section.rpartition(".")[0]
    return (
        f"; allowed in {section!r}: {', '.join(sections()[section])}"
        if section
        else (f"; sections are {', '.join(sections()[''])}")
    )


def is_number_for_text(node: yaml.Node, key: str) -> bool:
    """Return whether a number was written for a text setting, such as a folder named 2024."""
    is_text = {part.get("type") for part in yaml_text.parts(leaves()[key]) if "enum" not in part} <= {
        "string",
        "null",
    }
    return is_text and isinstance(node, yaml.ScalarNode) and node.tag.endswith((":int", ":float"))


# ---- Nested sections and dotted keys


def join(prefix: str, name: str) -> str:
    """Return the dotted key of a name in a section."""
    return f"{prefix}.{name}" if prefix else name


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert values by dotted key to nested sections."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *names, last = key.split(".")
        inside = nested
        for name in names:
            inside = inside.setdefault(name, {})
        inside[last] = value
    return nested


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Convert nested sections to values by dotted key."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, join(prefix, name))
        else:
            yield join(prefix, name), value
