"""Tell what `byol embed` and `byol predict` find in new images: unlike the training images, or left out."""

import sys
from pathlib import Path
from typing import BinaryIO

from byol.base.console import Say
from byol.base.disk import DiskError
from byol.base.errors import DataError
from byol.base.files import write_atomically
from byol.data.decode.image import Square
from byol.data.decode.index import Source
from byol.data.pack.partial import csv_line
from byol.data.pack.value_range import count_clipped
from byol.data.sources.left_out import Few
from byol.data.sources.opening import describe_source
from byol.data.sources.piped import PIPED, open_piped
from byol.data.sources.summary import describe_clipped, describe_images
from byol.encoder.encoder import gather
from byol.encoder.partial_rows import PartialRows
from byol.encoder.spec import EncoderSpec
from byol.method.views import Pixels

_MOST_COMPLAINTS = 20  # images that are reported one by one


class Remarks:
    """Reports on single images: those unlike the training images at once, everything else at the end.

    It continues the counts of an earlier process, which `rows` has kept.
    """

    def __init__(self, skip_unreadable: bool, pixels: Pixels, rows: PartialRows, tell: Say) -> None:
        self._skip_unreadable, self._pixels, self._rows = skip_unreadable, pixels, rows
        self._tell = tell
        self.seen = rows.mark.seen.copy()

    def leave_out(self, name: str, error: DataError) -> None:
        if isinstance(error, DiskError) and not self._skip_unreadable:
            raise error.locate(name)
        self._rows.append_bad(name, str(error))

    def note(self, name: str, square: Square) -> None:
        for text in square.notes:
            self.seen.notes.setdefault(text, Few()).add(name)
        clipped, total = count_clipped(square.pixels, self._pixels, square.filled)
        self.seen.num_clipped += clipped
        self.seen.num_values += total

    def warn(self, name: str, found: str) -> None:
        self.seen.num_outside += 1
        if self.seen.num_outside <= _MOST_COMPLAINTS:
            self._tell(f"byol: {name}: {found}")

    def say_all(self, output: Path) -> None:
        """Tell what was left out or changed, and write a list of the left-out images beside the output."""
        seen, mark = self.seen, self._rows.mark
        others = seen.num_outside - _MOST_COMPLAINTS
        if others > 0:
            self._tell(f"byol: and {others:,} more images are unlike the training images")
        listed = output.with_suffix(".left_out.csv")
        if mark.num_bad:
            write_atomically(listed, self._write_bad)
        else:
            listed.unlink(missing_ok=True)  # from an earlier command
        lines = describe_images(
            self._rows.read_bad(),
            seen.notes,
            num_images=mark.num_rows + mark.num_bad,
            listed=str(listed),
        )
        clipped = describe_clipped(seen.num_clipped / max(1, seen.num_values))
        for line in (*lines, *clipped):
            self._tell(line)

    def _write_bad(self, file: BinaryIO) -> None:
        file.write(csv_line("file", "reason"))
        for row in self._rows.read_bad():
            file.write(csv_line(*row))


def gather_and_say(images: str, spec: EncoderSpec, *, skip_unreadable: bool, tell: Say) -> Source:
    """Open new images for an encoder; tell what was skipped in a folder, or how a list was interpreted.

    `images` is a path, the name of a known data set, or `-` for a list of files on standard input.

    Raises:
        DataError: same as `encoder.gather`; or standard input names no file.
    """
    if images == PIPED:
        return open_piped(sys.stdin.buffer.read, layout=spec.layout, skip_unreadable=skip_unreadable)
    found = gather(images, spec, skip_unreadable=skip_unreadable)
    assert isinstance(found, Source)
    for line in describe_source(found):
        tell(line)
    return found
