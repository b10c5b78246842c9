"""Prepare a run: images, plan, networks and optimizer, new or from a checkpoint."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.optim import Optimizer

from byol.base.console import print_line
from byol.base.errors import CheckpointError, DataError, DiskReadError, RunMismatchError
from byol.config import Config
from byol.data.pack.batches import Batches
from byol.data.pack.images import open_images
from byol.data.pack.packed import Packed
from byol.device.ranks import Ranks, check_share, keep_freed_memory
from byol.encoder.spec import SPEC_NAME, EncoderSpec, read_spec
from byol.method.networks import Byol, check_name
from byol.method.optimizers import build_optimizer
from byol.method.schedule import Plan
from byol.runfolder import checkpoint
from byol.training import initial_weights, rollback
from byol.training.loggers import check_loggers
from byol.training.moved_images import find_earlier_source, note_new_source
from byol.training.rollback import Rollback
from byol.training.step_benchmark import benchmark_step
from byol.training.time_budget import TimeBudget


@dataclass(frozen=True)
class Setup:
    """A run that is ready for its next step."""

    config: Config
    run_dir: Path
    ranks: Ranks
    images: Packed
    plan: Plan
    byol: Byol
    network: nn.Module  # `byol`, or `byol` in DistributedDataParallel
    optimizer: Optimizer
    budget: TimeBudget
    begun: initial_weights.InitialWeights
    num_microbatches: int  # micro-batches per batch, for gradient accumulation
    done: int  # finished steps
    best: dict[str, Any] | None  # the checkpoint's state of the best encoder
    watch: dict[str, Any] | None  # its state of the health checks; None: new run, or an early version
    notes: list[str]  # lines to print about the checkpoints
    origin: list[str]  # lines to print about the weights that the run starts from
    rollback: Rollback | None  # the run has gone back to a checkpoint
    step_s: float | None  # expected seconds per step, if known
    console: Console | None  # None: nothing is printed
    statistics: initial_weights.Statistics = field(init=False)

    def __post_init__(self) -> None:
        networks = (self.byol.online.encoder, self.byol.target.encoder)
        object.__setattr__(self, "statistics", initial_weights.Statistics(networks))

    @property
    def view_options(self) -> dict[str, Any]:
        """The arguments of `make_views` that are equal at every step."""
        return {"transforms": self.config.data_transforms, "pixels": self.images.pixels}

    def lr(self, step: int) -> float:
        """Return the learning rate of a step, which is lower after the run has gone back to a checkpoint."""
        share = 1.0 if self.rollback is None else self.rollback.lr_share_at(step)
        return share * self.plan.lr(self.budget.position(step))

    def open_batches(self) -> Batches:
        """Return this rank's batches from the next step on. Use it in a `with` block."""
        return Batches(
            self.images,
            self.plan,
            rows=self.ranks.rows(self.plan.batch_size),
            device=self.ranks.device,
            first_step=self.done,
            memory=self.config.data.memory,
        )


def check_settings(config: Config, run_dir: Path) -> None:
    """Refuse settings that cannot work on this machine, before byol reads images.

    Raises:
        ConfigError: the network is unknown, or a logger is not installed.
        ConfigError, CheckpointError: the weights to start from cannot be read.
    """
    check_name(config.network.name)
    check_loggers(config.trainer.loggers)
    if config.network.fine_tune_from is not None and not checkpoint.list_checkpoints(run_dir):
        initial_weights.check_source(config.network.fine_tune_from)


