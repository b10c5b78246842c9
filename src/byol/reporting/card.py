"""Write a model card: how an encoder was trained, how good it is, its limitations, and how to reproduce it.

The format is that of the Hugging Face Hub, where the file is called README.md. Every sentence comes from the
files of the run. What they do not contain, the card calls unknown.
"""

from dataclasses import dataclass
from pathlib import Path

from byol.base.files import write_atomically
from byol.base.text_table import percent, percent_range, whole_percent
from byol.config import View
from byol.encoder.spec import EncoderSpec
from byol.evaluation.labelled import SEEN
from byol.method.schedule import Plan
from byol.metrics.verdict import show_classifier
from byol.reporting.card_metadata import write_metadata
from byol.reporting.run_summary import RunSummary, read_summary
from byol.runfolder import checkpoint

FILE_NAME = "card.md"
_CITATION = (
    "Grill et al., *Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning*, NeurIPS 2020, "
    "[arXiv:2006.07733](https://arxiv.org/abs/2006.07733)"
)
_LIMITS = (
    "Features of images from other sources, instruments or resolutions than the training images may be poor. "
    "byol warns if it embeds images with values outside the range of the training images.",
    "Nobody has examined the training images for bias or personal data for this card.",
)
_OPTIMIZERS = {"sgd": "SGD", "lars": "LARS", "adamw": "AdamW"}


@dataclass(frozen=True)
class Usage:
    """The section "Use" for the card of an export, which replaces the lines for `byol`."""

    text: str  # Markdown
    library: str | None  # the library that loads the export, as the Hub names it; None: the Hub has no name


def write_card(run_dir: Path) -> str:
    """Write `card.md` into a run folder and return its text.

    Raises:
        CheckpointError: the folder holds no run, a file of the run is damaged, or the card cannot be written.
    """
    text = make_card(read_summary(run_dir))
    write_atomically(run_dir / FILE_NAME, text.encode(errors="surrogateescape"))
    return text


def make_card(run: RunSummary, usage: Usage | None = None) -> str:
    """Return the card of a run or, with `usage`, of an export of its encoder, in the Hub's format."""
    parts = [
        f"# {run.name}\n\n{_summarise(run)}",
        f"## Method\n\n{_describe_method(run)}\n\n{_CITATION}.",
        f"## Images\n\n{_describe_images(run)}",
        f"## Results\n\n{_describe_results(run)}",
        "## Limitations\n\n" + "\n".join(f"- {line}" for line in _list_limitations(run)),
        f"## Use\n\n{_describe_use(run) if usage is None else usage.text}",
        f"## Repeat\n\n{_describe_repetition(run)}",
    ]
    head = write_metadata(run, library="byol" if usage is None else usage.library)
    return head + "\n\n".join(parts) + "\n"


def make_bare_card(name: str, encoder: EncoderSpec, usage: Usage) -> str:
    """Return the card of an export whose encoder has no run beside it: a target or fine-tuned encoder."""
    what = {
        "online": "trained without labels by BYOL",
        "target": "the target network of BYOL, trained without labels",
        "finetuned": "trained without labels by BYOL, then fine-tuned on labels",
    }
    images = f"Images of `{encoder.data_name}`; {_describe_packed(encoder)}"
    unknown = "This card does not know its results or how it was trained: those files are in its run folder."
    network = f"{encoder.name}, {encoder.stem} stem, {encoder.num_features} features"
    steps = f"{encoder.done:,} steps of byol {encoder.byol_version}"
    parts = [
        f"# {name}\n\nAn image encoder ({network}), {what[encoder.which]}: {steps}.\n\n{_CITATION}.",
        f"## Images\n\n{images}",
        "## Limitations\n\n" + "\n".join(f"- {line}" for line in (unknown, *_LIMITS)),
        f"## Use\n\n{usage.text}",
    ]
    return write_metadata(None, library=usage.library) + "\n\n".join(parts) + "\n"


def _summarise(run: RunSummary) -> str:
    return (
        f"An image encoder ({run.config.network.name}) trained without labels by BYOL on images of "
        f"`{run.data_name}`."
    )


# ---- Method


def _describe_method(run: RunSummary) -> str:
    sentences = [
        _describe_network(run),
        *_describe_views(run),
        *_describe_optimisation(run),
        _describe_machine(run),
    ]
    return " ".join(sentences)


def _describe_network(run: RunSummary) -> str:
    network, head = run.config.network, run.config.network.projection_head
    features = "" if run.encoder is None else f", {run.encoder.num_features} features"
    start = (
        "random weights" if network.fine_tune_from is None else f"the weights of `{network.fine_tune_from}`"
    )
    return (
        f"The encoder ({network.name}, {network.stem} stem{features}) was trained with BYOL from {start}; "
        f"projector and predictor have a hidden layer of {head.mlp_hidden_size} units and "
        f"{head.projection_size} outputs."
    )


