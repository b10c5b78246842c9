"""What a public function shows while it works: lines and a bar, or nothing."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from byol.base.console import is_watched, make_console, print_line, remark

if TYPE_CHECKING:
    from rich.console import Console

LINE_INTERVAL_S = 60.0  # between lines on how far a work is

Say = Callable[[str], None]
Count = Callable[[int, int], None]  # done, of all


def open_console(progress: bool | None) -> "Console | None":
    """Where lines and bars go; None: nothing is shown.

    `progress` None shows them in a terminal and in a notebook, where the bar is the notebook's.
    """
    if progress is False:
        return None
    console = make_console()
    shows = progress or is_watched() or console.is_jupyter
    return console if shows else None


def make_say(console: "Console | None") -> Say | None:
    """Prints a line on the console; None: nobody listens."""
    if console is None:
        return None
    return lambda line: print_line(console, line)


@contextmanager
def show_bar(console: "Console | None", label: str) -> Iterator[Count | None]:
    """A bar that is drawn from the first count on and vanishes at the end; on a console that can draw one."""
    if console is None or not (console.is_terminal or console.is_jupyter):
        yield None
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True) as bar:
        tasks: list[Any] = []

        def count(done: int, total: int) -> None:
            if not tasks:
                tasks.append(bar.add_task(label, total=total))
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
        remark(f"{done:,} of {total:,} {what}, {rate:,.0f} a second, {left_min:,.0f} min left")

    return count
