"""`byol finetune`: train a classifier from a run's encoder and a fraction of the labels, and test it.

Only `_test` uses the test labels; it runs after all training.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from byol.base.console import Count, Say, silent
from byol.base.errors import CheckpointError, ConfigError, DataError
from byol.base.files import check_writable, is_temporary, write_atomically
from byol.base.version import __version__
from byol.config import Config, diff_configs, load_config
from byol.device.devices import choose_dtype, explain_device
from byol.device.ranks import keep_freed_memory
from byol.encoder import classifier as files
from byol.encoder.classifier import ClassifierSpec, Linear
from byol.encoder.encoder import WEIGHTS_NAME, Encoder, load
from byol.encoder.spec import SPEC_NAME, EncoderSpec
from byol.evaluation.features import untrained
from byol.evaluation.labelled import LEARNED, SEEN, open_splits
from byol.evaluation.splits import Split, Splits
from byol.finetuning.results import FORMAT, FinetuneResult, FinetuneRow
from byol.finetuning.supervised import SYMMETRIES, Setting, mild
from byol.finetuning.tuning import Look, Recipe, Trained, draw_fraction, train_classifier
from byol.metrics import probes
from byol.runfolder.lock import LOCK_FILES, only_writer

FILE_NAME = "finetune.json"
LOG_NAME = "finetune.jsonl"
SCRATCH = "scratch"

_OWN_FILES = {WEIGHTS_NAME, SPEC_NAME, files.WEIGHTS_NAME, files.SPEC_NAME, FILE_NAME, LOG_NAME}
# The settings that fine-tuning may change from those of the run.
_MAY_CHANGE = (
    "evaluation.",
    "data.source:",
    "data.root:",
    "data.packs:",
    "data.download:",
    "data.memory:",
    "data.max_bad:",
    "data.skip_unreadable:",
    *(f"data_transforms.{view}.{key}:" for view in ("view1", "view2") for key in SYMMETRIES),
    "trainer.device:",
    "trainer.precision:",
    "trainer.num_workers:",
)


def finetune(
    source: Path,
    output: Path,
    *,
    overrides: Sequence[str] = (),
    fraction: float = 1.0,
    epochs: int | None = None,
    scratch: bool = False,
    say: Say = silent,
    progress: Count | None = None,
) -> FinetuneResult:
    """Train a classifier from the encoder in `source` on a fraction of the labels; write it to `output`.

    `source` is a run folder, the folder of one of its encoders (`target`, `best`), or a folder that holds
    only an encoder. `overrides` set the labelled images (`evaluation.train`, `.test`, `.labels`), by default
    those of `byol eval`. With folds, the first fold is the test set. `scratch`: also train random weights.

    Raises:
        CheckpointError: there is no such encoder, or `output` holds other files or cannot be written.
        RunInUseError: another process writes into `output`.
        ConfigError: a setting is not valid, or fine-tuning cannot use it.
        DataError: images or labels are missing, cannot be read, or are too few.
        DivergedError: the loss is not finite.
    """
    _check_numbers(fraction, epochs)
    keep_freed_memory()
    check_output(output, source=source)
    check_writable(output / FILE_NAME)
    with only_writer(output, say=say):
        return _finetune(
            source,
            output,
            overrides,
            fraction=fraction,
            epochs=epochs,
            scratch=scratch,
            say=say,
            progress=progress,
        )


def _finetune(
    source: Path,
    output: Path,
    overrides: Sequence[str],
    *,
    fraction: float,
    epochs: int | None,
    scratch: bool,
    say: Say,
    progress: Count | None,
) -> FinetuneResult:
    """Do the work of `finetune`. The caller holds the lock of `output`."""
    encoder, config, run_dir = _open_encoder(source, overrides, output=output, say=say)
    splits = open_splits(config, run_dir, spec=encoder.spec, is_single=True, say=say)
    data, class_names = _draw(splits, fraction=fraction, seed=config.evaluation.seed)
    say(f"{len(data.rows)} of {len(splits.train.rows)} labels, {len(class_names)} classes")
    setting = Setting(
        spec=encoder.spec,
        transforms=mild(config.data_transforms),
        num_classes=len(class_names),
        dtype=choose_dtype(config.trainer.precision, device=encoder.device),
        device=encoder.device,
        seed=config.evaluation.seed,
    )
    which = encoder.spec.which
    starts = {which if which == "finetuned" else f"byol {which}": encoder.module}
    if which == "finetuned":
        say(f"{which}: {LEARNED}")
    if splits.seen:
        say(SEEN)
    if scratch:
        starts[SCRATCH] = _make_random(config, encoder, data=data)
    trained, log = _train_all(starts, data, setting=setting, epochs=epochs, say=say, progress=progress)
    rows = _test(trained, splits.test, class_names=(splits.class_names, class_names), setting=setting,
                 config=config, fraction=fraction, num_labels=len(data.rows))  # fmt: skip
    outcome = FinetuneResult(splits.description, len(splits.test.rows), len(class_names), rows)
    _save(output, trained[0], outcome, encoder.spec, class_names=class_names, log=log)
    return outcome


# ---- Inputs


def _check_numbers(fraction: float, epochs: int | None) -> None:
    if not 0.0 < fraction <= 1.0:
        raise ConfigError(f"--fraction: {fraction:g} is not a fraction; 0.01 uses 1 % of the labels, 1 all")
    if epochs is not None and epochs < 1:
        raise ConfigError(f"--epochs: {epochs} is not a number of passes; give 1 or more, or leave it out")


def check_output(output: Path, *, source: Path) -> None:
    """Refuse an output folder with other files than those of an earlier fine-tuning, which byol replaces.

    Raises:
        CheckpointError: the folder holds other files, is a file, or is the source.
    """
    if output.exists() and not output.is_dir():
        raise CheckpointError(f"{output}: is a file, not a folder; choose another name with -o")
    names = {path.name for path in output.iterdir()} - LOCK_FILES if output.exists() else set()
    names = {name for name in names if not is_temporary(name, of=tuple(_OWN_FILES))}
    if names:
        names = {name for name in names if not name.startswith(".")}
        if not names & {FILE_NAME, LOG_NAME} or not names <= _OWN_FILES:
            raise CheckpointError(
                f"{output}: holds files that `byol finetune` did not write; choose another folder with -o"
            )
        if output.resolve() == source.resolve():
            raise CheckpointError(f"{output}: is the encoder to start from; choose another folder with -o")


def _open_encoder(
    source: Path, overrides: Sequence[str], *, output: Path, say: Say
) -> tuple[Encoder, Config, Path]:
    """Return the encoder, the configuration and the run folder (see `_read_config`)."""
    encoder = load(source)
    config, run_dir = _read_config(source, overrides, spec=encoder.spec, output=output)
    if config.trainer.device == "cpu" and encoder.device.type != "cpu":
        encoder = load(source, device="cpu")
    if (notice := explain_device(encoder.device)) is not None:
        say(notice)
    if run_dir == output and not any(map(_is_domain, overrides)):
        say("crops and flips are chosen for photographs; for other images set data_transforms.domain=NAME")
    return encoder, config, run_dir


def _read_config(
    source: Path, overrides: Sequence[str], *, spec: EncoderSpec, output: Path
) -> tuple[Config, Path]:
    """Return the configuration of the run, or one that agrees with the encoder's spec; and the run folder."""
    candidates = [source, source.parent] if source.name in ("target", "best") else [source]
    run_dir = next((folder for folder in candidates if (folder / "config.yaml").is_file()), None)
    if run_dir is not None:
        before: tuple[Path | None, list[str], str | None] = (run_dir / "config.yaml", [], None)
    else:
        before = (None, [*_as_trained(spec), *(text for text in overrides if _is_domain(text))], "default")
    path, first_overrides, preset = before
    config = load_config(path, [*first_overrides, *overrides], preset=preset)
    changes = diff_configs(load_config(path, first_overrides, preset=preset), config)
    refused = [change for change in changes if not change.startswith(_MAY_CHANGE)]
    if refused:
        raise ConfigError(f"fine-tuning cannot use these settings ({'; '.join(refused)}); leave them out")
    if run_dir is None and config.evaluation.train is None:
        raise ConfigError(
            f"--train: {source} is an encoder without its run (no config.yaml), so byol does not know its "
            "images; give labelled images with --train FOLDER"
        )
    return config, run_dir or output


