"""Tables of plain text, for a terminal."""

from collections.abc import Sequence


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
