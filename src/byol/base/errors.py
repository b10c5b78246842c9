"""Errors that users can cause or meet; any other error is a bug and shows a traceback.

ByolError                   exit code 1
├── ConfigError             exit code 2: a key, a value or a command-line argument
├── DataError               images, labels or folders that cannot be read or used
│   └── NoLabelsError       no image has a label
├── CheckpointError         a run folder, checkpoint or encoder that cannot be read or written
│   ├── RunMismatchError    the run folder belongs to another configuration or other data
│   ├── RunInUseError       another process writes into the run folder
│   └── DiskReadError       the system could not read a file, which may be intact
├── OutputError             standard output cannot be written
├── RankLostError           another rank of a distributed run has ended or does not answer
├── DivergedError           loss or gradient stopped being finite
└── CollapsedError          every image gets (nearly) the same projection

ValueRangeWarning           not an error: an image unlike the training images

A message says what happened, where (path, line, key or image) and what to do next. It never contains control
characters for a terminal, because names of files, classes and keys come from others.
"""

import re

# Control characters, line separators, direction marks, invisible characters, bytes that are not UTF-8.
_UNFIT = re.compile(
    "[\0-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ud800-\udfff\ufeff]"
)


def printable(text: str) -> str:
    """Escape all characters in `text` that a terminal or a page cannot show as text on one line.

    A control character becomes `\\n`, `\\x1b` or `\\u202e`, and a byte that is not UTF-8 becomes `\\xff`.
    """
    return _UNFIT.sub(_write_out, text)


def quote(text: str) -> str:
    """Return a name in quotes, made `printable`."""
    return f"'{printable(text)}'"


def _write_out(found: re.Match[str]) -> str:
    code = ord(found.group())
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name as Python stores it (surrogateescape)
        return f"\\x{code - 0xDC00:02x}"
    return repr(found.group())[1:-1]


class ByolError(Exception):
    """Any error that a user can fix; the command prints it, one line per problem, and exits."""

    exit_code = 1

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(map(printable, problems)))


class ConfigError(ByolError):
    """One or more configuration problems, one line each."""

    exit_code = 2


class DataError(ByolError):
    """Images, labels or folders that cannot be read or used."""


class NoLabelsError(DataError):
    """No image has a label."""


class CheckpointError(ByolError):
    """A run folder, checkpoint or encoder file that cannot be read or written."""


class DiskReadError(CheckpointError):
    """The disk or the network did not give a file in several attempts; the file itself may be intact."""


class RunMismatchError(CheckpointError):
    """The output folder holds a run with another configuration or other data."""


class RunInUseError(CheckpointError):
    """Another process is writing into the output folder."""


class OutputError(ByolError):
    """Standard output cannot be written, for example because the disk is full."""


class RankLostError(ByolError):
    """Another rank of a distributed run has ended or does not answer."""


class DivergedError(ByolError):
    """Loss or gradient is not finite, step after step; these steps were not applied."""


class CollapsedError(ByolError):
    """The projections of different images have become (nearly) equal."""


class Interrupted(KeyboardInterrupt):
    """A signal has interrupted the work; `signal` is its name.

    `nothing_saved`: it was a training without a checkpoint.
    """

    def __init__(self, signal: str, *, nothing_saved: bool = False) -> None:
        super().__init__(signal)
        self.signal, self.nothing_saved = signal, nothing_saved


class ValueRangeWarning(UserWarning):
    """An image was embedded whose values are outside the range of the training images."""
