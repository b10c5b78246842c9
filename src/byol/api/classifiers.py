"""`byol.finetune`: train a classifier, in Python."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from byol.api.arguments import AnyPath, Overrides, list_evaluation
from byol.api.evaluation import folder_of
from byol.api.run import Run
from byol.base.console import make_say, open_console, show_bar

if TYPE_CHECKING:
    from byol.encoder.classifier import Classifier
    from byol.finetuning.results import FinetuneResult


@dataclass(frozen=True, repr=False)
class Finetuned:
    """The result of `byol.finetune`: a folder with a classifier, and its accuracy."""

    folder: Path
    outcome: "FinetuneResult"  # its rows, with intervals

    def __repr__(self) -> str:
        rows = ", ".join(f"{row.start} {100 * row.top1:.1f} %" for row in self.outcome.rows)
        return f"<byol.Finetuned {self.folder}: {self.outcome.num_classes} classes, top-1 {rows}>"

    @cached_property
    def classifier(self) -> "Classifier":
        """The classifier, loaded from the folder."""
        from byol.encoder.classifier import load_classifier

        return load_classifier(self.folder)


def finetune(
    run: Run | AnyPath,
    *,
    output: AnyPath | None = None,
    labels: AnyPath | None = None,
    train: AnyPath | None = None,
    test: AnyPath | None = None,
    fraction: float = 1.0,
    epochs: int | None = None,
    scratch: bool = False,
    overrides: Overrides = None,
    progress: bool | None = None,
) -> Finetuned:
    """Train a classifier, and the encoder with it if that helps, from the encoder of a run.

    Args:
        run: a `Run`, a run folder, or a folder with an encoder.
        output: the folder to write; by default the run's name with `-finetuned`.
        labels: as for `evaluate`.
        train: as for `evaluate`.
        test: as for `evaluate`.
        fraction: fraction of the training labels of every class to use, 0..1.
        epochs: passes over the labelled images; None: 10 to 20, depending on their number.
        scratch: also train from random weights, for comparison.
        overrides: settings of `evaluation.` and `data.`.
        progress: whether to print what is done; None: in a terminal or a notebook.

    Raises:
        CheckpointError: there is no encoder, or `output` holds something else or cannot be written.
        ConfigError, DataError: a setting, the labels or the images cannot be used.
        DivergedError: the loss is not finite.
    """
    from byol.finetuning.finetune import finetune as train_classifier

    source = folder_of(run)
    folder = source.with_name(f"{source.resolve().name}-finetuned") if output is None else Path(output)
    console = open_console(progress)
    with show_bar(console, "epochs") as count:
        outcome = train_classifier(
            source,
            folder,
            overrides=list_evaluation(overrides, labels=labels, train=train, test=test),
            fraction=fraction,
            epochs=epochs,
            scratch=scratch,
            say=make_say(console),
            progress=count,
        )
    return Finetuned(folder, outcome)
