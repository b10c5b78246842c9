"""Tables and sentences of plain text, for a terminal."""

import textwrap
from collections.abc import Sequence

_WIDTH = 120  # of sentences


def wrap(*sentences: str) -> list[str]:
    """Lines of these sentences, each beginning a line."""
    return [line for sentence in sentences for line in textwrap.wrap(sentence, _WIDTH)]


def render_columns(cells: Sequence[Sequence[str]], *, left: Sequence[bool]) -> list[str]:
    """Lines of columns, the first a heading with a rule below it; names to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            text.ljust(width) if is_left else text.rjust(width)
            for text, width, is_left in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in cells
    ]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]
