"""`byol.export`: export an encoder, in Python."""

from pathlib import Path
from typing import TYPE_CHECKING

from byol.api.arguments import AnyPath
from byol.api.evaluation import folder_of
from byol.api.run import Run
from byol.base.console import make_say, open_console

if TYPE_CHECKING:
    from byol.exporting.export import Exported


def export(
    run: Run | AnyPath, *, format: str, output: AnyPath | None = None, progress: bool | None = None
) -> "Exported":
    """Write an encoder for other programs, and check that it computes the same features there.

    Args:
        run: a `Run`, a run folder, or a folder with an encoder (`RUN/target`, `RUN/best`).
        format: "timm" (a folder for timm and transformers), "onnx" or "torch" (a file with the preprocessing
            inside, for onnxruntime or for PyTorch alone).
        output: the folder to write; by default the run's name with the format. An earlier export is replaced.
        progress: whether to print what is done; None: in a terminal or a notebook.

    Raises:
        ConfigError: the format is unknown, needs a package, or cannot hold this encoder.
        CheckpointError: there is no encoder, `output` holds something else or cannot be written, or the
            export does not compute the same features.
    """
    from byol.exporting.export import export as write

    say = make_say(open_console(progress))
    exported = write(folder_of(run), None if output is None else Path(output), format=format, say=say)
    say(
        f"{exported.format}: {exported.folder}, features within {exported.difference:.1e} of byol's; its "
        "README.md shows how to use it"
    )
    return exported
