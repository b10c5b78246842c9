"""Everything that is a function of the step: rates, random keys, order, and when to log, check and save."""

import functools
import hashlib
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int64

from byol.base.errors import ConfigError, DataError
from byol.config import Config, TrainerConfig

# The paper's recipes by length in epochs (appendix; lr is for a batch of 256): lr, weight decay, base tau.
_PAPER: dict[int, tuple[float, float, float]] = {
    40: (0.45, 1e-6, 0.97),
    100: (0.45, 1e-6, 0.99),
    300: (0.3, 1e-6, 0.99),
    1000: (0.2, 1.5e-6, 0.996),
}
_PAPER_WARMUP_EPOCHS = 10.0

# Our formulas for SGD with momentum 0.9; docs/decisions.md has what they were measured by.
_LR_PER_IMAGE = 0.06 / 64
_LR_MAX = 0.4
_WARMUP_SHARE, _WARMUP_MAX_EPOCHS = 0.05, 10.0
_WEIGHT_DECAY = 5e-4
_TAU_STEPS = 2.0  # 1 - base tau = min(_TAU_MAX_GAP, sqrt(_TAU_STEPS / steps)): 0.99 up to 20,000 steps
_TAU_MAX_GAP = 0.01
_ADAMW_LR = 0.0005  # for a batch of 256; DINO's, arXiv 2104.14294, section 3.2

# A run that goes wrong mostly does so in its first steps, long before a health interval is over.
_EARLY_CHECKS = (20, 50, 100, 200)


