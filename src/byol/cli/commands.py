"""The commands. Each takes the parsed arguments and returns the exit code.

Commands import torch only when they run, so that --help is fast.
"""

import argparse
import inspect
import json
import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import byol
from byol.api.arguments import choose_folder, make_partial_config
from byol.base.console import complain, is_watched, make_console, say, say_block, show_bar
from byol.base.errors import CheckpointError, ConfigError, Interrupted, printable
from byol.base.signals import show_signal
from byol.config import PartialConfig, json_schema, load_partial, write_override

if TYPE_CHECKING:
    from byol.api.evaluation import Evaluation
    from byol.api.run import Run

EXIT_INTERRUPTED = {
    "SIGHUP": 129,
    "SIGINT": 130,
    "SIGUSR1": 138,
    "SIGUSR2": 140,
    "SIGPIPE": 141,
    "SIGTERM": 143,
}  # 128 + number of the signal, as shells on Linux have it

_THE_ENCODER = """The encoder is in {run}. To compute features, one row per image:
    byol embed {words} -o features.csv
or in Python:
    import byol
    features = byol.load({quoted}).embed({images})    # a float32 array
"""


def demo_command(options: argparse.Namespace) -> int:
    start = time.perf_counter()
    partial_config = load_partial(None, options.overrides, preset="demo")
    from byol.auto import demo

    def elapsed() -> float:
        return time.perf_counter() - start

    if options.dry_run:
        if _is_main_rank():
            demo.preview(partial_config, options.output, elapsed=elapsed, say=say)
        return 0
    with _noting_what_is_saved(options.output):
        partial_config, step_s = demo.fit_to_time(
            partial_config, options.output, elapsed=elapsed, console=make_console(goes_on=True)
        )
        return _train_and_evaluate(partial_config, options.output, step_s=step_s)


def check_command(options: argparse.Namespace) -> int:
    result = _call(byol.check, options, images=options.source, progress=is_watched())
    for line in result.lines:
        say(line)
    return int(result.exit_code)


def train_command(options: argparse.Namespace) -> int:
    folder = choose_folder(options.source, options.output, place="runs")
    if options.dry_run:
        return _preview(_call(make_partial_config, options, images=options.source), folder)
    with _noting_what_is_saved(folder):
        return _report_training(
            _call(byol.train, options, images=options.source, progress=True), options.source
        )


def pack_command(options: argparse.Namespace) -> int:
    found = _call(byol.pack, options, images=options.source, progress=True)
    if found.note not in ("packed", "found"):
        say(found.note)
    left_out = f", {found.num_left_out:,} left out" if found.num_left_out else ""
    verb = "already packed" if found.note == "found" else "packed"
    say(f"{verb}: {found.num_images:,} images at {found.px} px{left_out}, in {printable(str(found.folder))}")
    words = " ".join(shlex.quote(printable(word)) for word in (options.source, *found.settings))
    if not found.is_part:
        say(f"to train on them: byol train {words}")
    else:
        again = " ".join(shlex.quote(printable(word)) for word in (options.source, *options.overrides))
        output = "" if options.output is None else f" -o {shlex.quote(printable(str(options.output)))}"
        say(f"when all parts are packed, join them: byol pack {again}{output}")
    return 0


def run_command(options: argparse.Namespace) -> int:
    partial_config = _call(make_partial_config, options, images=options.source)
    folder = choose_folder(options.source, options.output, place="runs")
    with _noting_what_is_saved(folder):
        return _train_and_evaluate(partial_config, folder)


