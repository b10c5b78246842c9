"""The arguments. A user's mistake is one line and an exit code: 2 configuration, 1 anything else.

torch is loaded by the commands that need it, when they run.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeAlias, get_args

from byol.base.console import complain, finish_output, prepare_streams
from byol.base.errors import ByolError, ConfigError, printable
from byol.base.version import __version__
from byol.cli import commands, features
from byol.cli.commands import EXIT_INTERRUPTED
from byol.cli.features import COLUMNS, FORMATS
from byol.config.schema import DeviceSetting

_OVERRIDE = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*=.*|--[A-Za-z_][\w-]*(\.[\w-]+)+=.*", re.DOTALL)
_OVERRIDE_FLAG = re.compile(r"--[A-Za-z_][\w-]*(\.[\w-]+)+")
_NEW_IMAGES = "a folder, an image, a .txt/.csv list, a .npy array, or - for a list on standard input"
_EPILOG = """examples:
  byol demo                                  generated images, then the table; minutes on 2 cores
  byol check IMAGES/                         are they fit to train on? a report with pictures
  byol train IMAGES/ -n                      what would be chosen, and how long it takes
  byol train IMAGES/ -o runs/cells           no settings, no labels; the same again continues
  byol train IMAGES/ --hours 2               as good as it gets in two hours
  byol train IMAGES/ --init runs/cells       from existing weights, with new heads where need be
  byol train config.yaml trainer.max_epochs=40
  byol eval runs/cells --labels cells.csv    how good is it, beside pixels and the untrained encoder
  byol compare runs/a runs/b                 results side by side, and the settings that differ
  byol card runs/cells                       a model card: method, results, limits
  byol report runs/cells                     one HTML file to show: results, curves, a map
  byol explore runs/cells                    a live page: map, search by picture, lists
  byol embed runs/cells NEW/ -o f.parquet    features of new images; the same again continues
  byol finetune runs/cells --labels cells.csv --scratch   a classifier, beside one without BYOL
  byol predict runs/cells-finetuned NEW/ -o classes.csv   classes of new images
  byol config config.yaml                    the whole configuration, every value filled in
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    prepare_streams()
    try:
        return _run(arguments)
    except ByolError as error:
        for line in str(error).splitlines():  # a configuration can have several problems, each is one line
            complain(line)
        return error.exit_code
    except KeyboardInterrupt:
        complain("interrupted; the same command goes on from what is saved")
        return EXIT_INTERRUPTED["SIGINT"]
    except BrokenPipeError:  # `byol config | head`: whoever read the output has seen enough
        return EXIT_INTERRUPTED["SIGPIPE"]


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line: `overrides` are its settings, `command` is what to call with them."""
    rest, overrides = _take_overrides(arguments)
    options = _make_parser().parse_args(rest)
    options.overrides = overrides
    return options


def _run(arguments: Sequence[str] | None) -> int:
    """As `main`, but failures are raised."""
    try:
        options = read_arguments(sys.argv[1:] if arguments is None else arguments)
        code: int = options.command(options)
    except SystemExit:  # after --help, --version and refused arguments
        finish_output()
        raise
    finish_output()
    return code


class _Parser(argparse.ArgumentParser):
    """Shows arguments that it refuses as one line."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


