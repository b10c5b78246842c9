"""Format tables, sentences and percentages as plain text, for a terminal."""

import re
import textwrap
from collections.abc import Sequence

_WIDTH = 120  # of lines of sentences


def percent(share: float) -> str:
    """Format a fraction in 0..1 as percentage."""
    return f"{100.0 * share:.1f} %"


def whole_percent(share: float) -> str:
    """Of a share in 0..1, without decimals."""
    return f"{100.0 * share:.0f} %"


def percent_range(low: float, high: float) -> str:
    """Format two fractions in 0..1 as a range of percentages, without the unit."""
    return f"{100.0 * low:.1f} to {100.0 * high:.1f}"


def join_words(words: Sequence[str]) -> str:
    """Join as "a", "a and b" or "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def describe_duration(seconds: float) -> str:
    """Format as 80 s, 30 min or 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def wrap(*sentences: str) -> list[str]:
    """Wrap sentences into lines; each sentence starts a new line."""
    # A number and its unit stay on one line. NUL stands for the space between them.
    kept = (re.sub(r"(?<=\d) %", "\0%", sentence) for sentence in sentences)
    return [line.replace("\0", " ") for sentence in kept for line in textwrap.wrap(sentence, _WIDTH)]


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
