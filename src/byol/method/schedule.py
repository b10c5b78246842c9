"""Everything that depends only on the step: schedules, seeds, image order, when to log, check and save."""

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int64

from byol.base.errors import ConfigError, DataError
from byol.config import Config, TrainerConfig
from byol.method import order

# The paper's values by epochs (appendix): learning rate for a batch of 256, weight decay, base tau.
_PAPER: dict[int, tuple[float, float, float]] = {
    40: (0.45, 1e-6, 0.97),
    100: (0.45, 1e-6, 0.99),
    300: (0.3, 1e-6, 0.99),
    1000: (0.2, 1.5e-6, 0.996),
}
_PAPER_WARMUP_EPOCHS = 10.0

# Constants of the default rule, for SGD with momentum 0.9. docs/decisions.md has the measurements.
_LR_PER_IMAGE = 0.06 / 64
_LR_MAX = 0.4
_WARMUP_SHARE, _WARMUP_MAX_EPOCHS = 0.05, 10.0
_WEIGHT_DECAY = 5e-4
_TAU_STEPS = 2.0  # 1 - base tau = min(_TAU_MAX_GAP, sqrt(_TAU_STEPS / steps)): 0.99 up to 20,000 steps
_TAU_MAX_GAP = 0.01
_VICREG_SHARE = 0.5  # of the run, after which BYOL trains alone
_ADAMW_LR = 0.0005  # for a batch of 256, as in DINO (arXiv 2104.14294, section 3.2)

# Most failing runs fail in their first steps, long before the first health interval ends.
_EARLY_CHECKS = (20, 50, 100, 200)


@dataclass(frozen=True)
class Plan:
    """The schedules of a run. `step` counts from 0 and is the next step; `done` steps are finished.

    With a time budget, `total_steps` is the number expected at the start, from which byol derives learning
    rate and tau; `training/time_budget.py` maps the actual steps to positions on the schedules.
    """

    num_images: int
    batch_size: int
    steps_per_epoch: int
    total_steps: int
    budget_s: float | None  # time budget in seconds; None: the run ends after total_steps
    seed: int
    base_lr: float  # highest learning rate, already scaled by the batch size
    warmup_steps: int
    lr_schedule: Literal["constant", "cosine"]
    base_tau: float
    tau_schedule: Literal["constant", "cosine"]
    weight_decay: float
    base_vicreg_weight: float
    checkpoint_interval: int
    log_interval: int
    health_interval: int
    reasons: tuple[str, ...]
    shards: tuple[int, ...] = ()  # images of each shard, if epochs visit windows of shards; see `order.py`

    @classmethod
    def of(
        cls,
        config: Config,
        *,
        num_images: int,
        expected_steps: int | None = None,
        shards: tuple[int, ...] = (),
    ) -> "Plan":
        """Make the plan of a configuration for this number of images; derive values that are null.

        `expected_steps` is needed with a time budget (`trainer.max_hours`), and otherwise not used. `shards`
        has the number of images of each shard if epochs visit windows of shards.

        Raises:
            DataError: there are fewer images than a batch has.
            ConfigError: neither epochs nor hours are set, or the warm-up is longer than the run.
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
        scaling = f", times batch size {config.batch_size} / 256: {base_lr:.4g}" if optimizer.scale_lr else ""
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
            base_vicreg_weight=trainer.vicreg_weight or 0.0,
            checkpoint_interval=trainer.checkpoint_interval,
            log_interval=trainer.log_interval,
            health_interval=trainer.health_interval,
            reasons=(chosen.reasons[0] + scaling, *chosen.reasons[1:]),
            shards=shards,
        )

    def lr(self, position: int | float) -> float:
        """Return the learning rate: linear up to base_lr in the warm-up, then constant or a cosine to near 0.

        `position` is the step or, with a time budget, `TimeBudget.position` of the step.
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

    def vicreg_weight(self, position: int | float) -> float:
        """Return the weight of VICReg's terms: it falls linearly to 0 at half of the run."""
        return self.base_vicreg_weight * max(0.0, 1.0 - position / (_VICREG_SHARE * self.total_steps))

    def key(self, stream: str, index: int) -> int:
        """Return a 63-bit seed for the `index`-th use of a random stream."""
        return derive_seed(self.seed, stream, index=index)

    def indices(self, step: int) -> Int64[np.ndarray, " batch"]:
        """Return the images of the global batch. Each epoch is a new permutation without a partial batch."""
        epoch, number = divmod(step, self.steps_per_epoch)
        start, stop = number * self.batch_size, (number + 1) * self.batch_size
        if self.shards:
            return order.visit_windows(self.shards, key=self.key, epoch=epoch, start=start, stop=stop)
        return order.visit_all(self.num_images, key=self.key, epoch=epoch, start=start, stop=stop)

    def first_images(self) -> Int64[np.ndarray, " image"]:
        """Return all images or, if epochs visit windows of shards, those of the first window; sorted."""
        return order.first_images(self.shards, key=self.key) if self.shards else np.arange(self.num_images)

    def shards_ahead(self, step: int) -> tuple[int, ...]:
        """Return the shards of the window of a step and of the next window, in this order; (): no windows."""
        epoch, number = divmod(step, self.steps_per_epoch)
        start = number * self.batch_size
        return order.shards_ahead(self.shards, key=self.key, epoch=epoch, start=start)

    def log_at(self, done: int, *, last: bool) -> bool:
        """Return whether to log after `done` steps; always after the last step."""
        return done % self.log_interval == 0 or last

    def health_at(self, done: int, *, last: bool) -> bool:
        """Return whether to check health after `done` steps; also after some early steps and the last."""
        return done % self.health_interval == 0 or last or done in _EARLY_CHECKS

    def save_at(self, done: int, *, last: bool) -> bool:
        """Return whether to save after `done` steps; always after the last step."""
        return done % self.checkpoint_interval == 0 or last

    def explain(self) -> list[str]:
        """Return lines for learning rate, warm-up, weight decay and base tau: each value and its source."""
        return list(self.reasons)


