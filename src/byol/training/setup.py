"""What a run needs before its first step: its images, its plan, and the parts of a batch."""

from pathlib import Path
from typing import Any

from rich.console import Console

from byol.base.console import print_line
from byol.base.errors import CheckpointError, DataError
from byol.config import Config
from byol.data.pack.images import open_images
from byol.data.pack.packed import Packed
from byol.device.ranks import Ranks, check_share
from byol.encoder.encoder import SPEC_NAME, read_spec
from byol.method.schedule import Plan
from byol.runfolder import checkpoint
from byol.training.step_benchmark import probe_step


def open_run_images(config: Config, run_dir: Path, *, ranks: Ranks, console: Console) -> Packed:
    """Claim the run folder and pack the images on the first rank; the others then find both done."""
    if ranks.is_main:
        checkpoint.claim_run_folder(run_dir, config)
        images = open_images(as_begun(config, run_dir), run_dir, console=console)
        ranks.wait()
    else:
        ranks.wait()
        images = open_images(as_begun(config, run_dir), run_dir, console=None)
    stated = config.channels
    if stated is not None and stated != images.channels:
        raise DataError(
            f"data_transforms.input_shape: says {stated} channels, the images have {images.channels}; "
            f"state {images.channels}, or choose with data.channels"
        )
    return images


def as_begun(config: Config, run_dir: Path) -> Config:
    """Transparency as the run has seen it so far: earlier versions dropped it and did not say so."""
    path = run_dir / SPEC_NAME
    if not checkpoint.list_checkpoints(run_dir) or not path.exists():
        return config
    try:
        alpha = read_spec(path).alpha
    except CheckpointError:  # damaged; it is written anew
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"alpha": alpha})})


def make_plan(
    config: Config,
    images: Packed,
    state: dict[str, Any] | None,
    *,
    step_s: float | None,
    ranks: Ranks,
    console: Console,
) -> Plan:
    """With a time budget for the number of steps that a probe expects; a continued run keeps to its own."""
    hours = config.trainer.max_hours
    if hours is None:
        return Plan.of(config, num_images=len(images))
    if state is not None:
        return Plan.of(config, num_images=len(images), expected_steps=state["pace"]["total_steps"])
    if step_s is None and ranks.is_main:
        print_line(console, "measuring how long a step takes")
        step_s = probe_step(
            config, channels=images.channels, stored_px=images.stored_px, bits=images.bits
        ).step_s
    step_s = ranks.from_main(step_s or 0.0)
    return Plan.of(config, num_images=len(images), expected_steps=max(1, round(3600.0 * hours / step_s)))


def choose_parts(config: Config, state: dict[str, Any] | None, *, ranks: Ranks) -> int:
    """Parts of a batch: as the configuration says, or more where the run has run out of memory before."""
    num_parts = max(config.accumulation_steps, 0 if state is None else state.get("num_parts", 1))
    check_share(config.batch_size, world_size=ranks.world_size, num_parts=num_parts)
    return num_parts
