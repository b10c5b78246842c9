"""The arguments of every command, with their help texts."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeAlias, get_args

from byol.api.features import COLUMNS, FORMATS
from byol.base.errors import printable
from byol.base.version import __version__
from byol.cli import commands, texts
from byol.config.schema import DeviceSetting


class _Parser(argparse.ArgumentParser):
    """A parser that prints the arguments it refuses on one line."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


_Subparsers: TypeAlias = "argparse._SubParsersAction[_Parser]"
_Add: TypeAlias = Callable[..., argparse.Action]
_COMMANDS: list[Callable[[_Subparsers], None]] = []  # in the order of the help text


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="byol",
        description="Train an image encoder on unlabelled images with BYOL, and measure how good it is.",
        epilog=texts.EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"byol {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in _COMMANDS:
        add(subparsers)
    return parser


def _command(
    run: Callable[[argparse.Namespace], int],
    summary: str,
    example: str | None = None,
    *,
    setting: str | None = None,
) -> Callable[[Callable[[_Add], None]], None]:
    """Register a command: the decorated function has its name and adds its arguments.

    `setting` is an example of the settings that the command takes, if it takes any.
    """

    def register(fill: Callable[[_Add], None]) -> None:
        name = fill.__name__.removeprefix("_")

        def add(subparsers: _Subparsers) -> None:
            parser = subparsers.add_parser(
                name,
                help=summary,
                description=summary[0].upper() + summary[1:] + ".",
                epilog=f"example:\n  {example or f'byol {name}'}",
                formatter_class=argparse.RawDescriptionHelpFormatter,
                allow_abbrev=False,
            )
            parser.set_defaults(command=run)
            fill(parser.add_argument)
            if setting is not None:  # for the help: `main` takes them out before argparse reads the rest
                parser.add_argument(
                    "settings",
                    nargs="*",
                    default=[],
                    metavar="KEY=VALUE",
                    help=texts.SETTINGS.format(example=setting),
                )

        _COMMANDS.append(add)

    return register


def _read_number(text: str) -> int | str:
    """Read a whole number. Return other text as it is: the configuration refuses it with a better message."""
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text


@_command(
    commands.demo_command,
    "try byol on generated images: train, evaluate, print a table of accuracies",
    setting="trainer.max_epochs=40",
)
def _demo(add: _Add) -> None:
    add(
        "-o",
        "--output",
        type=Path,
        default=Path("runs/demo"),
        help="folder for the results (default: %(default)s)",
    )
    add("-n", "--dry-run", action="store_true", help="print the estimated time and stop; write nothing")


@_command(
    commands.check_command,
    "check all images for problems and show what training would do",
    "byol check IMAGES/ --test TEST/",
    setting="trainer.max_epochs=40",
)
def _check(add: _Add) -> None:
    add("source", help="images or a configuration file, as for `byol train`")
    add("--test", help="test images: report the ones that are also among the training images")
    add(
        "-o",
        "--output",
        type=Path,
        help="folder for the report (default: check/ and the name of the image folder)",
    )
    add("--preset", help=texts.PRESET)
    add("--hours", help="training time to plan for, in hours, such as 2 or 0.5")


@_command(
    commands.train_command,
    "train an encoder, or continue a run",
    "byol train IMAGES/ -o runs/cells",
    setting="trainer.max_epochs=40",
)
def _train(add: _Add) -> None:
    add(
        "source",
        help="a folder of images or .tar files, a .txt or .csv file with their paths, a .npy array, a data "
        "set (stl10, cifar10, cifar100 or `motifs`, generated images), or a configuration file (.yaml)",
    )
    add("-o", "--output", type=Path, help=texts.FOLDER)
    add("--preset", help=texts.PRESET)
    add("--hours", help=texts.HOURS)
    add(
        "--init",
        metavar="WEIGHTS",
        help="start from these weights: the folder of an earlier run, a weights file (FILE:PREFIX takes "
        "only the weights whose names begin with PREFIX), or timm:MODEL, a network of the package timm whose "
        "weights are already on this computer",
    )
    add(
        "-n",
        "--dry-run",
        action="store_true",
        help="print the chosen settings and the estimated time, then stop; write nothing",
    )


