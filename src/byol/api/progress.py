"""What a public function shows while it works: lines and a bar, or nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from byol.base.console import is_watched, make_console, print_line

if TYPE_CHECKING:
    from rich.console import Console

Say = Callable[[str], None]
Count = Callable[[int, int], None]  # done, of all


def open_console(progress: bool | None, *, goes_on: bool = False) -> "Console | None":
    """Where lines and bars go; None: nothing is shown. `goes_on`: as for `make_console`.

    `progress` None shows them in a terminal and in a notebook, where the bar is the notebook's.
    """
    if progress is False:
        return None
    console = make_console(goes_on=goes_on)
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
