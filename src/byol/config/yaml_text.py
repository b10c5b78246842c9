"""Read YAML into values that keep the place where they were written.

The rules are those of YAML 1.2, not 1.1 as in PyYAML: `3e-4` and `.5e3` are numbers; only true and false are
booleans; there are no octal, base-60 or date values. `None` and `none` mean the same as `null` and `~`.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import yaml

MAX_TEXT = 60  # most characters of a value in a message
_MAX_VALUES = 10_000  # in a file; a few lines of anchors and aliases can mean billions
_TAGS = frozenset(
    f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")
)


@dataclass(frozen=True)
class Entry:
    """A value, its text as written, and its place for messages."""

    value: object
    text: str
    place: str
    layer: int  # later layers override earlier ones; `configuration.py` has their numbers


class UnreadableError(Exception):
    """The text is not a YAML mapping; the message is one line that begins with the place."""


def read_mapping(text: str, *, name: str) -> yaml.MappingNode:
    """Return the root of a YAML file.

    Raises:
        UnreadableError: not YAML, or not `key: value` at the top.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
        problem = None if root is None else _find_problem(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise UnreadableError(f"{name}{line}: not valid YAML: {_explain(error)}") from None
    except yaml.reader.ReaderError as error:
        number = text[: error.position].count("\n") + 1
        raise UnreadableError(f"{name}:{number}: not valid YAML: an unprintable character") from None
    except RecursionError:
        raise UnreadableError(f"{name}: not valid YAML: nested too deeply") from None
    if problem is not None:
        raise UnreadableError(f"{name}:{problem[0]}: {problem[1]}")
    if root is None or (isinstance(root, yaml.ScalarNode) and root.value == ""):
        raise UnreadableError(f"{name}: is empty; expected sections such as 'trainer:'")
    if not isinstance(root, yaml.MappingNode):
        kind = "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
        raise UnreadableError(f"{name}: holds {kind}; expected sections such as 'trainer:'")
    return root


def read_value(text: str) -> yaml.Node:
    """Return the node of one value, such as the right side of `section.key=value`; empty text is null.

    Raises:
        UnreadableError: not YAML; the message has no place.
    """
    try:
        node = yaml.compose(text, Loader=_Loader) or yaml.ScalarNode("tag:yaml.org,2002:null", "")
        problem = _find_problem(node)
    except (yaml.YAMLError, RecursionError):
        raise UnreadableError(f"{shorten(text)!r} is not valid YAML; put it in quotes") from None
    if problem is not None:
        raise UnreadableError(f"{shorten(text)!r}: {problem[1]}")
    return node


def _find_problem(root: yaml.Node) -> tuple[int, str] | None:
    """Return the line and a description if a node has a tag, contains itself or has too many values."""
    sizes: dict[int, int] = {}  # values below a node, by its id; 0: it is being counted
    problems: list[tuple[int, str]] = []

    def count(node: yaml.Node) -> int:
        line = node.start_mark.line + 1 if node.start_mark else 1
        if id(node) in sizes:
            if sizes[id(node)] == 0:
                problems.append(
                    (line, "a value contains itself; write it without anchors (&) and aliases (*)")
                )
            return sizes[id(node)]
        sizes[id(node)] = 0
        if node.tag not in _TAGS:
            tag = shorten(node.tag.replace("tag:yaml.org,2002:", "!!"))
            problems.append((line, f"the tag {tag} is not allowed; write a plain value without '!'"))
        below = [] if isinstance(node, yaml.ScalarNode) else node.value
        items = (item for pair in below for item in (pair if isinstance(pair, tuple) else (pair,)))
        sizes[id(node)] = min(1 + sum(map(count, items)), _MAX_VALUES + 1)
        return sizes[id(node)]

    if count(root) > _MAX_VALUES:
        problems.append((1, f"means more than {_MAX_VALUES:,} values; write fewer"))
    return problems[0] if problems else None


def walk(
    node: yaml.Node, *, prefix: str, sections: Mapping[str, Collection[str]]
) -> Iterator[tuple[str, int, yaml.Node | str]]:
    """Iterate over the settings below a node: (dotted key, line, its node or a description of a problem).

    `sections` holds the keys of each section by its dotted key, "" for the root. Nodes that are no section
    are returned unchanged.
    """
    if prefix not in sections:
        yield prefix, node.start_mark.line + 1 if node.start_mark else 1, node
        return
    if not isinstance(node, yaml.MappingNode):
        # A section whose keys are all commented out is null.
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
    """Return the Python value of a node; its text if YAML cannot convert it."""
    loader = _Loader("")
    try:
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return show(node)
    finally:
        loader.dispose()


def show(node: yaml.Node) -> str:
    """Return a node for a message: text in quotes, everything else as written."""
    if isinstance(node, yaml.ScalarNode):
        if node.tag == "tag:yaml.org,2002:str":
            return shorten(repr(node.value))
        return shorten(node.value) or "nothing"
    if node.tag == "tag:yaml.org,2002:seq" and all(isinstance(item, yaml.ScalarNode) for item in node.value):
        return shorten(f"[{', '.join(show(item) for item in node.value)}]")
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


def shorten(text: str) -> str:
    """Shorten text to at most MAX_TEXT characters on one line."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_TEXT else f"{line[: MAX_TEXT - 3]}..."


def write(values: Mapping[str, Any]) -> str:
    """Return YAML that `read_mapping` reads back as the same values; tuples become lists on one line."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)


def quote(text: str) -> str:
    """Return text in quotes that `read_value` reads back unchanged, whatever characters it has."""
    plain = (char if char.isprintable() and char not in '"\\' else f"\\U{ord(char):08x}" for char in text)
    return f'"{"".join(plain)}"'


def _explain(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or error.context or "cannot be read"
    if "'\\t'" in problem:
        return "a tab; indent with spaces"
    if "single document" in (error.context or "") + problem:
        return "more than one document; remove the '---' between them"
    return shorten(problem)


# ---- Describing a JSON schema


def parts(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the alternatives of a JSON schema."""
    return cast(list[dict[str, Any]], schema.get("anyOf", [schema]))


def describe(schema: dict[str, Any]) -> str:
    """Describe the allowed values of a setting."""
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


# ---- PyYAML with the scalar rules of YAML 1.2


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