@_command(
    commands.pack_command,
    "pack images without training, in one go or in parts on several machines",
    "byol pack IMAGES/ -o packs --part 3/64",
    setting="data.channels=grey",
)
def _pack(add: _Add) -> None:
    add("source", help="images or a configuration file, as for `byol train`")
    add(
        "-o",
        "--output",
        type=Path,
        help="folder for packs (default: data.packs, or runs/packs); train with data.packs=FOLDER",
    )
    add(
        "--part",
        metavar="K/N",
        help="pack only part K of N; the same command without --part, or a training, joins all N parts",
    )
    add("--preset", help=texts.PRESET)


@_command(
    commands.run_command,
    "train and evaluate in one command",
    "byol run config.yaml",
    setting="trainer.max_epochs=40",
)
def _run(add: _Add) -> None:
    add("source", nargs="?", default="config.yaml", help="configuration file (default: %(default)s)")
    add("-o", "--output", type=Path, help=texts.FOLDER)
    add("--preset", help=texts.PRESET)
    add("--hours", help=texts.HOURS)


@_command(
    commands.eval_command,
    "measure how good the encoder of a run is",
    "byol eval runs/cells --labels cells.csv",
    setting="evaluation.folds=5",
)
def _eval(add: _Add) -> None:
    add("run", type=Path, help=texts.RUN)
    add("--labels", help=texts.LABELS)
    add(
        "--train",
        help="labelled images (folder or list) to train the classifiers on; the encoder is not trained "
        "again (default: the images of the run)",
    )
    add("--test", help=texts.TEST)
    add(
        "--weights",
        help="also evaluate other weights, in a row of the same table: a run folder, a weights file, or "
        "timm:MODEL",
    )
    add("--folds", type=_read_number, help="use k-fold cross-validation: every image is tested once")
    add(
        "--groups",
        metavar="COLUMN",
        help="keep all images with the same value in this column of the labels (such as plate) in one "
        "part, training or test; COLUMN 'folder' groups by folder. Uses 5-fold cross-validation unless "
        "--folds says otherwise",
    )
    add(
        "--metadata",
        type=Path,
        help="CSV file with a column 'file' and others, such as plate: warn if the features predict "
        "these columns, which they should not (a batch effect)",
    )


@_command(
    commands.compare_command,
    "compare the results of runs, and list the settings that differ",
    "byol compare runs/a runs/b",
)
def _compare(add: _Add) -> None:
    add("runs", type=Path, nargs="+", metavar="RUN", help="run folders, two or more")


@_command(
    commands.card_command,
    "write a description (model card): method, results, limits, how to reproduce the run",
    "byol card runs/cells",
)
def _card(add: _Add) -> None:
    add("run", type=Path, help=f"{texts.RUN}; byol writes the card into it")


@_command(
    commands.replay_command,
    "repeat a training step that gave NaN or infinite values, and find where they begin",
    "byol replay runs/cells 1234",
    setting="data.source=IMAGES/",
)
def _replay(add: _Add) -> None:
    add("run", type=Path, help=texts.RUN)
    add(
        "step",
        type=_read_number,
        nargs="?",
        help="number of the step, as the warning of the training has it (default: the latest one)",
    )


@_command(
    commands.report_command,
    "write one HTML page with the results of a run",
    "byol report runs/cells",
    setting="trainer.device=cpu",
)
def _report(add: _Add) -> None:
    add("run", type=Path, help=texts.RUN)
    add("--labels", type=Path, help=texts.COLOURS)
    add("--metadata", type=Path, help=texts.METADATA_COLOURS)
    add(
        "--images",
        type=int,
        default=10_000,
        help="maximum number of images on the map (default: %(default)s)",
    )
    add("-o", "--output", type=Path, help="output file (default: RUN/report.html)")


