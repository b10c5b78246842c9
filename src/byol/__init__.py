"""byol: turn a pile of unlabelled images into a good image encoder, and say honestly how good it is.

encoder = byol.load("runs/cells")            # an encoder that `byol train` left
features = encoder.embed("new_images/")      # (N, F) float32
classes = byol.load_classifier("runs/cells-finetuned").predict("new_images/")
learner = byol.Byol(any_torch_module, ...)   # the method alone, for your own loop
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from byol.base.errors import ValueRangeWarning as ValueRangeWarning
    from byol.encoder.classifier import Classifier as Classifier
    from byol.encoder.classifier import load_classifier as load_classifier
    from byol.encoder.encoder import Encoder as Encoder
    from byol.encoder.encoder import load as load
    from byol.method.networks import Byol as Byol

try:
    __version__ = version("byol")
except PackageNotFoundError:  # run from the source folder, not installed
    __version__ = "0.1.0+source"

# Loaded when first used: `byol --help` need not wait for torch.
_PUBLIC = {
    "Byol": "byol.method.networks",
    "Classifier": "byol.encoder.classifier",
    "Encoder": "byol.encoder.encoder",
    "ValueRangeWarning": "byol.base.errors",
    "load": "byol.encoder.encoder",
    "load_classifier": "byol.encoder.classifier",
}
__all__ = ["Byol", "Classifier", "Encoder", "ValueRangeWarning", "__version__", "load", "load_classifier"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'byol' has no attribute {name!r}")
