"""Looking at the headers of many images before or while they are packed."""

from collections import Counter
from contextlib import closing

from byol.data.decode import peek
from byol.data.formats import Kind
from byol.data.index import Source
from byol.data.parallel import read_ahead


def find_largest_side(source: Source, *, limit_px: int, most: int, num_workers: int) -> int:
    """The largest side of any readable image, in px, or `limit_px` if one reaches it.

    Looks at `most` images at most, in even steps, and no further than the first that reaches the limit: at
    sets of large images hardly at all. 0: none is readable.
    """
    largest = 0
    indices = range(0, len(source), -(-len(source) // most))
    with closing(read_ahead(peek, source, indices, num_workers=num_workers)) as kinds:
        for _, kind in kinds:
            if isinstance(kind, Kind):
                largest = max(largest, kind.longest_side)
            if largest >= limit_px:
                return limit_px
    return largest


def describe_mixture(source: Source, *, all_channels: bool, num_workers: int) -> str:
    """Which kinds of images there are, how many of each, which is the first of the rarest, and what to do.

    Looks at every image. `all_channels`: images differ by their channels, otherwise by their depth alone.
    """
    counts: Counter[tuple[int, int]] = Counter()
    first: dict[tuple[int, int], int] = {}
    for index, kind in read_ahead(peek, source, range(len(source)), num_workers=num_workers):
        if isinstance(kind, Kind):
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
    name = source.names(first[rarest])
    return f"the images differ: {', '.join(kinds)}, of these the first is {name!r}; {advice}"
