"""`byol report`: write one self-contained HTML file about a run.

Templates, style and scripts are in `web/`. If the data of a section are missing, it names the command that
writes them. jinja2 escapes the names of files and classes in HTML, and `tojson` in data for the scripts.
"""

import base64
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib import metadata as packages
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from markupsafe import Markup
from PIL import Image

from byol.base.console import Count, Say, silent
from byol.base.disk import read_bytes
from byol.base.errors import ConfigError, DataError
from byol.base.files import write_atomically
from byol.base.version import __version__
from byol.config import write_override
from byol.data.labels.label_file import Labels
from byol.data.pack.packed import Packed
from byol.encoder.encoder import load
from byol.evaluation.labelled import SEEN
from byol.metrics.neighbours import find_nearest
from byol.pictures.page import render_page, to_address
from byol.pictures.sheets import NUM_IMAGES, NUM_VIEWS, Sample, draw_views
from byol.pictures.thumbnails import COLUMNS, ROWS, draw_sheets, draw_thumbnail, encode
from byol.reporting import report_parts as parts
from byol.reporting.embedding_map import (
    MOST_PLACED,
    Embedded,
    choose_rows,
    list_slow_maps,
    open_run_images,
    place_by_pca,
    place_most_slowly,
    to_uint16,
)
from byol.reporting.run_summary import Json, RunSummary, read_summary
from byol.runfolder.leftovers import tidy
from byol.training.runlog import format_time

FILE_NAME = "report.html"
WEB = Path(__file__).with_name("web")
MOST_IMAGES = 65_535  # most images on the map, because the page stores rows as 16-bit numbers
NUM_NEAR = 8  # neighbours of an image on the map
_SHEET_BYTES = 4_400_000  # of thumbnails; base64 adds a third, and the page should stay below 8 MB
_TILE_PX = 64  # side of neighbours, prototypes and outliers
_VIEWS_QUALITY = 70


def write_report(
    run_dir: Path,
    *,
    labels: Path | None = None,
    metadata: Path | None = None,
    output: Path | None = None,
    overrides: Sequence[str] = (),
    most_images: int = MOST_PLACED,
    say: Say = silent,
    progress: Count | None = None,
) -> Path:
    """Write the report of a run to `output` (default: `report.html` in the run folder) and return its path.

    `labels` (columns file,label) and the columns of `metadata` colour the map of at most `most_images`
    images. `overrides` set where the images are, as in `evaluate`. `say` receives notes about slow work and
    missing sections; `progress` receives the number of embedded images.

    Raises:
        CheckpointError: the folder holds no run, one of its files is damaged, or `output` cannot be written.
        ConfigError: an override is not valid or cannot be changed; `most_images` is not in 1 .. 65,535.
        DataError: `labels` or `metadata` cannot be read.
    """
    if not 1 <= most_images <= MOST_IMAGES:
        raise ConfigError(
            f"--images {most_images}: a report has 1 to {MOST_IMAGES:,} on its map; byol explore shows more"
        )
    chosen = [] if labels is None else [write_override("evaluation.labels", str(labels))]
    run = read_summary(run_dir, [*overrides, *chosen])
    tidy(run_dir)
    embedded, missing = _open_images(run, metadata=metadata, say=say, progress=progress)
    shown = None if embedded is None else _Shown(run, embedded)
    places = None
    if embedded is not None:
        rows = choose_rows(len(embedded.images), most_images)
        places = make_map_data(embedded, rows, run=run, say=say)
    page = render_page(WEB / "report.html", _describe(run, shown, places, missing=missing))
    path = output or run_dir / FILE_NAME
    write_atomically(path, page)
    return path


def _open_images(
    run: RunSummary, *, metadata: Path | None, say: Say, progress: Count | None
) -> tuple[Embedded | None, str]:
    """Return the images of the run with their features, or None and the reason."""
    if run.encoder is None:
        missing = "there is no encoder yet; to finish the run, repeat its byol train command"
    else:
        device = "cpu" if run.config.trainer.device == "cpu" else "auto"
        try:
            encoder = load(run.run_dir, device=device)
            images = open_run_images(run.config, run.run_dir, encoder=encoder, say=say)
            stranger = _find_stranger(images, run.measures)
            if stranger is None:
                embedded = Embedded.of(
                    images,
                    run.run_dir,
                    config=run.config,
                    encoder=encoder,
                    metadata=metadata,
                    say=say,
                    progress=progress,
                )
                return embedded, ""
        except DataError as error:
            if metadata is not None or run.config.evaluation.labels is not None:
                raise  # the labels or metadata that the user named may be the cause
            missing = f"the images cannot be opened ({error}); name their folder with data.source=FOLDER"
        else:
            raise DataError(f"{stranger}: is no longer among the images; run byol eval again")
    say(f"the report has no pictures: {missing}")
    return None, missing


