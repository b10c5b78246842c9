"""Repeat a step that was not applied, and say where its first value that is not finite appears."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import nn

from byol.base.errors import CheckpointError, ConfigError, DataError
from byol.config import Config
from byol.data.pack.images import open_images
from byol.data.pack.packed import Packed
from byol.device.devices import choose_device, choose_dtype, exact_fp32, send_stored
from byol.device.memory import is_out_of_memory
from byol.device.ranks import Ranks
from byol.device.threads import limited_threads
from byol.method.networks import Byol
from byol.method.views import make_training_views
from byol.runfolder.settings import read_config
from byol.training import skipped
from byol.training.first_bad import WEAK, FirstBad, Place
from byol.training.setup import as_begun
from byol.training.skipped import Skipped
from byol.training.step import compute_gradients

_MOST_NAMES = 8  # images that are named; of more, only the number


@dataclass(frozen=True)
class Replayed:
    """What the step gave when it was repeated."""

    run_dir: Path
    record: Skipped
    loss: str  # as text, like in the record
    gradient_norm: str
    place: Place | None  # None: all values were finite
    differences: tuple[str, ...]  # why the values may differ from those of the training; (): they cannot
    others: tuple[int, ...]  # other steps that have a record
    source: str  # data.source

    @property
    def agrees(self) -> bool:
        """Whether loss and norm of the gradient are as they were in the training."""
        return self.loss == self.record.loss and self.gradient_norm == self.record.gradient_norm

    def explain(self) -> list[str]:
        """Return what was found, and what to do next, one line each."""
        return [
            *self._explain_result(),
            *self._explain_place(),
            f"next: {self._advise()}",
            *self._list_others(),
        ]

    def _explain_result(self) -> Iterator[str]:
        found = f"step {self.record.step}: loss {self.loss}, gradient norm {self.gradient_norm}"
        if self.agrees:
            yield f"{found}, as in the training{'' if self.differences else ': repeated exactly'}"
        else:
            yield (
                f"{found}; in the training loss {self.record.loss}, gradient norm {self.record.gradient_norm}"
            )
        for difference in self.differences:
            yield f"values may differ from those of the training: {difference}"

    def _explain_place(self) -> Iterator[str]:
        place = self.place
        if place is None:
            if "nan" in self.gradient_norm or "inf" in self.gradient_norm:
                yield "every value is finite, but the norm of the gradient is too large for its type"
            else:
                yield "every value of the step is finite here"
            return
        view = "" if place.view is None else f" of view {place.view}"
        if place.view == WEAK:
            view = " of the weak view"
        kinds = " and ".join(
            f"{number:,} {kind}"
            for number, kind in ((place.num_nan, "NaN"), (place.num_infinite, "infinite"))
            if number
        )
        yield (
            f"the first value that is not finite is in the {place.direction} pass{view}: {place.what} "
            f"({kinds} of {place.num_values:,})"
        )
        if place.before is not None:
            yield f"the last finite value before it: {place.before}"
        if place.rows:
            yield self._name_images(place)

    def _name_images(self, place: Place) -> str:
        names = [self.record.images[row] for row in place.rows[:_MOST_NAMES]]
        more = f" and {len(place.rows) - _MOST_NAMES} more" if len(place.rows) > _MOST_NAMES else ""
        share = (
            f"all {place.num_images}" if self._is_all(place) else f"{len(place.rows)} of {place.num_images}"
        )
        return f"it is in {share} images: {', '.join(names)}{more}"

    @staticmethod
    def _is_all(place: Place) -> bool:
        return len(place.rows) == place.num_images

    def _advise(self) -> str:
        place = self.place
        if place is None and not self.agrees:
            return (
                "images, weights and random numbers of the step are not the cause, but what differed in the "
                "training may be (device, precision, number of ranks, or a fault of the machine); continue "
                "the run, and test memory and GPU if this happens again"
            )
        if place is not None and place.what.startswith("the view"):
            return f"`byol check {self.source}` shows these images; leave them out if they are wrong"
        lower = "start again in another folder with a lower optimizer.params.lr"
        if self.record.dtype not in ("", "float32"):
            return (
                f"the step was computed in {self.record.dtype}: run with trainer.precision=fp32 in another "
                f"folder; if it fails there too, {lower}"
            )
        if place is not None and place.rows and not self._is_all(place):
            return f"look at these images, and leave them out if they are wrong; otherwise {lower}"
        return f"the weights have probably grown too large for these values: {lower}"

    def _list_others(self) -> list[str]:
        if not self.others:
            return []
        return [f"other steps that were not applied: {', '.join(map(str, self.others))}"]


def replay(
    run_dir: Path, step: int | None = None, *, overrides: Sequence[str] = (), console: Console | None = None
) -> Replayed:
    """Repeat a step of `skipped/` (None: the latest one with weights) with its images, weights and seeds.

    On the CPU that trained, with the same versions, all values are those of the training, bit for bit.
    Nothing in the run folder changes. `overrides` may say where the images are.

    Raises:
        CheckpointError: the folder holds no run, no such step or no weights for it; or a file is damaged.
        DataError: the images are gone or have changed.
        ConfigError: an override is not allowed, the device does not exist, or memory runs out.
    """
    config = read_config(run_dir, overrides)
    record = _find(run_dir, step)
    images = _open_images(config, run_dir, record, console=console)
    device = choose_device(config.trainer.device)
    ranks = Ranks(0, 1, device, choose_dtype(config.trainer.precision, device=device))
    with ExitStack() as stack:
        stack.enter_context(exact_fp32(device))
        stack.enter_context(limited_threads(record.num_threads or config.trainer.num_threads))
        byol = Byol.of(config, channels=images.channels, seed_key=0)
        skipped.load_weights(run_dir, record, byol)
        byol = byol.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        loss, norm, place = _compute(byol, images, record, config=config, ranks=ranks)
        differences = tuple(_list_differences(record, ranks))
    others = tuple(each for each in skipped.list_steps(run_dir) if each != record.step)
    return Replayed(run_dir, record, loss, norm, place, differences, others, config.data.source)


def _find(run_dir: Path, step: int | None) -> Skipped:
    """Return the record of `step`, or of the latest step that has weights.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    steps = skipped.list_steps(run_dir)
    if not steps:
        raise CheckpointError(
            f"{run_dir}: every step of this run was applied, so there is none to replay (no file in "
            f"{skipped.FOLDER}/)"
        )
    if step is None:
        records = [record for each in steps if (record := skipped.read(run_dir, each)) is not None]
        there = [record for record in records if record.weights and _has_weights(run_dir, record)]
        return max(there or records, key=lambda record: record.step)
    record = skipped.read(run_dir, step)
    if record is None:
        listed = ", ".join(map(str, steps))
        raise CheckpointError(f"{run_dir}: has no record of step {step}; not applied were: {listed}")
    return record


