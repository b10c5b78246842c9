"""The arguments of every command, with their help texts."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeAlias, get_args

from byol.base.errors import printable
from byol.base.version import __version__
from byol.cli import commands, features
from byol.config.schema import DeviceSetting

_PRESET = "the defaults to start from: classic, paper, default or demo"
_HOURS = "training time in hours, such as 2 or 0.5; replaces the number of epochs"
_LABELS = "CSV file with the columns file,label; images without a label are allowed"
_COLOURS = "CSV file with the columns file,label that colours the map"
_METADATA_COLOURS = "CSV file with a column file and more columns that can colour the map"
_TEST = "labelled images to test on (default: the data set's test split, or a fifth of the images)"
_DEVICE = "device to compute on (default: a GPU if there is one)"
_IMAGES = "a folder, an image, a .txt/.csv list, a .npy array, or - to read a list from standard input"
_EPILOG = """examples:
  byol demo                                  try it on generated images (minutes on 2 cores)
  byol check IMAGES/                         check the images; write a report with pictures
  byol train IMAGES/ -n                      show the settings byol would choose
  byol train IMAGES/ -o runs/cells           train; run it again to resume
  byol train IMAGES/ --hours 2               train for two hours
  byol train IMAGES/ --init runs/cells       start from existing weights
  byol train config.yaml trainer.max_epochs=40
  byol eval runs/cells --labels cells.csv    compare with pixels and an untrained encoder
  byol compare runs/a runs/b                 compare results and settings
  byol card runs/cells                       write a model card: method, results, limits
  byol report runs/cells                     write one HTML page with all results
  byol explore runs/cells                    browse the images: map, search by picture, lists
  byol embed runs/cells NEW/ -o f.parquet    compute features; run it again to resume
  byol export runs/cells --format onnx       write the encoder for other programs
  byol finetune runs/cells --labels cells.csv --scratch   train a classifier
  byol predict runs/cells-finetuned NEW/ -o classes.csv   classify new images
  byol config config.yaml                    print the complete configuration
  byol env                                   print versions and hardware, for a bug report

Add settings to a command as section.key=value; `byol config` lists them.
"""


class _Parser(argparse.ArgumentParser):
    """A parser that prints the arguments it refuses on one line."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


_Subparsers: TypeAlias = "argparse._SubParsersAction[_Parser]"


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="byol",
        description="Train an image encoder on unlabelled images with BYOL, and measure how good it is.",
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
        _add_export,
        _add_finetune,
        _add_predict,
        _add_config,
        _add_env,
    ):
        add(subparsers)
    return parser


def _add_demo(subparsers: _Subparsers) -> None:
    demo = _add(
        subparsers,
        "demo",
        commands.demo_command,
        "try byol on generated images: train, evaluate, print the table",
    )
    folder = Path("runs/demo")
    demo.add_argument("-o", "--output", type=Path, default=folder, help="run folder (default: %(default)s)")
    _add_dry_run(demo, "print the estimated time and stop; write nothing")


def _add_check(subparsers: _Subparsers) -> None:
    check = _add(
        subparsers,
        "check",
        commands.check_command,
        "check all images for problems and show what training would do",
        "byol check IMAGES/ --test TEST/",
    )
    check.add_argument("source", help="images or a configuration file, as for `byol train`")
    check.add_argument("--test", help="test images: report the ones that are also among the training images")
    check.add_argument("-o", "--output", type=Path, help="folder for the report (default: check/NAME)")
    _add_length(check)


def _add_train(subparsers: _Subparsers) -> None:
    train = _add(
        subparsers,
        "train",
        commands.train_command,
        "train an encoder, or resume a run",
        "byol train IMAGES/ -o runs/cells",
    )
    train.add_argument(
        "source",
        help="a folder of images, a .txt/.csv list, a .npy array, a data set (stl10, cifar10, cifar100 or "
        "the generated motifs), or a configuration file (.yaml)",
    )
    train.add_argument("-o", "--output", type=Path, help="run folder (default: runs/NAME)")
    _add_length(train)
    train.add_argument(
        "--init",
        metavar="WEIGHTS",
        help="start from these weights: a run folder, a weights file (FILE:PREFIX selects one of several "
        "encoders in it), or timm:MODEL if timm has it on this machine; sets network.fine_tune_from",
    )
    _add_dry_run(train, "print the chosen settings and the estimated time, then stop; write nothing")


