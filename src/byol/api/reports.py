"""`byol.check` and `byol.report`, in Python."""

from pathlib import Path
from typing import TYPE_CHECKING

from byol.api.arguments import AnyPath, Overrides, choose_folder, list_overrides, make_partial_config
from byol.api.evaluation import folder_of
from byol.api.run import Run
from byol.base.console import make_say, open_console, show_bar

if TYPE_CHECKING:
    from byol.checking.check import CheckResult


def check(
    images: AnyPath,
    *,
    output: AnyPath | None = None,
    test: AnyPath | None = None,
    hours: str | float | None = None,
    preset: str | None = None,
    overrides: Overrides = None,
    progress: bool | None = None,
) -> "CheckResult":
    """Examine all images, and write a report on problems with them and on what training would do.

    Args:
        images: as for `train`.
        output: the folder of the report; by default `check/NAME`.
        test: images that training must not use; the check searches for them among `images`.
        hours: as for `train`.
        preset: as for `train`.
        overrides: as for `train`.
        progress: whether to draw a bar; None: in a terminal or a notebook.

    Raises:
        ConfigError: a setting is unknown, or `output` is no folder for a report.
        DataError: there are no images.
        CheckpointError: the folder cannot be written.
    """
    from byol.checking.check import check as look

    partial_config = make_partial_config(images, preset=preset, hours=hours, overrides=overrides)
    folder = choose_folder(images, output, place="check")
    with show_bar(open_console(progress), "looking at images") as count:
        return look(partial_config, folder, test=None if test is None else str(test), progress=count)


def report(
    run: Run | AnyPath,
    *,
    labels: AnyPath | None = None,
    metadata: AnyPath | None = None,
    images: int = 10_000,
    output: AnyPath | None = None,
    overrides: Overrides = None,
    progress: bool | None = None,
) -> Path:
    """Write one HTML file with the results of a run, its curves and a map of its images; return its path.

    Args:
        run: a `Run` or a run folder.
        labels: CSV file with the columns file,label, for the colours of the map.
        metadata: CSV file with the column file and others, for further colours of the map.
        images: largest number of images on the map.
        output: the file; by default `report.html` in the run folder.
        overrides: settings that say where the images are (`data.`).
        progress: whether to print and draw a bar; None: in a terminal or a notebook.

    Raises:
        CheckpointError: the folder holds no run, or the file cannot be written.
        ConfigError, DataError: a setting, the labels or the images cannot be used.
    """
    from byol.reporting.report import write_report

    console = open_console(progress)
    with show_bar(console, "computing features") as count:
        return write_report(
            folder_of(run),
            labels=None if labels is None else Path(labels),
            metadata=None if metadata is None else Path(metadata),
            output=None if output is None else Path(output),
            overrides=list_overrides(overrides),
            most_images=images,
            say=make_say(console),
            progress=count,
        )
