"""YAML text into named values that know where they were written.

YAML 1.2 where PyYAML reads YAML 1.1: `3e-4` and `.5e3` are numbers; only true and false are truth values; no
octal, base-60 or date values. `None` and `none` mean none, as `null` and `~` do.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import yaml

MAX_TEXT = 60  # characters of a value that a message repeats


@dataclass(frozen=True)
class Entry:
    """A value, its text as written, and the place of writing as messages name it."""

    value: object
    text: str
    place: str
    layer: int  # later layers win; config.py has their numbers


class UnreadableError(Exception):
    """The text is not a mapping in YAML; one line, beginning with the place."""


def read_mapping(text: str, *, name: str) -> yaml.MappingNode:
    """The root of a YAML file.

    Raises:
        UnreadableError: not YAML, or not `key: value` at the top.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise UnreadableError(f"{name}{line}: not valid YAML: {_explain(error)}") from None
    except yaml.reader.ReaderError as error:
        number = text[: error.position].count("\n") + 1
        raise UnreadableError(f"{name}:{number}: not valid YAML: an unprintable character") from None
    except RecursionError:
        raise UnreadableError(f"{name}: not valid YAML: nested too deeply") from None
    if root is None or (isinstance(root, yaml.ScalarNode) and root.value == ""):
        raise UnreadableError(f"{name}: is empty; expected sections such as 'trainer:'")
    if not isinstance(root, yaml.MappingNode):
        kind = "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
        raise UnreadableError(f"{name}: holds {kind}; expected sections such as 'trainer:'")
    return root


def read_value(text: str) -> yaml.Node:
    """The node of one value, such as the right side of `section.key=value`; no text at all is none.

    Raises:
        UnreadableError: not YAML; without a place.
    """
    try:
        return yaml.compose(text, Loader=_Loader) or yaml.ScalarNode("tag:yaml.org,2002:null", "")
    except (yaml.YAMLError, RecursionError):
        raise UnreadableError(f"{shorten(text)!r} is not valid YAML; put it in quotes") from None


def walk(
    node: yaml.Node, *, prefix: str, sections: Mapping[str, Collection[str]]
) -> Iterator[tuple[str, int, yaml.Node | str]]:
    """Every setting below a node as (dotted key, line, its node), or (dotted key, line, what is wrong).

    `sections` holds the keys of each section by its dotted key, "" for the root. What is in no section is
    handed out as it is, without looking inside.
    """
    if prefix not in sections:
        yield prefix, node.start_mark.line + 1 if node.start_mark else 1, node
        return
    if not isinstance(node, yaml.MappingNode):
        # All keys of a section commented out leave a none.
        if not (isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"):
            line = node.start_mark.line + 1 if node.start_mark else 1
            yield prefix, line, f"got {show(node)}, expected a section with {', '.join(sections[prefix])}"
        return
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        name = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
        key, line = f"{prefix}.{name}" if prefix else name, key_node.start_mark.line + 1
        if name in seen:
            yield key, line, f"set twice, first in line {seen[name]}; keep one of them"
        elif key in sections:
            yield from walk(value_node, prefix=key, sections=sections)
        else:
            yield key, line, value_node
        seen.setdefault(name, line)


def construct(node: yaml.Node) -> object:
    """The Python value of a node; one that YAML cannot make is its text."""
    loader = _Loader("")
    try:
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return show(node)
    finally:
        loader.dispose()


def show(node: yaml.Node) -> str:
    """A node as a message repeats it: text in quotes, everything else as written."""
    if isinstance(node, yaml.ScalarNode):
        if node.tag == "tag:yaml.org,2002:str":
            return shorten(repr(node.value))
        return shorten(node.value) or "nothing"
    if node.tag == "tag:yaml.org,2002:seq" and all(isinstance(item, yaml.ScalarNode) for item in node.value):
        return shorten(f"[{', '.join(show(item) for item in node.value)}]")
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


def shorten(text: str) -> str:
    """At most MAX_TEXT characters, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_TEXT else f"{line[: MAX_TEXT - 3]}..."


def write(values: Mapping[str, Any]) -> str:
    """YAML that `read_mapping` reads back to the same values; tuples become lists on one line."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)


def quote(text: str) -> str:
    """Text as a value that `read_value` reads back to the same, whatever characters it holds."""
    plain = (char if char.isprintable() and char not in '"\\' else f"\\U{ord(char):08x}" for char in text)
    return f'"{"".join(plain)}"'


def _explain(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or error.context or "cannot be read"
    if "'\\t'" in problem:
        return "a tab; indent with spaces"
    if "single document" in (error.context or "") + problem:
        return "more than one document; remove the '---' between them"
    return shorten(problem)


# ---- A JSON schema in words


def parts(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The alternatives of a JSON schema."""
    return cast(list[dict[str, Any]], schema.get("anyOf", [schema]))


def describe(schema: dict[str, Any]) -> str:
    """What a setting may be, in words."""
    return " or ".join(_describe_part(part) for part in parts(schema))


def _describe_part(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    if "prefixItems" in schema:
        return f"[{', '.join(describe(item) for item in schema['prefixItems'])}]"
    kind = schema["type"]
    if kind == "array":
        return f"a list, each {describe(schema['items'])}"
    if kind in ("integer", "number"):
        return {"integer": "an integer", "number": "a number"}[kind] + _describe_bounds(schema)
    return {"boolean": "true or false", "string": "text", "null": "none"}[kind]


def _describe_bounds(schema: dict[str, Any]) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    words = [
        f"from {low:g}" if low is not None else "",
        f"above {above:g}" if above is not None else "",
        f"to {high:.10g}" if high is not None else "",
        f"below {below:g}" if below is not None else "",
    ]
    return "".join(f" {word}" for word in words if word)


# ---- PyYAML with the scalars of YAML 1.2


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


_Loader.yaml_implicit_resolvers = {}
_Dumper.yaml_implicit_resolvers = {}


def _add_scalars(kind: type[_Loader] | type[_Dumper]) -> None:
    for name, pattern, first in (
        ("null", r"~|null|Null|NULL|None|none|", "~nN"),
        ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
        ("int", r"[-+]?(0|[1-9][0-9_]{0,30})", "-+0123456789"),
        ("float", r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?", "-+.0123456789"),
        ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ):
        resolver = re.compile(f"^(?:{pattern})$")
        kind.add_implicit_resolver(
            f"tag:yaml.org,2002:{name}", resolver, [*first, ""] if name == "null" else list(first)
        )


def _construct_none(loader: _Loader, node: yaml.Node) -> None:
    return None


_add_scalars(_Loader)
_add_scalars(_Dumper)
_Loader.add_constructor("tag:yaml.org,2002:null", _construct_none)
_Dumper.add_representer(
    tuple, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)
)