def _add_run(subparsers: _Subparsers) -> None:
    run = _add(
        subparsers,
        "run",
        commands.run_command,
        "train, then evaluate (the same as `python run.py`)",
        "byol run config.yaml",
    )
    run.add_argument(
        "source", nargs="?", default="config.yaml", help="configuration file (default: %(default)s)"
    )
    run.add_argument("-o", "--output", type=Path, help="run folder (default: runs/NAME)")
    _add_length(run)


def _add_evaluate(subparsers: _Subparsers) -> None:
    evaluate = _add(
        subparsers,
        "eval",
        commands.eval_command,
        "measure how good the encoder of a run is",
        "byol eval runs/cells --labels cells.csv",
    )
    evaluate.add_argument("run", type=Path, help="run folder")
    evaluate.add_argument("--labels", help=_LABELS)
    evaluate.add_argument(
        "--train", help="labelled images to fit the classifiers on (default: the images of the run)"
    )
    evaluate.add_argument("--test", help=_TEST)
    evaluate.add_argument(
        "--weights", help="add a row for other weights: a run folder, a weights file, or timm:MODEL"
    )
    evaluate.add_argument(
        "--folds", type=_read_number, help="use k-fold cross-validation: every image is tested once"
    )
    evaluate.add_argument(
        "--groups",
        metavar="COLUMN",
        help="never split a group: images with the same value in this column of the labels, such as plate, "
        "stay in one fold ('folder': images of one folder)",
    )
    evaluate.add_argument(
        "--metadata",
        type=Path,
        help="CSV file with a column file and more columns, such as plate: warn if the features encode them",
    )


def _add_compare(subparsers: _Subparsers) -> None:
    compare = _add(
        subparsers,
        "compare",
        commands.compare_command,
        "compare the results of runs, and list the settings that differ",
        "byol compare runs/a runs/b",
    )
    compare.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders, two or more")


def _add_card(subparsers: _Subparsers) -> None:
    card = _add(
        subparsers,
        "card",
        commands.card_command,
        "write a model card: method, results, limits, how to reproduce the run",
        "byol card runs/cells",
    )
    card.add_argument("run", type=Path, help="run folder; byol writes the card into it")


def _add_report(subparsers: _Subparsers) -> None:
    report = _add(
        subparsers,
        "report",
        commands.report_command,
        "write one HTML page with the results of a run",
        "byol report runs/cells",
    )
    report.add_argument("run", type=Path, help="run folder")
    report.add_argument("--labels", type=Path, help=_COLOURS)
    report.add_argument("--metadata", type=Path, help=_METADATA_COLOURS)
    report.add_argument(
        "--images",
        type=int,
        default=10_000,
        help="maximum number of images on the map (default: %(default)s)",
    )
    report.add_argument("-o", "--output", type=Path, help="output file (default: RUN/report.html)")


def _add_explore(subparsers: _Subparsers) -> None:
    explore = _add(
        subparsers,
        "explore",
        commands.explore_command,
        "browse the images of a run on a local web page",
        "byol explore runs/cells --open",
    )
    explore.add_argument("run", type=Path, help="run folder")
    explore.add_argument("--images", help="images to show instead of the run's own: a folder, list or array")
    explore.add_argument("--labels", type=Path, help=_COLOURS)
    explore.add_argument("--metadata", type=Path, help=_METADATA_COLOURS)
    explore.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    explore.add_argument("--open", action="store_true", help="open the page in the browser")


