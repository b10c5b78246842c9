"""The configuration: its schema, presets, files and overrides; other packages import it from here."""

from byol.config.configuration import (
    PartialConfig,
    diff_configs,
    dump_config,
    json_schema,
    load_config,
    load_partial,
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
    "EvaluationConfig",
    "LoggerName",
    "NetworkConfig",
    "OptimizerConfig",
    "PartialConfig",
    "TrainerConfig",
    "View",
    "diff_configs",
    "dump_config",
    "json_schema",
    "load_config",
    "load_partial",
    "write_override",
]
