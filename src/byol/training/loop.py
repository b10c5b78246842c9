"""The training loop: a run is a function of (configuration, step)."""

from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from byol.auto.resolve import settle
from byol.base.console import print_line
from byol.config import Config, Draft, keys
from byol.data.pack.batches import Batches
from byol.data.pack.packed import Packed
from byol.device.devices import choose_dtype
from byol.device.ranks import Ranks, StopSignal, connect, keep_freed_memory
from byol.encoder.encoder import EncoderSpec, save_encoder
from byol.method.networks import Byol, check_name
from byol.method.optimizers import build_optimizer, set_lr
from byol.method.views import make_views
from byol.metrics import health
from byol.runfolder import checkpoint, environment
from byol.training import alarms, initial_weights
from byol.training.best import Marker
from byol.training.fixed_images import FixedImages
from byol.training.loggers import Logger, Run, check_loggers, open_loggers
from byol.training.runlog import Metrics, RunLog
from byol.training.setup import as_begun, choose_parts, make_plan, open_run_images
from byol.training.step import compute_within_memory
from byol.training.summary import introduce
from byol.training.time_budget import Clock, Pace


@dataclass(frozen=True)
class Outcome:
    """How far a run has come, and the signal that stopped it, if one did."""

    done: int
    total_steps: int  # with a time budget, of a stopped run: as expected then
    stopped_by: str | None


