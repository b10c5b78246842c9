"""The failures a user can cause or meet; everything else is a bug and shows a traceback.

ByolError                   exit code 1
├── ConfigError             exit code 2: a key, a value or a command-line argument
├── DataError               images, labels or folders that cannot be read or used
│   └── NoLabelsError       no image has a label: what needs none can still be done
├── CheckpointError         a run folder, checkpoint or encoder that cannot be read or written
│   └── RunMismatchError    the run folder belongs to another configuration or other data
├── DivergedError           the loss stopped being a finite number
└── CollapsedError          every image gets (nearly) the same projection

ValueRangeWarning           not a failure: an image unlike those of the training

A message says what happened, where (path, line, key or image) and what to do next.
"""


class ByolError(Exception):
    """Any failure that a user can mend; the command prints its message on one line and exits."""

    exit_code = 1


class ConfigError(ByolError):
    """One or more configuration problems, one line each."""

    exit_code = 2


class DataError(ByolError):
    """Images, labels or folders that cannot be read or used."""


class NoLabelsError(DataError):
    """No image has a label."""


class CheckpointError(ByolError):
    """A run folder, checkpoint or encoder file that cannot be read or written."""


class RunMismatchError(CheckpointError):
    """The output folder holds a run of another configuration or of other data."""


class DivergedError(ByolError):
    """The loss is not finite; the step was not applied."""


class CollapsedError(ByolError):
    """The projections of different images have become (nearly) equal."""


class ValueRangeWarning(UserWarning):
    """An image was embedded whose values lie outside of the range of the encoder's training images."""