def _as_trained(spec: EncoderSpec) -> list[str]:
    channels = list(spec.select) if isinstance(spec.select, tuple) else spec.select
    return [
        f"network.name={spec.name}",
        f"network.stem={spec.stem}",
        f"data_transforms.input_shape=[{spec.view_px}, {spec.view_px}, {spec.channels}]",
        f"data.channels={json.dumps(channels)}",
        f"data.geometry={spec.geometry}",
        f"data.alpha={spec.alpha}",
        f"data.layout={spec.layout}",
    ]


def _is_domain(override: str) -> bool:
    return override.startswith("data_transforms.domain=")


def _draw(splits: Splits, *, fraction: float, seed: int) -> tuple[Split, tuple[str, ...]]:
    """Draw the training images. Return them, labelled with indices into their classes, and these classes."""
    train = splits.train
    drawn = draw_fraction(train.labels, fraction, seed=seed)
    classes, labels, counts = np.unique(train.labels[drawn], return_inverse=True, return_counts=True)
    class_names = tuple(splits.class_names[index] for index in classes)
    if counts.max() < 2 and len(drawn) < len(train.rows):
        raise DataError(
            f"--fraction {fraction:g}: selects one image of each of {len(classes)} classes, so there is none "
            "left for a validation split; give a larger fraction"
        )
    probes.check_classes(labels, class_names)
    return replace(train.take(drawn), labels=labels.astype(np.int64)), class_names


