"""The order in which an epoch visits the images: over the whole set, or in windows of a few shards.

Windows are for shards in object storage. An epoch permutes the shards, takes them WINDOW at a time and
shuffles the images of each window. So a process needs only the shards of one window at once, and each shard
once an epoch. Both orders are functions of the keys alone: any step can be computed without those before it.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate

import numpy as np
from jaxtyping import Int64

WINDOW = 8  # shards

Key = Callable[[str, int], int]  # a seed for a stream of random numbers and an index, such as `Plan.key`


def visit_all(num_images: int, *, key: Key, epoch: int, start: int, stop: int) -> Int64[np.ndarray, " image"]:
    """Return images `start` to `stop` of an epoch that permutes the whole set."""
    return permute(num_images, key("order", epoch))[start:stop]


def visit_windows(
    shards: tuple[int, ...], *, key: Key, epoch: int, start: int, stop: int
) -> Int64[np.ndarray, " image"]:
    """Return images `start` to `stop` of an epoch that visits windows; `shards` has the images of each shard.

    A set of at most WINDOW shards is one window, which is shuffled as `visit_all` does.
    """
    if len(shards) <= WINDOW:
        return visit_all(sum(shards), key=key, epoch=epoch, start=start, stop=stop)
    found = []
    windows, ends = list_windows(shards, key("shards", epoch))
    for number, (window, end) in enumerate(zip(windows, ends, strict=True)):
        first = ends[number - 1] if number else 0
        if first < stop and start < end:
            rows = permute_window(shards, window, key(f"window {number}", epoch))
            found.append(rows[max(start - first, 0) : stop - first])
    return np.concatenate(found)


def shards_ahead(shards: tuple[int, ...], *, key: Key, epoch: int, start: int) -> tuple[int, ...]:
    """Return the shards that an epoch needs from image `start` on: those of the window, then of the next one.

    The window after the last one is the first one of the next epoch.
    """
    if len(shards) <= WINDOW:
        return tuple(range(len(shards)))
    windows, ends = list_windows(shards, key("shards", epoch))
    number = next(number for number, end in enumerate(ends) if start < end)
    is_last = number + 1 == len(windows)
    after = list_windows(shards, key("shards", epoch + 1))[0][0] if is_last else windows[number + 1]
    return tuple(dict.fromkeys((*windows[number], *after)))


def first_images(shards: tuple[int, ...], *, key: Key) -> Int64[np.ndarray, " image"]:
    """Return the images of the first window of the first epoch, sorted."""
    starts = [0, *accumulate(shards)]
    is_one = len(shards) <= WINDOW
    numbers = range(len(shards)) if is_one else sorted(list_windows(shards, key("shards", 0))[0][0])
    return np.concatenate([np.arange(starts[shard], starts[shard + 1]) for shard in numbers])


@lru_cache(maxsize=4)
def list_windows(shards: tuple[int, ...], key: int) -> tuple[list[tuple[int, ...]], list[int]]:
    """Return the shards of each window, and how many images an epoch has visited after it."""
    order = permute(len(shards), key).tolist()
    windows = [tuple(order[first : first + WINDOW]) for first in range(0, len(order), WINDOW)]
    return windows, list(accumulate(sum(shards[shard] for shard in window) for window in windows))


@lru_cache(maxsize=4)
def permute_window(shards: tuple[int, ...], window: tuple[int, ...], key: int) -> Int64[np.ndarray, " image"]:
    """Return the images of the shards of a window in random order."""
    starts = [0, *accumulate(shards)]
    rows = np.concatenate([np.arange(starts[shard], starts[shard + 1]) for shard in window])
    order = np.random.default_rng(key).permutation(rows)
    order.setflags(write=False)
    return order


@lru_cache(maxsize=2)
def permute(num: int, key: int) -> Int64[np.ndarray, " item"]:
    """Return the numbers below `num` in random order."""
    order = np.random.default_rng(key).permutation(num)
    order.setflags(write=False)
    return order
