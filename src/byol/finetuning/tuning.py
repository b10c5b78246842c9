"""Fine-tune an encoder and a classifier on labelled images; choose settings on a validation split of them.

There are two stages (arXiv 2202.10054): logistic regression fits the classifier to the frozen encoder, then
both are trained together. At the end, logistic regression on the new features may replace the classifier.

byol chooses the learning rate, the kind of classifier and whether to change the encoder at all on the
validation split. Then it trains on all labelled images. No function here receives test images.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Int64
from torch import nn

from byol.base.errors import DataError, DivergedError
from byol.encoder.classifier import Linear
from byol.encoder.encoder import Encoder
from byol.evaluation.splits import Split
from byol.finetuning.supervised import Course, LostError, Rates, Setting
from byol.metrics.logistic import Problem
from byol.metrics.probes import Validation, choose_logistic, standardise

FEW_LABELS = 5000  # up to this number, byol tries several learning rates
# Learning rates of the classifier (AdamW). With more labels, byol uses only the first.
_RATES, _RATES_FROM_SCRATCH = (1e-3, 3e-4, 3e-3), (3e-3, 1e-3, 1e-2)
_LAYER_DECAY = 0.75
_IMAGES_SEEN, _MIN_EPOCHS, _MAX_EPOCHS = 10_000, 10, 20
_LONE_PENALTY = 0.01  # C if it cannot be chosen: every class has one image, or all images are in one group
_NEVER = -1e9  # bias of a class without images, so that it is never predicted
CLASSIFIER_IMAGES = 10_000  # largest number of images for logistic regression

Features = Float32[np.ndarray, "image feature"]
Classes = Int64[np.ndarray, " image"]
Kind = Literal["logistic regression", "trained"]
_LOGISTIC: Kind = "logistic regression"
_TRAINED: Kind = "trained"


@dataclass(frozen=True)
class Recipe:
    """The learning rates to try, and the length of a training."""

    rates: tuple[float, ...]  # of the last layer; the first is used unless another is clearly better
    epochs: int
    layer_decay: float

    @classmethod
    def of(cls, num_labels: int, *, epochs: int | None, pretrained: bool) -> "Recipe":
        """Choose by the number of labels. Random weights get the same learning rate in all layers."""
        if epochs is None:
            epochs = min(max(_IMAGES_SEEN // num_labels, _MIN_EPOCHS), _MAX_EPOCHS)
        rates = _RATES if pretrained else _RATES_FROM_SCRATCH
        return cls(
            rates if num_labels <= FEW_LABELS else rates[:1], epochs, _LAYER_DECAY if pretrained else 1.0
        )


@dataclass(frozen=True)
class Look:
    """The progress of a training: a line of `finetune.jsonl`."""

    stage: Literal["choose", "final"]  # trained on the training split, or on all labelled images
    lr: float
    epoch: int
    loss: float | None  # mean cross-entropy over the images of this epoch; None: the encoder was not trained
    logistic: float | None = None  # validation top-1 of logistic regression, 0..1, at the end of a training
    trained: float | None = None  # the same for the classifier that was trained with the encoder


@dataclass(frozen=True)
class Trained:
    """A fine-tuned encoder, its classifier, and the chosen settings."""

    module: nn.Module
    linear: Linear
    frozen: Linear  # logistic regression on the frozen encoder, for comparison
    frozen_penalty: float  # C of that regression
    epochs: int  # 0: the encoder was not changed
    chosen: dict[str, str | int | float]


def train_classifier(
    start: nn.Module,
    data: Split,
    *,
    recipe: Recipe,
    setting: Setting,
    note: Callable[[Look], None],
    tick: Callable[[], None],
) -> Trained:
    """Fine-tune a copy of the encoder `start` and a classifier on labelled images.

    `note` receives the lines of the log; `tick` is called after each epoch.

    Raises:
        DataError: the encoder's features are not finite.
        DivergedError: the loss is not finite at the chosen learning rate.
    """
    try:
        frozen, penalty = _fit_logistic(start, data, setting=setting)
    except LostError:
        raise DataError(
            "the encoder's features are not finite: its training diverged; train it again"
        ) from None
    best = _choose(start, frozen, data, recipe=recipe, setting=setting, note=note, tick=tick)
    chosen: dict[str, str | int | float] = {"classifier": best.kind}
    if best.rate is None:
        return Trained(start, frozen, frozen, penalty, 0, {**chosen, "C": penalty})
    rates = Rates(best.rate, recipe.epochs, recipe.layer_decay)
    course = Course(start, frozen, data, rates=rates, setting=setting, tick=tick)
    try:
        for epoch in range(1, recipe.epochs + 1):
            note(Look("final", best.rate, epoch, course.advance()))
        linear = course.linear()
        if best.kind == _LOGISTIC:
            linear, chosen["C"] = _fit_logistic(course.encoder, data, setting=setting)
    except LostError:
        raise DivergedError(
            f"fine-tuning on all {len(data.rows)} labels diverged at the learning rate {best.rate:g}, which "
            "worked on four fifths of them; give another number of --epochs"
        ) from None
    return Trained(course.encoder, linear, frozen, penalty, recipe.epochs, {"lr": best.rate, **chosen})


# ---- Choosing


@dataclass(frozen=True)
class Candidate:
    """A setting that can be chosen, and which images of the validation split it classifies correctly."""

    rate: float | None  # learning rate; None: the encoder is not changed
    kind: Kind
    right: Bool[np.ndarray, " image"]

    def exceeds(self, other: "Candidate") -> bool:
        """Return whether it beats `other` by more than one standard error of their paired difference."""
        gain = int(self.right.sum()) - int(other.right.sum())
        return gain > math.sqrt((self.right != other.right).sum())


def _choose(
    start: nn.Module,
    frozen: Linear,
    data: Split,
    *,
    recipe: Recipe,
    setting: Setting,
    note: Callable[[Look], None],
    tick: Callable[[], None],
) -> Candidate:
    """Choose the first rate with logistic regression, unless another candidate exceeds it in validation.

    Images of one group, and duplicates, are never on both sides of the split.
    """
    part = Validation.of(data.labels, seed=setting.seed, groups=data.units)
    fit, held_out = data.take(part.fit), data.take(part.held_out)
    candidates: list[Candidate] = []
    for rate in recipe.rates:
        rates = Rates(rate, recipe.epochs, recipe.layer_decay)
        course = Course(start, frozen, fit, rates=rates, setting=setting, tick=tick)
        with suppress(LostError):  # a learning rate that diverges is no candidate
            for epoch in range(1, recipe.epochs):
                note(Look("choose", rate, epoch, course.advance()))
            loss = course.advance()
            logistic, _ = _fit_logistic(course.encoder, fit, setting=setting)
            features = _embed(course.encoder, held_out, setting=setting)
            pair = [
                Candidate(rate, kind, linear.logits(features).argmax(axis=1) == held_out.labels)
                for kind, linear in ((_LOGISTIC, logistic), (_TRAINED, course.linear()))
            ]
            note(Look("choose", rate, recipe.epochs, loss, *(float(one.right.mean()) for one in pair)))
            candidates += pair
    logistic, _ = _fit_logistic(start, fit, setting=setting)
    features = _embed(start, held_out, setting=setting)
    right = logistic.logits(features).argmax(axis=1) == held_out.labels
    note(Look("choose", 0.0, 0, None, float(right.mean())))
    candidates.append(Candidate(None, _LOGISTIC, right))
    best = candidates[0]
    for candidate in candidates[1:]:
        best = candidate if candidate.exceeds(best) else best
    return best


# ---- Logistic regression


def fit_linear(features: Features, labels: Classes, *, inverse_penalty: float, num_classes: int) -> Linear:
    """Fit multinomial logistic regression on standardised features; return it as a layer for raw features.

    It never predicts a class that is not in `labels` (when all its images are in held-out groups).
    """
    mean = features.mean(axis=0, dtype=np.float64)
    std = features.std(axis=0, dtype=np.float64)
    std[std <= 1e-6 * (np.abs(mean) + 1e-6)] = 1.0
    classes, truth = np.unique(labels, return_inverse=True)
    problem = Problem.of((features - mean) / std, truth, num_classes=len(classes))
    found = problem.fit(inverse_penalty=inverse_penalty)
    weight, bias = np.zeros((num_classes, features.shape[1])), np.full(num_classes, _NEVER)
    weight[classes], bias[classes] = found.weights / std, found.biases
    return Linear(weight.astype(np.float32), (bias - weight @ mean).astype(np.float32))


def _fit_logistic(module: nn.Module, data: Split, *, setting: Setting) -> tuple[Linear, float]:
    """Fit a classifier to features of at most 10,000 images, with every class. Return it and its C."""
    if len(data.rows) > CLASSIFIER_IMAGES:
        share = CLASSIFIER_IMAGES / len(data.rows)
        data = data.take(draw_fraction(data.labels, share, seed=setting.seed))
    features = _embed(module, data, setting=setting)
    penalty = _LONE_PENALTY
    if np.bincount(data.labels).max() > 1:
        scaled = standardise(features, features)[0]
        with suppress(DataError):  # too few groups to choose C
            penalty = choose_logistic(scaled, data.labels, seed=setting.seed, groups=data.units)
    return fit_linear(
        features, data.labels, inverse_penalty=penalty, num_classes=setting.num_classes
    ), penalty


def draw_fraction(labels: Classes, fraction: float, *, seed: int) -> Int64[np.ndarray, " drawn"]:
    """Draw a fraction of the images of each class, at least one. Return ascending indices."""
    rng = np.random.default_rng(seed)
    drawn = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        drawn.append(members[: max(1, round(fraction * len(members)))])
    return np.sort(np.concatenate(drawn))


def _embed(module: nn.Module, data: Split, *, setting: Setting) -> Features:
    # A copy, because Encoder switches off gradients and training mode of its module.
    encoder = Encoder(setting.spec, deepcopy(module), device=str(setting.device))
    features = encoder.embed_packed(data.images, rows=data.rows)
    if not np.isfinite(features).all():
        raise LostError
    return features
