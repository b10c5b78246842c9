"""The version of the package, and the folder of its source."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

try:
    __version__ = version("byol")
except PackageNotFoundError:  # run from the source folder, not installed
    __version__ = "0.1.0+source"

SOURCE = Path(__file__).parents[2]
"""The folder that holds the package."""
