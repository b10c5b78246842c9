"""The command `byol`. A user's mistake gives one line and exit code 2 (configuration) or 1 (other).

Commands import torch only when they run, so that --help is fast.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence

from byol.base.console import complain, finish_output, prepare_streams
from byol.base.disk import describe, is_of_the_disk
from byol.base.errors import ByolError, ConfigError, Interrupted
from byol.base.signals import show_signal
from byol.cli.commands import EXIT_INTERRUPTED
from byol.cli.parser import make_parser

_OVERRIDE = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*=.*|--[A-Za-z_][\w-]*(\.[\w-]+)+=.*", re.DOTALL)
_OVERRIDE_FLAG = re.compile(r"--[A-Za-z_][\w-]*(\.[\w-]+)+")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    prepare_streams()
    try:
        return _run(arguments)
    except ByolError as error:
        for line in str(error).splitlines():  # a configuration can have several problems, each is one line
            complain(line)
        return error.exit_code
    except KeyboardInterrupt as stop:
        name = stop.signal if isinstance(stop, Interrupted) else "SIGINT"
        if isinstance(stop, Interrupted) and stop.nothing_saved:
            complain(
                f"interrupted by {show_signal(name)} before training had saved anything; run the same "
                "command again to start over"
            )
        else:
            complain(
                f"interrupted by {show_signal(name)}; run the same command again to continue from what was "
                "saved"
            )
        return EXIT_INTERRUPTED[name]
    except MemoryError:
        complain(
            "out of memory; end other programs, or set a smaller trainer.batch_size, and run the same "
            "command again"
        )
        return ByolError.exit_code
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # `byol config | head`: it has seen enough
            return EXIT_INTERRUPTED["SIGPIPE"]
        if not is_of_the_disk(error):
            raise
        complain(
            f"{error.filename or 'a file'}: the system refuses it ({describe(error)}); mend that and run "
            "the same command again"
        )
        return ByolError.exit_code


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line. `overrides` holds its settings; `command` is the function to call."""
    rest, overrides = _take_overrides(arguments)
    parser = make_parser()
    options = parser.parse_args(rest)
    if strays := vars(options).pop("settings", []):
        parser.error(f"unrecognized arguments: {' '.join(strays)}")
    options.overrides = overrides
    return options


def _run(arguments: Sequence[str] | None) -> int:
    """Run one command; unlike `main`, raise its errors."""
    try:
        options = read_arguments(sys.argv[1:] if arguments is None else arguments)
        code: int = options.command(options)
    except SystemExit:  # after --help, --version and refused arguments
        finish_output()
        raise
    finish_output()
    return code


def _take_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split off `section.key=value`, `--section.key=value` and `--section.key value`."""
    rest: list[str] = []
    overrides: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        if _OVERRIDE.fullmatch(argument) and not os.path.exists(argument):
            overrides.append(argument.removeprefix("--"))
        elif _OVERRIDE_FLAG.fullmatch(argument):
            value = next(waiting, None)
            if value is None:
                raise ConfigError(f"override '{argument}': a value must follow")
            overrides.append(f"{argument.removeprefix('--')}={value}")
        else:
            rest.append(argument)
    return rest, overrides
