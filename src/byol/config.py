"""The configuration of a run: preset < YAML file < `section.key=value`, checked before anything is opened.

A setting that is refused is named with its place, what was given, what is allowed and the nearest valid key;
all problems come in one ConfigError. The settings themselves are in `config_schema.py`.
"""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from byol import config_text
from byol.config_schema import (
    Config,
    DataConfig,
    DataTransforms,
    EvaluationConfig,
    NetworkConfig,
    OptimizerConfig,
    OptimizerParams,
    ProjectionHead,
    Section,
    TrainerConfig,
    View,
    find_conflicts,
)
from byol.config_text import Given, UnreadableError
from byol.errors import ConfigError

__all__ = [
    "Config",
    "DataConfig",
    "DataTransforms",
    "EvaluationConfig",
    "NetworkConfig",
    "OptimizerConfig",
    "OptimizerParams",
    "ProjectionHead",
    "TrainerConfig",
    "View",
    "diff_configs",
    "dump_config",
    "json_schema",
    "load_config",
]

MIN_LIKENESS = 1.2  # of a key to the one suggested, of 2
PRESETS = ("classic", "paper", "default", "demo")
# What may differ between two starts of one run: labels of settings, where things lie, what is looked at when.
_NO_PART_OF_A_RUN = (
    "preset",
    "evaluation.",
    "data.root",
    "data.download",
    "data.packs",
    "data.memory",
    "data.max_bad",
    "trainer.num_workers",
    "trainer.device",
    "trainer.accumulation_steps",
    "trainer.checkpoint_interval",
    "trainer.log_interval",
    "trainer.health_interval",
)


def load_config(path: Path | None, overrides: Sequence[str], *, preset: str | None) -> Config:
    """Read `path` over its preset, and `overrides` ("section.key=value") over both.

    The preset is the first given of: an override, `preset`, the key `preset` of the file; else `classic` for
    a file and `default` without one.

    Raises:
        ConfigError: every problem of file and overrides, one line each.
    """
    problems: list[str] = []
    written: dict[str, Given] = {}
    if path is not None:
        written |= _read_file(path, problems)
    for override in overrides:
        written |= _read_override(override, problems)
    chosen = written.get("preset", Given("default" if path is None else "classic", "", "", 0))
    if preset is not None and chosen.layer < 2:
        chosen = Given(preset, repr(preset), f"preset {preset!r}", 2)
    if chosen.value in PRESETS:
        given = _settle_length(_read_preset(str(chosen.value)) | written | {"preset": chosen}, problems)
        config = _validate(given, problems)
        if config is not None and not problems:
            return config
    else:
        problems.append(_refuse(chosen, "preset"))
    raise ConfigError("\n".join(dict.fromkeys(problems)))


def dump_config(config: Config) -> str:
    """The whole configuration as YAML, which `load_config` reads back to an equal one."""
    return config_text.write(config.model_dump())


def diff_configs(old: Config | dict[str, Any], new: Config) -> list[str]:
    """Settings in which two configurations are different runs, as "trainer.batch_size: 64 -> 128".

    Left out is what changes no number of the training: evaluation, logging, where files and packs lie.
    """
    before = dict(_flatten(old.model_dump() if isinstance(old, Config) else old))
    after = dict(_flatten(new.model_dump()))
    keys = [key for key in dict.fromkeys([*after, *before]) if not key.startswith(_NO_PART_OF_A_RUN)]
    return [
        f"{key}: {_show(before, key)} -> {_show(after, key)}"
        for key in keys
        if key not in before or key not in after or before[key] != after[key]
    ]


def json_schema() -> str:
    """The JSON schema of a configuration file, for editors. No key is required: presets fill the rest."""
    schema = Config.model_json_schema()
    for section in [schema, *schema["$defs"].values()]:
        section.pop("required", None)
        for name, setting in section["properties"].items():
            if "prefixItems" in setting:
                text = {"type": "string", "pattern": r"^\(.*\)$"}
                described = {"description": setting.pop("description"), "title": setting.pop("title", name)}
                section["properties"][name] = {"anyOf": [setting, text], **described}
    schema["title"] = "byol configuration"
    return json.dumps(schema, indent=2)


# ---- The three layers


def _read_file(path: Path, problems: list[str]) -> dict[str, Given]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
        return _collect(config_text.read_mapping(text, name=str(path)), problems, place=str(path), layer=1)
    except UnicodeDecodeError as error:
        problems.append(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8")
    except FileNotFoundError:
        problems.append(f"{path}: no such file; `byol config --preset classic > {path}` writes one")
    except IsADirectoryError:
        problems.append(f"{path}: is a folder; a configuration file (.yaml) is expected")
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror}")
    except UnreadableError as error:
        problems.append(str(error))
    return {}


def _read_override(override: str, problems: list[str]) -> dict[str, Given]:
    name, equals, text = override.removeprefix("--").partition("=")
    place = f"override {config_text.shorten(override)!r}"
    if not equals or not name.strip():
        problems.append(f"{place}: section.key=value is expected, such as trainer.max_epochs=2")
        return {}
    key = name.strip().replace("-", "_")
    try:
        node = config_text.read_value(text)
    except UnreadableError as error:
        problems.append(f"{place}: {error}")
        return {}
    return _collect(node, problems, place=place, layer=2, prefix=key)


