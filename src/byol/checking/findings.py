"""Describe the results of examining a source: facts, and problems with what to do about each."""

from collections.abc import Iterator
from dataclasses import dataclass

from byol.base.errors import quote
from byol.base.text_table import percent, whole_percent
from byol.checking.doctor import Examined
from byol.checking.duplicates import Alike
from byol.data.pack.partial import BAD_FILES
from byol.data.sources.summary import group_reasons, round_up
from byol.data.sources.survey import describe_missing, describe_mixture

BLANK_FILES, DUPLICATES, LEAKS = "blank_files.csv", "duplicates.csv", "leaks.csv"
_MANY_BLANK, _MANY_ALIKE = 0.05, 0.05  # fractions above which there is a warning
_MOST_CHANNELS = 4  # with more channels, only the common range is printed


@dataclass(frozen=True)
class Problem:
    """A line that says what is wrong and what to do."""

    text: str
    is_fatal: bool = False  # True: training may not start

    def __str__(self) -> str:
        return f"{'problem' if self.is_fatal else 'warning'}: {self.text}"


# ---- RunSummary


def describe_files(found: Examined) -> str:
    """Describe the number of files, their suffixes and folders."""
    total, suffixes = len(found.source), found.count_suffixes()
    if not suffixes:
        return f"{total:,} images, {found.source.name}{_describe_unreadable(found)}"
    kinds = ", ".join(f"{count:,} {suffix or 'without suffix'}" for suffix, count in suffixes.most_common(4))
    kinds += ", ..." if len(suffixes) > 4 else ""
    folders = found.count_folders()
    where = f" in {folders} folders (training does not use them as labels)" if folders > 1 else ""
    files = f"{total:,} files: {kinds}"
    if len(suffixes) == 1:
        files = f"{total:,} {next(iter(suffixes)) or 'files without suffix'}"
        files += " files" if next(iter(suffixes)) else ""
    return f"{files}{where}{_describe_unreadable(found)}"


def _describe_unreadable(found: Examined) -> str:
    return f"; byol cannot read {len(found.bad):,} of them" if found.bad else "; byol can read all of them"


def describe_kinds(found: Examined) -> str:
    """Describe channels, bit depth and range of values of the most common kind."""
    channels, bits = next(iter(found.kinds))
    words = f"{channels} channel{'s' if channels > 1 else ''}"
    if channels == 3 and bool(found.has_equal_channels[found.usual].all()):
        words += ", all equal (grey saved as RGB)"
    words += ", floating point" if bits == 32 else f", {bits} bit"
    words += f", values {_describe_ranges(found)}"
    if found.used_bits < bits:
        words += f" ({found.used_bits}-bit data in {bits}-bit files)"
    return words


def _describe_ranges(found: Examined) -> str:
    """Of each channel, numbered from 0 as in data.channels; of many channels the range of all."""
    channels: dict[tuple[float, float], list[str]] = {}
    for channel, ends in enumerate(zip(found.smallest, found.largest, strict=True)):
        channels.setdefault(ends, []).append(str(channel))
    if len(channels) == 1 or len(found.smallest) > _MOST_CHANNELS:
        return f"{min(found.smallest):.6g}..{max(found.largest):.6g}"
    return ", ".join(
        f"{low:.6g}..{high:.6g} in channel{'s' if len(which) > 1 else ''} {' and '.join(which)}"
        for (low, high), which in channels.items()
    )


def describe_sizes(found: Examined) -> str:
    """Describe the sizes of all images, in px."""
    if (size := found.one_size) is not None:
        return f"size {size[0]} x {size[1]} px"
    least, median, high, most = found.sides
    return f"longest side {least}..{most} px, median {median}, 95 % up to {high}"


def describe_duplicates(found: Examined, alike: Alike) -> str:
    """Describe duplicates and blank images."""
    at_least = "" if alike.is_complete else "at least "
    near, blank = alike.num_near, int(found.is_blank.sum())
    parts = [
        f"exact duplicates {alike.num_exact:,}",
        f"near duplicates {at_least}{near:,}{_share(near, found)}",
        f"blank images {blank:,}{_share(blank, found)}",
    ]
    return ", ".join(parts)


