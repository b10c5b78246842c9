"""What each command does, given its arguments; returns the exit code.

torch is loaded by the commands that need it, when they run.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from byol.base.console import complain, is_watched, make_console, print_line, say, say_block
from byol.base.errors import ConfigError, DataError, NoLabelsError, printable
from byol.config import Draft, json_schema, load_draft, write_override

EXIT_INTERRUPTED = {
    "SIGINT": 130,
    "SIGPIPE": 141,
    "SIGTERM": 143,
}  # 128 + number of the signal, as shells have it

_THE_ENCODER = """the encoder is in {run}:
    import byol
    features = byol.load("{run}").embed("IMAGES/")    # (N, F) float32
"""


def demo_command(options: argparse.Namespace) -> int:
    start = time.perf_counter()
    draft = load_draft(None, options.overrides, preset="demo")
    from byol.auto import demo

    def elapsed() -> float:
        return time.perf_counter() - start

    if options.dry_run:
        if _is_main_rank():
            demo.preview(draft, options.output, elapsed=elapsed, say=say)
        return 0
    draft, step_s = demo.fit_to_time(draft, options.output, elapsed=elapsed, console=make_console())
    return _train_and_evaluate(draft, options.output, step_s=step_s)


def check_command(options: argparse.Namespace) -> int:
    from rich.progress import Progress

    from byol.checking.check import check

    draft, folder = _configure(options, place="check")
    with Progress(transient=True, disable=not is_watched()) as bar:
        task = bar.add_task("looking at images", total=None)
        verdict = check(
            draft,
            folder,
            test=options.test,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for line in verdict.lines:
        say(line)
    return verdict.exit_code


def train_command(options: argparse.Namespace) -> int:
    if options.init is not None:
        options.overrides = [write_override("network.fine_tune_from", options.init), *options.overrides]
    draft, run_dir = _configure(options)
    return _preview(draft, run_dir) if options.dry_run else _train_run(draft, run_dir)


def run_command(options: argparse.Namespace) -> int:
    draft, run_dir = _configure(options)
    return _train_and_evaluate(draft, run_dir)


def eval_command(options: argparse.Namespace) -> int:
    return _print_table(
        options.run,
        overrides=name_labelled(options, "weights", "folds", "groups"),
        metadata=options.metadata,
    )


def name_labelled(options: argparse.Namespace, *more: str) -> list[str]:
    """The overrides, and those that say which images have labels and how they are used."""
    chosen = {key: getattr(options, key) for key in ("labels", "train", "test", *more)}
    given = (write_override(f"evaluation.{key}", value) for key, value in chosen.items() if value is not None)
    return [*options.overrides, *given]


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
        source_override = write_override("data.source", source)
        draft = load_draft(None, [source_override, *overrides], preset=options.preset or "default")
        path = Path(source).resolve()
        name = path.name if path.is_dir() else path.stem
    return draft, options.output or Path(place) / name


def _preview(draft: Draft, run_dir: Path) -> int:
    from byol.auto.resolve import preview

    if _is_main_rank():
        preview(draft, run_dir, say=say)
    return 0


def _train_run(draft: Draft, run_dir: Path, *, step_s: float | None = None) -> int:
    from byol.auto.train import train

    outcome = train(draft, run_dir, console=make_console(), step_s=step_s)
    if outcome.stopped_by is not None:
        if _is_main_rank():
            say(
                f"stopped by {outcome.stopped_by} after step {outcome.done} of {outcome.total_steps}, saved "
                f"in {run_dir}; the same command continues"
            )
        return EXIT_INTERRUPTED[outcome.stopped_by]
    if _is_main_rank():
        say_block(_THE_ENCODER.format(run=printable(str(run_dir))))
    return 0


def _train_and_evaluate(draft: Draft, run_dir: Path, *, step_s: float | None = None) -> int:
    code = _train_run(draft, run_dir, step_s=step_s)
    if code or not _is_main_rank():
        return code
    # The run's own file keeps what its first start said; how to evaluate is for this start to say.
    chosen = draft.config.evaluation.model_dump().items()
    return _print_table(
        run_dir, overrides=[write_override(f"evaluation.{key}", value) for key, value in chosen]
    )


def _is_main_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _print_table(run_dir: Path, *, overrides: list[str], metadata: Path | None = None) -> int:
    """What features are worth without labels, and the table if there are any."""
    from byol.evaluation.table import check_labels, evaluate
    from byol.evaluation.unlabelled import describe

    check_labels(run_dir, overrides=overrides)
    with _show_features() as progress:
        description = describe(run_dir, overrides=overrides, metadata=metadata, say=say, progress=progress)
    say_block(f"{description.render()}\n")
    try:
        with _show_features() as progress:
            table = evaluate(run_dir, overrides=overrides, say=say, progress=progress)
    except NoLabelsError as error:
        say_block(f"no table: {error}\n\nsaved in {printable(str(run_dir / 'measures.json'))}")
        return 0
    say_block(f"\n{table.render()}\n\nsaved in {printable(str(run_dir / 'eval.json'))} and measures.json")
    return 0


def compare_command(options: argparse.Namespace) -> int:
    from byol.reporting.compare import compare

    _refuse_overrides(options, "comparing")
    say_block(compare(options.runs))
    return 0


def card_command(options: argparse.Namespace) -> int:
    from byol.reporting.card import FILE_NAME, write_card

    _refuse_overrides(options, "a card")
    say_block(write_card(options.run))
    say(f"saved in {options.run / FILE_NAME}")
    return 0


def _refuse_overrides(options: argparse.Namespace, what: str) -> None:
    if options.overrides:
        raise ConfigError(f"override '{options.overrides[0]}': {what} has no settings; leave it out")


def report_command(options: argparse.Namespace) -> int:
    from byol.reporting.report import write_report

    with _show_features() as progress:
        path = write_report(
            options.run,
            labels=options.labels,
            metadata=options.metadata,
            output=options.output,
            overrides=options.overrides,
            most_images=options.images,
            say=say,
            progress=progress,
        )
    say(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB, opens without network)")
    return 0


def explore_command(options: argparse.Namespace) -> int:
    from byol.reporting.explorer import explore

    with _show_features() as progress:
        explore(
            options.run,
            images=options.images,
            labels=options.labels,
            metadata=options.metadata,
            overrides=options.overrides,
            port=options.port,
            open_browser=options.open,
            say=say,
            progress=progress,
        )
    return 0


@contextmanager
def _show_features() -> Iterator[Callable[[int, int], None]]:
    """A bar of the images embedded, on a terminal, from the first on."""
    from rich.progress import Progress

    with Progress(transient=True, disable=not is_watched()) as bar:
        tasks: list[Any] = []

        def show(done: int, total: int) -> None:
            if not tasks:
                tasks.append(bar.add_task("features", total=total))
            bar.update(tasks[0], completed=done, total=total, visible=done < total)

        yield show


def _may_skip_unreadable(options: argparse.Namespace, what: str) -> bool:
    """The only setting that applies to new images."""
    key = "data.skip_unreadable="
    given = [override for override in options.overrides if override.startswith(key)]
    options.overrides = [override for override in options.overrides if not override.startswith(key)]
    _refuse_overrides(options, what)
    return load_draft(None, given, preset="default").config.data.skip_unreadable


def embed_command(options: argparse.Namespace) -> int:
    import numpy as np

    from byol.encoder.encoder import load
    from byol.encoder.feature_file import check_feature_path, write_features, write_prototypes
    from byol.encoder.told import Told, gather_and_say
    from byol.evaluation.features import check_finite
    from byol.metrics.neighbours import Distinct, find_prototypes

    skip_unreadable = _may_skip_unreadable(options, "embedding")
    if options.prototypes is not None and options.prototypes < 1:
        raise ConfigError(f"--prototypes {options.prototypes}: give a number of images, 1 or more")
    check_feature_path(options.output)
    encoder = load(options.run, device=options.device)
    images = gather_and_say(options.images, layout=encoder.spec.layout, skip_unreadable=skip_unreadable)
    told = Told(skip_unreadable)
    blocks = list(
        encoder.embed_source(images, on_bad=told.leave_out, on_outside=told.warn, on_read=told.note)
    )
    told.say_all(options.output)
    names = [name for block in blocks for name in block.names]
    if not names:
        raise DataError(f"{options.images}: none of its {len(told.bad)} images can be used")
    features = np.concatenate([block.features for block in blocks])
    check_finite(features, names.__getitem__)
    write_features(options.output, names, features=features)
    left_out = f", {len(told.bad)} left out" if told.bad else ""
    say(f"{len(names)} images x {encoder.spec.num_features} features in {options.output}{left_out}")
    if options.prototypes is None:
        return 0
    if (features == features[0]).all():
        say("no prototypes: they cannot be chosen from one distinct image" + _explain_copies(len(names)))
        return 0
    found = find_prototypes(features, Distinct.of(features), num=options.prototypes, seed=0)
    path = options.output.with_suffix(".prototypes.csv")
    write_prototypes(path, [names[row] for row in found.rows], sizes=found.sizes.tolist())
    say(f"{len(found.rows)} images that stand for all in {path}")
    return 0


def _explain_copies(num: int) -> str:
    """Why `num` images have the same features."""
    return "" if num == 1 else f" (all {num} have the same features: copies, or the encoder has collapsed)"


def finetune_command(options: argparse.Namespace) -> int:
    from rich.progress import Progress

    from byol.finetuning.finetune import finetune

    source = options.source
    output = options.output or source.with_name(f"{source.resolve().name}-finetuned")
    console = make_console()
    try:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("epochs", total=None)
            outcome = finetune(
                source,
                output,
                overrides=name_labelled(options),
                fraction=options.fraction,
                epochs=options.epochs,
                scratch=options.scratch,
                say=lambda line: print_line(console, line),
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
    except KeyboardInterrupt:
        complain("interrupted; nothing is written, the same command starts anew")
        return EXIT_INTERRUPTED["SIGINT"]
    say_block(f"\n{outcome.render()}\n")
    say(f"the classifier is in {output}: byol predict {output} IMAGES/ -o classes.csv")
    return 0


def predict_command(options: argparse.Namespace) -> int:
    from byol.encoder.classifier import check_predictions_path, load_classifier, write_predictions
    from byol.encoder.told import Told, gather_and_say

    skip_unreadable = _may_skip_unreadable(options, "prediction")
    check_predictions_path(options.output)
    classifier = load_classifier(options.classifier, device=options.device)
    images = gather_and_say(
        options.images, layout=classifier.encoder.spec.layout, skip_unreadable=skip_unreadable
    )
    told = Told(skip_unreadable)
    blocks = list(
        classifier.predict_source(images, on_bad=told.leave_out, on_outside=told.warn, on_read=told.note)
    )
    told.say_all(options.output)
    num_images = sum(len(block.names) for block in blocks)
    if num_images == 0:
        raise DataError(f"{options.images}: none of its {len(told.bad)} images can be used")
    write_predictions(options.output, blocks)
    left_out = f", {len(told.bad)} left out" if told.bad else ""
    say(f"{num_images} images in {options.output}, {len(classifier.class_names)} classes{left_out}")
    return 0


def config_command(options: argparse.Namespace) -> int:
    if options.schema:
        say_block(json_schema())
    else:
        say_block(
            load_draft(options.file, options.overrides, preset=options.preset).dump().removesuffix("\n")
        )
    return 0
