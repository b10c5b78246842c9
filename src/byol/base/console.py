"""Print lines on standard output and standard error, whatever characters they contain.

Characters that the encoding of the console lacks are escaped (`\\u6f22`), and control characters in names of
files, classes and keys are never printed.
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

Say = Callable[[str], None]  # prints a line
Count = Callable[[int, int], None]  # is called with (done, total)
LINE_INTERVAL_S = 60.0  # between lines about the progress

_STREAMS = ("stdin", "stdout", "stderr")


def prepare_streams() -> None:
    """Make printing safe: replace closed streams by the null device, and escape unsupported characters."""
    for number, name in enumerate(_STREAMS):
        try:
            os.fstat(number)
        except OSError:  # `>&-`: otherwise the next opened file gets this number and the output of libraries
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # streams of notebooks may not have it
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def say(line: str) -> None:
    """Print one line on standard output, and flush."""
    with _to_output():
        print(printable(line), flush=True)


def silent(line: str) -> None:
    """Print nothing."""


def say_block(text: str) -> None:
    """Print several lines on standard output, and flush."""
    with _to_output():
        for line in text.split("\n"):
            print(printable(line))
        sys.stdout.flush()


def complain(line: str) -> None:
    """Print one line on standard error that begins with `byol:`."""
    remark(f"byol: {line}")


def remark(line: str) -> None:
    """Print one line on standard error, for commands whose standard output may hold a result."""
    try:
        print(printable(line), file=sys.stderr, flush=True)
    except OSError:  # it cannot be printed, which must not hide the problem it describes
        _drop(sys.stderr)


def print_line(console: "Console", line: str) -> None:
    """Print one line above the bar of the console, never cut or coloured.

    Raises:
        OutputError, BrokenPipeError: it cannot be printed, and the console does not have `goes_on`.
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
    """Return whether standard output is a terminal, which can show a bar; ignores FORCE_COLOR."""
    return sys.stdout.isatty()


def make_console(*, goes_on: bool = False) -> "Console":
    """Make a Rich console for standard output, with bars and colours only on a terminal.

    `goes_on`: if printing is no longer possible (`| head`, a full disk behind `> log`, a closed terminal),
    say so once on standard error and continue without printing.
    """
    from rich.console import Console

    class Lines(Console):
        def on_broken_pipe(self) -> None:  # that of Rich ends the process without a message
            raise BrokenPipeError

    console = Lines(force_terminal=None if is_watched() else False)
    console.goes_on = goes_on  # type: ignore[attr-defined]
    return console


def open_console(progress: bool | None, *, goes_on: bool = False) -> "Console | None":
    """Return the console for lines and bars of a public function; None: print nothing.

    With `progress` None, it prints in a terminal and in a notebook; `goes_on` is as in `make_console`.
    """
    if progress is False:
        return None
    console = make_console(goes_on=goes_on)
    return console if progress or is_watched() or console.is_jupyter else None


def make_say(console: "Console | None") -> Say:
    """Return a function that prints a line on the console; without a console it prints nothing."""
    return silent if console is None else partial(print_line, console)


def draws_bars(console: "Console | None") -> bool:
    """Return whether the console can redraw a bar: it is a terminal, or a notebook with ipywidgets."""
    if console is None:
        return False
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


@contextmanager
def show_bar(console: "Console | None", label: str) -> Iterator[Count | None]:
    """Draw a bar from the first count on, and remove it at the end; yield None if no bar can be drawn."""
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
    """Return a function that prints the progress on standard error, at most once a minute, for logs."""
    start_s = told_s = time.monotonic()
    before: int | None = None  # done at the first call, by this process or an earlier one

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
    """Flush standard output.

    Raises:
        OutputError, BrokenPipeError: it cannot be written.
    """
    with _to_output():
        sys.stdout.flush()


@contextmanager
def _to_output() -> Iterator[None]:
    """Turn errors of standard output into `OutputError`; drop its buffer, which would fail again at exit."""
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
    """After the terminal has been closed: print to the null device, so that printing does not fail."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # streams of notebooks
            if stat.S_ISCHR(os.fstat(stream.fileno()).st_mode):  # isatty is False for a closed terminal
                _drop(stream)


def _drop(stream: Any) -> None:
    """Redirect a stream of the process to the null device."""
    try:
        number = stream.fileno()
    except (OSError, ValueError):  # streams of notebooks
        return
    empty = os.open(os.devnull, os.O_WRONLY)
    os.dup2(empty, number)
    os.close(empty)
