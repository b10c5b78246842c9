"""Read the configuration of a run for evaluation."""

from collections.abc import Sequence
from pathlib import Path

from byol.base.errors import CheckpointError, ConfigError
from byol.config import Config, diff_configs, load_config

# The settings that an evaluation may change: its own section, and where the images are.
_MAY_CHANGE = ("evaluation.", "data.source:", "data.root:", "data.packs:", "data.download:", "data.memory:")


def read_config(run_dir: Path, overrides: Sequence[str]) -> Config:
    """Read the configuration of a run and apply overrides of `evaluation.` and of where the images are.

    Raises:
        CheckpointError: the folder holds no run.
        ConfigError: an override is not valid, or would change another setting.
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
