"""What the person sees: lines on standard output and standard error, whatever is in them.

A character that the console's encoding lacks is written out (`\\u6f22`), and control characters in names of
files, classes and keys never reach it.
"""

import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from byol.base.errors import OutputError, printable

if TYPE_CHECKING:
    from rich.console import Console

Say = Callable[[str], None]  # is told a line
Count = Callable[[int, int], None]  # is told how many are done, of how many

LINE_INTERVAL_S = 60.0  # between lines on how far a work is

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
    with _to_output():
        print(printable(line), flush=True)


def silent(line: str) -> None:
    """Where nobody wants to hear it."""


def say_block(text: str) -> None:
    """Several lines on standard output, at once."""
    with _to_output():
        for line in text.split("\n"):
            print(printable(line))
        sys.stdout.flush()


def complain(line: str) -> None:
    """One line on standard error, which says whom it is from."""
    remark(f"byol: {line}")


def remark(line: str) -> None:
    """One line on standard error, where standard output may hold a result."""
    try:
        print(printable(line), file=sys.stderr, flush=True)
    except OSError:  # nobody can read it: it must not hide what it was about
        _drop(sys.stderr)


def print_line(console: "Console", line: str) -> None:
    """One line above the console's bar, never cut or coloured.

    Raises:
        OutputError, BrokenPipeError: it cannot be printed, and the console does not go on without.
    """
    try:
        with _to_output():
            console.print(printable(line), highlight=False, markup=False, soft_wrap=True)
    except (BrokenPipeError, OutputError) as error:
        if not getattr(console, "goes_on", False):
            raise
        console.quiet = True
        reason = "no program reads it" if isinstance(error, BrokenPipeError) else error
        complain(f"the training continues without printing ({reason})")


def is_watched() -> bool:
    """Whether standard output is a terminal, so that a bar may be drawn; FORCE_COLOR does not make it one."""
    return sys.stdout.isatty()


def make_console(*, goes_on: bool = False) -> "Console":
    """Rich's console for standard output, with bars and colours on a terminal alone.

    `goes_on`: what can no longer be printed ends nothing (`| head`, a full disk behind `> log`, a lost
    terminal): that is said once on standard error.
    """
    from rich.console import Console

    class Lines(Console):
        def on_broken_pipe(self) -> None:  # Rich's own ends the process without a word
            raise BrokenPipeError

    console = Lines(force_terminal=None if is_watched() else False)
    console.goes_on = goes_on  # type: ignore[attr-defined]
    return console


def open_console(progress: bool | None, *, goes_on: bool = False) -> "Console | None":
    """The console for lines and bars of a public function; None prints nothing.

    `progress` None prints in a terminal and in a notebook; `goes_on` as for `make_console`.
    """
    if progress is False:
        return None
    console = make_console(goes_on=goes_on)
    return console if progress or is_watched() or console.is_jupyter else None


def make_say(console: "Console | None") -> Say:
    """A function that prints a line on the console; without a console it prints nothing."""
    return silent if console is None else partial(print_line, console)


def draws_bars(console: "Console | None") -> bool:
    """Whether the console can redraw a bar: it is a terminal, or a notebook with ipywidgets."""
    if console is None:
        return False
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


@contextmanager
def show_bar(console: "Console | None", label: str) -> Iterator[Count | None]:
    """Draw a bar from the first count on, and remove it at the end; None where no bar can be drawn."""
    if not draws_bars(console):
        yield None
        return
    from rich.markup import escape
    from rich.progress import Progress

    with Progress(console=console, transient=True) as bar:
        tasks: list[Any] = []

        def count(done: int, total: int) -> None:
            if not tasks:
                tasks.append(bar.add_task(escape(printable(label)), total=total))
            bar.update(tasks[0], completed=done, total=total, visible=done < total)

        yield count


def tell_each_minute(what: str) -> Count:
    """Says on standard error how far a long work is, at most once a minute: for logs, where no bar is."""
    start_s = told_s = time.monotonic()
    before: int | None = None  # done when the first count came, by this process or an earlier one

    def count(done: int, total: int) -> None:
        nonlocal told_s, before
        now_s = time.monotonic()
        if before is None:
            before = done
        if now_s - told_s < LINE_INTERVAL_S or done == before:
            return
        told_s = now_s
        rate = (done - before) / (now_s - start_s)
        left_min = (total - done) / rate / 60
        remark(f"{done:,} of {total:,} {what}, {rate:,.0f} per second, {left_min:,.0f} min left")

    return count


def finish_output() -> None:
    """Write what is buffered for standard output.

    Raises:
        OutputError, BrokenPipeError: it cannot be written.
    """
    with _to_output():
        sys.stdout.flush()


@contextmanager
def _to_output() -> Iterator[None]:
    """Put a failure of standard output into words, and drop what is buffered: it would fail again at exit."""
    try:
        yield
    except BrokenPipeError:
        _drop(sys.stdout)
        raise
    except OSError as error:
        _drop(sys.stdout)
        raise OutputError(
            f"standard output cannot be written ({error.strerror or error}); "
            "free some space, or redirect it elsewhere"
        ) from None


def leave_terminal() -> None:
    """The terminal is gone: what is printed from now on leads nowhere, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a replacement, as of notebooks
            if stat.S_ISCHR(os.fstat(stream.fileno()).st_mode):  # one that is gone is no terminal to isatty
                _drop(stream)


def _drop(stream: Any) -> None:
    """Lead a stream of the process nowhere."""
    try:
        number = stream.fileno()
    except (OSError, ValueError):  # a replacement, as of notebooks
        return
    empty = os.open(os.devnull, os.O_WRONLY)
    os.dup2(empty, number)
    os.close(empty)
