"""The configuration of a run that is to be evaluated."""

from collections.abc import Sequence
from pathlib import Path

from byol.base.errors import CheckpointError, ConfigError
from byol.config import Config, diff_configs, load_config

# What an evaluation may set differently from the run: its own section, and where the images lie.
_MAY_CHANGE = ("evaluation.", "data.source:", "data.root:", "data.packs:", "data.download:", "data.memory:")


def read_config(run_dir: Path, overrides: Sequence[str]) -> Config:
    """A run's configuration with overrides of `evaluation.` and of where the images lie.

    Raises:
        CheckpointError: the folder holds no run.
        ConfigError: an override is not valid, or would change what the run was.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise CheckpointError(
            f"{run_dir}: holds no run (no config.yaml); name the folder of a run, or train one: "
            "byol train IMAGES/ -o runs/NAME"
        )
    config = load_config(path, list(overrides), preset=None)
    changes = diff_configs(load_config(path, [], preset=None), config)
    refused = [change for change in changes if not change.startswith(_MAY_CHANGE)]
    if refused:
        raise ConfigError(f"evaluation cannot change these settings ({'; '.join(refused)}); leave them out")
    return config