def derive_seed(seed: int, stream: str, *, index: int) -> int:
    """Return a 63-bit seed for the `index`-th use of a random stream in a run with this seed."""
    text = f"{seed}/{stream}/{index}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def reference_lr(config: Config, plan: Plan) -> float:
    """Return an optimizer.params.lr that suits this optimizer and batch size, for comparisons."""
    share = config.batch_size / 256
    epochs = plan.total_steps / plan.steps_per_epoch
    if config.optimizer.name == "sgd":
        lr = _derive_default(config, total_steps=plan.total_steps, epochs=epochs).values[0]
    elif config.optimizer.name == "lars":
        lr = _derive_paper(config, total_steps=plan.total_steps, epochs=epochs).values[0] * share
    else:
        lr = _ADAMW_LR * share
    return lr / share if config.optimizer.scale_lr else lr


# ---- Values that the configuration leaves open


def _choose_length(
    trainer: TrainerConfig, steps_per_epoch: int, *, expected_steps: int | None
) -> tuple[int, float]:
    """Return the steps and the epochs of the run."""
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
    """Keep values that are set and derive the others by the rule `optimizer.derive`, each with its reason."""
    rule = _derive_paper if config.optimizer.derive == "paper" else _derive_default
    derived = rule(config, total_steps=total_steps, epochs=epochs)
    params = config.optimizer.params
    configured = (params.lr, config.optimizer.warmup_epochs, params.weight_decay, config.trainer.m)
    lr, warmup_epochs, weight_decay, tau = values = [
        d if g is None else g for g, d in zip(configured, derived.values, strict=True)
    ]
    start = " at the start" if config.trainer.m_schedule == "cosine" else ""
    names = (
        "learning rate",
        "learning-rate warm-up",
        "weight decay",
        "EMA decay of the target network (trainer.m)",
    )
    units = ("", " epochs", "", start)
    reasons = [
        f"{name} {value:.4g}{unit} ({reason if g is None else 'from the preset or your settings'})"
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
    table = f"as in the paper for {row:,} epochs"
    if row != epochs:
        table += f", the {'next longer' if row > epochs else 'longest'} run in its table"
    of_warmup = f"a quarter of the run, at most {_PAPER_WARMUP_EPOCHS:g} epochs"
    return _Derived((lr, warmup, weight_decay, tau), (table, of_warmup, table, table))


def _derive_default(config: Config, *, total_steps: int, epochs: float) -> _Derived:
    lr = min(_LR_PER_IMAGE * config.batch_size, _LR_MAX)
    warmup = min(_WARMUP_SHARE * epochs, _WARMUP_MAX_EPOCHS)
    gap = min(_TAU_MAX_GAP, math.sqrt(_TAU_STEPS / total_steps))
    return _Derived(
        (lr, warmup, _WEIGHT_DECAY, 1.0 - gap),
        (
            f"{_LR_PER_IMAGE * 64:g} x batch size / 64, at most {_LR_MAX:g}",
            f"{100 * _WARMUP_SHARE:g} % of the run, at most {_WARMUP_MAX_EPOCHS:g} epochs",
            "the same for every run",
            f"higher in runs of more than {_TAU_STEPS / _TAU_MAX_GAP**2:,.0f} steps",
        ),
    )