def _share(number: int, found: Examined) -> str:
    share = number / len(found)
    return f" ({percent(share)})" if share >= 0.001 else ""


def describe_filled(found: Examined) -> str | None:
    """Describe values that are no measurement; None: there are none."""
    return describe_missing(float(found.missing.mean()), float((found.missing > 0).mean()))


# ---- Problems


def find_problems(found: Examined, alike: Alike, *, max_bad: float, fewest: int) -> list[Problem]:
    """Return the problems of the images; at least `fewest` are needed for training."""
    return [
        *_judge_bad(found, max_bad=max_bad),
        *_judge_kinds(found),
        *_judge_content(found, alike, fewest=fewest),
    ]


def _judge_bad(found: Examined, *, max_bad: float) -> Iterator[Problem]:
    if not found.bad:
        return
    number, total = len(found.bad), len(found.source)
    groups = group_reasons(found.bad)
    name, reason = found.bad[0]
    which = (
        f"byol cannot read {number:,} of {total:,} files (see {BAD_FILES}), for example {quote(name)}: "
        f"{reason}"
    )
    if len(groups) > 1:
        which += f"; the {len(groups)} reasons are listed above"
    if number == total:
        yield Problem(f"{which}; look at these files and give others", is_fatal=True)
    elif number > max_bad * total:
        yield Problem(
            f"{which}; repair or remove them, or allow them with data.max_bad={round_up(number / total):g}",
            is_fatal=True,
        )
    else:
        yield Problem(f"{which}; training leaves them out")


def _judge_kinds(found: Examined) -> Iterator[Problem]:
    if len(found.kinds) > 1:
        all_channels = len({channels for channels, _ in found.kinds}) > 1
        yield Problem(
            describe_mixture(found.source, all_channels=all_channels, num_workers=1, alpha=found.alpha),
            is_fatal=True,
        )
        return
    ends = list(zip(found.smallest, found.largest, strict=True)) if len(found) else []
    constant = [channel for channel, (low, high) in enumerate(ends) if low == high]
    if constant and len(constant) < len(ends):
        rest = ",".join(str(channel) for channel in range(len(ends)) if channel not in constant)
        yield Problem(
            f"channel {constant[0]} has the same value, {ends[constant[0]][0]:g}, in all images; leave it "
            f"out with data.channels=[{rest}]"
        )


def _judge_content(found: Examined, alike: Alike, *, fewest: int) -> Iterator[Problem]:
    number, blank = len(found), int(found.is_blank.sum())
    if 0 < number < fewest:
        yield Problem(f"{number} images are too few to learn from; give at least {fewest}", is_fatal=True)
    if number and blank == number:
        yield Problem(
            f"all {number:,} images are blank (nearly one value); look at contact.png and give other images",
            is_fatal=True,
        )
    elif blank > _MANY_BLANK * number:
        yield Problem(
            f"{whole_percent(blank / number)} of the images are blank; remove those listed in {BLANK_FILES}"
        )
    copies = alike.num_exact + alike.num_near
    if copies > _MANY_ALIKE * number:
        yield Problem(
            f"{whole_percent(copies / number)} of the images are duplicates, which count double in training; "
            f"look at {DUPLICATES} and keep one of each"
        )


def find_leaks_problems(leaks: Alike, test: Examined) -> list[Problem]:
    """Return the problems of the test images."""
    problems = []
    if test.bad:
        name, reason = test.bad[0]
        problems.append(
            Problem(
                f"{test.source.name}: byol cannot read {len(test.bad)} of {len(test.source)} files, for "
                f"example {quote(name)}: {reason}; repair or remove them"
            )
        )
    number = leaks.num_exact + leaks.num_near
    if number:
        problems.append(
            Problem(
                f"{number:,} of {len(test):,} test images are also among the training images "
                f"({leaks.num_exact:,} exact, {leaks.num_near:,} near duplicates), so test results are too "
                f"good; remove those listed in {LEAKS} from one of the two"
            )
        )
    return problems