def _find_stranger(images: Packed, measures: Json | None) -> str | None:
    """Return the name of an image in measures.json that is no longer in its row; None: there is none."""
    if measures is None:
        return None
    alike = [near for query in measures["neighbours"] for near in query["neighbours"]]
    for one in (*measures["neighbours"], *alike, *measures["prototypes"], *measures["outliers"]):
        if one["row"] >= len(images) or images.names[int(one["row"])] != one["name"]:
            return str(one["name"])
    return None


# ---- The map


def make_map_data(
    embedded: Embedded, rows: Int64[np.ndarray, " image"], *, run: RunSummary, say: Say
) -> Json | None:
    """Return the data that `map.js` draws for these images, with thumbnails; None: too few images."""
    seed, directions = run.config.evaluation.seed, embedded.directions[rows]
    try:
        pca = place_by_pca(directions, seed=seed)
    except DataError as error:
        say(f"the report has no map: {error}")
        return None
    slow = place_most_slowly(list_slow_maps(), directions, run_dir=run.run_dir, seed=seed, say=say)
    layouts = [*slow, ("PCA", to_uint16(pca))]
    found = find_nearest(directions, torch.from_numpy(directions), k=NUM_NEAR + 1)
    likeness, near = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    sheets = draw_sheets(embedded.images, rows, most_bytes=_SHEET_BYTES)
    return {
        "count": len(rows),
        "names": [embedded.images.names[int(row)] for row in rows],
        "layouts": [(name, _base64(places)) for name, places in layouts],
        "columns": [_describe_column(name, column, rows) for name, column in embedded.columns.items()],
        "near": _base64(near.astype(np.uint16)),
        "likeness": _base64(np.rint(100 * likeness).astype(np.int8)),
        "perRow": near.shape[1],
        "sheets": {
            "px": sheets.px,
            "columns": COLUMNS,
            "each": COLUMNS * ROWS,
            "images": [to_address(sheet, "webp") for sheet in sheets.sheets],
        },
    }


def _describe_column(name: str, column: Labels, rows: Int64[np.ndarray, " image"]) -> Json:
    values, classes = column
    return {"name": name, "classes": list(classes), "values": _base64(values[rows].astype(np.int32))}


def _base64(array: np.ndarray) -> str:
    """Return the values of an array in little-endian order, as base64."""
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()


# ---- Pictures


@dataclass(frozen=True, eq=False)
class _Shown:
    """Pictures of a run's images."""

    run: RunSummary
    embedded: Embedded

    def views(self) -> str:
        """Return the sheet of views as a data URL."""
        images, transforms = self.embedded.images, self.run.config.data_transforms
        rows = choose_rows(len(images), NUM_IMAGES)
        names = tuple(images.names[int(row)] for row in rows)
        sample = Sample(names, images.read(rows), np.array(images.sizes[rows]), images.pixels)
        png = draw_views(sample, transforms, seed=self.run.config.trainer.seed)
        return to_address(encode(Image.open(BytesIO(png)), quality=_VIEWS_QUALITY), "webp")

    def tile(self, entry: Json, *, caption: str, of_class: int | None = None) -> Json:
        """Describe one image of measures.json; `is_other`: its label is known and differs from `of_class`."""
        row, images = int(entry["row"]), self.embedded.images
        picture = draw_thumbnail(images.read(np.array([row]))[0], images.pixels, px=_TILE_PX)
        label = self.label(row)
        name = str(entry["name"])
        words = name if label < 0 else f"{name} ({self.embedded.columns['label'][1][label]})"
        return {
            "address": to_address(encode(picture), "webp"),
            "name": words,
            "caption": caption,
            "is_other": of_class is not None and of_class >= 0 and label >= 0 and label != of_class,
        }

    def label(self, row: int) -> int:
        """Return the label of an image; -1: unknown."""
        return int(self.embedded.columns["label"][0][row]) if "label" in self.embedded.columns else -1

    def neighbours(self, measures: Json) -> list[list[Json]]:
        """Return a strip per query: the query, then its neighbours with their similarity."""
        return [
            [
                self.tile(query, caption="query"),
                *(
                    self.tile(one, caption=f"{one['similarity']:.2f}", of_class=self.label(int(query["row"])))
                    for one in query["neighbours"]
                ),
            ]
            for query in measures["neighbours"]
        ]

    def strip(self, entries: Sequence[Json], *, key: str, form: str) -> list[Json]:
        """Return prototypes or outliers, with a number below each."""
        return [self.tile(entry, caption=form.format(entry[key])) for entry in entries]