def train(given: Config | Draft, run_dir: Path, *, console: Console, step_s: float | None = None) -> Outcome:
    """Train, or go on with the run in `run_dir`, until all steps are done or a signal asks to stop.

    Open settings of a draft are chosen first, or taken from the run. `step_s` is what a step is expected to
    take, seconds, where that is known; without it a run with a time budget probes.

    Raises:
        ConfigError, DataError, CheckpointError, RunMismatchError: see their modules; nothing is damaged.
        DivergedError: loss or gradient is not finite; the step was not applied.
        CollapsedError: the projections of the fixed images have become nearly equal, or much alike at far too
            high a learning rate.
    """
    keep_freed_memory()
    config = given.config if isinstance(given, Draft) else given
    check_name(config.network.name)
    check_loggers(config.trainer.loggers)
    if config.network.fine_tune_from is not None and not checkpoint.list_checkpoints(run_dir):
        initial_weights.check_source(config.network.fine_tune_from)
    with connect(config.trainer) as ranks, ExitStack() as stack:
        if isinstance(given, Draft):
            config, measured_s = settle(given, run_dir, ranks=ranks, say=partial(print_line, console))
            step_s = step_s or measured_s
            ranks = replace(ranks, dtype=choose_dtype(config.trainer.precision, device=ranks.device))
        images = open_run_images(config, run_dir, ranks=ranks, console=console)
        config = as_begun(config, run_dir)
        state, notes = checkpoint.read_latest(run_dir)
        plan = make_plan(config, images, state, step_s=step_s, ranks=ranks, console=console)
        # Packing is interrupted at once, and can be continued; from here on signals wait for a checkpoint.
        stop = stack.enter_context(StopSignal().listen())
        byol = Byol.of(config, channels=images.channels, seed_key=plan.key("init", 0))
        begun, origin = initial_weights.begin(run_dir, byol, config=config, plan=plan)
        byol = byol.to(ranks.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        apart = byol.online.encoder if begun.parts_encoder else None
        optimizer = build_optimizer(byol, config.optimizer, plan=plan, apart=apart)
        pace = Pace(plan, saved=None if state is None else state.get("pace"), agree=ranks.from_main)
        num_parts = choose_parts(config, state, ranks=ranks)
        best_before = None if state is None else state.get("best")
        done = 0
        if state is not None:
            done = checkpoint.restore(
                run_dir, state, byol=byol, optimizer=optimizer, data_fingerprint=images.fingerprint
            )
        del state
        if done and ranks.is_main:  # they may be older than the checkpoint, missing or damaged
            save_encoders(run_dir, byol, config=config, images=images, done=done)
        network = ranks.wrap(byol)
        fixed_images = FixedImages.of(images, plan, transforms=config.data_transforms, ranks=ranks)
        blank: list[str] = []
        if done == 0:
            alarms.check_images(fixed_images, source=config.data.source)
            blank = alarms.check_views(fixed_images)
        record = environment.begin(
            run_dir, num_images=len(images), num_bad=images.num_bad, first_step=done, ranks=ranks
        )
        has_steps = not pace.is_last(done)
        training = has_steps and ranks.is_main
        log = RunLog(
            run_dir,
            console,
            first_step=done,
            steps_per_epoch=plan.steps_per_epoch,
            active=ranks.is_main,
            loggers=_open_loggers(config, run_dir, done=done, key=record.run, console=console)
            if training
            else (),
        )
        introduction = introduce(config, images, plan=plan, pace=pace, step_s=step_s, ranks=ranks, done=done)
        rate = alarms.describe_rate(config, plan)
        moved = environment.explain_change(record)
        for note in [*notes, *introduction, *moved, *origin, *begun.explain(), *blank, *rate]:
            log.say(note)
        before = pace.now()
        status, measures = fixed_images.look(byol, ranks=ranks)
        # At the end it is looked at once more, and saving takes about as long.
        pace.keep_for_end(2.0 * (pace.now() - before))
        if done == 0:
            begun = replace(begun, measures=measures)
            if ranks.is_main:
                initial_weights.write(run_dir, begun)
        if training:
            environment.write(run_dir, record, done=done)
        watch = alarms.Watch(config, plan, start=begun)
        marker = Marker(
            run_dir,
            plan,
            saved=best_before,
            warm_steps=begun.warm_steps,
            save=partial(_save_online, byol=byol, config=config, images=images) if ranks.is_main else None,
        )
        statistics = initial_weights.Statistics((byol.online.encoder, byol.target.encoder))
        clock = Clock(done)
        source = Batches(
            images,
            plan,
            rows=ranks.rows(plan.batch_size),
            device=ranks.device,
            first_step=done,
            memory=config.data.memory,
        )
        pace.start()
        with log, source:
            while not pace.is_last(done):
                step, batch, position = done, next(source), pace.position(done)
                statistics.hold(step < begun.warm_steps)
                # Views, loss and gradient of each part of the batch; one part unless memory asks for more.
                key = plan.key("views", step)
                make = partial(
                    make_views,
                    sizes=batch.sizes,
                    transforms=config.data_transforms,
                    key=key,
                    pixels=images.pixels,
                )
                computed = compute_within_memory(
                    network,
                    batch.images,
                    make=make,
                    show=log.add_views if step == 0 else None,
                    num_parts=num_parts,
                    ranks=ranks,
                    seed=plan.key("network", step) + ranks.rank,
                    say=log.say,
                )
                num_parts = computed.num_parts

                # Refuse a step that is not finite. Looking is free on CPU; on a GPU the host would wait.
                done = step + 1
                last = pace.is_last(done)
                logging, checking = plan.log_at(done, last=last), plan.health_at(done, last=last)
                stopping = _asked_to_stop(stop, ranks, done=done)
                saving = stopping or plan.save_at(done, last=last)
                looking = logging or checking or saving
                if looking or ranks.device.type == "cpu":
                    mean_loss = ranks.mean(computed.loss)
                    alarms.check_finite(
                        mean_loss,
                        optimizer,
                        config=config,
                        plan=plan,
                        step=step,
                        lr=plan.lr(position),
                        gradients_too=looking,
                    )

                # Online network: one gradient step. Target network: moving average of the online one.
                set_lr(optimizer, plan.lr(position), apart=begun.encoder_share(step))
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                byol.update_target(plan.tau(position))

                # Now and then (the host waits here): judge health, log, save; on a signal save and stop.
                if checking:
                    status, measures = fixed_images.look(byol, ranks=ranks)
                    warning = watch.note(status, measures, done=done)
                    flat = marker.note(status, measures, done=done, position=pace.position(done), last=last)
                    for line in filter(None, (warning, flat)):
                        log.say(line)
                if logging:
                    images_per_s, data_wait = clock.lap(done, plan.batch_size, wait_s=source.wait_s)
                    log.write(
                        Metrics(
                            done=done,
                            epoch=done / plan.steps_per_epoch,
                            loss=mean_loss,
                            lr=plan.lr(position),
                            tau=plan.tau(position),
                            feature_std=ranks.mean(health.measure_feature_std(computed.projection)),
                            images_per_s=images_per_s,
                            data_wait=data_wait,
                            verdict=status.verdict,
                            rank=status.rank,
                            **asdict(measures),
                        ),
                        end=pace.end,
                        left_s=pace.left_s(done, step_s=plan.batch_size / images_per_s),
                    )
                if watch.is_over:
                    kept = _name_kept(run_dir)
                    raise alarms.explain_collapse(
                        config, plan, health=status, done=done, kept=kept, views=blank
                    )
                pace.follow(done)
                if saving and ranks.is_main:
                    checkpoint.save(
                        run_dir,
                        done,
                        byol=byol,
                        optimizer=optimizer,
                        data_fingerprint=images.fingerprint,
                        num_parts=num_parts,
                        pace=pace.state(),
                        best=marker.best.state(),
                    )
                    save_encoders(run_dir, byol, config=config, images=images, done=done)
                    environment.write(run_dir, record, done=done)
                if stopping:
                    break
            if pace.is_last(done) and begun.measures is not None:
                log.say(health.compare(measures, begun.measures))
            # On every rank, for BatchNorm of several ranks waits for all of them.
            if has_steps and config.trainer.loggers and pace.is_last(done):
                log.keep_embedding(fixed_images.embed(byol, done=done, ranks=ranks))
        ranks.wait()
        # The signal may have reached another rank only.
        return Outcome(done, pace.end, None if pace.is_last(done) else stop.name or "SIGTERM")


def save_encoders(run_dir: Path, byol: Byol, *, config: Config, images: Packed, done: int) -> None:
    """The online encoder into the run folder, the target's into `target/` below it."""
    _save_online(run_dir, done, byol=byol, config=config, images=images)
    target = EncoderSpec.of(config, images, which="target", done=done)
    save_encoder(run_dir / "target", byol.target.encoder, target)


def _save_online(folder: Path, done: int, *, byol: Byol, config: Config, images: Packed) -> None:
    spec = EncoderSpec.of(config, images, which="online", done=done)
    save_encoder(folder, byol.online.encoder, spec)


def _open_loggers(config: Config, run_dir: Path, *, done: int, key: str, console: Console) -> list[Logger]:
    settings = dict(keys.flatten(config.model_dump()))
    run = Run(run_dir, key, done, settings)
    return open_loggers(config.trainer.loggers, run, say=partial(print_line, console))


def _name_kept(run_dir: Path) -> str:
    kept = checkpoint.list_checkpoints(run_dir)
    return f"the last checkpoint is {kept[0].name}" if kept else "no checkpoint had been written yet"


def _asked_to_stop(stop: StopSignal, ranks: Ranks, *, done: int) -> bool:
    """Whether any rank has had a signal; several GPUs ask each other only now and then, since all wait."""
    if ranks.device.type == "cpu" or ranks.world_size == 1 or done % 10 == 0:
        return ranks.any(stop.name is not None)
    return False