def _describe_views(run: RunSummary) -> list[str]:
    transforms = run.config.data_transforms
    ones, twos = _list_view(transforms.view1), _list_view(transforms.view2)
    if ones["blur"] == twos["blur"] == "0":
        del ones["blur sigma"]
    described = ", ".join(
        f"{name} {one}" if one == twos[name] else f"{name} {one} and {twos[name]}"
        for name, one in ones.items()
        if one != "0" or twos[name] != "0"
    )
    strength = "" if transforms.s == 1 else f", colour strength s = {transforms.s:g}"
    views = f"{described}{strength}; one number is for both views, two are for one each"
    return [f"Two views of {run.config.view_px} px were made of each image ({views})."]


def _list_view(view: View) -> dict[str, str]:
    shown = {}
    for name, value in view.model_dump().items():
        text = f"{value[0]:.3g} to {value[1]:.3g}" if isinstance(value, tuple) else f"{value:g}"
        shown[name.replace("_", " ")] = text
    return shown


def _describe_optimisation(run: RunSummary) -> list[str]:
    config, num_images = run.config, run.num_images
    if num_images is None or not run.metrics:
        return ["No step has been logged yet."]
    plan = Plan.of(config, num_images=num_images, expected_steps=_find_expected_steps(run))
    optimizer, epochs = config.optimizer, run.metrics[-1].epoch
    fall = " and cosine decay" if optimizer.schedule == "cosine" else ""
    tau = (
        f"from {plan.base_tau:.4g} to 1 along a cosine"
        if plan.tau_schedule == "cosine"
        else f"{plan.base_tau:g}"
    )
    return [
        f"{_OPTIMIZERS[optimizer.name]} (momentum {optimizer.params.momentum:g}, weight decay "
        f"{plan.weight_decay:g}) with batches of {plan.batch_size} images, learning rate {plan.base_lr:.4g} "
        f"after {plan.warmup_steps} steps of linear warm-up{fall}; the target network is a moving average "
        f"with tau {tau}.{f' {run.additions}' if run.additions else ''}",
        f"{run.done:,} steps ({epochs:.4g} epochs), seed {config.trainer.seed}.",
        *run.incidents,
    ]


def _find_expected_steps(run: RunSummary) -> int:
    """Return the number of steps that byol expected when it derived learning rate and tau."""
    if run.config.trainer.max_hours is not None:
        state, _ = checkpoint.read_latest(run.run_dir)
        if state is not None:
            return int(state["pace"]["total_steps"])
    return run.done


def _describe_machine(run: RunSummary) -> str:
    hours = "an unknown time" if run.hours is None else f"{run.hours:.2f} hours"
    if run.environment is None:
        version = "" if run.encoder is None else f", byol {run.encoder.byol_version}"
        return f"Training took {hours}; hardware was not recorded{version}."
    latest = run.environment.starts[-1]
    ranks = "" if latest.num_ranks == 1 else f" x {latest.num_ranks}"
    threads = "" if latest.gpu else f" ({latest.num_threads} threads)"
    several = "" if len(run.environment.starts) == 1 else f" in {len(run.environment.starts)} starts"
    where = f"{latest.gpu or latest.cpu}{threads}{ranks} in {latest.precision}"
    return (
        f"Training took {hours}{several} on {where}, until {latest.ended[:10]}; byol {latest.byol}, torch "
        f"{latest.torch}, Python {latest.python}, {latest.system}."
    )


# ---- Images


def _describe_images(run: RunSummary) -> str:
    known, encoder = run.environment, run.encoder
    count = "an unknown number of" if run.num_images is None else f"{run.num_images:,}"
    about = "" if known is not None or run.num_images is None else "about "
    bad = (
        ""
        if known is None or known.num_bad == 0
        else f", {known.num_bad} more could not be read and are left out"
    )
    lines = [f"{about}{count} images of `{run.data_name}`{bad}; labels were not used."]
    if encoder is not None:
        lines.append(_describe_packed(encoder))
    text = " ".join(lines)
    return text[0].upper() + text[1:]


def _describe_packed(encoder: EncoderSpec) -> str:
    channels = "1 channel" if encoder.channels == 1 else f"{encoder.channels} channels"
    return (
        f"{channels}, {encoder.bits} bit, stored at {encoder.stored_px} px; fingerprint of the packed images "
        f"`{encoder.data_fingerprint}`."
    )


# ---- Results