_Subparsers: TypeAlias = "argparse._SubParsersAction[_Parser]"


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="byol",
        description="Turn a pile of unlabelled images into a good image encoder, and say how good it is.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"byol {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (
        _add_demo,
        _add_check,
        _add_train,
        _add_run,
        _add_evaluate,
        _add_compare,
        _add_card,
        _add_report,
        _add_explore,
        _add_embed,
        _add_finetune,
        _add_predict,
        _add_config,
    ):
        add(subparsers)
    return parser


def _add_demo(subparsers: _Subparsers) -> None:
    demo = _add(
        subparsers, "demo", commands.demo_command, "train on generated images, evaluate, print the table"
    )
    demo.add_argument("-o", "--output", type=Path, default=Path("runs/demo"), help="run folder (%(default)s)")
    demo.add_argument(
        "-n",
        "--dry-run",
        action="store_true",
        help="print how long training and evaluation take; write nothing",
    )


def _add_check(subparsers: _Subparsers) -> None:
    check = _add(
        subparsers,
        "check",
        commands.check_command,
        "look at all images, say what is wrong and what training would do",
        "byol check IMAGES/ --test TEST/",
    )
    check.add_argument("source", help="images or a configuration file, as for train")
    check.add_argument("--test", help="images that training must not see: are they in IMAGES/, too?")
    check.add_argument("-o", "--output", type=Path, help="folder of the report (check/NAME)")
    check.add_argument("--preset", help="classic, paper, default or demo")
    check.add_argument("--hours", help="time for the training, as for train")


def _add_train(subparsers: _Subparsers) -> None:
    train = _add(
        subparsers,
        "train",
        commands.train_command,
        "train an encoder, or continue a run",
        "byol train IMAGES/ -o runs/cells",
    )
    train.add_argument(
        "source",
        help="a folder of images, a .txt/.csv list, a .npy array, stl10, cifar10, "
        "cifar100, motifs, or a configuration file (.yaml)",
    )
    train.add_argument("-o", "--output", type=Path, help="run folder (runs/NAME)")
    train.add_argument("--preset", help="classic, paper, default or demo")
    train.add_argument(
        "--hours", help="time for the training, such as 2 or 0.5, instead of a number of epochs"
    )
    train.add_argument(
        "--init",
        metavar="WEIGHTS",
        help="start from the folder of an earlier run, a file of weights (FILE:PREFIX for one of several "
        "encoders in it), or timm:MODEL if it is on this machine (short for network.fine_tune_from=WEIGHTS)",
    )
    train.add_argument(
        "-n",
        "--dry-run",
        action="store_true",
        help="print what is chosen, and how long it takes; write nothing",
    )


def _add_run(subparsers: _Subparsers) -> None:
    run = _add(
        subparsers,
        "run",
        commands.run_command,
        "train, then evaluate: what `python run.py` does",
        "byol run config.yaml",
    )
    run.add_argument("source", nargs="?", default="config.yaml", help="configuration file (%(default)s)")
    run.add_argument("-o", "--output", type=Path, help="run folder (runs/NAME)")
    run.add_argument("--preset", help="classic, paper, default or demo")
    run.add_argument("--hours", help="time for the training, such as 2 or 0.5, instead of a number of epochs")


def _add_evaluate(subparsers: _Subparsers) -> None:
    evaluate = _add(
        subparsers,
        "eval",
        commands.eval_command,
        "how good is a run's encoder",
        "byol eval runs/cells --labels cells.csv",
    )
    evaluate.add_argument("run", type=Path, help="run folder")
    evaluate.add_argument("--labels", help="CSV with the columns file,label; not all images need one")
    evaluate.add_argument("--train", help="labelled images to fit on (default: the run's own)")
    evaluate.add_argument(
        "--test", help="labelled images to test on (default: a fifth, or the set's test split)"
    )
    evaluate.add_argument("--weights", help="a row for other weights: a run's folder, a file, or timm:MODEL")
    evaluate.add_argument(
        "--folds", type=_read_number, help="without a test part: test on every image once, in so many folds"
    )
    evaluate.add_argument(
        "--groups",
        metavar="COLUMN",
        help="column of the labels (or folder) that no two folds share, as plate",
    )
    evaluate.add_argument(
        "--metadata", type=Path, help="CSV with a column file and others: do the features tell them?"
    )


def _add_compare(subparsers: _Subparsers) -> None:
    compare = _add(
        subparsers,
        "compare",
        commands.compare_command,
        "runs side by side, and the settings that differ",
        "byol compare runs/a runs/b",
    )
    compare.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders, two or more")


def _add_card(subparsers: _Subparsers) -> None:
    card = _add(
        subparsers,
        "card",
        commands.card_command,
        "a model card: methods, results, limits, how to repeat it",
        "byol card runs/cells",
    )
    card.add_argument("run", type=Path, help="run folder; the card is written into it")


def _add_report(subparsers: _Subparsers) -> None:
    report = _add(
        subparsers,
        "report",
        commands.report_command,
        "one HTML file that shows what a run is worth",
        "byol report runs/cells",
    )
    report.add_argument("run", type=Path, help="run folder")
    report.add_argument("--labels", type=Path, help="CSV with the columns file,label, to colour the map by")
    report.add_argument(
        "--metadata", type=Path, help="CSV with a column file and others to colour the map by"
    )
    report.add_argument("--images", type=int, default=10_000, help="images on the map, at most (%(default)s)")
    report.add_argument("-o", "--output", type=Path, help="the file (RUN/report.html)")


def _add_explore(subparsers: _Subparsers) -> None:
    explore = _add(
        subparsers,
        "explore",
        commands.explore_command,
        "a page on this machine to look through a run's images",
        "byol explore runs/cells --open",
    )
    explore.add_argument("run", type=Path, help="run folder")
    explore.add_argument("--images", help="other images than the run's: a folder, list or array")
    explore.add_argument("--labels", type=Path, help="CSV with the columns file,label, to colour the map by")
    explore.add_argument(
        "--metadata", type=Path, help="CSV with a column file and others to colour the map by"
    )
    explore.add_argument("--port", type=int, default=0, help="of 127.0.0.1 (default: a free one)")
    explore.add_argument("--open", action="store_true", help="open it in the browser")


def _add_embed(subparsers: _Subparsers) -> None:
    embed = _add(
        subparsers,
        "embed",
        features.embed_command,
        "features of images, with their file names",
        "byol embed runs/cells NEW/ -o features.csv",
    )
    embed.add_argument("run", type=Path, help="run folder")
    embed.add_argument("images", help=_NEW_IMAGES)
    embed.add_argument(
        "-o", "--output", type=Path, required=True, help="a .parquet, .csv, .npz or .h5ad file"
    )
    embed.add_argument("--format", choices=FORMATS, help="of the file (default: as its suffix says)")
    embed.add_argument("--columns", choices=COLUMNS, default="wide", help="vector: features as one list")
    embed.add_argument("--metadata", type=Path, help="CSV with a column file and others to write as well")
    embed.add_argument(
        "--prototypes",
        type=int,
        metavar="N",
        help="beside it NAME.prototypes.csv: N images that stand for all, worth a label",
    )
    embed.add_argument("--device", choices=get_args(DeviceSetting), default="auto")


def _add_finetune(subparsers: _Subparsers) -> None:
    finetune = _add(
        subparsers,
        "finetune",
        commands.finetune_command,
        "train a classifier from a run's encoder and all labels or a few",
        "byol finetune runs/cells --labels cells.csv --fraction 0.1 --scratch",
    )
    finetune.add_argument("source", type=Path, help="run folder, or a folder with an encoder in it")
    finetune.add_argument("--labels", help="CSV with the columns file,label; not all images need one")
    finetune.add_argument("--train", help="labelled images to train on (default: the run's own)")
    finetune.add_argument(
        "--test", help="labelled images to test on (default: a fifth, or the set's test split)"
    )
    finetune.add_argument(
        "--fraction", type=float, default=1.0, help="share of the training labels to use, of every class"
    )
    finetune.add_argument("--epochs", type=int, help="passes over them (default: 10 to 20, by their number)")
    finetune.add_argument(
        "--scratch", action="store_true", help="train from random weights as well, and print both"
    )
    finetune.add_argument("-o", "--output", type=Path, help="folder to write (SOURCE-finetuned)")


def _add_predict(subparsers: _Subparsers) -> None:
    predict = _add(
        subparsers,
        "predict",
        features.predict_command,
        "classes of images, by what finetune wrote",
        "byol predict runs/cells-finetuned NEW/ -o classes.csv",
    )
    predict.add_argument("classifier", type=Path, help="folder that `byol finetune` wrote")
    predict.add_argument("images", help=_NEW_IMAGES)
    predict.add_argument(
        "-o", "--output", type=Path, required=True, help="a .csv file: file,label,probability"
    )
    predict.add_argument("--device", choices=get_args(DeviceSetting), default="auto")


def _add_config(subparsers: _Subparsers) -> None:
    config = _add(
        subparsers,
        "config",
        commands.config_command,
        "print the configuration with every value filled in",
        "byol config config.yaml trainer.max_epochs=10 > mine.yaml",
    )
    config.add_argument("file", nargs="?", type=Path, help="configuration file")
    config.add_argument("--preset", help="classic, paper, default or demo")
    config.add_argument("--schema", action="store_true", help="print the JSON schema, for editors")


def _add(
    subparsers: _Subparsers,
    name: str,
    command: Callable[[argparse.Namespace], int],
    summary: str,
    example: str | None = None,
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example or f'byol {name}'}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=command)
    return parser


def _read_number(text: str) -> int | str:
    """A whole number; what is none stays text, which the configuration refuses in its own words."""
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text


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
