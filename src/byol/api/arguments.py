"""Convert the arguments of a public function or a command to a configuration and a folder."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from byol.base.errors import ConfigError
from byol.base.files import is_address
from byol.config import PartialConfig, keys, load_partial, write_override

Overrides = Mapping[str, object] | Sequence[str] | None
"""Settings: {"trainer.max_epochs": 3}, {"trainer": {"max_epochs": 3}}, or ["trainer.max_epochs=3"]."""

AnyPath = str | PathLike[str]


def list_overrides(overrides: Overrides) -> list[str]:
    """Return each override as `section.key=value`, the form of the command line."""
    if overrides is None:
        return []
    if isinstance(overrides, Mapping):
        return [write_override(key, value) for key, value in keys.flatten(overrides)]
    return list(overrides)


def list_evaluation(overrides: Overrides, **options: object) -> list[str]:
    """Return the overrides, and the `options` of the section `evaluation` that are not None."""
    chosen = [
        write_override(f"evaluation.{key}", str(value) if isinstance(value, PathLike) else value)
        for key, value in options.items()
        if value is not None
    ]
    return [*list_overrides(overrides), *chosen]


def make_partial_config(
    images: AnyPath,
    *,
    preset: str | None,
    hours: str | float | None,
    init: AnyPath | None = None,
    overrides: Overrides = None,
) -> PartialConfig:
    """Make the configuration from the arguments; `images` may be a configuration file (.yaml).

    Raises:
        ConfigError: a setting is unknown or impossible, or the file cannot be read.
        DataError: `images` is an address with no pack of shards.
    """
    chosen = list_overrides(overrides)
    if init is not None:
        chosen.insert(0, write_override("network.fine_tune_from", str(init)))
    if hours is not None:
        chosen.append(f"trainer.max_hours={hours}")
    source = str(images)
    if _is_configuration(source):
        return load_partial(Path(source), chosen, preset=preset)
    if is_address(source):
        from byol.data.pack.remote import settings_of

        chosen = [*(write_override(key, value) for key, value in settings_of(source).items()), *chosen]
    return load_partial(None, [write_override("data.source", source), *chosen], preset=preset or "default")


def choose_folder(images: AnyPath, output: AnyPath | None, *, place: str) -> Path:
    """Return `output`, or a folder in `place` named after the images or the configuration file.

    Raises:
        ConfigError: its name is not UTF-8, which TensorBoard cannot write.
    """
    if output is None:
        source = str(images)
        path = Path(source) if _is_configuration(source) else Path(source).resolve()
        output = Path(place) / (path.name if path.is_dir() else path.stem)
    try:
        str(output).encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{output}: the name of the folder is not UTF-8; choose another with -o") from None
    return Path(output)


def _is_configuration(source: str) -> bool:
    return Path(source).suffix.lower() in (".yaml", ".yml")
