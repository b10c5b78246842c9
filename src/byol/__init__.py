"""byol: train an image encoder on unlabelled images, and measure how good it is.

run = byol.train("IMAGES/", output="runs/cells", hours=2)   # the same call again continues
features = run.embed("NEW/")                                 # (N, F) float32
print(byol.evaluate(run, labels="cells.csv").render())       # compared with pixels and untrained encoder
encoder = byol.load("runs/cells")                            # an encoder that was trained before
learner = byol.Byol(any_torch_module, ...)                   # only the method, for your own loop
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from byol import errors
from byol.base.version import __version__

if TYPE_CHECKING:
    from byol.api.classifiers import Finetuned as Finetuned
    from byol.api.classifiers import finetune as finetune
    from byol.api.environment import Environment as Environment
    from byol.api.environment import environment as environment
    from byol.api.evaluation import Evaluation as Evaluation
    from byol.api.evaluation import evaluate as evaluate
    from byol.api.exporting import export as export
    from byol.api.features import Written as Written
    from byol.api.features import embed as embed
    from byol.api.features import predict as predict
    from byol.api.packing import PackedImages as PackedImages
    from byol.api.packing import pack as pack
    from byol.api.reports import check as check
    from byol.api.reports import report as report
    from byol.api.run import Run as Run
    from byol.api.run import open_run as open_run
    from byol.api.run import train as train
    from byol.checking.check import CheckResult as CheckResult
    from byol.encoder.classifier import Classifier as Classifier
    from byol.encoder.classifier import load_classifier as load_classifier
    from byol.encoder.encoder import Encoder as Encoder
    from byol.encoder.encoder import load as load
    from byol.errors import *  # noqa: F403
    from byol.exporting.export import Exported as Exported
    from byol.method.networks import Byol as Byol

# Loaded when first used, so that `byol --help` does not load torch.
_PUBLIC = {
    "byol.api.classifiers": ("Finetuned", "finetune"),
    "byol.api.environment": ("Environment", "environment"),
    "byol.api.evaluation": ("Evaluation", "evaluate"),
    "byol.api.exporting": ("export",),
    "byol.api.features": ("Written", "embed", "predict"),
    "byol.api.packing": ("PackedImages", "pack"),
    "byol.api.reports": ("check", "report"),
    "byol.api.run": ("Run", "open_run", "train"),
    "byol.checking.check": ("CheckResult",),
    "byol.encoder.classifier": ("Classifier", "load_classifier"),
    "byol.encoder.encoder": ("Encoder", "load"),
    "byol.errors": tuple(errors.__all__),
    "byol.exporting.export": ("Exported",),
    "byol.method.networks": ("Byol",),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'byol' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