@dataclass(frozen=True)
class Plan:
    """A run's schedule. `step` counts from 0 and is the one about to be made; `done` steps are finished.

    With a time budget `total_steps` is what was expected at the start, the length that rates are chosen for;
    how the steps that there are go through the schedules is for `training/time_budget.py` to say.
    """

    num_images: int
    batch_size: int
    steps_per_epoch: int
    total_steps: int
    budget_s: float | None  # seconds of training; None: total_steps is the end
    seed: int
    base_lr: float  # the highest, already scaled by the batch
    warmup_steps: int
    lr_schedule: Literal["constant", "cosine"]
    base_tau: float
    tau_schedule: Literal["constant", "cosine"]
    weight_decay: float
    checkpoint_interval: int
    log_interval: int
    health_interval: int
    reasons: tuple[str, ...]

    @classmethod
    def of(cls, config: Config, *, num_images: int, expected_steps: int | None = None) -> "Plan":
        """The plan of a configuration for so many images; null values are derived.

        A run with a time budget (`trainer.max_hours`) needs `expected_steps`; others have no use for it.

        Raises:
            DataError: fewer images than a batch.
            ConfigError: neither epochs nor hours are given, or the warm-up is longer than the time.
        """
        trainer, optimizer = config.trainer, config.optimizer
        if num_images < config.batch_size:
            smaller = f", or set trainer.batch_size={max(2, num_images // 2)}" if num_images >= 2 else ""
            found = "one image is" if num_images == 1 else f"{num_images} images are"
            raise DataError(f"{found} fewer than a batch of {config.batch_size}; give more images{smaller}")
        steps_per_epoch = num_images // config.batch_size
        total_steps, epochs = _choose_length(trainer, steps_per_epoch, expected_steps=expected_steps)
        chosen = _choose(config, total_steps=total_steps, epochs=epochs)
        if chosen.warmup_epochs > epochs:
            raise ConfigError(
                f"optimizer.warmup_epochs: {chosen.warmup_epochs:g} is longer than the run, about "
                f"{epochs:.3g} epochs in trainer.max_hours {trainer.max_hours}; set a shorter one, or null"
            )
        base_lr = chosen.lr * (config.batch_size / 256 if optimizer.scale_lr else 1.0)
        scaling = f" x {config.batch_size} / 256 = {base_lr:.4g}" if optimizer.scale_lr else ""
        return cls(
            num_images=num_images,
            batch_size=config.batch_size,
            steps_per_epoch=steps_per_epoch,
            total_steps=total_steps,
            budget_s=None if trainer.max_hours is None else trainer.max_hours * 3600.0,
            seed=trainer.seed,
            base_lr=base_lr,
            warmup_steps=round(chosen.warmup_epochs * steps_per_epoch),
            lr_schedule=optimizer.schedule,
            base_tau=chosen.tau,
            tau_schedule=trainer.m_schedule,
            weight_decay=chosen.weight_decay,
            checkpoint_interval=trainer.checkpoint_interval,
            log_interval=trainer.log_interval,
            health_interval=trainer.health_interval,
            reasons=(chosen.reasons[0] + scaling, *chosen.reasons[1:]),
        )

    def lr(self, position: int | float) -> float:
        """Linear from base_lr / warmup_steps to base_lr, then constant, or a cosine that ends near 0.

        `position` is the step, or with a time budget what `TimeBudget.position` makes of it.
        """
        if position < self.warmup_steps:
            return self.base_lr * min(position + 1, self.warmup_steps) / self.warmup_steps
        if self.lr_schedule == "constant":
            return self.base_lr
        share = (position - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return self.base_lr * 0.5 * (1.0 + math.cos(math.pi * share))

    def tau(self, position: int | float) -> float:
        """1 - (1 - base_tau) (1 + cos(pi position / total_steps)) / 2, section 3.2; or constant."""
        if self.tau_schedule == "constant":
            return self.base_tau
        return 1.0 - (1.0 - self.base_tau) * (1.0 + math.cos(math.pi * position / self.total_steps)) / 2.0

    def key(self, stream: str, index: int) -> int:
        """A 63-bit seed for the `index`-th use of a kind of randomness."""
        return derive_seed(self.seed, stream, index=index)

    def indices(self, step: int) -> Int64[np.ndarray, " batch"]:
        """The images of the global batch: an epoch is a fresh permutation without its partial last batch."""
        epoch, number = divmod(step, self.steps_per_epoch)
        order = _permute(self.num_images, self.key("order", epoch))
        return order[number * self.batch_size : (number + 1) * self.batch_size]

    def log_at(self, done: int, *, last: bool) -> bool:
        """Whether to log after `done` steps; always after the last."""
        return done % self.log_interval == 0 or last

    def health_at(self, done: int, *, last: bool) -> bool:
        """Whether to judge health after `done` steps; more often early on, and after the last."""
        return done % self.health_interval == 0 or last or done in _EARLY_CHECKS

    def save_at(self, done: int, *, last: bool) -> bool:
        """Whether to save after `done` steps; always after the last."""
        return done % self.checkpoint_interval == 0 or last

    def explain(self) -> list[str]:
        """One line for each of lr, warm-up, weight decay and base tau: its value and where it comes from."""
        return list(self.reasons)


def derive_seed(seed: int, stream: str, *, index: int) -> int:
    """A 63-bit seed for the `index`-th use of a kind of randomness in a run of this seed."""
    text = f"{seed}/{stream}/{index}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def reference_lr(config: Config, plan: Plan) -> float:
    """The optimizer.params.lr that suits this optimizer and batch, for comparing a given one with."""
    share = config.batch_size / 256
    epochs = plan.total_steps / plan.steps_per_epoch
    if config.optimizer.name == "sgd":
        lr = _derive_default(config, total_steps=plan.total_steps, epochs=epochs).values[0]
    elif config.optimizer.name == "lars":
        lr = _derive_paper(config, total_steps=plan.total_steps, epochs=epochs).values[0] * share
    else:
        lr = _ADAMW_LR * share
    return lr / share if config.optimizer.scale_lr else lr


@functools.lru_cache(maxsize=2)
def _permute(num_images: int, key: int) -> Int64[np.ndarray, " image"]:
    order = np.random.default_rng(key).permutation(num_images)
    order.setflags(write=False)
    return order


# ---- Values that the configuration leaves open


def _choose_length(
    trainer: TrainerConfig, steps_per_epoch: int, *, expected_steps: int | None
) -> tuple[int, float]:
    """Steps and epochs of the run."""
    if trainer.max_hours is not None:
        assert expected_steps is not None and expected_steps > 0
        return expected_steps, expected_steps / steps_per_epoch
    if trainer.max_epochs is None:
        raise ConfigError("trainer.max_epochs: set it or trainer.max_hours; both are null")
    return steps_per_epoch * trainer.max_epochs, float(trainer.max_epochs)


@dataclass(frozen=True)
class _Chosen:
    lr: float
    warmup_epochs: float
    weight_decay: float
    tau: float
    reasons: tuple[str, ...]


def _choose(config: Config, *, total_steps: int, epochs: float) -> _Chosen:
    """Entry values as they are, open ones by the configuration's rule, each with its reason."""
    rule = _derive_paper if config.optimizer.derive == "paper" else _derive_default
    derived = rule(config, total_steps=total_steps, epochs=epochs)
    params = config.optimizer.params
    configured = (params.lr, config.optimizer.warmup_epochs, params.weight_decay, config.trainer.m)
    lr, warmup_epochs, weight_decay, tau = values = [
        d if g is None else g for g, d in zip(configured, derived.values, strict=True)
    ]
    names = ("learning rate", "warm-up", "weight decay", "base tau (m)")
    units = ("", " epochs", "", "")
    reasons = [
        f"{name} {value:.4g}{unit} ({reason if g is None else 'as set'})"
        for name, value, unit, g, reason in zip(
            names, values, units, configured, derived.reasons, strict=True
        )
    ]
    return _Chosen(lr, warmup_epochs, weight_decay, tau, tuple(reasons))


@dataclass(frozen=True)
class _Derived:
    values: tuple[float, float, float, float]  # lr, warm-up epochs, weight decay, base tau
    reasons: tuple[str, str, str, str]


def _derive_paper(config: Config, *, total_steps: int, epochs: float) -> _Derived:
    row = next((length for length in _PAPER if length >= epochs), max(_PAPER))
    lr, weight_decay, tau = _PAPER[row]
    warmup = min(_PAPER_WARMUP_EPOCHS, epochs / 4)
    table = f"paper, {row} epochs"
    if row != epochs:
        table += f", the {'next longer' if row > epochs else 'longest'} run in its table"
    return _Derived(
        (lr, warmup, weight_decay, tau), (table, f"min({_PAPER_WARMUP_EPOCHS:g}, epochs / 4)", table, table)
    )


def _derive_default(config: Config, *, total_steps: int, epochs: float) -> _Derived:
    lr = min(_LR_PER_IMAGE * config.batch_size, _LR_MAX)
    warmup = min(_WARMUP_SHARE * epochs, _WARMUP_MAX_EPOCHS)
    gap = min(_TAU_MAX_GAP, math.sqrt(_TAU_STEPS / total_steps))
    return _Derived(
        (lr, warmup, _WEIGHT_DECAY, 1.0 - gap),
        (
            f"min({_LR_PER_IMAGE * 64:g} * batch size {config.batch_size} / 64, {_LR_MAX:g})",
            f"min({_WARMUP_SHARE:g} * {round(epochs, 2):.10g} epochs, {_WARMUP_MAX_EPOCHS:g})",
            "constant",
            f"1 - min({_TAU_MAX_GAP:g}, sqrt({_TAU_STEPS:g} / {total_steps} steps))",
        ),
    )
