"""What `byol embed` and `byol predict` say of new images: what is unlike the training's, what is left out."""

from dataclasses import dataclass, field
from pathlib import Path

from byol.base.console import complain, remark
from byol.base.errors import DataError
from byol.base.files import write_atomically
from byol.data.decode.disk import DiskError
from byol.data.decode.image import Square
from byol.data.decode.index import Source
from byol.data.pack.partial import csv_line
from byol.data.pack.value_range import count_clipped
from byol.data.sources.in_memory import Images
from byol.data.sources.left_out import Few
from byol.data.sources.opening import describe_source
from byol.data.sources.summary import describe_clipped, describe_images
from byol.encoder.encoder import gather
from byol.encoder.spec import EncoderSpec
from byol.method.views import Pixels

_MOST_COMPLAINTS = 20  # that are said one by one


@dataclass
class Remarks:
    """What is to be said of single images: unlike those of the training as they come, all else at the end."""

    skip_unreadable: bool
    pixels: Pixels  # of the training
    bad: list[tuple[str, str]] = field(default_factory=list)  # names and reasons of those that are left out
    changed: dict[str, Few] = field(default_factory=dict)
    num_used: int = 0
    num_outside: int = 0
    num_clipped: int = 0  # values, of so many
    num_values: int = 0

    def leave_out(self, name: str, error: DataError) -> None:
        if isinstance(error, DiskError) and not self.skip_unreadable:
            raise error.locate(name)
        self.bad.append((name, str(error)))

    def note(self, name: str, square: Square) -> None:
        self.num_used += 1
        for text in square.notes:
            self.changed.setdefault(text, Few()).add(name)
        clipped, total = count_clipped(square.pixels, self.pixels, square.filled)
        self.num_clipped += clipped
        self.num_values += total

    def warn(self, name: str, found: str) -> None:
        self.num_outside += 1
        if self.num_outside <= _MOST_COMPLAINTS:
            complain(f"{name}: {found}")

    def say_all(self, output: Path) -> None:
        """What was left out or changed, and a list of the first beside the output."""
        others = self.num_outside - _MOST_COMPLAINTS
        if others > 0:
            complain(f"and {others:,} more images, unlike those of the training")
        listed = output.with_suffix(".left_out.csv")
        if self.bad:
            write_atomically(listed, b"".join(csv_line(*row) for row in [("file", "reason"), *self.bad]))
        else:
            listed.unlink(missing_ok=True)  # of an earlier time
        lines = describe_images(
            self.bad,
            self.changed,
            num_images=self.num_used + len(self.bad),
            listed=str(listed),
        )
        clipped = describe_clipped(self.num_clipped / max(1, self.num_values))
        for line in (*lines, *clipped):
            remark(line)


def gather_and_say(images: str | Path, spec: EncoderSpec, *, skip_unreadable: bool) -> Images:
    """New images for an encoder; what a folder holds besides, or how a list was understood, is said.

    Raises:
        DataError: as `encoder.gather`.
    """
    found = gather(images, spec, skip_unreadable=skip_unreadable)
    for line in describe_source(found) if isinstance(found, Source) else ():
        remark(line)
    return found
