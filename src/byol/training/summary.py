"""Describe the setup of a run; byol prints this before the first step."""

from collections.abc import Iterator
from pathlib import Path

import torch

from byol.base.text_table import describe_duration
from byol.config import Config
from byol.data.pack.packed import Packed
from byol.data.pack.partial import BAD_FILES, read_bad
from byol.data.sources.summary import describe_clipped, describe_images, describe_larger
from byol.device.devices import explain_device
from byol.device.ranks import Ranks
from byol.kernels.build import explain_kernels
from byol.method.networks import resolve_stem
from byol.method.schedule import Plan
from byol.training.runlog import format_time
from byol.training.time_budget import TimeBudget


def describe_setup(
    config: Config,
    images: Packed,
    *,
    plan: Plan,
    budget: TimeBudget,
    step_s: float | None,
    ranks: Ranks,
    done: int,
    run_dir: Path,
) -> list[str]:
    """Describe images, networks, schedule and length of the run in a few lines."""
    stem = resolve_stem(config.network.stem, name=config.network.name, view_px=config.view_px)
    channels = "1 channel" if images.channels == 1 else f"{images.channels} channels"
    precision = "bf16" if ranks.dtype == torch.bfloat16 else "fp32"
    ranks_text = f", {ranks.world_size} ranks" if ranks.world_size > 1 else ""
    has_choice = ranks.device.type == "cpu" and config.trainer.convolution == "fast"
    kernels = f"; {explain_kernels()}" if has_choice else ""
    s = config.data_transforms.s
    changes = (
        "" if s == 1.0 else f", with colour changes of {s:g} times the usual strength (data_transforms.s)"
    )
    lines = [
        f"{len(images):,} images with {channels}, stored at {images.stored_px} px; views of {config.view_px} "
        f"px{changes}",
        f"network {config.network.name}{_explain_name(config.network.name)}, {stem} stem, "
        f"{precision} on {ranks.device}{ranks_text}{kernels}",
        f"batch size {plan.batch_size:,}, {plan.steps_per_epoch:,} steps (full batches) per epoch, "
        f"{_describe_length(plan, step_s)}",
        *plan.explain(),
    ]
    if config.data.geometry == "scale":
        lines.insert(1, _explain_scale(images))
    else:
        larger = int((images.sizes > images.stored_px).any(axis=1).sum())
        lines[1:1] = describe_larger(larger, num_images=len(images), stored_px=images.stored_px)
    if done == 0 and (notice := explain_device(ranks.device)) is not None:
        lines.append(notice)
    lines[:0] = images.source_notes
    if images.note not in ("packed", "found"):
        lines.insert(0, images.note)
    lines = [*_describe_images(images), *lines]
    if budget.is_last(done):
        lines.append(f"this run is {explain_finished(done, run_dir)}")
    elif done:
        used = (
            f", {format_time(budget.elapsed_s)} of the time budget used" if plan.budget_s is not None else ""
        )
        about = "" if plan.budget_s is None else "about "
        lines.append(f"continuing after step {done:,} of {about}{budget.end:,}{used}")
    return lines


def explain_finished(done: int, run_dir: Path) -> str:
    """Say that a run is finished, and how to train longer."""
    return (
        f"already finished: all {done:,} steps are done; to train longer, start a new run from its weights "
        f"(byol train ... --init {run_dir} -o NEW_FOLDER)"
    )


def _describe_images(images: Packed) -> Iterator[str]:
    """Describe the images that were left out or changed."""
    yield from describe_images(
        read_bad(images.folder),
        images.changed,
        num_images=len(images) + images.num_bad,
        listed=str(images.folder / BAD_FILES),
    )
    yield from describe_clipped(images.clipped)
    if images.unmapped is not None:
        yield (
            f"{images.folder}: {images.unmapped}; byol reads the images one by one, which is slower (set "
            "data.packs to a folder on another disk)"
        )


def _explain_scale(images: Packed) -> str:
    if images.num_shrunk == 0:
        return "byol resizes no image: each lies on a canvas of that size"
    return (
        f"byol shrinks {images.num_shrunk:,} of {len(images):,} images, which are larger than the canvas of "
        f"{images.stored_px} px, and resizes no other; set a larger data.stored_px to keep their scale too"
    )


def _explain_name(name: str) -> str:
    return " (a very small ResNet of timm)" if name == "test_resnet" else ""


def _describe_length(plan: Plan, step_s: float | None) -> str:
    """Describe the number of steps and, if known, the training time."""
    steps = plan.total_steps
    if plan.budget_s is not None:
        epochs = f"{steps / plan.steps_per_epoch:.3g} epochs"
        speed = f"{plan.budget_s / steps:.3g} s per step"
        return (
            f"about {steps:,} steps ({epochs}) fit into {format_time(plan.budget_s)} (min:s) at {speed}; "
            "byol updates this number as it trains"
        )
    if step_s is None:
        return f"{steps:,} steps in total"
    return f"{steps:,} steps in total, about {describe_duration(steps * step_s)} at {step_s:.3g} s per step"
