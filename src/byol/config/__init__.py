"""The configuration: its schema, presets, files and overrides; other rooms get all of it from here."""

from byol.config.configuration import (
    Draft,
    diff_configs,
    dump_config,
    json_schema,
    load_config,
    load_draft,
    write_override,
)
from byol.config.schema import (
    Config,
    DataConfig,
    DataTransforms,
    EvaluationConfig,
    LoggerName,
    NetworkConfig,
    OptimizerConfig,
    TrainerConfig,
    View,
)

__all__ = [
    "Config",
    "DataConfig",
    "DataTransforms",
    "Draft",
    "EvaluationConfig",
    "LoggerName",
    "NetworkConfig",
    "OptimizerConfig",
    "TrainerConfig",
    "View",
    "diff_configs",
    "dump_config",
    "json_schema",
    "load_config",
    "load_draft",
    "write_override",
]