def _add_embed(subparsers: _Subparsers) -> None:
    embed = _add(
        subparsers,
        "embed",
        features.embed_command,
        "compute the features of images and write them with their file names",
        "byol embed runs/cells NEW/ -o features.csv",
    )
    embed.add_argument("run", type=Path, help="run folder")
    embed.add_argument("images", help=_IMAGES)
    embed.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="output file: .parquet, .csv, .npz or .h5ad",
    )
    embed.add_argument("--format", choices=features.FORMATS, help="file format (default: by the suffix)")
    embed.add_argument(
        "--columns",
        choices=features.COLUMNS,
        default="wide",
        help="wide: a column for each feature; vector (.parquet only): one list column, with file paths, as "
        "FiftyOne and embedding-atlas read it (default: %(default)s)",
    )
    embed.add_argument(
        "--metadata",
        type=Path,
        help="CSV file with a column file and more columns: write these beside the features",
    )
    embed.add_argument(
        "--prototypes",
        type=int,
        metavar="N",
        help="also write NAME.prototypes.csv: the N most representative images, to be labelled first",
    )
    embed.add_argument("--device", choices=get_args(DeviceSetting), default="auto", help=_DEVICE)


def _add_export(subparsers: _Subparsers) -> None:
    export = _add(
        subparsers,
        "export",
        commands.export_command,
        "write an encoder for other programs, with a model card",
        "byol export runs/cells --format onnx -o cells-onnx",
    )
    export.add_argument("run", type=Path, help="run folder, or a folder with an encoder in it")
    export.add_argument(
        "--format",
        required=True,
        choices=("timm", "onnx", "torch"),
        help="timm: a folder that timm and transformers load; onnx, torch: a file with the preprocessing "
        "inside, for onnxruntime or for PyTorch without byol",
    )
    export.add_argument("-o", "--output", type=Path, help="folder to write (default: RUN-FORMAT)")


def _add_finetune(subparsers: _Subparsers) -> None:
    finetune = _add(
        subparsers,
        "finetune",
        commands.finetune_command,
        "train a classifier that starts from the encoder of a run",
        "byol finetune runs/cells --labels cells.csv --fraction 0.1 --scratch",
    )
    finetune.add_argument("source", type=Path, help="run folder, or a folder that holds an encoder")
    finetune.add_argument("--labels", help=_LABELS)
    finetune.add_argument("--train", help="labelled images to train on (default: the images of the run)")
    finetune.add_argument("--test", help=_TEST)
    finetune.add_argument(
        "--fraction",
        type=float,
        default=1.0,
        help="use only this share of the training labels of every class (default: %(default)s)",
    )
    finetune.add_argument(
        "--epochs",
        type=int,
        help="passes over the labelled images (default: 10 to 20, depending on their number)",
    )
    finetune.add_argument(
        "--scratch", action="store_true", help="also train from random weights and print both results"
    )
    finetune.add_argument("-o", "--output", type=Path, help="output folder (default: SOURCE-finetuned)")


def _add_predict(subparsers: _Subparsers) -> None:
    predict = _add(
        subparsers,
        "predict",
        features.predict_command,
        "classify images with a classifier from `byol finetune`",
        "byol predict runs/cells-finetuned NEW/ -o classes.csv",
    )
    predict.add_argument("classifier", type=Path, help="output folder of `byol finetune`")
    predict.add_argument("images", help=_IMAGES)
    predict.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="output file: .csv with the columns file,label,probability",
    )
    predict.add_argument("--device", choices=get_args(DeviceSetting), default="auto", help=_DEVICE)


def _add_config(subparsers: _Subparsers) -> None:
    config = _add(
        subparsers,
        "config",
        commands.config_command,
        "print the complete configuration",
        "byol config config.yaml trainer.max_epochs=10 > mine.yaml",
    )
    config.add_argument("file", nargs="?", type=Path, help="configuration file")
    config.add_argument("--preset", help=_PRESET)
    config.add_argument(
        "--schema", action="store_true", help="print the JSON schema of configuration files, for editors"
    )


def _add_env(subparsers: _Subparsers) -> None:
    env = _add(subparsers, "env", commands.env_command, "print versions and hardware, for a bug report")
    env.add_argument("--json", action="store_true", help="print JSON, for programs")


def _add_length(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", help=_PRESET)
    parser.add_argument("--hours", help=_HOURS)


def _add_dry_run(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("-n", "--dry-run", action="store_true", help=what)


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
    """Read a whole number. Return other text as it is: the configuration refuses it with a better message."""
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text
