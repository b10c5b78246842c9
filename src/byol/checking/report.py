"""What `byol check` has found, as lines for the terminal and as a folder of lists, pictures and one page."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
    describe_copies,
    describe_files,
    describe_filled,
    describe_kinds,
    describe_sizes,
)
from byol.config import Draft
from byol.data.pack.partial import BAD_FILES, csv_line
from byol.data.sources.opening import describe_source
from byol.data.sources.summary import describe_images, describe_larger
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
_CONTACT = 96  # images on the contact sheet, at most
_LISTED = 20  # names in the page; all are in the CSV files


@dataclass(frozen=True, eq=False)
class Leaks:
    """What was found about images that training must not see."""

    test: Examined
    alike: Alike


@dataclass(frozen=True, eq=False)
class Report:
    """All that a check has found; `ahead` and `sample` are None where there is nothing to train on."""

    draft: Draft
    found: Examined
    alike: Alike
    leaks: Leaks | None
    ahead: Forecast | None
    sample: Sample | None
    problems: tuple[Problem, ...]

    @property
    def is_refused(self) -> bool:
        """Whether training may not start."""
        return any(problem.is_fatal for problem in self.problems)

    def write(self, folder: Path) -> None:
        """Lists, pictures and page; what an earlier check wrote is replaced.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        write_atomically(folder / BAD_FILES, _csv(("file", "reason"), self.found.bad))
        blank = ((self.found.name(row),) for row in np.flatnonzero(self.found.is_blank).tolist())
        write_atomically(folder / BLANK_FILES, _csv(("file",), blank))
        write_atomically(folder / DUPLICATES, _csv(("file", "same as", "kind"), self._duplicates()))
        (folder / LEAKS).unlink(missing_ok=True)  # of an earlier check
        if self.leaks is not None:
            write_atomically(folder / LEAKS, _csv(("file", "same as", "kind"), self._leaks()))
        pictures = self._draw()
        for name in ("contact.png", "views.png", "hist.png"):
            (folder / name).unlink(missing_ok=True)
        for name, png in pictures.items():
            write_atomically(folder / name, png)
        title = f"byol check: {self.draft.config.data.source}"
        write_atomically(folder / REPORT, page.make_page(title, self._parts(pictures)))

    def lines(self, folder: Path) -> Iterator[str]:
        """For the terminal, less than a screen."""
        yield from self._facts()
        if self.ahead is not None:
            yield from self._describe_training(self.ahead)
        yield from map(str, self.problems)
        drawn = ": images, views, histograms" if self.sample is not None else ""
        yield f"report: {folder / REPORT}{drawn}"
        if self.is_refused:
            yield "training may not start before this is mended"
        else:
            yield "training may start"

    def _facts(self) -> Iterator[str]:
        found = self.found
        yield describe_files(found)
        yield f"{len(found):,} can be read, {len(found.bad):,} cannot"
        if len(found):
            yield describe_kinds(found)
            yield describe_sizes(found)
            yield describe_copies(found, self.alike)
            if (filled := describe_filled(found)) is not None:
                yield filled
        yield from self._left_out()
        if self.leaks is not None:
            alike, total = self.leaks.alike, len(self.leaks.test)
            yield (
                f"of {total:,} test images {alike.num_exact:,} are in the training part, "
                f"{alike.num_near:,} more nearly"
            )

    def _left_out(self) -> Iterator[str]:
        """As training and embedding say it."""
        found = self.found
        yield from describe_source(found.source)
        yield from describe_images(
            found.bad,
            found.changed,
            num_images=len(found.source),
            listed=BAD_FILES,
        )
        if self.ahead is not None:
            px = self.ahead.stored_px
            num_larger = int((found.sizes > px).any(axis=1).sum())
            yield from describe_larger(num_larger, num_images=len(found), stored_px=px)

    def _describe_training(self, ahead: Forecast) -> Iterator[str]:
        views = [c for c in ahead.choices if c.key.startswith(("data_transforms", "data."))]
        yield from map(str, views)
        others = [choice.words for choice in ahead.choices if choice not in views]
        if others:
            yield ", ".join(others)
        yield f"{ahead.describe_time()}; {self._describe_room(ahead)}"

    def _describe_room(self, ahead: Forecast) -> str:
        px, probe = ahead.stored_px, ahead.probe
        channels, itemsize = self._stored_kind()
        disk = len(self.found) * px * px * channels * itemsize
        return f"{_bytes(probe.peak_bytes)} of memory, {_bytes(disk)} of disk for {px} px copies"

    def _stored_kind(self) -> tuple[int, int]:
        """Channels, and bytes a value."""
        channels, bits = next(iter(self.found.kinds))
        if self.sample is not None:
            channels = self.sample.squares.shape[3]
        return channels, bits // 8

    def _duplicates(self) -> Iterator[tuple[str, str, str]]:
        yield from _pairs(self.alike, self.found, self.found)

    def _leaks(self) -> Iterator[tuple[str, str, str]]:
        assert self.leaks is not None
        yield from _pairs(self.leaks.alike, self.leaks.test, self.found)

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

    def _parts(self, pictures: dict[str, bytes]) -> Iterator[str]:
        yield page.paragraph(
            "Training may not start before this is mended." if self.is_refused else "Training may start.",
            kind="bad" if self.is_refused else "good",
        )
        for kind, fatal in (("bad", True), ("warn", False)):
            lines = [str(problem) for problem in self.problems if problem.is_fatal == fatal]
            if lines:
                yield page.items(lines, kind=kind)
        yield page.heading("The images")
        yield page.items(self._facts())
        if self.sample is not None:
            yield from self._picture_parts(self.sample, pictures)
        if self.ahead is not None:
            yield from self._training_parts(self.ahead)
        yield from self._list_parts()

    def _picture_parts(self, sample: Sample, pictures: dict[str, bytes]) -> Iterator[str]:
        px, mapping = sample.squares.shape[1], describe_mapping(sample.squares.shape[3])
        yield page.heading("Contact sheet")
        yield page.paragraph(
            f"As they are decoded, stored at {px} x {px} px and scaled to 0..1; {mapping}.", kind="quiet"
        )
        yield page.picture(pictures["contact.png"], title="contact sheet")
        yield page.heading("Values")
        yield page.paragraph(
            f"Of {len(sample)} images, scaled from low .. high to 0..1; the height is the square root of the "
            "share.",
            kind="quiet",
        )
        yield page.picture(pictures["hist.png"], title="histograms")
        rows = [
            (str(channel), *(f"{value:.4g}" for value in numbers))
            for channel, numbers in enumerate(
                zip(sample.pixels.low, sample.pixels.high, sample.pixels.mean, sample.pixels.std, strict=True)
            )
        ]
        yield page.table(("channel", "low", "high", "mean of scaled", "std of scaled"), rows)
        if "views.png" in pictures:
            yield page.heading("Views")
            yield page.paragraph(
                f"A row an image, {NUM_VIEWS} views of each: first and second view in turns. Whatever two "
                "views of one image do not share, the encoder learns to ignore. Is the thing that matters to "
                f"you in each of them? {mapping[0].upper()}{mapping[1:]}.",
                kind="quiet",
            )
            yield page.picture(pictures["views.png"], title="views")

    def _training_parts(self, ahead: Forecast) -> Iterator[str]:
        transforms = ahead.config.data_transforms
        first, second = transforms.view1.model_dump(), transforms.view2.model_dump()
        fields = type(transforms.view1).model_fields
        rows = [(key, _show(first[key]), _show(second[key]), fields[key].description or "") for key in first]
        yield page.table((f"views, s = {transforms.s:g}", "view1", "view2", "meaning"), rows)
        yield page.heading("What training would do")
        yield page.items(map(str, ahead.choices))
        yield page.items([*ahead.plan.explain(), f"{ahead.describe_time()}; {self._describe_room(ahead)}"])

    def _list_parts(self) -> Iterator[str]:
        blank = [(self.found.name(row),) for row in np.flatnonzero(self.found.is_blank)[:_LISTED].tolist()]
        repeats = ("file", "same as", "kind")
        leaks = self._leaks() if self.leaks is not None else iter(())
        for title, head, rows in (
            (f"Files that cannot be read ({BAD_FILES})", ("file", "reason"), iter(self.found.bad)),
            (f"Test images that are in the training part ({LEAKS})", repeats, leaks),
            (f"Duplicates ({DUPLICATES})", repeats, self._duplicates()),
            (f"Blank images ({BLANK_FILES})", ("file",), iter(blank)),
        ):
            shown = [row for row, _ in zip(rows, range(_LISTED), strict=False)]
            if shown:
                yield page.heading(title)
                yield page.table(head, shown)
                if len(shown) == _LISTED:
                    yield page.paragraph(f"The first {_LISTED}; the file lists all.", kind="quiet")


def _pairs(alike: Alike, found: Examined, others: Examined) -> Iterator[tuple[str, str, str]]:
    for row in np.flatnonzero(alike.same_as >= 0).tolist():
        kind = "exact" if alike.is_exact[row] else "near"
        yield found.name(row), others.name(int(alike.same_as[row])), kind


def _csv(head: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    return b"".join([csv_line(*head), *(csv_line(*row) for row in rows)])


def _bytes(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{max(1, round(number / 1e6)):,} MB"


def _show(value: object) -> str:
    if isinstance(value, tuple):
        return " .. ".join(f"{number:.4g}" for number in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
