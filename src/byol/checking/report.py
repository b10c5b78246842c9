"""Write the results of `byol check`: lines for the terminal, and a folder with lists, pictures, a page."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from byol.auto.resolve import Forecast
from byol.base.files import write_atomically
from byol.checking.doctor import Examined
from byol.checking.duplicates import Alike
from byol.checking.findings import (
    BLANK_FILES,
    DUPLICATES,
    LEAKS,
    Problem,
    describe_duplicates,
    describe_files,
    describe_filled,
    describe_kinds,
    describe_sizes,
)
from byol.config import PartialConfig
from byol.data.pack.partial import BAD_FILES, csv_line
from byol.data.sources.opening import describe_source
from byol.data.sources.summary import describe_clipped, describe_images, describe_larger
from byol.pictures import page
from byol.pictures.sheets import (
    NUM_IMAGES,
    NUM_VIEWS,
    Sample,
    describe_mapping,
    draw_contact,
    draw_histograms,
    draw_views,
)

REPORT = "report.html"
PICTURES = ("contact.png", "views.png", "hist.png")
FILES = (REPORT, LEAKS, BAD_FILES, DUPLICATES, BLANK_FILES, *PICTURES)  # all files of a report
_TEMPLATE = Path(__file__).with_name("web") / "check.html"
_CONTACT = 96  # largest number of images on the contact sheet
_LISTED = 20  # names listed on the page; the CSV files hold all


@dataclass(frozen=True, eq=False)
class Leaks:
    """The results for images that training must not use."""

    test: Examined
    alike: Alike


@dataclass(frozen=True, eq=False)
class Report:
    """All results of a check; `ahead` and `sample` are None if there are no images to train on."""

    partial_config: PartialConfig
    found: Examined
    alike: Alike
    leaks: Leaks | None
    ahead: Forecast | None
    weights: tuple[str, ...]  # notes of training on its initial weights
    sample: Sample | None
    problems: tuple[Problem, ...]

    @property
    def is_refused(self) -> bool:
        """Whether training may not start."""
        return any(problem.is_fatal for problem in self.problems)

    def write(self, folder: Path) -> None:
        """Write lists, pictures and the page; replace those of an earlier check.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        for name in (LEAKS, *PICTURES):
            (folder / name).unlink(missing_ok=True)  # from an earlier check
        for _, name, head, rows in self._lists():
            write_atomically(folder / name, b"".join([csv_line(*head), *(csv_line(*row) for row in rows)]))
        pictures = self._draw()
        for name, png in pictures.items():
            write_atomically(folder / name, png)
        write_atomically(folder / REPORT, page.render_page(_TEMPLATE, self._describe(pictures)))

    def lines(self, folder: Path) -> Iterator[str]:
        """Iterate over the lines for the terminal, which fit on one screen."""
        yield from self._facts(folder)
        if self.ahead is not None:
            yield from self._describe_training(self.ahead)
        yield from map(str, self.problems)
        drawn = " (images, views, histograms)" if self.sample is not None else ""
        yield f"report: {folder / REPORT}{drawn}"
        if self.is_refused:
            yield "not ready: fix the problems above before training"
        else:
            yield "ready: training may start"

    def _facts(self, folder: Path) -> Iterator[str]:
        found = self.found
        yield describe_files(found)
        if len(found):
            yield describe_kinds(found)
            yield describe_sizes(found)
            yield describe_duplicates(found, self.alike)
            if (filled := describe_filled(found)) is not None:
                yield filled
        yield from self._left_out(folder)
        if self.leaks is not None:
            alike, total = self.leaks.alike, len(self.leaks.test)
            yield (
                f"{alike.num_exact:,} of {total:,} test images are exact duplicates of training images, "
                f"{alike.num_near:,} near duplicates"
            )

    def _left_out(self, folder: Path) -> Iterator[str]:
        """Describe what was left out, in the words of training and embedding."""
        found = self.found
        yield from describe_source(found.source)
        yield from describe_images(
            found.bad,
            found.changed,
            num_images=len(found.source),
            listed=str(folder / BAD_FILES),
        )
        if self.ahead is not None:
            px = self.ahead.stored_px
            num_larger = int((found.sizes > px).any(axis=1).sum())
            yield from describe_larger(num_larger, num_images=len(found), stored_px=px)
        if self.sample is not None:
            yield from describe_clipped(self.sample.clipped)

    def _describe_training(self, ahead: Forecast) -> Iterator[str]:
        views = [c for c in ahead.choices if c.key.startswith(("data_transforms", "data."))]
        yield from map(str, views)
        others = [choice.words for choice in ahead.choices if choice not in views]
        if others:
            yield "; ".join(others)
        yield from self.weights
        yield f"{ahead.describe_time()}; {self._describe_room(ahead)}"

    def _describe_room(self, ahead: Forecast) -> str:
        px, benchmark = ahead.stored_px, ahead.benchmark
        channels, itemsize = self._stored_kind()
        disk = len(self.found) * px * px * channels * itemsize
        return (
            f"it needs {_bytes(benchmark.peak_bytes)} of memory, and {_bytes(disk)} of disk for the pack "
            "(a copy of the images)"
        )

    def _stored_kind(self) -> tuple[int, int]:
        """Return channels, and bytes per value, of the packed images."""
        channels, bits = next(iter(self.found.kinds))
        if self.sample is not None:
            channels = self.sample.squares.shape[3]
        return channels, bits // 8

    def _lists(self) -> Iterator[tuple[str, str, tuple[str, ...], Iterable[tuple[str, ...]]]]:
        """Iterate over the lists: heading on the page, CSV file, its columns and its rows."""
        pair = ("file", "same as", "kind")
        yield "Files that cannot be read", BAD_FILES, ("file", "reason"), self.found.bad
        if self.leaks is not None:
            leaks = _pairs(self.leaks.alike, self.leaks.test, self.found)
            yield "Test images that are also training images", LEAKS, pair, leaks
        yield "Duplicates", DUPLICATES, pair, _pairs(self.alike, self.found, self.found)
        blank = ((self.found.name(row),) for row in np.flatnonzero(self.found.is_blank).tolist())
        yield "Blank images", BLANK_FILES, ("file",), blank

    def _draw(self) -> dict[str, bytes]:
        if self.sample is None:
            return {}
        step = -(-len(self.sample) // _CONTACT)
        pictures = {"contact.png": draw_contact(self.sample.every(step))}
        if self.ahead is not None:
            config, few = self.ahead.config, self.sample.every(max(1, len(self.sample) // NUM_IMAGES))
            pictures["views.png"] = draw_views(few, config.data_transforms, seed=config.trainer.seed)
        pictures["hist.png"] = draw_histograms(self.sample)
        return pictures

    # ---- The page

    def _describe(self, pictures: dict[str, bytes]) -> dict[str, Any]:
        """Return the content for `check.html`."""
        content = {
            "title": f"byol check: {self.partial_config.config.data.source}",
            "is_refused": self.is_refused,
            "problems": [
                (kind, [str(problem) for problem in self.problems if problem.is_fatal == is_fatal])
                for kind, is_fatal in (("bad", True), ("warn", False))
            ],
            "facts": list(self._facts(Path())),
            "sample": self.sample,
            "pictures": {name: page.to_address(png, "png") for name, png in pictures.items()},
            "num_views": NUM_VIEWS,
            "ahead": self.ahead,
            "lists": list(self._list_files()),
        }
        if self.sample is not None:
            pixels = self.sample.pixels
            ranges = zip(pixels.low, pixels.high, pixels.mean, pixels.std, strict=True)
            content["mapping"] = describe_mapping(self.sample.squares.shape[3])
            content["channels"] = [(at, *map(_show, numbers)) for at, numbers in enumerate(ranges)]
        if (ahead := self.ahead) is not None:
            first, second = ahead.config.data_transforms.view1, ahead.config.data_transforms.view2
            content["views"] = [
                (key, _show(getattr(first, key)), _show(getattr(second, key)), setting.description or "")
                for key, setting in type(first).model_fields.items()
            ]
            content["choices"] = list(map(str, ahead.choices))
            content["plan"] = [
                *ahead.plan.explain(),
                f"{ahead.describe_time()}; {self._describe_room(ahead)}",
            ]
        return content

    def _list_files(self) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, ...]], bool]]:
        """Iterate over heading, column names, the first rows, and whether there may be more rows."""
        for heading, name, head, rows in self._lists():
            shown = list(islice(rows, _LISTED))
            yield f"{heading} ({name})", head, shown, len(shown) == _LISTED


def _pairs(alike: Alike, found: Examined, others: Examined) -> Iterator[tuple[str, str, str]]:
    for row in np.flatnonzero(alike.same_as >= 0).tolist():
        kind = "exact" if alike.is_exact[row] else "near"
        yield found.name(row), others.name(int(alike.same_as[row])), kind


def _bytes(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{max(1, round(number / 1e6)):,} MB"


def _show(value: object) -> str:
    if isinstance(value, tuple):
        return " .. ".join(f"{number:.4g}" for number in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
