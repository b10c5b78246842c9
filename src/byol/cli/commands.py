"""The commands. Each takes the parsed arguments and returns the exit code.

Commands import torch only when they run, so that --help is fast.
"""

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import byol
from byol.api.arguments import choose_folder, make_draft
from byol.api.progress import show_bar
from byol.base.console import complain, is_watched, make_console, say, say_block
from byol.base.errors import ConfigError, DataError, printable
from byol.config import PartialConfig, json_schema, load_partial, write_override

if TYPE_CHECKING:
    from byol.api.run import Run

EXIT_INTERRUPTED = {
    "SIGINT": 130,
    "SIGPIPE": 141,
    "SIGTERM": 143,
}  # 128 + number of the signal, as shells have it

_THE_ENCODER = """The encoder is in {run}. Use it in Python:
    import byol
    features = byol.load("{run}").embed("IMAGES/")    # (N, F) float32
"""


def demo_command(options: argparse.Namespace) -> int:
    start = time.perf_counter()
    draft = load_partial(None, options.overrides, preset="demo")
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
    result = byol.check(
        options.source,
        output=options.output,
        test=options.test,
        hours=options.hours,
        preset=options.preset,
        overrides=options.overrides,
        progress=is_watched(),
    )
    for line in result.lines:
        say(line)
    return result.exit_code


def train_command(options: argparse.Namespace) -> int:
    if options.dry_run:
        draft = make_draft(
            options.source,
            preset=options.preset,
            hours=options.hours,
            init=options.init,
            overrides=options.overrides,
        )
        return _preview(draft, choose_folder(options.source, options.output, place="runs"))
    return _report_training(
        byol.train(
            options.source,
            output=options.output,
            hours=options.hours,
            init=options.init,
            preset=options.preset,
            overrides=options.overrides,
            progress=True,
        )
    )


def run_command(options: argparse.Namespace) -> int:
    draft = make_draft(
        options.source, preset=options.preset, hours=options.hours, overrides=options.overrides
    )
    return _train_and_evaluate(draft, choose_folder(options.source, options.output, place="runs"))


def eval_command(options: argparse.Namespace) -> int:
    return _evaluate(
        options.run,
        labels=options.labels,
        train=options.train,
        test=options.test,
        weights=options.weights,
        folds=options.folds,
        groups=options.groups,
        metadata=options.metadata,
        overrides=options.overrides,
    )


def _preview(draft: PartialConfig, run_dir: Path) -> int:
    from byol.auto.resolve import preview

    if _is_main_rank():
        preview(draft, run_dir, say=say)
    return 0


def _report_training(run: "Run") -> int:
    """Say where the encoder is, or how to continue."""
    if run.stopped_by is not None:
        if _is_main_rank():
            say(
                f"stopped by {run.stopped_by} after step {run.done} of {run.total_steps} and saved in "
                f"{run.folder}; run the same command again to resume"
            )
        return EXIT_INTERRUPTED[run.stopped_by]
    if _is_main_rank():
        say_block(_THE_ENCODER.format(run=printable(str(run.folder))))
    return 0


def _train_and_evaluate(draft: PartialConfig, run_dir: Path, *, step_s: float | None = None) -> int:
    from byol.api.run import Run
    from byol.auto.train import train

    outcome = train(draft, run_dir, console=make_console(), step_s=step_s)
    code = _report_training(Run(run_dir, outcome.done, outcome.total_steps, outcome.stopped_by))
    if code or not _is_main_rank():
        return code
    # The run's own file keeps what its first start said; how to evaluate is for this start to say.
    chosen = draft.config.evaluation.model_dump().items()
    return _evaluate(run_dir, overrides=[write_override(f"evaluation.{key}", value) for key, value in chosen])


def _is_main_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _evaluate(run_dir: Path, **options: Any) -> int:
    """Print what features are worth without labels, and the table if there are any."""
    evaluation = byol.evaluate(run_dir, progress=True, **options)
    if evaluation.table is None:
        say_block(f"\nsaved in {printable(str(run_dir / 'measures.json'))}")
        return 0
    saved = f"saved in {printable(str(run_dir / 'eval.json'))} and measures.json"
    say_block(f"\n{evaluation.table.render()}\n\n{saved}")
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
        raise ConfigError(f"override '{options.overrides[0]}': {what} takes no settings; leave it out")


def report_command(options: argparse.Namespace) -> int:
    path = byol.report(
        options.run,
        labels=options.labels,
        metadata=options.metadata,
        images=options.images,
        output=options.output,
        overrides=options.overrides,
        progress=True,
    )
    say(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB, opens without network)")
    return 0


def explore_command(options: argparse.Namespace) -> int:
    from byol.reporting.explorer import explore

    with show_bar(make_console(), "features") as count:
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


