"""Process many images in order, several at once: with threads, or with processes if the files are small.

Pillow lets other threads run while it decodes or resizes an image. Its other work, about 0.1 ms per image,
blocks them: little compared with 2 ms for a photograph, but most of the time for a file of 1 KB. So small
files are read by child processes. These are new processes (not forks of this process, which may have threads
and a GPU); they receive paths, return results, and exit at the end of their input.
"""

import pickle
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from queue import SimpleQueue
from typing import Any, TypeVar

from byol.base.disk import DiskError
from byol.base.errors import DataError
from byol.data.decode.child import Child
from byol.data.decode.formats import ImageArray, LaidFile, path_of
from byol.data.decode.index import Source, skips_unreadable
from byol.data.decode.opened import quiet
from byol.device.host import count_cores

T = TypeVar("T")
R = TypeVar("R")
Look = Callable[[str | LaidFile | ImageArray], R]

_PROCESS_FILE_BYTES = 4096  # use processes if the mean file size is below this times their number
PROCESS_MIN_IMAGES = 4000  # fewer are read faster than a process starts
_CHUNK, _CHUNK_BYTES = 64, 2**18  # limits of a task: images; bytes of their files or results


def read_ahead(
    look: Look[R], source: Source, indices: Sequence[int], *, num_workers: int, result_bytes: int = 0
) -> Generator[tuple[int, R | DataError], None, None]:
    """Iterate over the indices in order, each with the result of `look` or the error for its image.

    `num_workers` threads or processes work a few tasks ahead; a task is one image, or several if their files
    and results (of `result_bytes` each) are small. `look` must be picklable.

    Raises:
        DataError: the disk fails, which is no fault of the image, and the source does not skip unreadable
            files; or a child process has ended, perhaps because the memory was too small.
    """
    chunk = max(1, min(_CHUNK, _CHUNK_BYTES // int(max(source.file_bytes, result_bytes, 1))))
    chunks = (indices[first : first + chunk] for first in range(0, len(indices), chunk))
    waiting: deque[tuple[Sequence[int], Future[list[R | DataError]]]] = deque()
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(max(1, num_workers)))
        look_at = stack.enter_context(_open_lookers(look, source, len(indices), num_workers=num_workers))
        try:
            for part in chunks:
                waiting.append((part, pool.submit(look_at, part)))
                if len(waiting) > 4 * num_workers:
                    yield from _result(source, *waiting.popleft())
            while waiting:
                yield from _result(source, *waiting.popleft())
        finally:
            for _, future in waiting:
                future.cancel()


def _result(
    source: Source, part: Sequence[int], future: Future[list[R | DataError]]
) -> Iterator[tuple[int, R | DataError]]:
    found = future.result()
    if not skips_unreadable(source) and isinstance(found[-1], DiskError):  # the rest was not processed
        name, item = source.names(part[len(found) - 1]), source.item(part[len(found) - 1])
        raise found[-1].locate(path_of(item) or name)
    yield from zip(part, found, strict=True)


@contextmanager
def _open_lookers(
    look: Look[R], source: Source, num_images: int, *, num_workers: int
) -> Generator[Callable[[Sequence[int]], list[R | DataError]], None, None]:
    """Yield a function that processes the images of some indices; several threads may call it at once."""
    num_processes = min(num_workers, count_cores())
    stop = not skips_unreadable(source)
    small = 0 < source.file_bytes < _PROCESS_FILE_BYTES * num_processes
    if not (small and num_processes > 1 and num_images >= PROCESS_MIN_IMAGES and sys.executable):
        yield lambda indices: look_at_each(lambda index: look(source.item(index)), indices, stop=stop)
        return
    idle: SimpleQueue[Reader] = SimpleQueue()
    children = [Reader(look, stop=stop) for _ in range(num_processes)]
    for child in children:
        idle.put(child)

    def ask(indices: Sequence[int]) -> list[R | DataError]:
        child = idle.get()
        try:
            return child.ask([source.item(index) for index in indices])
        finally:
            idle.put(child)

    try:
        yield ask
    finally:
        for child in children:
            child.end()


def look_at_each(look: Callable[[T], R], items: Iterable[T], *, stop: bool) -> list[R | DataError]:
    """Return the result or the error of each item; if `stop`, up to the first disk error."""
    found: list[R | DataError] = []
    with quiet:
        for item in items:
            try:
                found.append(look(item))
            except DataError as error:
                found.append(error)
                if stop and isinstance(error, DiskError):
                    break
    return found


# ---- Child processes: the side of the parent, then that of the child


class Reader(Child):
    def __init__(self, look: Look[Any], *, stop: bool) -> None:
        super().__init__(f"from {__name__} import serve; serve()")
        self._first: tuple[Look[Any], bool] | None = (
            look,
            stop,
        )  # sent with the first request: by then the child has started

    def ask(self, paths: Sequence[str | LaidFile | ImageArray]) -> list[Any]:
        try:
            if self._first is not None:
                pickle.dump(self._first, self.input)
                self._first = None
            pickle.dump(paths, self.input)
            self.input.flush()
            found: list[Any] = pickle.load(self.output)
            return found
        except (OSError, EOFError, pickle.UnpicklingError):
            raise DataError(
                f"a process that reads images ended (exit code {self.process.wait()}) at {paths[0]} or "
                f"the {len(paths) - 1} after it; if memory is short, set trainer.num_workers=1"
            ) from None


def serve() -> None:
    """Run a child: read a `look`, then lists of paths; write the results, until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    with suppress(EOFError, BrokenPipeError), quiet:
        look, stop = pickle.load(questions)
        while True:
            paths = pickle.load(questions)
            pickle.dump(look_at_each(look, paths, stop=stop), answers, protocol=pickle.HIGHEST_PROTOCOL)
            answers.flush()