def _make_random(config: Config, encoder: Encoder, *, data: Split) -> nn.Module:
    made = untrained(
        config, encoder.spec, images=data.images, rows=data.rows, device=str(encoder.device)
    ).make()
    module: nn.Module = made.module
    return module


# ---- Training and testing


@dataclass(frozen=True)
class _Start:
    """An encoder before and after fine-tuning, and how long that took."""

    name: str
    before: nn.Module
    trained: Trained
    seconds: float


def _train_all(
    starts: dict[str, nn.Module],
    data: Split,
    *,
    setting: Setting,
    epochs: int | None,
    say: Say,
    progress: Count | None,
) -> tuple[list[_Start], list[dict[str, object]]]:
    """Fine-tune each encoder of `starts` on the same labels. Return the results and the lines of the log."""
    log: list[dict[str, object]] = []
    results: list[_Start] = []
    recipes = {name: Recipe.of(len(data.rows), epochs=epochs, pretrained=name != SCRATCH) for name in starts}
    num_epochs = sum((len(recipe.rates) + 1) * recipe.epochs for recipe in recipes.values())
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, num_epochs)

    for name, start in starts.items():
        began = time.perf_counter()

        def note(look: Look, name: str = name) -> None:
            log.append({"format": FORMAT, "start": name, **asdict(look)})

        trained = train_classifier(start, data, recipe=recipes[name], setting=setting, note=note, tick=tick)
        results.append(_Start(name, start, trained, time.perf_counter() - began))
        say(f"{name}: {_describe(trained)}, {results[-1].seconds:.0f} s")
    return results, log


def _describe(trained: Trained) -> str:
    if trained.epochs == 0:
        return (
            "fine-tuning diverged, or logistic regression on the frozen encoder was better by more than one "
            "standard error on the validation split"
        )
    return (
        f"{trained.epochs} epochs at a learning rate of {trained.chosen['lr']:g}, "
        f"classifier: {trained.chosen['classifier']}"
    )


def _test(
    results: Sequence[_Start],
    test: Split,
    *,
    class_names: tuple[tuple[str, ...], tuple[str, ...]],
    setting: Setting,
    config: Config,
    fraction: float,
    num_labels: int,
) -> tuple[FinetuneRow, ...]:
    """Test all classifiers; nothing else uses the test labels. `class_names`: of the labels, of `results`."""
    theirs, ours = class_names
    index = {name: place for place, name in enumerate(ours)}
    # A class without training images gets a number that no classifier predicts, so every answer is wrong.
    truth = np.array([index.get(theirs[label], len(ours) + label) for label in test.labels], dtype=np.int64)

    def test_one(
        name: str,
        module: nn.Module,
        linear: Linear,
        *,
        epochs: int,
        chosen: dict[str, str | int | float],
        seconds: float,
    ) -> FinetuneRow:
        encoder = Encoder(setting.spec, module, device=str(setting.device))
        predicted = linear.logits(encoder.embed_packed(test.images, rows=test.rows)).argmax(axis=1)
        correct = predicted == truth
        low, high = probes.bootstrap_interval(correct, seed=setting.seed, num=config.evaluation.num_bootstrap)
        balanced = probes.balanced_accuracy(predicted, truth)
        top1 = float(correct.mean())
        return FinetuneRow(
            name, fraction, num_labels, top1, low, high, balanced, epochs, chosen, round(seconds, 2)
        )

    rows = [
        test_one(
            one.name,
            one.trained.module,
            one.trained.linear,
            epochs=one.trained.epochs,
            chosen=one.trained.chosen,
            seconds=one.seconds,
        )
        for one in results
    ]
    first, frozen = results[0], results[0].trained
    penalty: dict[str, str | int | float] = {"C": frozen.frozen_penalty}
    name = f"{first.name}, frozen"
    rows.append(test_one(name, first.before, frozen.frozen, epochs=0, chosen=penalty, seconds=0.0))
    return tuple(rows)


def _save(
    output: Path,
    first: _Start,
    outcome: FinetuneResult,
    spec: EncoderSpec,
    *,
    class_names: tuple[str, ...],
    log: Sequence[dict[str, object]],
) -> None:
    row = outcome.rows[0]
    classifier = ClassifierSpec(
        class_names=class_names,
        num_features=spec.num_features,
        start=first.name,
        fraction=row.fraction,
        num_labels=row.num_labels,
        epochs=row.epochs,
        chosen=row.chosen,
        byol_version=__version__,
    )
    if row.epochs:
        spec = replace(spec, which="finetuned")
    # Write the log first: if byol is stopped before the rest, `check_output` still recognises the folder.
    write_atomically(output / LOG_NAME, "".join(json.dumps(line) + "\n" for line in log).encode())
    files.save_classifier(output, first.trained.module, spec, linear=first.trained.linear, spec=classifier)
    outcome.save(output / FILE_NAME)