@contextmanager
def _noting_what_is_saved(run_dir: Path) -> Iterator[None]:
    """Let an interruption of the block say whether the run in the folder has a checkpoint.

    Raises:
        Interrupted: Ctrl-C or a signal came before the first checkpoint.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        from byol.runfolder.checkpoint import has_begun

        if has_begun(run_dir):
            raise
        name = stop.signal if isinstance(stop, Interrupted) else "SIGINT"
        raise Interrupted(name, nothing_saved=True) from None


def eval_command(options: argparse.Namespace) -> int:
    return _report_evaluation(_call(byol.evaluate, options, progress=True))


def _call(function: Callable[..., Any], options: argparse.Namespace, **more: object) -> Any:
    """Call a public function with the options that have the names of its arguments, and with `more`."""
    names = inspect.signature(function).parameters
    return function(**{name: value for name, value in vars(options).items() if name in names} | more)


def _preview(partial_config: PartialConfig, run_dir: Path) -> int:
    from byol.auto.resolve import preview

    if _is_main_rank():
        preview(partial_config, run_dir, say=say)
    return 0


def _report_training(run: "Run", source: str = "") -> int:
    """Say where the encoder is, or how to continue. `source`: the images, an example if it is a folder."""
    if run.stopped_by is not None:
        if _is_main_rank():
            say(
                f"stopped by {show_signal(run.stopped_by)} after step {run.done:,} of "
                f"{run.total_steps:,} and saved in {run.folder}; run the same command again to continue"
            )
        return EXIT_INTERRUPTED[run.stopped_by]
    if _is_main_rank():
        folder, images = printable(str(run.folder)), printable(source) if os.path.isdir(source) else "NEW/"
        words = f"{shlex.quote(folder)} {shlex.quote(images)}"
        quoted, source = (json.dumps(text, ensure_ascii=False) for text in (folder, images))
        say_block(_THE_ENCODER.format(run=folder, quoted=quoted, words=words, images=source))
    return 0


def _train_and_evaluate(partial_config: PartialConfig, run_dir: Path, *, step_s: float | None = None) -> int:
    from byol.api.run import Run
    from byol.auto.train import train
    from byol.device.threads import limited_threads

    outcome = train(partial_config, run_dir, console=make_console(goes_on=True), step_s=step_s)
    code = _report_training(Run(run_dir, outcome.done, outcome.total_steps, outcome.stopped_by))
    if code or not _is_main_rank():
        return code
    # The run's own file keeps what its first start said; how to evaluate is for this start to say.
    chosen = partial_config.config.evaluation.model_dump().items()
    overrides = [write_override(f"evaluation.{key}", value) for key, value in chosen]
    with limited_threads(partial_config.config.trainer.num_threads):
        return _report_evaluation(byol.evaluate(run_dir, overrides=overrides, progress=True))


def _is_main_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _report_evaluation(evaluation: "Evaluation") -> int:
    """Print the table if there are labels, and where the results are."""
    if evaluation.unsaved:
        say_block("" if evaluation.table is None else f"\n{evaluation.table.render()}")
        complain(f"results not saved: {evaluation.unsaved[0]}")
        return CheckpointError.exit_code
    saved = f"saved in {printable(str(evaluation.folder))}:"
    if evaluation.table is None:
        say_block(f"\n{saved} measures.json, neighbours.png, prototypes.csv")
        return 0
    files = "eval.json, measures.json, neighbours.png, prototypes.csv"
    say_block(f"\n{evaluation.table.render()}\n\n{saved} {files}")
    return 0


def compare_command(options: argparse.Namespace) -> int:
    from byol.reporting.compare import compare

    refuse_overrides(options, "comparing")
    say_block(compare(options.runs))
    return 0


def card_command(options: argparse.Namespace) -> int:
    from byol.reporting.card import FILE_NAME, write_card

    refuse_overrides(options, "a card")
    say_block(write_card(options.run))
    say(f"saved in {options.run / FILE_NAME}")
    return 0


def refuse_overrides(options: argparse.Namespace, what: str) -> None:
    if options.overrides:
        raise ConfigError(f"override '{options.overrides[0]}': {what} takes no settings; leave it out")


def replay_command(options: argparse.Namespace) -> int:
    if not isinstance(options.step, int | None):
        raise ConfigError(f"step: '{options.step}' is not a number; give that of a step, such as 1234")
    from byol.training.replay import replay

    found = replay(options.run, options.step, overrides=options.overrides, console=make_console())
    for line in found.explain():
        say(line)
    return 0


def report_command(options: argparse.Namespace) -> int:
    path = _call(byol.report, options, progress=True)
    say(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB, opens without network)")
    return 0


def explore_command(options: argparse.Namespace) -> int:
    from byol.reporting.explorer import explore

    with show_bar(make_console(), "computing features") as count:
        explore(
            options.run,
            images=options.images,
            labels=options.labels,
            metadata=options.metadata,
            overrides=options.overrides,
            port=options.port,
            open_browser=options.open,
            say=say,
            progress=count,
        )
    return 0


def embed_command(options: argparse.Namespace) -> int:
    _call(byol.embed, options, progress=True)
    return 0


def predict_command(options: argparse.Namespace) -> int:
    _call(byol.predict, options, progress=True)
    return 0


def export_command(options: argparse.Namespace) -> int:
    refuse_overrides(options, "an export")
    _call(byol.export, options, progress=True)
    return 0


def finetune_command(options: argparse.Namespace) -> int:
    try:
        found = _call(byol.finetune, options, run=options.source, progress=True)
    except KeyboardInterrupt:
        complain("interrupted before anything was written; run the same command again to start over")
        return EXIT_INTERRUPTED["SIGINT"]
    say_block(f"\n{found.outcome.render()}\n")
    say(f"The classifier is in {found.folder}. Use it: byol predict {found.folder} IMAGES/ -o classes.csv")
    return 0


def config_command(options: argparse.Namespace) -> int:
    if options.schema:
        say_block(json_schema())
    else:
        say_block(
            load_partial(options.file, options.overrides, preset=options.preset).dump().removesuffix("\n")
        )
    return 0


def env_command(options: argparse.Namespace) -> int:
    refuse_overrides(options, "the environment")
    found = byol.environment()
    say_block(found.to_json() if options.json else found.render())
    return 0