@cache
def _read_preset(name: str) -> dict[str, Given]:
    text = (resources.files("byol") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    problems: list[str] = []
    place = f"preset {name}"
    given = _collect(config_text.read_mapping(text, name=place), problems, place=place, layer=0)
    missing = set(_leaves()) - set(given)
    assert not problems and not missing, f"{problems} {missing}"
    return given


def _collect(
    node: yaml.Node, problems: list[str], *, place: str, layer: int, prefix: str = ""
) -> dict[str, Given]:
    """The settings below a node by dotted key; adds what is wrong with their names to `problems`."""
    given = {}
    for key, line, found in config_text.walk(node, prefix=prefix, sections=_sections()):
        where = f"{place}: {key}" if layer == 2 and key != prefix else place
        where = where if layer == 2 else f"{place}:{line}: {key}"
        if isinstance(found, str):
            problems.append(f"{where}: {found}")
        elif key not in _leaves():
            problems.append(f"{where}: unknown key{_nearest_key(key)}")
        else:
            # A folder named 2024 needs no quotes.
            value = found.value if _is_number_for_text(found, key) else config_text.construct(found)
            given[key] = Given(value, config_text.show(found), where, layer)
    return given


def _settle_length(given: dict[str, Given], problems: list[str]) -> dict[str, Given]:
    """A run is as long as the later layer says, in epochs or in hours; the other is then null."""
    epochs, hours = given["trainer.max_epochs"], given["trainer.max_hours"]
    if epochs.value is None or hours.value is None:
        return given
    if epochs.layer == hours.layer:
        problems.append(
            f"{hours.place}: trainer.max_hours {hours.text} and trainer.max_epochs {epochs.text} are two "
            "lengths of one run; leave one out"
        )
        return given
    key = "trainer.max_epochs" if epochs.layer < hours.layer else "trainer.max_hours"
    return given | {key: replace(given[key], value=None, text="null")}


# ---- Checks


def _validate(given: Mapping[str, Given], problems: list[str]) -> Config | None:
    refused: dict[str, str | None] = {}
    config = None
    try:
        config = Config.model_validate(_nest(given))
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            key = _leaf_of(detail["loc"])
            # Of a choice between kinds, each kind complains; our own checks have the best words.
            reason = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else None
            refused[key] = reason or refused.get(key)
    problems += [_refuse(given[key], key, allowed=reason) for key, reason in refused.items()]
    values = {key: item.value for key, item in given.items() if key not in refused}
    for keys, reason in find_conflicts(values):
        # The place is that of the latest layer: a preset is never what has to change.
        place = max((given[key] for key in keys), key=lambda item: item.layer).place
        problems.append(f"{place}: {reason}")
    return config


def _refuse(item: Given, key: str, *, allowed: str | None = None) -> str:
    """One line: where, what was given, what is allowed, and the nearest of the allowed values."""
    schema = _leaves()[key]
    choices = {
        str(choice): str(choice) for part in config_text.parts(schema) for choice in part.get("enum", [])
    }
    if schema.get("type") == "boolean":
        choices = {"yes": "true", "on": "true", "no": "false", "off": "false"}
    near = difflib.get_close_matches(str(item.value).lower(), choices, n=1)
    hint = f"; did you mean {choices[near[0]]!r}?" if near else ""
    return f"{item.place}: got {item.text}, allowed: {allowed or config_text.describe(schema)}{hint}"


# ---- The schema, by dotted key


@cache
def _sections() -> dict[str, tuple[str, ...]]:
    """The keys of each section; "" is the whole configuration."""
    return {prefix: tuple(section.model_fields) for prefix, section in _list_sections("", Config)}


def _list_sections(prefix: str, section: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    yield prefix, section
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _list_sections(_join(prefix, name), field.annotation)


@cache
def _leaves() -> dict[str, dict[str, Any]]:
    """The JSON schema of each setting."""
    sections = dict(_list_sections("", Config))
    return {
        key: setting
        for prefix, section in sections.items()
        for name, setting in section.model_json_schema()["properties"].items()
        if (key := _join(prefix, name)) not in sections
    }


def _leaf_of(location: tuple[int | str, ...]) -> str:
    """The setting that an error of pydantic is about; behind its name follow positions and kinds."""
    return next(
        key
        for end in range(1, len(location) + 1)
        if (key := ".".join(str(part) for part in location[:end])) in _leaves()
    )


def _nearest_key(key: str) -> str:
    """Over all sections: `batch_size` is near `trainer.batch_size`, whatever stands before it."""

    def likeness(candidate: str) -> float:
        ends = difflib.SequenceMatcher(None, key.rpartition(".")[2], candidate.rpartition(".")[2]).ratio()
        return ends + difflib.SequenceMatcher(None, key, candidate).ratio()

    best = max([*_leaves(), *filter(None, _sections())], key=likeness)
    if likeness(best) >= MIN_LIKENESS:
        return f"; did you mean {best!r}?"
    section = key.rpartition(".")[0]
    while section not in _sections():
        section = section.rpartition(".")[0]
    return (
        f"; allowed in {section!r}: {', '.join(_sections()[section])}"
        if section
        else (f"; sections are {', '.join(_sections()[''])}")
    )


def _is_number_for_text(node: yaml.Node, key: str) -> bool:
    is_text = {part.get("type") for part in config_text.parts(_leaves()[key]) if "enum" not in part} <= {
        "string",
        "null",
    }
    return is_text and isinstance(node, yaml.ScalarNode) and node.tag.endswith((":int", ":float"))


# ---- Between nested and dotted


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _nest(given: Mapping[str, Given]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, item in given.items():
        *sections, name = key.split(".")
        inside = nested
        for section in sections:
            inside = inside.setdefault(section, {})
        inside[name] = item.value
    return nested


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, _join(prefix, name))
        else:
            yield _join(prefix, name), tuple(value) if isinstance(value, list) else value


def _show(values: Mapping[str, Any], key: str) -> str:
    """A value as YAML would have it."""
    if key not in values:
        return "not given"
    value = values[key]
    if isinstance(value, tuple):
        return f"[{', '.join('null' if item is None else str(item) for item in value)}]"
    return "null" if value is None else str(value)