@_command(
    commands.explore_command,
    "browse the images of a run in your web browser, on this computer only",
    "byol explore runs/cells --open",
    setting="trainer.device=cpu",
)
def _explore(add: _Add) -> None:
    add("run", type=Path, help=texts.RUN)
    add("--images", help="images to show instead of the run's own: a folder, list or array")
    add("--labels", type=Path, help=texts.COLOURS)
    add("--metadata", type=Path, help=texts.METADATA_COLOURS)
    add("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    add("--open", action="store_true", help="open the page in the browser")


@_command(
    commands.embed_command,
    "compute the features of images and write them with their file names",
    "byol embed runs/cells NEW/ -o features.csv",
)
def _embed(add: _Add) -> None:
    add("run", type=Path, help=texts.RUN)
    add("images", help=texts.IMAGES)
    add("-o", "--output", type=Path, required=True, help="output file: .parquet, .csv, .npz or .h5ad")
    add("--format", choices=FORMATS, help="file format (default: by the suffix)")
    add(
        "--columns",
        choices=COLUMNS,
        default="wide",
        help="wide: a column for each feature; vector (.parquet only): all features as a list in one "
        "column, as FiftyOne and embedding-atlas read it (default: %(default)s)",
    )
    add(
        "--metadata",
        type=Path,
        help="CSV file with a column 'file' and others: write these beside the features",
    )
    add(
        "--prototypes",
        type=int,
        metavar="N",
        help="also write NAME.prototypes.csv: the N most representative images, to be labelled first",
    )
    add("--device", choices=get_args(DeviceSetting), default="auto", help=texts.DEVICE)


@_command(
    commands.export_command,
    "write an encoder for other programs, with a description (model card)",
    "byol export runs/cells --format onnx -o cells-onnx",
)
def _export(add: _Add) -> None:
    add("run", type=Path, help="run folder, or a folder with an encoder in it")
    add(
        "--format",
        required=True,
        choices=("timm", "onnx", "torch"),
        help="timm: a folder that timm and transformers load; onnx, torch: a file with the preprocessing "
        "inside, for onnxruntime or for PyTorch without byol",
    )
    add("-o", "--output", type=Path, help="folder to write (default: RUN-FORMAT)")


@_command(
    commands.finetune_command,
    "train a classifier that starts from the encoder of a run",
    "byol finetune runs/cells --labels cells.csv --fraction 0.1",
    setting="trainer.device=cpu",
)
def _finetune(add: _Add) -> None:
    add("source", type=Path, help="run folder, or a folder that holds an encoder")
    add("--labels", help=texts.LABELS)
    add("--train", help="labelled images to train on (default: the images of the run)")
    add("--test", help=texts.TEST)
    add(
        "--fraction",
        type=float,
        default=1.0,
        help="use only this share of the training labels of every class (default: %(default)s)",
    )
    add(
        "--epochs",
        type=int,
        help="passes over the labelled images (default: 10 to 20, depending on their number)",
    )
    add("--scratch", action="store_true", help="also train from random weights and print both results")
    add("-o", "--output", type=Path, help="output folder (default: SOURCE-finetuned)")


@_command(
    commands.predict_command,
    "classify images with a classifier from `byol finetune`",
    "byol predict runs/cells-finetuned NEW/ -o classes.csv",
)
def _predict(add: _Add) -> None:
    add("classifier", type=Path, help="output folder of `byol finetune`")
    add("images", help=texts.IMAGES)
    add(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="output file: .csv with the columns file,label,probability",
    )
    add("--device", choices=get_args(DeviceSetting), default="auto", help=texts.DEVICE)


@_command(
    commands.config_command,
    "print the complete configuration",
    "byol config config.yaml trainer.max_epochs=10 > mine.yaml",
    setting="trainer.max_epochs=40",
)
def _config(add: _Add) -> None:
    add("file", nargs="?", type=Path, help="configuration file")
    add("--preset", help=texts.PRESET)
    add("--schema", action="store_true", help="print the JSON schema of configuration files, for editors")


@_command(commands.env_command, "print versions and hardware, for a bug report")
def _env(add: _Add) -> None:
    add("--json", action="store_true", help="print JSON, for programs")
