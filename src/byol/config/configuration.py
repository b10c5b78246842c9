"""The configuration of a run: preset < domain < YAML file < `section.key=value`, later ones override earlier.

An invalid setting is reported with its place, the given value, the allowed values and the nearest valid key;
one ConfigError reports all problems. `schema.py` defines the settings. Some may be unset: a `PartialConfig`
is the configuration before they are resolved. It keeps the layers, so that a domain can be inserted later.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from byol.base.disk import read_bytes
from byol.base.errors import ConfigError
from byol.config import keys, yaml_text
from byol.config.conflicts import find_conflicts
from byol.config.examples import example_of
from byol.config.schema import UNSET, Config
from byol.config.yaml_text import Entry, UnreadableError

PRESETS = ("classic", "paper", "default", "demo")
DOMAINS = ("photo", "grey", "microscopy", "satellite", "medical", "industrial")
_DOMAIN_KEY = "data_transforms.domain"
_HEAD, _END = '# The complete configuration of a run of byol; the last line is "# end".', "# end"
# Layers; later ones override earlier ones. Values that a user has written override those that byol chooses.
_PRESET, _DOMAIN, _CHOSEN, _FILE, _OVERRIDE = range(5)
# Settings that are resolved together with unset ones if they have this value; a run does not need that.
_ALSO_RESOLVABLE: dict[str, str | None] = {
    "network.stem": "auto",
    "trainer.precision": "auto",
    "trainer.num_threads": None,
    "trainer.vicreg_weight": None,
    "data_transforms.target_view": "auto",
    "data.channels": None,
}
# Settings that may differ between two starts of one run, because they do not change the training.
_NO_PART_OF_A_RUN = (
    "preset",
    _DOMAIN_KEY,
    "evaluation.",
    "data.root",
    "data.download",
    "data.packs",
    "data.cache_gb",
    "data.memory",
    "data.max_bad",
    "data.skip_unreadable",
    "trainer.num_workers",
    "trainer.num_threads",
    "trainer.device",
    "trainer.accumulation_steps",
    "trainer.checkpoint_interval",
    "trainer.log_interval",
    "trainer.health_interval",
    "trainer.loggers",
)


@dataclass(frozen=True)
class PartialConfig:
    """A configuration in which settings may be unset, with the layer that each value comes from."""

    config: Config
    layers: Mapping[str, Entry]

    @property
    def unset(self) -> tuple[str, ...]:
        """The settings that must be resolved before a run, in the order of `UNSET`."""
        found = [key for key, value in UNSET.items() if self.layers[key].value == value]
        if self.layers["trainer.max_hours"].value is not None:  # max_hours sets the length instead
            found = [key for key in found if key != "trainer.max_epochs"]
        return tuple(found)

    @property
    def resolvable(self) -> tuple[str, ...]:
        """The keys that `resolve` may set: unset ones and those resolved with them; () if none is unset."""
        if not self.unset:
            return ()
        also = [key for key, value in _ALSO_RESOLVABLE.items() if self.layers[key].value == value]
        if self.is_explicit("data.channels"):  # then the user wants null
            also = [key for key in also if key != "data.channels"]
        views = _list_views() if _DOMAIN_KEY in self.unset else ()
        return (*self.unset, *also, *(key for key in views if not self.is_explicit(key)))

    def is_explicit(self, key: str) -> bool:
        """Return whether the file or an override sets the key, even to an unset value."""
        return self.layers[key].layer >= _FILE

    def resolve(self, values: Mapping[str, object]) -> "PartialConfig":
        """Return a copy with these values for resolvable keys; ignore other keys. Keys may be short forms.

        Raises:
            ConfigError: a value contradicts one that the file or an override sets.
        """
        resolvable, layers = self.resolvable, dict(self.layers)
        for written, value in keys.flatten(values):
            for key in keys.expand(written):
                if key in resolvable:
                    layers[key] = Entry(value, str(value), f"chosen: {written}", _CHOSEN)
        problems: list[str] = []
        layers = _put_domain(layers)
        config = _validate(layers, problems)
        if config is None or problems:
            raise ConfigError(*dict.fromkeys(problems))
        return PartialConfig(config, layers)

    def values_of(self, config: Config) -> dict[str, object]:
        """Return the values of another configuration for the resolvable keys, for `resolve`."""
        values = dict(keys.flatten(config.model_dump()))
        return {key: values[key] for key in self.resolvable}

    def dump(self) -> str:
        """Return YAML that `load_partial` reads back as a configuration with the same unset settings.

        If the domain is unset, only explicit settings of the views are written.
        """
        values = dict(keys.flatten(self.config.model_dump()))
        hidden = set(_list_views()) & set(self.resolvable)
        return yaml_text.write(keys.nest({k: v for k, v in values.items() if k not in hidden}))


def load_config(path: Path | None, overrides: Sequence[str], *, preset: str | None) -> Config:
    """Same as `load_partial`, without the layers."""
    return load_partial(path, overrides, preset=preset).config


def load_partial(path: Path | None, overrides: Sequence[str], *, preset: str | None) -> PartialConfig:
    """Read preset, domain, file `path` and `overrides` ("section.key=value"); later ones override earlier.

    The preset is the first that is given of: an override, `preset`, the key `preset` in the file. Otherwise
    it is `classic` with a file and `default` without.

    Raises:
        ConfigError: there are problems in the file or the overrides; one line for each.
    """
    problems: list[str] = []
    written: dict[str, Entry] = {}
    if path is not None:
        written |= _read_file(path, problems)
    for override in overrides:
        written |= _read_override(override, problems)
    chosen = written.get("preset", Entry("default" if path is None else "classic", "", "", _PRESET))
    if preset is not None and chosen.layer < _OVERRIDE:
        chosen = Entry(preset, repr(preset), f"preset {preset!r}", _OVERRIDE)
    if chosen.value in PRESETS:
        written = _choose_length(_read_preset(str(chosen.value)) | written | {"preset": chosen}, problems)
        layers = _put_domain(written)
        config = _validate(layers, problems)
        if config is not None and not problems:
            return PartialConfig(config, layers)
    else:
        problems.append(_refuse(chosen, "preset"))
    raise ConfigError(*dict.fromkeys(problems))


def write_override(key: str, value: object) -> str:
    """Return an override that sets this value; text stays text, even `null` or `#x`."""
    return f"{key}={yaml_text.quote(value) if isinstance(value, str) else json.dumps(value)}"


def dump_config(config: Config) -> str:
    """Return the complete configuration as YAML, which `load_config` reads back as an equal one.

    If its end is lost, `load_config` refuses it: values of the preset would take the place of lost ones.
    """
    return f"{_HEAD}\n{yaml_text.write(config.model_dump())}{_END}\n"


def diff_configs(old: Config | dict[str, Any], new: Config) -> list[str]:
    """Return the differences between the runs of two configurations, as "trainer.batch_size: 64 -> 128".

    Settings that do not change the training are left out: evaluation, logging, folders.
    """
    before = _flat_values(old.model_dump() if isinstance(old, Config) else old)
    after = _flat_values(new.model_dump())
    compared = [key for key in dict.fromkeys([*after, *before]) if not key.startswith(_NO_PART_OF_A_RUN)]
    return [
        f"{key}: {_show(before, key)} -> {_show(after, key)}"
        for key in compared
        if key not in before or key not in after or before[key] != after[key]
    ]


def json_schema() -> str:
    """Return the JSON schema of a configuration file, for editors. No key is required: presets have all."""
    schema = Config.model_json_schema()
    for key in keys.leaves():
        prefix, _, name = key.rpartition(".")
        section = schema["$defs"].get(keys.section_name(prefix), schema)
        example = yaml_text.construct(yaml_text.read_value(example_of(key)))
        section["properties"][name]["examples"] = [example]
    transforms = schema["$defs"]["DataTransforms"]["properties"]
    transforms["view"] = transforms["view1"] | {"description": "Short form: sets both views."}
    for section in [schema, *schema["$defs"].values()]:
        section.pop("required", None)
        for name, setting in section["properties"].items():
            if "prefixItems" in setting:
                text = {"type": "string", "pattern": r"^\(.*\)$"}
                described = {"description": setting.pop("description"), "title": setting.pop("title", name)}
                section["properties"][name] = {"anyOf": [setting, text], **described}
    schema["title"] = "byol configuration"
    return json.dumps(schema, indent=2)


# ---- The layers


def _read_file(path: Path, problems: list[str]) -> dict[str, Entry]:
    try:
        text = read_bytes(path).decode("utf-8-sig")
        if _is_cut(text):
            problems.append(
                f"{path}: is cut short, its last line '{_END}' is missing; restore the file, or add the "
                "missing settings (`byol config` prints all) and that line"
            )
            return {}
        return _collect(yaml_text.read_mapping(text, name=str(path)), problems, place=str(path), layer=_FILE)
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


def _is_cut(text: str) -> bool:
    """Return whether the text of `dump_config` has lost its end. Files that people write never have."""
    return text.startswith(_HEAD) and _END not in text.splitlines()


def _read_override(override: str, problems: list[str]) -> dict[str, Entry]:
    name, equals, text = override.removeprefix("--").partition("=")
    place = f"override {yaml_text.shorten(override)!r}"
    if not equals or not name.strip():
        problems.append(f"{place}: section.key=value is expected, such as trainer.max_epochs=2")
        return {}
    key = name.strip().replace("-", "_")
    try:
        node = yaml_text.read_value(text)
    except UnreadableError as error:
        problems.append(f"{place}: {error}")
        return {}
    return _collect(node, problems, place=place, layer=_OVERRIDE, prefix=key)


@cache
def _read_preset(name: str) -> dict[str, Entry]:
    text = (resources.files("byol.config") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    problems: list[str] = []
    place = f"preset {name}"
    entries = _collect(yaml_text.read_mapping(text, name=place), problems, place=place, layer=_PRESET)
    missing = set(keys.leaves()) - set(entries)
    assert not problems and not missing, f"{problems} {missing}"
    return entries


@cache
def _read_domain(name: str) -> dict[str, Entry]:
    text = (resources.files("byol.config") / "presets" / "views" / f"{name}.yaml").read_text(encoding="utf-8")
    problems: list[str] = []
    node = yaml_text.read_mapping(text, name=f"domain {name}")
    entries = _collect(node, problems, place=f"domain {name}", layer=_DOMAIN, prefix="data_transforms")
    assert not problems and set(entries) == set(_list_views()), f"{problems} {entries.keys()}"
    return entries


def _put_domain(layers: Mapping[str, Entry]) -> dict[str, Entry]:
    """Insert the view settings of the domain, if one is set, above the preset."""
    name = layers[_DOMAIN_KEY].value
    table = _read_domain(str(name)) if name in DOMAINS else {}
    return {key: table.get(key, item) if item.layer <= _DOMAIN else item for key, item in layers.items()}


@cache
def _list_views() -> tuple[str, ...]:
    """Return the keys of the settings of both views."""
    return tuple(key for key in keys.leaves() if key.startswith(keys.VIEWS))


def _collect(
    node: yaml.Node, problems: list[str], *, place: str, layer: int, prefix: str = ""
) -> dict[str, Entry]:
    """Return the settings below a node by dotted key; add problems with their names to `problems`.

    Short forms set both views; a setting of a single view overrides the short form.
    """
    entries: dict[str, Entry] = {}
    of_both: dict[str, Entry] = {}
    for key, line, found in yaml_text.walk(node, prefix=prefix, sections=keys.sections()):
        where = f"{place}: {key}" if layer == _OVERRIDE and key != prefix else place
        where = where if layer == _OVERRIDE else f"{place}:{line}: {key}"
        meant = keys.expand(key)
        if isinstance(found, str):
            problems.append(f"{where}: {found}")
        elif not meant:
            problems.append(f"{where}: unknown key{keys.suggest(key)}")
        else:
            # A folder name such as 2024 needs no quotes.
            as_text = keys.is_number_for_text(found, meant[0])
            value = found.value if as_text else yaml_text.construct(found)
            item = Entry(value, yaml_text.show(found), where, layer)
            (entries if meant == (key,) else of_both).update(dict.fromkeys(meant, item))
    return of_both | entries


def _choose_length(entries: dict[str, Entry], problems: list[str]) -> dict[str, Entry]:
    """Choose epochs or hours as the length of the run: the later layer wins, the other becomes null."""
    epochs, hours = entries["trainer.max_epochs"], entries["trainer.max_hours"]
    if epochs.value is None or hours.value is None:
        return entries
    if epochs.layer == hours.layer:
        problems.append(
            f"{hours.place}: trainer.max_hours {hours.text} and trainer.max_epochs {epochs.text} both set "
            "the length of the run; leave one out"
        )
        return entries
    key = "trainer.max_epochs" if epochs.layer < hours.layer else "trainer.max_hours"
    return entries | {key: replace(entries[key], value=None, text="null")}


# ---- Checks


def _validate(layers: Mapping[str, Entry], problems: list[str]) -> Config | None:
    refused: dict[str, str | None] = {}
    config = None
    try:
        config = Config.model_validate(keys.nest({key: item.value for key, item in layers.items()}))
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            key = keys.leaf_of(detail["loc"])
            # For a union of types, pydantic reports each type; messages of byol are preferred.
            reason = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else None
            if detail["type"] == "string_unicode":
                reason = "text in UTF-8; rename the file or folder"
            refused[key] = reason or refused.get(key)
    problems += [_refuse(layers[key], key, allowed=reason) for key, reason in refused.items()]
    values = {key: item.value for key, item in layers.items() if key not in refused}
    for involved, reason in find_conflicts(values):
        # Report the place of the latest layer, because users cannot change a preset.
        place = max((layers[key] for key in involved), key=lambda item: item.layer).place
        problems.append(f"{place}: {reason}")
    return config


def _refuse(item: Entry, key: str, *, allowed: str | None = None) -> str:
    """Return one line: the place, the given value, the allowed values, and the nearest of these."""
    schema = keys.leaves()[key]
    choices = {
        str(choice): str(choice) for part in yaml_text.parts(schema) for choice in part.get("enum", [])
    }
    if schema.get("type") == "boolean":
        choices = {"yes": "true", "on": "true", "no": "false", "off": "false"}
    near = difflib.get_close_matches(str(item.value).lower(), choices, n=1)
    hint = f"; did you mean {choices[near[0]]!r}?" if near else ""
    return f"{item.place}: got {item.text}, allowed: {allowed or yaml_text.describe(schema)}{hint}"


def _flat_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by dotted key, with tuples instead of lists, so that they can be compared."""
    flat = keys.flatten(values)
    return {key: tuple(value) if isinstance(value, list) else value for key, value in flat}


def _show(values: Mapping[str, Any], key: str) -> str:
    """Return a value as in YAML."""
    if key not in values:
        return "not set"
    value = values[key]
    if isinstance(value, tuple):
        return f"[{', '.join('null' if item is None else str(item) for item in value)}]"
    return "null" if value is None else str(value)