def _describe_results(run: RunSummary) -> str:
    if run.table is None:
        return f"Not evaluated on labelled images.{_describe_own_measures(run)}"
    lines = ["| features | classifier | top-1 | 95 % interval | mean over classes |", "|---|---|---|---|---|"]
    for row in run.table.rows:
        interval = f"{percent_range(row.low95, row.high95)} %"
        figures = f"{percent(row.top1)} | {interval} | {percent(row.balanced)}"
        lines.append(f"| {row.features} | {show_classifier(row.classifier)} | {figures} |")
    about = (
        f"{run.table.fields['split']}; {run.table.images}. The classifiers use frozen features; their "
        "settings were chosen on splits of the training images. The 95 % intervals are over "
        f"{run.table.resampled}."
    )
    verdicts = " ".join(f"**{verdict.sentence}**" for verdict in run.verdicts)
    if run.outdated_table is not None:
        verdicts = f"**These results are for other weights: {_mark_command(run.outdated_table)}.**"
    return "\n\n".join(filter(None, [verdicts, about, "\n".join(lines)]))


def _describe_own_measures(run: RunSummary) -> str:
    """Describe the label-free measures, for a run without an evaluation on labels."""
    if run.outdated_measures is not None:
        return f" Without labels: {_mark_command(run.outdated_measures)}."
    if run.measures is not None:
        return f" Without labels: {run.measures['verdict']}"
    last = run.metrics[-1] if run.metrics else None
    if last is None or last.retrieval is None or last.encoder_rank is None:
        return ""
    return (
        f" On a sample of training images the view-retrieval accuracy is {whole_percent(last.retrieval)}, "
        f"and the effective rank of the features is {last.encoder_rank:.1f}."
    )


def _mark_command(sentence: str) -> str:
    """Format the command in "REASON: COMMAND" as code."""
    reason, _, command = sentence.partition(": ")
    return f"{reason}: `{command}`"


# ---- Limitations


def _list_limitations(run: RunSummary) -> list[str]:
    lines = []
    if run.table is None:
        lines.append(
            "It has not been evaluated on labelled images, so its accuracy is not known "
            f"(`byol eval {run.run_dir} --labels LABELS.csv`)."
        )
    elif run.outdated_table is not None:
        lines.append(f"Its accuracy is not known: its results were {_mark_command(run.outdated_table)}.")
    if run.table is not None and run.table.fields.get("seen"):
        lines.append(SEEN)
    lost = [show_classifier(verdict.classifier) for verdict in run.verdicts if verdict.kind == "bad"]
    if lost:
        lines.append(
            f"By {' and '.join(lost)}, its features are not shown to be better than simpler ones: use those."
        )
    verdict = run.metrics[-1].verdict if run.metrics else "healthy"
    if verdict != "healthy":
        lines.append(f"At the last check the training was *{verdict}*: its projections are too similar.")
    if run.rollback is not None:
        lines.append(
            "The training was unstable: its learning rate was too high for these images, and byol lowered it "
            "on the way (see Method)."
        )
    lines += _list_warnings_of_metadata(run)
    if run.config.trainer.max_epochs is not None and run.num_images is not None:
        total = Plan.of(run.config, num_images=run.num_images, expected_steps=run.done).total_steps
        if run.done < total:
            lines.append(f"The training is not finished: {run.done:,} of {total:,} steps.")
    lines += [
        f"This is one run with one seed ({run.config.trainer.seed}); the spread over seeds is not known.",
        *_LIMITS,
    ]
    return lines


def _list_warnings_of_metadata(run: RunSummary) -> list[str]:
    columns = [] if run.measures is None else run.measures["metadata"]
    when = "" if run.outdated_measures is None else "for other weights, "
    return [
        f"The features predict {column['column']} ({when}accuracy {whole_percent(column['accuracy'])}, "
        f"chance {whole_percent(column['chance'])}): they may encode how images were made rather than what "
        "they show."
        for column in columns
        if column["warning"]
    ]


# ---- Use and Repeat


def _describe_use(run: RunSummary) -> str:
    best = ""
    if run.best is not None and run.best.done != run.done:
        best = (
            f"\n\nThe encoder of step {run.best.done:,} was the best by {run.best.measure}, which needs no "
            "labels. It is in `best/`; all numbers above are of the last encoder."
        )
    return f'```python\nimport byol\n\nfeatures = byol.load("{run.run_dir}").embed("IMAGES/")\n```{best}'


def _describe_repetition(run: RunSummary) -> str:
    version = "of an unknown version"
    if run.environment is not None:
        version = run.environment.starts[-1].byol
    elif run.encoder is not None:
        version = run.encoder.byol_version
    evaluation = "" if run.table is None else f" && byol eval runs/again{run.table.options or ''}"
    unknown = ""
    if run.table is not None and run.table.options is None:
        unknown = f" The options of `byol eval` were not recorded; it used: {run.table.fields['split']}."
    exact = (
        "On a CPU of the same kind and with the same versions the weights are equal bit for bit; on a GPU "
        "they are not."
        if run.config.trainer.max_hours is None
        else "The run had a time budget, so another machine, or another load, gives other weights."
    )
    return (
        f"With byol {version}, `config.yaml` beside this card and the images in "
        f"`{run.config.data.source}`:\n\n"
        f"```\nbyol train config.yaml -o runs/again{evaluation}\n```\n\n{exact}{unknown}"
    )