def _may_skip_unreadable(options: argparse.Namespace, what: str) -> bool:
    """The only setting that applies to new images."""
    key = "data.skip_unreadable="
    given = [override for override in options.overrides if override.startswith(key)]
    options.overrides = [override for override in options.overrides if not override.startswith(key)]
    _refuse_overrides(options, what)
    return load_partial(None, given, preset="default").config.data.skip_unreadable


def embed_command(options: argparse.Namespace) -> int:
    import numpy as np

    from byol.encoder.encoder import load
    from byol.encoder.feature_file import check_feature_path, write_features, write_prototypes
    from byol.encoder.remarks import Remarks, gather_and_say
    from byol.evaluation.features import check_finite
    from byol.metrics.neighbours import Distinct, find_prototypes

    skip_unreadable = _may_skip_unreadable(options, "embedding")
    if options.prototypes is not None and options.prototypes < 1:
        raise ConfigError(f"--prototypes {options.prototypes}: give a number of images, at least 1")
    check_feature_path(options.output)
    encoder = load(options.run, device=options.device)
    images = gather_and_say(options.images, layout=encoder.spec.layout, skip_unreadable=skip_unreadable)
    told = Remarks(skip_unreadable)
    blocks = list(
        encoder.embed_source(images, on_bad=told.leave_out, on_outside=told.warn, on_read=told.note)
    )
    told.say_all(options.output)
    names = [name for block in blocks for name in block.names]
    if not names:
        raise DataError(f"{options.images}: byol can use none of the {len(told.bad)} images")
    features = np.concatenate([block.features for block in blocks])
    check_finite(features, names.__getitem__)
    write_features(options.output, names, features=features)
    left_out = f", {len(told.bad)} left out" if told.bad else ""
    say(f"wrote {encoder.spec.num_features} features of {len(names)} images to {options.output}{left_out}")
    if options.prototypes is None:
        return 0
    if (features == features[0]).all():
        say("no prototypes: there is only one distinct image" + _explain_copies(len(names)))
        return 0
    found = find_prototypes(features, Distinct.of(features), num=options.prototypes, seed=0)
    path = options.output.with_suffix(".prototypes.csv")
    write_prototypes(path, [names[row] for row in found.rows], sizes=found.sizes.tolist())
    say(f"wrote the {len(found.rows)} most representative images to {path}")
    return 0


def _explain_copies(num: int) -> str:
    """Why `num` images have the same features."""
    return (
        ""
        if num == 1
        else f" (all {num} have the same features: they are duplicates, or the encoder has collapsed)"
    )


def export_command(options: argparse.Namespace) -> int:
    _refuse_overrides(options, "an export")
    byol.export(options.run, format=options.format, output=options.output, progress=True)
    return 0


def finetune_command(options: argparse.Namespace) -> int:
    try:
        found = byol.finetune(
            options.source,
            output=options.output,
            labels=options.labels,
            train=options.train,
            test=options.test,
            fraction=options.fraction,
            epochs=options.epochs,
            scratch=options.scratch,
            overrides=options.overrides,
            progress=True,
        )
    except KeyboardInterrupt:
        complain("interrupted before anything was written; run the same command again to start over")
        return EXIT_INTERRUPTED["SIGINT"]
    say_block(f"\n{found.outcome.render()}\n")
    say(f"The classifier is in {found.folder}. Use it: byol predict {found.folder} IMAGES/ -o classes.csv")
    return 0


def predict_command(options: argparse.Namespace) -> int:
    from byol.encoder.classifier import check_predictions_path, load_classifier, write_predictions
    from byol.encoder.remarks import Remarks, gather_and_say

    skip_unreadable = _may_skip_unreadable(options, "prediction")
    check_predictions_path(options.output)
    classifier = load_classifier(options.classifier, device=options.device)
    images = gather_and_say(
        options.images, layout=classifier.encoder.spec.layout, skip_unreadable=skip_unreadable
    )
    told = Remarks(skip_unreadable)
    blocks = list(
        classifier.predict_source(images, on_bad=told.leave_out, on_outside=told.warn, on_read=told.note)
    )
    told.say_all(options.output)
    num_images = sum(len(block.names) for block in blocks)
    if num_images == 0:
        raise DataError(f"{options.images}: byol can use none of the {len(told.bad)} images")
    write_predictions(options.output, blocks)
    left_out = f", {len(told.bad)} left out" if told.bad else ""
    say(
        f"wrote the classes ({len(classifier.class_names)}) of {num_images} images to "
        f"{options.output}{left_out}"
    )
    return 0


def config_command(options: argparse.Namespace) -> int:
    if options.schema:
        say_block(json_schema())
    else:
        say_block(
            load_partial(options.file, options.overrides, preset=options.preset).dump().removesuffix("\n")
        )
    return 0
