"""The commands. A user's mistake is one line and an exit code: 2 configuration, 1 anything else.

torch is loaded by the commands that need it, when they run.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from byol import __version__
from byol.config import Draft, json_schema, load_draft
from byol.errors import ByolError, ConfigError, DataError

_OVERRIDE = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*=.*|--[A-Za-z_][\w-]*(\.[\w-]+)+=.*", re.DOTALL)
_OVERRIDE_FLAG = re.compile(r"--[A-Za-z_][\w-]*(\.[\w-]+)+")
_EXIT_INTERRUPTED = {
    "SIGINT": 130,
    "SIGPIPE": 141,
    "SIGTERM": 143,
}  # 128 + number of the signal, as shells have it

_THE_ENCODER = """the encoder is in {run}:
    import byol
    features = byol.load("{run}").embed("IMAGES/")    # (N, F) float32
"""
_EPILOG = """examples:
  byol demo                                  generated images, then the table; minutes on 2 cores
  byol check IMAGES/                         are they fit to train on? a report with pictures
  byol train IMAGES/ -n                      what would be chosen, and how long it takes
  byol train IMAGES/ -o runs/cells           no settings, no labels; the same again continues
  byol train IMAGES/ --hours 2               as good as it gets in two hours
  byol train IMAGES/ --init runs/cells       from existing weights, with new heads where need be
  byol train config.yaml trainer.max_epochs=40
  byol eval runs/cells --labels cells.csv    how good is it, beside pixels and the untrained encoder
  byol embed runs/cells NEW/ -o f.parquet    features of new images, in file order
  byol finetune runs/cells --labels cells.csv --scratch   a classifier, beside one without BYOL
  byol predict runs/cells-finetuned NEW/ -o classes.csv   classes of new images
  byol config config.yaml                    the whole configuration, every value filled in
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    try:
        rest, overrides = _take_overrides(sys.argv[1:] if arguments is None else arguments)
        options = _make_parser().parse_args(rest)
        options.overrides = overrides
        code: int = options.command(options)
        sys.stdout.flush()
        return code
    except ByolError as error:
        for line in str(error).splitlines():  # a configuration can have several problems, each is one line
            print(f"byol: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("byol: interrupted; the same command goes on from what is saved", file=sys.stderr)
        return _EXIT_INTERRUPTED["SIGINT"]
    except BrokenPipeError:  # `byol config | head`: whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _EXIT_INTERRUPTED["SIGPIPE"]


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="byol",
        description="Turn a pile of unlabelled images into a good image encoder, and say how good it is.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"byol {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    demo = _add(commands, "demo", _demo, "train on generated images, evaluate, print the table")
    demo.add_argument("-o", "--output", type=Path, default=Path("runs/demo"), help="run folder (%(default)s)")

    check = _add(
        commands,
        "check",
        _check,
        "look at all images, say what is wrong and what training would do",
        "byol check IMAGES/ --test TEST/",
    )
    check.add_argument("source", help="images or a configuration file, as for train")
    check.add_argument("--test", help="images that training must not see: are they in IMAGES/, too?")
    check.add_argument("-o", "--output", type=Path, help="folder of the report (check/NAME)")
    check.add_argument("--preset", help="classic, paper, default or demo")
    check.add_argument("--hours", help="time for the training, as for train")

    train = _add(
        commands, "train", _train, "train an encoder, or continue a run", "byol train IMAGES/ -o runs/cells"
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
        help="start from the folder of an earlier run, a .safetensors, .pth or .pt file, or timm:MODEL if "
        "it is on this machine (short for network.fine_tune_from=WEIGHTS)",
    )
    train.add_argument(
        "-n",
        "--dry-run",
        action="store_true",
        help="print what is chosen, and how long it takes; write nothing",
    )

    run = _add(
        commands, "run", _run, "train, then evaluate: what `python run.py` does", "byol run config.yaml"
    )
    run.add_argument("source", nargs="?", default="config.yaml", help="configuration file (%(default)s)")
    run.add_argument("-o", "--output", type=Path, help="run folder (runs/NAME)")
    run.add_argument("--preset", help="classic, paper, default or demo")
    run.add_argument("--hours", help="time for the training, such as 2 or 0.5, instead of a number of epochs")

    evaluate = _add(
        commands, "eval", _eval, "how good is a run's encoder", "byol eval runs/cells --labels cells.csv"
    )
    evaluate.add_argument("run", type=Path, help="run folder")
    evaluate.add_argument("--labels", help="CSV with the columns file,label; not all images need one")
    evaluate.add_argument("--train", help="labelled images to fit on (default: the run's own)")
    evaluate.add_argument(
        "--test", help="labelled images to test on (default: a fifth, or the set's test split)"
    )

    embed = _add(
        commands,
        "embed",
        _embed,
        "features of images, with their file names",
        "byol embed runs/cells NEW/ -o features.csv",
    )
    embed.add_argument("run", type=Path, help="run folder")
    embed.add_argument("images", help="a folder, an image, a .txt/.csv list or a .npy array")
    embed.add_argument("-o", "--output", type=Path, required=True, help="a .parquet, .npz or .csv file")
    embed.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")

    _add_classifier(commands)

    config = _add(
        commands,
        "config",
        _config,
        "print the configuration with every value filled in",
        "byol config config.yaml trainer.max_epochs=10 > mine.yaml",
    )
    config.add_argument("file", nargs="?", type=Path, help="configuration file")
    config.add_argument("--preset", help="classic, paper, default or demo")
    config.add_argument("--schema", action="store_true", help="print the JSON schema, for editors")
    return parser


def _add_classifier(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    finetune = _add(
        commands,
        "finetune",
        _finetune,
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

    predict = _add(
        commands,
        "predict",
        _predict,
        "classes of images, by what finetune wrote",
        "byol predict runs/cells-finetuned NEW/ -o classes.csv",
    )
    predict.add_argument("classifier", type=Path, help="folder that `byol finetune` wrote")
    predict.add_argument("images", help="a folder, an image, a .txt/.csv list or a .npy array")
    predict.add_argument(
        "-o", "--output", type=Path, required=True, help="a .csv file: file,label,probability"
    )
    predict.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    command: Callable[[argparse.Namespace], int],
    summary: str,
    example: str | None = None,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example or f'byol {name}'}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=command)
    return parser


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


# ---- The commands


def _demo(options: argparse.Namespace) -> int:
    draft = load_draft(None, options.overrides, preset="demo")
    return _train_and_evaluate(draft, options.output)


def _check(options: argparse.Namespace) -> int:
    from rich.progress import Progress

    from byol.check import check

    draft, folder = _configure(options, place="check")
    with Progress(transient=True, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task("looking at images", total=None)
        verdict = check(
            draft,
            folder,
            test=options.test,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for line in verdict.lines:
        print(line)
    return verdict.exit_code


def _train(options: argparse.Namespace) -> int:
    if options.init is not None:
        options.overrides = [f"network.fine_tune_from={json.dumps(options.init)}", *options.overrides]
    draft, run_dir = _configure(options)
    return _preview(draft, run_dir) if options.dry_run else _train_run(draft, run_dir)


def _run(options: argparse.Namespace) -> int:
    draft, run_dir = _configure(options)
    return _train_and_evaluate(draft, run_dir)


def _eval(options: argparse.Namespace) -> int:
    return _print_table(options.run, overrides=_name_labelled(options))


def _name_labelled(options: argparse.Namespace) -> list[str]:
    """The overrides, and those that say which images have labels."""
    chosen = {"labels": options.labels, "train": options.train, "test": options.test}
    return [*options.overrides, *(f"evaluation.{key}={value}" for key, value in chosen.items() if value)]


def _configure(options: argparse.Namespace, *, place: str = "runs") -> tuple[Draft, Path]:
    """The configuration that the arguments mean, and the folder to write to, in `place` if not given."""
    source = str(options.source)
    overrides = [
        *options.overrides,
        *([] if options.hours is None else [f"trainer.max_hours={options.hours}"]),
    ]
    if Path(source).suffix.lower() in (".yaml", ".yml"):
        draft = load_draft(Path(source), overrides, preset=options.preset)
        name = Path(source).stem
    else:
        source_override = f"data.source={json.dumps(source)}"
        draft = load_draft(None, [source_override, *overrides], preset=options.preset or "default")
        path = Path(source).resolve()
        name = path.name if path.is_dir() else path.stem
    return draft, options.output or Path(place) / name


def _preview(draft: Draft, run_dir: Path) -> int:
    from byol.training.settle import preview

    if _is_main_rank():
        preview(draft, run_dir, say=print)
    return 0


def _train_run(draft: Draft, run_dir: Path) -> int:
    from rich.console import Console

    from byol.training.loop import train

    outcome = train(draft, run_dir, console=Console())
    if outcome.stopped_by is not None:
        if _is_main_rank():
            print(
                f"stopped by {outcome.stopped_by} after step {outcome.done} of {outcome.total_steps}, saved "
                f"in {run_dir}; the same command continues"
            )
        return _EXIT_INTERRUPTED[outcome.stopped_by]
    if _is_main_rank():
        print(_THE_ENCODER.format(run=run_dir))
    return 0


def _train_and_evaluate(draft: Draft, run_dir: Path) -> int:
    code = _train_run(draft, run_dir)
    if code or not _is_main_rank():
        return code
    # The run's own file keeps what its first start said; how to evaluate is for this start to say.
    chosen = draft.config.evaluation.model_dump().items()
    return _print_table(run_dir, overrides=[f"evaluation.{key}={json.dumps(value)}" for key, value in chosen])


def _is_main_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _print_table(run_dir: Path, *, overrides: list[str]) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from byol.evaluation.table import evaluate

    console = Console()
    # Disabled, it prints nothing; else it ends with an empty line in a log file.
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("features", total=None)
        table = evaluate(
            run_dir,
            overrides=overrides,
            say=lambda line: console.print(line, markup=False, highlight=False),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    print(f"\n{table.render()}\n\nsaved in {run_dir / 'eval.json'}")
    return 0


def _embed(options: argparse.Namespace) -> int:
    import numpy as np

    from byol.artifacts.encoder import gather, load
    from byol.artifacts.feature_file import check_feature_path, write_features

    if options.overrides:
        raise ConfigError(f"override '{options.overrides[0]}': embedding has no settings; leave it out")
    check_feature_path(options.output)
    encoder = load(options.run, device=options.device)
    bad: list[str] = []

    def note(name: str, error: DataError) -> None:
        bad.append(name)
        print(f"byol: {name}: {error}; left out", file=sys.stderr)

    def warn(name: str, found: str) -> None:
        print(f"byol: {name}: {found}", file=sys.stderr)

    blocks = list(encoder.embed_source(gather(options.images), on_bad=note, on_outside=warn))
    names = [name for block in blocks for name in block.names]
    if not names:
        raise DataError(f"{options.images}: none of its {len(bad)} images can be used")
    write_features(options.output, names, features=np.concatenate([block.features for block in blocks]))
    left_out = f", {len(bad)} left out" if bad else ""
    print(f"{len(names)} images x {encoder.spec.num_features} features in {options.output}{left_out}")
    return 0


def _finetune(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from byol.evaluation.finetune import finetune

    source = options.source
    output = options.output or source.with_name(f"{source.resolve().name}-finetuned")
    console = Console()
    try:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("epochs", total=None)
            outcome = finetune(
                source,
                output,
                overrides=_name_labelled(options),
                fraction=options.fraction,
                epochs=options.epochs,
                scratch=options.scratch,
                say=lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True),
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
    except KeyboardInterrupt:
        print("byol: interrupted; nothing is written, the same command starts anew", file=sys.stderr)
        return _EXIT_INTERRUPTED["SIGINT"]
    print(
        f"\n{outcome.render()}\n\nthe classifier is in {output}: byol predict {output} IMAGES/ -o classes.csv"
    )
    return 0


def _predict(options: argparse.Namespace) -> int:
    from byol.artifacts.classifier import check_predictions_path, load_classifier, write_predictions
    from byol.artifacts.encoder import gather

    if options.overrides:
        raise ConfigError(f"override '{options.overrides[0]}': prediction has no settings; leave it out")
    check_predictions_path(options.output)
    classifier = load_classifier(options.classifier, device=options.device)
    bad: list[str] = []

    def note(name: str, error: DataError) -> None:
        bad.append(name)
        print(f"byol: {name}: {error}; left out", file=sys.stderr)

    def warn(name: str, found: str) -> None:
        print(f"byol: {name}: {found}", file=sys.stderr)

    blocks = list(classifier.predict_source(gather(options.images), on_bad=note, on_outside=warn))
    num_images = sum(len(block.names) for block in blocks)
    if num_images == 0:
        raise DataError(f"{options.images}: none of its {len(bad)} images can be used")
    write_predictions(options.output, blocks)
    left_out = f", {len(bad)} left out" if bad else ""
    print(f"{num_images} images in {options.output}, {len(classifier.class_names)} classes{left_out}")
    return 0


def _config(options: argparse.Namespace) -> int:
    if options.schema:
        print(json_schema())
    else:
        print(load_draft(options.file, options.overrides, preset=options.preset).dump(), end="")
    return 0