# ---- Text and numbers


def _describe(run: RunSummary, shown: _Shown | None, places: Json | None, *, missing: str) -> Json:
    table = run.table
    evaluation = None if table is None else table.fields
    return {
        "name": run.name,
        "run": shlex.quote(str(run.run_dir)),
        "today": date.today().isoformat(),
        "verdict": parts.summarise(run),
        "health": " ".join([parts.describe_health(run.metrics), *run.incidents]).strip(),
        "key_facts": _list_key_figures(run, shown),
        "evaluation": evaluation,
        "seen": SEEN,
        "images": None if table is None else table.images,
        "resampled": None if table is None else table.resampled,
        "outdated_table": run.outdated_table,
        "outdated_measures": run.outdated_measures,
        "eval_options": None if table is None else table.options,
        "groups": parts.describe_rows(evaluation) if evaluation else [],
        "low_shot": parts.draw_low_shot(evaluation) if evaluation else None,
        "confusion": _describe_confusion(evaluation),
        "measures": run.measures,
        "best": run.best,
        "curves": parts.draw_curves(run),
        "missing": missing,
        "pictures": None if shown is None else _describe_pictures(run, shown),
        "map": places,
        "map_total": None if shown is None else len(shown.embedded.images),
        "config_text": Markup.escape(read_bytes(run.run_dir / "config.yaml").decode()),
        "additions": run.additions,
        "data": _find_data(run, shown),
        "versions": _find_versions(),
        "view_px": run.config.view_px,
    }


def _describe_confusion(evaluation: Json | None) -> Json | None:
    found = None if evaluation is None else parts.describe_confusion(evaluation)
    if found is not None and found["heat"] is not None:
        found["heat"] = to_address(found["heat"], "png")
    return found


def _describe_pictures(run: RunSummary, shown: _Shown) -> Json:
    measures = run.measures
    found: Json = {
        "views": shown.views(),
        "num_views": NUM_VIEWS,
        "neighbours": [],
        "prototypes": [],
        "outliers": [],
    }
    if measures is None:
        return found
    return found | {
        "neighbours": shown.neighbours(measures),
        "prototypes": shown.strip(measures["prototypes"], key="size", form="{:,}"),
        "outliers": shown.strip(measures["outliers"], key="distance", form="{:.2f}"),
    }


def _list_key_figures(run: RunSummary, shown: _Shown | None) -> list[tuple[str, str]]:
    found = [("Network", f"{run.config.network.name}, {run.config.view_px} px")]
    if shown is not None:
        found.insert(0, ("Training images", f"{len(shown.embedded.images):,}"))
    if run.hours is not None:
        found.append(("Training", f"{run.done:,} steps, {run.metrics[-1].epoch:.3g} epochs"))
        found.append(("Training time", format_time(3600.0 * run.hours)))
    if run.table is not None:
        fields = run.table.fields
        name = "Labelled images" if run.table.has_folds else "Test images"
        found.append((name, f"{fields['num_test']:,} of {fields['num_classes']} classes"))
    return found


def _find_data(run: RunSummary, shown: _Shown | None) -> list[tuple[str, str]]:
    if shown is None:
        return []
    images = shown.embedded.images
    return [
        ("source", Path(run.config.data.source).name),
        ("images", f"{len(images):,}; {images.num_bad:,} could not be read and are left out"),
        (
            "stored",
            f"{images.stored_px} x {images.stored_px} px, {images.channels} channels, {images.bits} bit",
        ),
        ("fingerprint", f"{images.fingerprint} (of the stored values)"),
    ]


def _find_versions() -> list[tuple[str, str]]:
    names = ("byol", "torch", "torchvision", "timm", "numpy", "scikit-learn")
    return [*((name, _version(name)) for name in names), ("python", platform.python_version())]


def _version(name: str) -> str:
    return __version__ if name == "byol" else packages.version(name)
