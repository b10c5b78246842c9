"""The training loop: a run is a function of (configuration, step)."""

import math
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from byol.artifacts.encoder import EncoderSpec, save_encoder
from byol.config import Config
from byol.data.batches import Batch, Batches
from byol.data.images import open_images
from byol.data.packed import Packed
from byol.data.partial import BAD_FILES
from byol.errors import DataError
from byol.method.kernels import explain_kernels
from byol.method.networks import Byol, check_name, resolve_stem
from byol.method.optim import build_optimizer, set_lr
from byol.method.views import make_views
from byol.plan import Plan
from byol.training import alarms, checkpoint, health, start
from byol.training.distributed import Ranks, StopSignal, connect, keep_freed_memory
from byol.training.fixed_images import FixedImages
from byol.training.runlog import Metrics, RunLog


@dataclass(frozen=True)
class Outcome:
    """How far a run has come, and the signal that stopped it, if one did."""

    done: int
    total_steps: int
    stopped_by: str | None


def train(config: Config, run_dir: Path, *, console: Console) -> Outcome:
    """Train, or go on with the run in `run_dir`, until all steps are done or a signal asks to stop.

    Raises:
        ConfigError, DataError, CheckpointError, RunMismatchError: see their modules; nothing is damaged.
        DivergedError: loss or gradient is not finite; the step was not applied.
        CollapsedError: the projections of the fixed images have become nearly equal, or much alike at far too
            high a learning rate.
    """
    keep_freed_memory()
    check_name(config.network.name)
    with connect(config.trainer) as ranks, ExitStack() as stack:
        images = _open_images(config, run_dir, ranks=ranks, console=console)
        # Packing is interrupted at once, and can be continued; from here on signals wait for a checkpoint.
        stop = stack.enter_context(StopSignal().listen())
        plan = Plan.of(config, num_images=len(images))
        byol = Byol.of(config, channels=images.channels, seed_key=plan.key("init", 0))
        begun, origin = start.begin(run_dir, byol, config=config, plan=plan)
        byol = byol.to(ranks.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        apart = byol.online.encoder if begun.parts_encoder else None
        optimizer = build_optimizer(byol, config.optimizer, plan=plan, apart=apart)
        done, notes = checkpoint.restore(
            run_dir, byol, optimizer=optimizer, data_fingerprint=images.fingerprint
        )
        if done and ranks.is_main:  # they may be older than the checkpoint, missing or damaged
            save_encoders(run_dir, byol, config=config, images=images, done=done)
        network = ranks.wrap(byol)
        fixed_images = FixedImages.of(images, plan, transforms=config.data_transforms, ranks=ranks)
        blank: list[str] = []
        if done == 0:
            alarms.check_images(fixed_images, source=config.data.source)
            blank = alarms.check_views(fixed_images)
        log = RunLog(
            run_dir,
            console,
            first_step=done,
            total_steps=plan.total_steps,
            max_epochs=config.trainer.max_epochs,
            active=ranks.is_main,
        )
        for note in [
            *notes,
            *_introduce(config, images, plan=plan, ranks=ranks, done=done),
            *origin,
            *begun.explain(),
            *blank,
            *alarms.describe_rate(config, plan),
        ]:
            log.say(note)
        status, measures = fixed_images.look(byol, ranks=ranks)
        if done == 0:
            begun = replace(begun, measures=measures)
            if ranks.is_main:
                start.write(run_dir, begun)
        watch = alarms.Watch(config, plan, start=begun)
        statistics = start.Statistics((byol.online.encoder, byol.target.encoder))
        clock = _Clock(done)
        source = Batches(
            images,
            plan,
            rows=ranks.rows(plan.batch_size),
            device=ranks.device,
            first_step=done,
            memory=config.data.memory,
        )
        with log, source:
            for step, batch in enumerate(source, start=done):
                statistics.hold(step < begun.warm_steps)
                # Views, loss and gradient of each part of the batch; one part unless memory asks for more.
                key = plan.key("views", step)
                torch.manual_seed(plan.key("network", step) + ranks.rank)  # for dropout and the like
                parts = _split(batch, ranks, config=config)
                loss = torch.zeros((), device=ranks.device)
                for number, (images_part, rows) in enumerate(parts):
                    view1, view2 = make_views(
                        images_part,
                        batch.sizes,
                        config.data_transforms,
                        key=key,
                        rows=rows,
                        pixels=images.pixels,
                    )
                    if step == 0 and number == 0:
                        log.add_views(view1, view2)
                    with ranks.exchange(network, last=number == len(parts) - 1):
                        with ranks.autocast():
                            part_loss, projection = network(view1, view2)
                        (part_loss / len(parts)).backward()
                    loss += part_loss.detach() / len(parts)

                # Refuse a step that is not finite. Looking is free on CPU; on a GPU the host would wait.
                done = step + 1
                stopping = _asked_to_stop(stop, ranks, done=done)
                looking = stopping or plan.log_at(done) or plan.health_at(done) or plan.save_at(done)
                if looking or ranks.device.type == "cpu":
                    mean_loss = ranks.mean(loss)
                    _check_finite(
                        mean_loss,
                        optimizer,
                        config=config,
                        plan=plan,
                        step=step,
                        gradients_too=looking,
                    )

                # Online network: one gradient step. Target network: moving average of the online one.
                set_lr(optimizer, plan.lr(step), apart=begun.encoder_share(step))
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                byol.update_target(plan.tau(step))

                # Now and then (the host waits here): judge health, log, save; on a signal save and stop.
                if plan.health_at(done):
                    status, measures = fixed_images.look(byol, ranks=ranks)
                    warning = watch.note(status, measures, done=done)
                    if warning is not None:
                        log.say(warning)
                if plan.log_at(done):
                    images_per_s, data_wait = clock.lap(done, plan.batch_size, wait_s=source.wait_s)
                    log.write(
                        Metrics(
                            done=done,
                            epoch=done / plan.steps_per_epoch,
                            loss=mean_loss,
                            lr=plan.lr(step),
                            tau=plan.tau(step),
                            feature_std=ranks.mean(health.measure_feature_std(projection)),
                            images_per_s=images_per_s,
                            data_wait=data_wait,
                            verdict=status.verdict,
                            rank=status.rank,
                            **asdict(measures),
                        )
                    )
                if watch.is_over:
                    kept = _name_kept(run_dir)
                    raise alarms.explain_collapse(
                        config, plan, health=status, done=done, kept=kept, views=blank
                    )
                if (plan.save_at(done) or stopping) and ranks.is_main:
                    checkpoint.save(
                        run_dir, done, byol=byol, optimizer=optimizer, data_fingerprint=images.fingerprint
                    )
                    save_encoders(run_dir, byol, config=config, images=images, done=done)
                if stopping:
                    break
            if done == plan.total_steps and begun.measures is not None:
                log.say(health.compare(measures, begun.measures))
        ranks.wait()
        # The signal may have reached another rank only.
        return Outcome(done, plan.total_steps, (stop.name or "SIGTERM") if done < plan.total_steps else None)


def save_encoders(run_dir: Path, byol: Byol, *, config: Config, images: Packed, done: int) -> None:
    """The online encoder into the run folder, the target's into `target/` below it."""
    online = EncoderSpec.of(config, images, which="online", done=done)
    save_encoder(run_dir, byol.online.encoder, online)
    save_encoder(run_dir / "target", byol.target.encoder, replace(online, which="target"))


def _open_images(config: Config, run_dir: Path, *, ranks: Ranks, console: Console) -> Packed:
    """Claim the run folder and pack the images on the first rank; the others then find both done."""
    if ranks.is_main:
        checkpoint.claim_run_folder(run_dir, config)
        images = open_images(config, run_dir, console=console)
        ranks.wait()
    else:
        ranks.wait()
        images = open_images(config, run_dir, console=None)
    stated = config.channels
    if stated is not None and stated != images.channels:
        raise DataError(
            f"data_transforms.input_shape: says {stated} channels, the images have {images.channels}; "
            f"state {images.channels}, or choose with data.channels"
        )
    return images


def _split(batch: Batch, ranks: Ranks, *, config: Config) -> list[tuple[Tensor, slice]]:
    """This rank's images in `accumulation_steps` parts, each with its rows of the global batch."""
    trainer = config.trainer
    size = batch.images.shape[0] // trainer.accumulation_steps
    step, first = ranks.world_size, ranks.rank
    return [
        (batch.images[at : at + size], slice(first + at * step, first + (at + size) * step, step))
        for at in range(0, batch.images.shape[0], size)
    ]


def _check_finite(
    loss: float,
    optimizer: torch.optim.Optimizer,
    *,
    config: Config,
    plan: Plan,
    step: int,
    gradients_too: bool,
) -> None:
    finite = math.isfinite(loss)
    if finite and gradients_too:
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        finite = math.isfinite(float(nn.utils.get_total_norm(gradients)))
    if not finite:
        raise alarms.explain_divergence(config, plan, step=step)


def _name_kept(run_dir: Path) -> str:
    kept = checkpoint.list_checkpoints(run_dir)
    return f"the last checkpoint is {kept[0].name}" if kept else "no checkpoint had been written yet"


def _asked_to_stop(stop: StopSignal, ranks: Ranks, *, done: int) -> bool:
    """Whether any rank has had a signal; several GPUs ask each other only now and then, since all wait."""
    if ranks.device.type == "cpu" or ranks.world_size == 1 or done % 10 == 0:
        return ranks.any(stop.name is not None)
    return False


def _introduce(config: Config, images: Packed, *, plan: Plan, ranks: Ranks, done: int) -> list[str]:
    """What is about to happen, in a few lines."""
    stem = resolve_stem(config.network.stem, name=config.network.name, view_px=config.view_px)
    channels = "1 channel" if images.channels == 1 else f"{images.channels} channels"
    precision = "bf16" if ranks.dtype == torch.bfloat16 else "fp32"
    ranks_text = f", {ranks.world_size} ranks" if ranks.world_size > 1 else ""
    has_choice = ranks.device.type == "cpu" and config.trainer.convolution == "fast"
    kernels = f"; {explain_kernels()}" if has_choice else ""
    lines = [
        f"{len(images)} images, {channels}, stored at {images.stored_px} px, views of "
        f"{config.view_px} px (s = {config.data_transforms.s:g})",
        f"{config.network.name} with the {stem} stem on {ranks.device} in {precision}{ranks_text}{kernels}",
        f"batch {plan.batch_size}, {plan.steps_per_epoch} steps an epoch, {plan.total_steps} in all",
        *plan.explain(),
    ]
    if images.note not in ("packed", "found"):
        lines.insert(0, images.note)
    if images.num_bad:
        listed, num_images = images.folder / BAD_FILES, len(images) + images.num_bad
        lines.insert(
            0, f"unreadable and left out: {images.num_bad} of {num_images} images, listed in {listed}"
        )
    if done == plan.total_steps:
        lines.append(f"finished before: all {done} steps are done")
    elif done:
        lines.append(f"continuing at step {done} of {plan.total_steps}")
    return lines


class _Clock:
    """Images a second and share of waiting since the last lap."""

    def __init__(self, done: int) -> None:
        self._done, self._time_s, self._wait_s = done, time.perf_counter(), 0.0

    def lap(self, done: int, batch_size: int, *, wait_s: float) -> tuple[float, float]:
        now = time.perf_counter()
        elapsed = max(now - self._time_s, 1e-9)
        rates = (done - self._done) * batch_size / elapsed, min((wait_s - self._wait_s) / elapsed, 1.0)
        self._done, self._time_s, self._wait_s = done, now, wait_s
        return rates