def _has_weights(run_dir: Path, record: Skipped) -> bool:
    return (run_dir / skipped.FOLDER / str(record.weights)).is_file()


def _open_images(config: Config, run_dir: Path, record: Skipped, *, console: Console | None) -> Packed:
    images = open_images(
        as_begun(config, run_dir), run_dir, console=console, fingerprint=record.data_fingerprint or None
    )
    is_other = record.data_fingerprint not in ("", images.fingerprint)
    if is_other or max(record.rows) >= len(images) or min(record.rows) < 0:
        raise DataError(
            f"{config.data.source}: the images have changed since step {record.step} of {run_dir}; restore "
            "them, or say where they are with data.source=IMAGES"
        )
    return images


def _compute(
    byol: Byol, images: Packed, record: Skipped, *, config: Config, ranks: Ranks
) -> tuple[str, str, Place | None]:
    """Return loss and norm of the gradient as text, and the first place that is not finite."""
    rows = np.array(record.rows, dtype=np.int64)
    batch = send_stored(torch.from_numpy(images.read(rows)), ranks.device).permute(0, 3, 1, 2)
    make = partial(
        make_training_views,
        sizes=torch.from_numpy(images.sizes[rows].astype(np.float32)),
        key=record.views_key,
        transforms=config.data_transforms,
        pixels=images.pixels,
    )
    is_fused = ranks.device.type == "cpu" and config.trainer.convolution == "fast"
    is_weak = config.data_transforms.target_view == "weak"
    number = record.accumulation_steps
    if len(rows) % number:
        raise CheckpointError(f"{len(rows)} images cannot be divided among {number} accumulation steps")
    torch.manual_seed(record.network_key)
    try:
        with FirstBad(
            byol, batch_size=len(rows), num_microbatches=number, fused=is_fused, weak=is_weak
        ) as watch:
            loss, _ = compute_gradients(
                byol,
                batch,
                make=make,
                show=None,
                num_microbatches=number,
                ranks=ranks,
                vicreg_weight=record.vicreg_weight,
            )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(
            f"step {record.step}: out of memory on {len(rows) // number} images at once, because one process "
            f"repeats the work of {record.num_ranks}; replay it on a machine with more memory"
        ) from None
    # In the order of the optimizer, which `measure` uses in the training.
    trained = sorted(filter(lambda p: p.grad is not None, byol.parameters()), key=lambda p: p.ndim <= 1)
    norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    return f"{float(loss):.9g}", f"{float(norm):.9g}", watch.found


def _list_differences(record: Skipped, ranks: Ranks) -> Iterator[str]:
    """List why this repetition is not exact."""
    here = (ranks.device.type, str(ranks.dtype).removeprefix("torch."))
    there = (record.device, record.dtype)
    if here != there:
        yield f"the step ran on {there[0]} in {there[1]}, here it runs on {here[0]} in {here[1]}"
    elif ranks.device.type != "cpu":
        yield f"{ranks.device.type} does not add up in a fixed order"
    if record.num_ranks > 1:
        yield f"{record.num_ranks} processes shared the step, here one computes all of it"
    if record.steps_between:
        yield f"the weights were written {record.steps_between} steps later"
