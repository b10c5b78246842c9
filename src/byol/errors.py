"""The errors and warnings of the public functions; every error is a `ByolError`."""

from byol.base.errors import (
    ByolError,
    CheckpointError,
    CollapsedError,
    ConfigError,
    DataError,
    DiskReadError,
    DivergedError,
    NoLabelsError,
    RankLostError,
    RunInUseError,
    RunMismatchError,
    ValueRangeWarning,
)

__all__ = [
    "ByolError",
    "CheckpointError",
    "CollapsedError",
    "ConfigError",
    "DataError",
    "DiskReadError",
    "DivergedError",
    "NoLabelsError",
    "RankLostError",
    "RunInUseError",
    "RunMismatchError",
    "ValueRangeWarning",
]
