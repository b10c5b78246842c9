"""`byol embed` and `byol predict`: new images in, a file of features or classes out."""

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from byol.base.console import Count, make_console, remark, say, show_bar, tell_each_minute
from byol.base.errors import ConfigError
from byol.cli.commands import refuse_overrides
from byol.config import DataConfig, load_partial

if TYPE_CHECKING:
    from byol.data.decode.index import Source
    from byol.encoder.encoder import Encoder
    from byol.encoder.feature_file import About
    from byol.encoder.known import Known
    from byol.encoder.spec import EncoderSpec
    from byol.encoder.streaming import Streamed

FORMATS = ("parquet", "csv", "npz", "h5ad")
COLUMNS = ("wide", "vector")


def embed_command(options: argparse.Namespace) -> int:
    from byol.encoder.encoder import load
    from byol.encoder.feature_file import choose_format, write_features
    from byol.encoder.streaming import stream_rows

    data = _settings_of_new_images(options, "embedding")
    if options.prototypes is not None and options.prototypes < 1:
        raise ConfigError(f"--prototypes {options.prototypes}: give a number of images, at least 1")
    chosen = choose_format(options.output, options.format, columns=options.columns)
    if options.metadata is not None and chosen == "npz":
        raise ConfigError("--metadata: .npz holds names and features alone; write .parquet, .csv or .h5ad")
    encoder = load(options.run, device=options.device)
    images = _open_images(options, encoder.spec, data)
    has_labels = chosen == "h5ad" or options.columns == "vector"
    known = _find_known(options, images, encoder=encoder, has_labels=has_labels)
    with (
        _show_progress("images") as count,
        stream_rows(
            encoder,
            images,
            options.output,
            skip_unreadable=data.skip_unreadable,
            width=encoder.spec.num_features,
            progress=count,
        ) as found,
    ):
        with _show_progress("rows written") as count:
            write_features(
                options.output,
                found.names,
                features=found.values,
                file_format=options.format,
                columns=options.columns,
                about=_describe(images, found, encoder=encoder, known=known),
                progress=count,
            )
        _say_written(f"{encoder.spec.num_features:,} features each", found, options.output)
        if options.prototypes is not None:
            _choose_prototypes(found, options.output, num=options.prototypes)
    return 0


def _find_known(
    options: argparse.Namespace, images: "Source", *, encoder: "Encoder", has_labels: bool
) -> "list[Known]":
    """Columns of labels, where the file has such, and of `--metadata`."""
    from byol.data.sources.opening import folder_of
    from byol.encoder.feature_file import feature_columns
    from byol.encoder.known import find_known

    if not has_labels and options.metadata is None:
        return []
    taken = ["file", "filepath", "embedding", *feature_columns(encoder.spec.num_features)]
    known, notes = find_known(
        images, metadata=options.metadata, taken=taken, folder=folder_of(options.images), labels=has_labels
    )
    for line in notes:
        remark(line)
    return known


def _describe(
    images: "Source", found: "Streamed", *, encoder: "Encoder", known: "Sequence[Known]"
) -> "About":
    """What a file of features says beside them."""
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


def _choose_prototypes(found: "Streamed", output: Path, *, num: int) -> None:
    """Write a list of images that stand for all; all features are in memory for it."""
    from byol.encoder.feature_file import write_prototypes
    from byol.metrics.neighbours import Distinct, find_prototypes

    features, num_images = found.values[:], len(found.names)
    if (features == features[0]).all():
        same = f"all {num_images} have the same features: they are duplicates, or the encoder has collapsed"
        why = "" if num_images == 1 else f" ({same})"
        say(f"no prototypes: there is only one distinct image{why}")
        return
    chosen = find_prototypes(features, Distinct.of(features), num=num, seed=0)
    path = output.with_suffix(".prototypes.csv")
    write_prototypes(path, [found.names[row] for row in chosen.rows], sizes=chosen.sizes.tolist())
    say(f"wrote the {len(chosen.rows)} most representative images to {path}")


def predict_command(options: argparse.Namespace) -> int:
    from byol.encoder.classifier import check_predictions_path, load_classifier, write_predictions
    from byol.encoder.streaming import stream_rows

    data = _settings_of_new_images(options, "prediction")
    check_predictions_path(options.output)
    classifier = load_classifier(options.classifier, device=options.device)
    encoder = classifier.encoder
    images = _open_images(options, encoder.spec, data)
    with (
        _show_progress("images") as count,
        stream_rows(
            encoder,
            images,
            options.output,
            skip_unreadable=data.skip_unreadable,
            width=2,
            make_rows=classifier.choose,
            recipe=(classifier.fingerprint(),),
            progress=count,
        ) as found,
    ):
        write_predictions(options.output, found.names, choices=found.values, classes=classifier.class_names)
        _say_written("their classes", found, options.output)
    return 0


def _say_written(what: str, found: "Streamed", output: Path) -> None:
    left_out = f", {found.num_bad:,} left out" if found.num_bad else ""
    say(f"wrote {len(found.names):,} rows (images) with {what} to {output}{left_out}")


@contextmanager
def _show_progress(what: str) -> Iterator[Count]:
    """A bar on a terminal; elsewhere a line each minute on standard error."""
    with show_bar(make_console(), what) as count:
        yield count or tell_each_minute(what)


def _settings_of_new_images(options: argparse.Namespace, what: str) -> DataConfig:
    """The settings that apply to new images: data.skip_unreadable and data.layout."""
    keys = ("data.skip_unreadable=", "data.layout=")
    given = [override for override in options.overrides if override.startswith(keys)]
    options.overrides = [override for override in options.overrides if not override.startswith(keys)]
    refuse_overrides(options, what)
    return load_partial(None, given, preset="default").config.data


def _open_images(options: argparse.Namespace, spec: "EncoderSpec", data: DataConfig) -> "Source":
    """New images for an encoder, in the layout of `data.layout` if that is given."""
    from byol.encoder.remarks import gather_and_say

    spec = spec if data.layout == "auto" else replace(spec, layout=data.layout)
    return gather_and_say(options.images, spec, skip_unreadable=data.skip_unreadable)
