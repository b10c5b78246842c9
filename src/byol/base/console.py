"""What the person sees: lines on standard output and standard error, whatever is in them.

A character that the console's encoding lacks is written out (`\\u6f22`), and control characters in names of
files, classes and keys never reach it.
"""

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from byol.base.errors import printable

if TYPE_CHECKING:
    from rich.console import Console

Say = Callable[[str], None]  # is told a line

_STREAMS = ("stdin", "stdout", "stderr")


def prepare_streams() -> None:
    """Make printing safe: closed streams lead nowhere, and no character is too much for an encoding."""
    for number, name in enumerate(_STREAMS):
        try:
            os.fstat(number)
        except OSError:  # `>&-`: else the next file that is opened gets the number, and what libraries print
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # a replacement, as of notebooks, may have none
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def say(line: str) -> None:
    """One line on standard output, at once."""
    print(printable(line), flush=True)


def silent(line: str) -> None:
    """Where nobody wants to hear it."""


def say_block(text: str) -> None:
    """Several lines on standard output, at once."""
    for line in text.split("\n"):
        print(printable(line))
    sys.stdout.flush()


def complain(line: str) -> None:
    """One line on standard error, which says whom it is from."""
    print(f"byol: {printable(line)}", file=sys.stderr, flush=True)


def remark(line: str) -> None:
    """One line on standard error, where standard output may hold a result."""
    print(printable(line), file=sys.stderr, flush=True)


def print_line(console: "Console", line: str) -> None:
    """One line above the console's bar, never cut or coloured."""
    console.print(printable(line), highlight=False, markup=False, soft_wrap=True)


def is_watched() -> bool:
    """Whether standard output is a terminal, so that a bar may be drawn; FORCE_COLOR does not make it one."""
    return sys.stdout.isatty()


def make_console() -> "Console":
    """Rich's console for standard output, with bars and colours on a terminal alone."""
    from rich.console import Console

    return Console(force_terminal=None if is_watched() else False)
