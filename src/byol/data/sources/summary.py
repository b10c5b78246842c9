"""Describe which images of a set were left out or changed: how many, the first names, and what to do.

`byol check`, `byol train`, `byol embed` and `byol predict` print these lines.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil

from byol.base.errors import quote
from byol.data.decode.content import advise_suffix
from byol.data.sources.left_out import Few, LeftOut

_MOST_SUFFIXES, _MOST_REASONS, _MOST_CHANGES = 6, 10, 7  # printed separately; the rest together
_LEAST_SAID = 1e-6  # smallest fraction of values that is printed as a number


def describe_passed_by(left_out: LeftOut) -> Iterator[str]:
    """Describe what was skipped in a folder, before any image is read."""
    if left_out.suffixes:
        total = sum(few.count for few in left_out.suffixes.values())
        yield (
            f"skipped {_files(total)} of kinds that byol does not read: {_list_suffixes(left_out)}; if some "
            "are images, name them in a list (.txt)"
        )
    for few, what, way in (
        (
            left_out.hidden,
            "skipped hidden files and folders, and those of the system",
            "rename those that byol should read",
        ),
        (left_out.special, "skipped pipes, sockets and devices", "give files"),
        (
            left_out.unreadable,
            "left out folders that cannot be read",
            "data.skip_unreadable=false stops with an error",
        ),
        (
            left_out.by_content,
            "read files without an image suffix, because their content is an image",
            "remove those that byol should not read",
        ),
    ):
        if few.count:
            yield f"{what}: {few.count:,} ({few}); {way}"
    yield from left_out.notes


def _list_suffixes(left_out: LeftOut) -> str:
    most = sorted(left_out.suffixes.items(), key=lambda item: (-item[1].count, item[0]))
    parts = []
    for suffix, few in most[:_MOST_SUFFIXES]:
        kind, advice = left_out.disguised.get(suffix), advise_suffix(suffix)
        ways = [f"they hold {kind}: rename them"] if kind is not None and advice is None else []
        ways += [f"to read them: {advice}"] if advice is not None else []
        parts.append(f"{few.count:,} {suffix or 'without suffix'} ({'; '.join([str(few), *ways])})")
    if len(most) > _MOST_SUFFIXES:
        others = most[_MOST_SUFFIXES:]
        parts.append(f"{sum(few.count for _, few in others):,} of {len(others)} other kinds")
    return ", ".join(parts)


def describe_images(
    bad: Iterable[tuple[str, str]],
    changed: Mapping[str, Few],
    *,
    num_images: int,
    listed: str,
) -> Iterator[str]:
    """Describe the unreadable images of a set (`bad`: names and reasons), and the changes to the others.

    `num_images` is the number of all images; `listed` says where the unreadable ones are listed.
    """
    groups = group_reasons(bad)
    if groups:
        number = sum(group.few.count for group in groups)
        yield f"unreadable and left out: {number:,} of {num_images:,} images, listed in {listed}"
        lines = [
            f"{group.few.count:,} file{'s' if group.few.count > 1 else ''} ({group.few}): {group.reason}"
            for group in groups
        ]
        yield from (f"  {line}" for line in _fold(lines, _MOST_REASONS))
    most = sorted(changed.items(), key=lambda item: -item[1].count)
    yield from _fold(
        [f"{few.count:,} of {num_images:,} images ({few}): {text}" for text, few in most], _MOST_CHANGES
    )


def describe_larger(num_larger: int, *, num_images: int, stored_px: int) -> Iterator[str]:
    """Describe how many images are stored at fewer pixels than they have, if any."""
    if num_larger:
        yield (
            f"{num_larger:,} of {num_images:,} images are larger than {stored_px} px and are shrunk to that; "
            "data.stored_px=N keeps more pixels"
        )


def describe_clipped(share: float) -> Iterator[str]:
    """Describe which fraction of the values is outside the range that an encoder sees, if any."""
    if share > 0.0:
        percent = f"{100 * share:.2g} %" if share >= _LEAST_SAID else "a few"
        yield (
            f"{percent} of all values are very low or very high; training clips them (to black or white), "
            "and with data.clip=0 it clips none"
        )


def _fold(lines: list[str], most: int) -> Iterator[str]:
    """Return the lines; if there are more than `most`, join the last ones into one."""
    if len(lines) <= most:
        yield from lines
    else:
        yield from lines[: most - 1]
        yield " | ".join(lines[most - 1 :])


def describe_bad(bad: Iterable[tuple[str, str]]) -> str:
    """Describe in one sentence the first image of each group of reasons."""
    first, *others = group_reasons(bad)
    more = [
        f"and {group.few.count:,} like {quote(group.first)}: {group.reason}"
        for group in others[:_MOST_REASONS]
    ]
    return "; ".join([f"the first is {quote(first.first)}: {first.reason}", *more])


def round_up(share: float) -> float:
    """Round a fraction up to whole percent, with half a percent or more to spare, at most 1."""
    return min(1.0, ceil(share * 100 + 0.5) / 100)


@dataclass
class Group:
    """Files that cannot be read for the same reason."""

    first: str  # name
    reason: str
    few: Few = field(default_factory=Few)


def group_reasons(bad: Iterable[tuple[str, str]]) -> list[Group]:
    """Group files whose reasons differ only in numbers and details in brackets; the largest group first."""
    groups: dict[str, Group] = {}
    for name, reason in bad:
        key = re.sub(r"\d+", "N", re.sub(r" \(.*\)", "", reason))
        group = groups.setdefault(key, Group(name, reason))
        group.few.add(name)
    return sorted(groups.values(), key=lambda group: -group.few.count)


def _files(number: int) -> str:
    return f"{number:,} file{'' if number == 1 else 's'}"
