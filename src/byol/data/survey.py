"""Looking at many images before or while they are packed: in order, by several threads."""

from collections import Counter, deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

from byol.data.formats import Kind
from byol.errors import DataError

T = TypeVar("T")
Peek = Callable[[int], Kind]


def read_ahead(
    read: Callable[[int], T], indices: range, *, num_workers: int
) -> Generator[tuple[int, T], None, None]:
    """Each index and `read` of it, in order; threads stay a few images ahead (decoding releases the GIL)."""
    num_workers = max(1, num_workers)
    waiting: deque[tuple[int, Future[T]]] = deque()
    with ThreadPoolExecutor(num_workers) as pool:
        try:
            for index in indices:
                waiting.append((index, pool.submit(read, index)))
                if len(waiting) > 4 * num_workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def find_largest_side(peek: Peek, num_images: int, *, limit_px: int, num_workers: int) -> int:
    """The largest side of any readable image, in px, or `limit_px` if one reaches it.

    Looks no further than the first that does: at sets of large images hardly at all. 0: none is readable.
    """
    largest = 0
    with closing(read_ahead(_forgiving(peek), range(num_images), num_workers=num_workers)) as kinds:
        for _, kind in kinds:
            if kind is not None:
                largest = max(largest, kind.height, kind.width)
            if largest >= limit_px:
                return limit_px
    return largest


def describe_mixture(
    peek: Peek, names: Callable[[int], str], num_images: int, *, all_channels: bool, num_workers: int
) -> str:
    """Which kinds of images there are, how many of each, which is the first of the rarest, and what to do.

    Looks at every image. `all_channels`: images differ by their channels, otherwise by their depth alone.
    """
    counts: Counter[tuple[int, int]] = Counter()
    first: dict[tuple[int, int], int] = {}
    for index, kind in read_ahead(_forgiving(peek), range(num_images), num_workers=num_workers):
        if kind is not None:
            key = (kind.channels if all_channels else 0, kind.bits)
            counts[key] += 1
            first.setdefault(key, index)
    rarest = min(counts, key=lambda key: counts[key])
    numbers, depths = {number for number, _ in counts}, {bits for _, bits in counts}
    kinds = []
    for (number, bits), count in counts.most_common():
        channels = f"{number} channel{'s' if number > 1 else ''}" if len(numbers) > 1 else ""
        kinds.append(
            f"{count} of " + " ".join(filter(None, (channels, f"{bits} bit" if len(depths) > 1 else "")))
        )
    if len(depths) > 1:
        advice = "convert the files of one kind, or write those of the other in a list (.txt)"
    elif numbers <= {1, 3}:
        advice = "set data.channels=rgb (grey three times) or data.channels=grey"
    else:
        advice = "choose some with data.channels=[0], or write the files of one kind in a list (.txt)"
    return f"the images differ: {', '.join(kinds)}, of these the first is {names(first[rarest])!r}; {advice}"


def _forgiving(peek: Peek) -> Callable[[int], Kind | None]:
    """None for an image that cannot be read; packing lists it as bad."""

    def look(index: int) -> Kind | None:
        try:
            return peek(index)
        except DataError:
            return None

    return look
