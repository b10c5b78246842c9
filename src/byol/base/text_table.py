"""Format tables, sentences and percentages as plain text, for a terminal."""

import textwrap
from collections.abc import Sequence

_WIDTH = 120  # of lines of sentences


def percent(share: float) -> str:
    """Format a fraction in 0..1 as percentage."""
    return f"{100.0 * share:.1f} %"


def percent_range(low: float, high: float) -> str:
    """Format two fractions in 0..1 as a range of percentages, without the unit."""
    return f"{100.0 * low:.1f} to {100.0 * high:.1f}"


def wrap(*sentences: str) -> list[str]:
    """Wrap sentences into lines; each sentence starts a new line."""
    return [line for sentence in sentences for line in textwrap.wrap(sentence, _WIDTH)]


def render_columns(cells: Sequence[Sequence[str]], *, left: Sequence[bool]) -> list[str]:
    """Return the lines of a table; the first row is the heading. `left` columns are aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            text.ljust(width) if is_left else text.rjust(width)
            for text, width, is_left in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in cells
    ]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]