def prepare(
    config: Config, run_dir: Path, *, ranks: Ranks, step_s: float | None, console: Console | None
) -> Setup:
    """Pack the images, build the networks, and load the checkpoint or the weights to start from.

    Raises:
        ConfigError, DataError, CheckpointError, RunMismatchError: the run cannot start.
    """
    keep_freed_memory()
    earlier_source = find_earlier_source(config, run_dir) if ranks.is_main else None
    images = open_run_images(config, run_dir, ranks=ranks, console=console)
    config = as_begun(config, run_dir)
    state, notes = checkpoint.read_latest(run_dir)
    plan = make_plan(config, images, state, step_s=step_s, ranks=ranks, console=console)
    byol = Byol.of(config, channels=images.channels, seed_key=plan.key("init", 0))
    begun, origin = initial_weights.begin(run_dir, byol, config=config, plan=plan)
    byol = byol.to(ranks.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    encoder = byol.online.encoder if begun.has_encoder_group else None
    optimizer = build_optimizer(byol, config.optimizer, plan=plan, encoder=encoder)
    done = 0
    if state is not None:
        done = checkpoint.restore(
            run_dir, state, byol=byol, optimizer=optimizer, data_fingerprint=images.fingerprint
        )
    if earlier_source is not None:
        notes.append(note_new_source(config, run_dir, before=earlier_source))
    rolled_back = None if state is None else rollback.read(run_dir)
    if rolled_back is not None:
        notes.append(rolled_back.explain())
    _check_agreement(ranks, done=done, images=images, plan=plan, rolled_back=rolled_back)
    return Setup(
        config=config,
        run_dir=run_dir,
        ranks=ranks,
        images=images,
        plan=plan,
        byol=byol,
        network=ranks.wrap(byol),
        optimizer=optimizer,
        budget=TimeBudget(
            plan,
            saved=None if state is None else state.get("pace"),
            abandoned_s=0.0 if rolled_back is None else rolled_back.abandoned_s_at(done),
            agree=ranks.from_main,
        ),
        begun=begun,
        num_microbatches=choose_num_microbatches(config, state, ranks=ranks),
        done=done,
        best=None if state is None else state.get("best"),
        watch=None if state is None else state.get("watch"),
        notes=notes,
        origin=origin,
        rollback=rolled_back,
        step_s=step_s,
        console=console,
    )


def _check_agreement(
    ranks: Ranks, *, done: int, images: Packed, plan: Plan, rolled_back: Rollback | None
) -> None:
    """Refuse ranks that read other checkpoints or images than the first: they would train differently.

    DistributedDataParallel sends the weights of the first rank to all, which would hide the mistake.
    """
    if not ranks.agree(f"{done} {images.fingerprint} {plan} {rolled_back}"):
        raise RunMismatchError(
            f"rank {ranks.rank} of {ranks.world_size} would start at step {done} with {len(images):,} images "
            f"({images.fingerprint[:8]}), but other ranks found another checkpoint, configuration or other "
            "images; give all ranks the same run folder and images, on a shared file system"
        )


def open_run_images(config: Config, run_dir: Path, *, ranks: Ranks, console: Console | None) -> Packed:
    """Claim the run folder and pack the images on the first rank; then open the pack on all ranks."""
    if ranks.is_main:
        checkpoint.claim_run_folder(run_dir, config)
        images = _open_images(config, run_dir, console=console)
        ranks.wait()
    else:
        ranks.wait()
        images = _open_images(config, run_dir, console=None)
    stated = config.channels
    if stated is not None and stated != images.channels:
        raise DataError(
            f"data_transforms.input_shape: has {stated} channels, but the images have {images.channels}; "
            f"set {images.channels}, or select channels with data.channels"
        )
    return images


def as_begun(config: Config, run_dir: Path) -> Config:
    """Keep what early versions did in a resumed run: they ignored transparency, and mirrored no images."""
    spec = _read_begun_spec(run_dir)
    if spec is None:
        return config
    data = config.data.model_copy(update={"alpha": spec.alpha})
    transforms = config.data_transforms.model_copy(update={"whole_mirrored": spec.mirrored})
    return config.model_copy(update={"data": data, "data_transforms": transforms})


def _open_images(config: Config, run_dir: Path, *, console: Console | None) -> Packed:
    """Open the images of the run, from their pack if the files are gone."""
    spec = _read_begun_spec(run_dir)
    fingerprint = None if spec is None else spec.data_fingerprint
    return open_images(as_begun(config, run_dir), run_dir, console=console, fingerprint=fingerprint)


def _read_begun_spec(run_dir: Path) -> EncoderSpec | None:
    path = run_dir / SPEC_NAME
    if not checkpoint.list_checkpoints(run_dir) or not path.exists():
        return None
    try:
        return read_spec(path)
    except DiskReadError:
        raise
    except CheckpointError:  # damaged; byol will write it again
        return None


def make_plan(
    config: Config,
    images: Packed,
    state: dict[str, Any] | None,
    *,
    step_s: float | None,
    ranks: Ranks,
    console: Console | None,
) -> Plan:
    """Make the schedules. With a time budget, a step benchmark estimates their length, once for a run.

    A run goes on in the order in which it began, also if its images have moved to or from object storage.
    """
    visits_windows = images.is_remote if state is None else bool(state.get("windows", False))
    shards = tuple(shard.num_images for shard in images.shards) if visits_windows else ()
    plan_of = partial(Plan.of, config, num_images=len(images), shards=shards)
    hours = config.trainer.max_hours
    if hours is None:
        return plan_of()
    if state is not None:
        return plan_of(expected_steps=state["pace"]["total_steps"])
    if step_s is None and ranks.is_main:
        if console is not None:
            print_line(console, "timing a few training steps")
        step_s = benchmark_step(
            config, channels=images.channels, stored_px=images.stored_px, bits=images.bits
        ).step_s
    step_s = ranks.from_main(step_s or 0.0)
    return plan_of(expected_steps=max(1, round(3600.0 * hours / step_s)))


def choose_num_microbatches(config: Config, state: dict[str, Any] | None, *, ranks: Ranks) -> int:
    """Return the micro-batches per batch: as configured, or more if an earlier start ran out of memory."""
    num_microbatches = max(config.accumulation_steps, 0 if state is None else state.get("num_parts", 1))
    check_share(config.batch_size, world_size=ranks.world_size, num_microbatches=num_microbatches)
    return num_microbatches
