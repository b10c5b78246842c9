"""`byol.embed` and `byol.predict`: write features or classes of many images to a file, in Python."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from byol.api.arguments import AnyPath, Overrides, list_overrides
from byol.api.evaluation import folder_of
from byol.api.run import Run
from byol.base.console import (
    Count,
    Say,
    make_say,
    open_console,
    remark,
    show_bar,
    silent,
    tell_each_minute,
)
from byol.base.errors import ConfigError
from byol.config import DataConfig, load_partial

if TYPE_CHECKING:
    from rich.console import Console

    from byol.data.decode.index import Source
    from byol.encoder.encoder import Encoder
    from byol.encoder.feature_file import About
    from byol.encoder.known import Known
    from byol.encoder.streaming import Streamed

FORMATS = ("parquet", "csv", "npz", "h5ad")
COLUMNS = ("wide", "vector")


@dataclass(frozen=True)
class Written:
    """A file with one row for each image that could be used, in the order of the images."""

    path: Path
    num_images: int  # rows of the file
    num_left_out: int  # images that could not be used; a file beside `path` lists them
    num_outside: int  # images in the file whose values lie outside the range of the training images


def embed(
    run: Run | AnyPath,
    images: AnyPath,
    *,
    output: AnyPath,
    format: str | None = None,
    columns: Literal["wide", "vector"] = "wide",
    metadata: AnyPath | None = None,
    prototypes: int | None = None,
    device: str = "auto",
    overrides: Overrides = None,
    progress: bool | None = None,
) -> Written:
    """Write the features of many images to a file; memory does not grow with their number.

    An image that cannot be read is left out. After an interruption the same call continues.

    Args:
        run: a `Run`, a run folder, or a folder with an encoder (`RUN/target`, `RUN/best`).
        images: a folder, an image, a .txt or .csv file with image paths, a .npy array, or a .tar file.
        output: the file to write: .parquet, .csv, .npz or .h5ad.
        format: "parquet", "csv", "npz" or "h5ad"; by default by the suffix of `output`.
        columns: "wide": a column for each feature; "vector" (Parquet): one list column, with file paths.
        metadata: CSV file with the column file and others, which are written beside the features.
        prototypes: also write the N most representative images to NAME.prototypes.csv.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "mps" or "xpu".
        overrides: the settings `data.skip_unreadable` and `data.layout`.
        progress: whether to print what is done and draw a bar; None: in a terminal or a notebook.

    Raises:
        ConfigError: the format is unknown or needs a package, or a setting is not one of the two.
        CheckpointError: there is no encoder, or the file cannot be written.
        DataError: no image can be used, the disk fails, or features are not finite.
    """
    from byol.encoder.encoder import load
    from byol.encoder.feature_file import choose_format, write_features
    from byol.encoder.streaming import stream_rows

    path, data = Path(output), _settings_of_new_images(overrides, "embedding")
    if prototypes is not None and prototypes < 1:
        raise ConfigError(f"--prototypes {prototypes}: give a number of images, at least 1")
    chosen = choose_format(path, format, columns=columns)
    if metadata is not None and chosen == "npz":
        raise ConfigError("--metadata: .npz holds names and features alone; write .parquet, .csv or .h5ad")
    printing = _Printing(open_console(progress))
    encoder = load(folder_of(run), device=device)
    source = _open_images(images, encoder, data, tell=printing.tell)
    known: list[Known] = []
    has_labels = chosen == "h5ad" or columns == "vector"
    if has_labels or metadata is not None:
        known = _find_known(images, source, encoder, metadata, has_labels=has_labels, tell=printing.tell)
    with (
        printing.count("images") as count,
        stream_rows(
            encoder,
            source,
            path,
            skip_unreadable=data.skip_unreadable,
            width=encoder.spec.num_features,
            progress=count,
            tell=printing.tell,
        ) as found,
    ):
        with printing.count("rows written") as count:
            write_features(
                path,
                found.names,
                features=found.values,
                file_format=format,
                columns=columns,
                about=_describe(source, found, encoder=encoder, known=known),
                progress=count,
            )
        written = printing.finish(f"{encoder.spec.num_features:,} features each", found, path)
        if prototypes is not None:
            printing.say(_choose_prototypes(found, path, num=prototypes))
    return written


def predict(
    classifier: AnyPath,
    images: AnyPath,
    *,
    output: AnyPath,
    device: str = "auto",
    overrides: Overrides = None,
    progress: bool | None = None,
) -> Written:
    """Write the class of each of many images to a CSV file with the columns file,label,probability.

    Args:
        classifier: the output folder of `byol.finetune`.
        images: as for `embed`.
        output: the file to write, .csv.
        device: as for `embed`.
        overrides: as for `embed`.
        progress: as for `embed`.

    Raises:
        ConfigError, CheckpointError, DataError: as `embed`.
    """
    from byol.encoder.classifier import check_predictions_path, load_classifier, write_predictions
    from byol.encoder.streaming import stream_rows

    path, data = Path(output), _settings_of_new_images(overrides, "prediction")
    check_predictions_path(path)
    printing = _Printing(open_console(progress))
    loaded = load_classifier(Path(classifier), device=device)
    source = _open_images(images, loaded.encoder, data, tell=printing.tell)
    with (
        printing.count("images") as count,
        stream_rows(
            loaded.encoder,
            source,
            path,
            skip_unreadable=data.skip_unreadable,
            width=2,
            make_rows=loaded.choose,
            recipe=(loaded.fingerprint(),),
            progress=count,
            tell=printing.tell,
        ) as found,
    ):
        write_predictions(path, found.names, choices=found.values, classes=loaded.class_names)
        return printing.finish("their classes", found, path)


class _Printing:
    """Prints nothing without a console; notes about the images go to standard error."""

    def __init__(self, console: "Console | None") -> None:
        self._console = console
        self.say = make_say(console)
        self.tell: Say = silent if console is None else remark

    @contextmanager
    def count(self, what: str) -> Iterator[Count | None]:
        """A bar on a terminal; elsewhere a line each minute on standard error."""
        with show_bar(self._console, what) as count:
            yield count or (None if self._console is None else tell_each_minute(what))

    def finish(self, what: str, found: "Streamed", path: Path) -> Written:
        left_out = f", {found.num_bad:,} left out" if found.num_bad else ""
        self.say(f"wrote {len(found.names):,} rows (images) with {what} to {path}{left_out}")
        return Written(path, len(found.names), found.num_bad, found.num_outside)


def _settings_of_new_images(overrides: Overrides, what: str) -> DataConfig:
    """Return the settings that apply to new images: data.skip_unreadable and data.layout."""
    chosen = list_overrides(overrides)
    for override in chosen:
        if not override.startswith(("data.skip_unreadable=", "data.layout=")):
            raise ConfigError(f"override '{override}': {what} takes no settings; leave it out")
    return load_partial(None, chosen, preset="default").config.data


def _open_images(images: AnyPath, encoder: "Encoder", data: DataConfig, *, tell: Say) -> "Source":
    """Open new images for an encoder, in the layout of `data.layout` if that is given."""
    from byol.encoder.remarks import gather_and_say

    spec = encoder.spec if data.layout == "auto" else replace(encoder.spec, layout=data.layout)
    return gather_and_say(str(images), spec, skip_unreadable=data.skip_unreadable, tell=tell)


def _find_known(
    images: AnyPath,
    source: "Source",
    encoder: "Encoder",
    metadata: AnyPath | None,
    *,
    has_labels: bool,
    tell: Say,
) -> "list[Known]":
    """Find columns of labels, where the file has such, and of the metadata."""
    from byol.data.sources.opening import folder_of as image_folder_of
    from byol.encoder.feature_file import feature_columns
    from byol.encoder.known import find_known

    known, notes = find_known(
        source,
        metadata=None if metadata is None else Path(metadata),
        taken=["file", "filepath", "embedding", *feature_columns(encoder.spec.num_features)],
        folder=image_folder_of(str(images)),
        labels=has_labels,
    )
    for line in notes:
        tell(line)
    return known


def _describe(
    images: "Source", found: "Streamed", *, encoder: "Encoder", known: "Sequence[Known]"
) -> "About":
    """Return what a file of features says beside them."""
    from byol.data.decode.formats import path_of
    from byol.encoder.feature_file import About

    first = found.names.places(slice(0, 1))[0]
    are_files = path_of(images.item(first)) is not None

    def find_paths(rows: slice) -> list[str]:
        items = map(images.item, found.names.places(rows))
        return [os.path.abspath(path_of(item) or "") for item in items]

    spec = encoder.spec
    return About(
        known=[column.pick(found.names.places()) for column in known],
        paths=find_paths if are_files else None,
        encoder={
            "network": spec.name,
            "which": spec.which,
            "steps": spec.done,
            "trained_on": spec.data_name,
            "data_fingerprint": spec.data_fingerprint,
            "byol_version": spec.byol_version,
        },
    )


def _choose_prototypes(found: "Streamed", output: Path, *, num: int) -> str:
    """Write a list of images that stand for all, and return a line about it. All features are in memory."""
    from byol.encoder.feature_file import write_prototypes
    from byol.metrics.neighbours import Distinct, find_prototypes

    features, num_images = found.values[:], len(found.names)
    if (features == features[0]).all():
        same = f"all {num_images} have the same features: they are duplicates, or the encoder has collapsed"
        why = "" if num_images == 1 else f" ({same})"
        return f"no prototypes: there is only one distinct image{why}"
    chosen = find_prototypes(features, Distinct.of(features), num=num, seed=0)
    path = output.with_suffix(".prototypes.csv")
    write_prototypes(path, [found.names[row] for row in chosen.rows], sizes=chosen.sizes.tolist())
    return f"wrote the {len(chosen.rows)} most representative images to {path}"
