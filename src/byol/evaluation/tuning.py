"""Fine-tuning: an encoder and a classifier from labelled images, all settings chosen on a part of these.

In two stages (arXiv 2202.10054): the classifier is fitted to the frozen encoder by logistic regression, then
everything learns together. At the end logistic regression on the new features takes the classifier's place if
that is better.

Learning rate, number of epochs and classifier are chosen on a validation part of the given images; then the
encoder is trained anew on all of them. Nothing here has a parameter for test images.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64
from sklearn.linear_model import LogisticRegression
from torch import nn

from byol.artifacts.classifier import Linear
from byol.artifacts.encoder import Encoder
from byol.errors import DataError, DivergedError
from byol.evaluation.probes import Validation, choose_logistic, standardise
from byol.evaluation.splits import Split
from byol.training.supervised import Course, LostError, Rates, Setting

FEW_LABELS = 5000  # up to here several learning rates are tried
_RATES = (1e-3, 3e-4, 3e-3)  # of AdamW, for the classifier; the first is taken where there are many labels
_LAYER_DECAY = 0.75
_IMAGES_SEEN, _MIN_EPOCHS, _MAX_EPOCHS = 15_000, 10, 30
_LOOKS = 6  # at the validation part, in the course of a training
_PATIENCE = 3  # looks without a gain, after which a training is given up
_CLASSIFIER_IMAGES = 10_000  # that logistic regression is fitted on at most

Features = Float32[np.ndarray, "image feature"]
Classes = Int64[np.ndarray, " image"]
Kind = Literal["logistic regression", "trained"]
_LOGISTIC: Kind = "logistic regression"
_TRAINED: Kind = "trained"


@dataclass(frozen=True)
class Recipe:
    """What is tried, and how long."""

    rates: tuple[float, ...]  # learning rates of the last layer
    epochs: int  # at most
    layer_decay: float

    @classmethod
    def of(cls, num_labels: int, *, epochs: int | None, pretrained: bool) -> "Recipe":
        """By the number of labels; random weights learn at one rate in all layers."""
        if epochs is None:
            epochs = min(max(_IMAGES_SEEN // num_labels, _MIN_EPOCHS), _MAX_EPOCHS)
        rates = _RATES if num_labels <= FEW_LABELS else _RATES[:1]
        return cls(rates, epochs, _LAYER_DECAY if pretrained else 1.0)


@dataclass(frozen=True)
class Look:
    """How far a training has come, a line of `finetune.jsonl`."""

    lr: float
    epoch: int
    loss: float | None  # cross-entropy, mean over the images of this epoch; None before the first
    num_validation: int  # images; 0 in the last training, on all labels
    logistic: float | None  # top-1 on the validation part by logistic regression, 0..1
    trained: float | None  # and by the classifier that learned along; None before the first epoch


@dataclass(frozen=True)
class Trained:
    """A fine-tuned encoder, the classifier on it, and what was chosen."""

    module: nn.Module
    linear: Linear
    frozen: Linear  # logistic regression on the encoder as it was, for comparison
    epochs: int  # 0: the encoder is as it was
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

    `note` hears of each look at the validation part, `tick` of each epoch.

    Raises:
        DataError: the encoder's features are not finite.
        DivergedError: the loss is not finite, at the rate that had been chosen.
    """
    part = Validation.of(data.labels, seed=setting.seed)
    try:
        features = _embed(start, data, setting=setting)
    except LostError:
        raise DataError(
            "the encoder's features are not finite: its training diverged; train it again"
        ) from None
    penalty = choose_logistic(standardise(features, features)[0], data.labels, seed=setting.seed)
    frozen = fit_linear(features, data.labels, inverse_penalty=penalty, num_classes=setting.num_classes)
    fit, held_out = _take(data, part.fit), _take(data, part.held_out)
    best = _Choice(0, 0.0, _LOGISTIC, _score_frozen(features, data, part, penalty, setting))
    note(Look(0.0, 0, None, len(part.held_out), best.score[0], None))
    for rate in recipe.rates:
        rates = Rates(rate, recipe.epochs, recipe.layer_decay)
        course = Course(start, frozen, fit, rates=rates, setting=setting, tick=tick)
        best = max(
            best, _follow(course, fit, held_out, penalty=penalty, note=note), key=lambda one: one.score
        )
    chosen: dict[str, str | int | float] = {"lr": best.rate, "classifier": best.kind, "C": penalty}
    if best.epochs == 0:
        return Trained(start, frozen, frozen, 0, chosen)
    rates = Rates(best.rate, recipe.epochs, recipe.layer_decay)
    course = Course(start, frozen, data, rates=rates, setting=setting, tick=tick)
    try:
        for epoch in range(1, best.epochs + 1):
            note(Look(best.rate, epoch, course.advance(), 0, None, None))
        linear = course.linear()
        if best.kind == _LOGISTIC:
            linear = _refit(course.encoder, data, penalty=penalty, setting=setting)
    except LostError:
        raise DivergedError(
            f"fine-tuning on all {len(data.rows)} labels diverged at the learning rate {best.rate:g}, which "
            "had been fine on four fifths of them; give another number of --epochs"
        ) from None
    return Trained(course.encoder, linear, frozen, best.epochs, chosen)


# ---- Choosing


@dataclass(frozen=True)
class _Choice:
    """Something that can be chosen, and its (top-1, -cross-entropy) on the validation part."""

    epochs: int
    rate: float
    kind: Kind
    score: tuple[float, float]


def _follow(
    course: "Course", fit: Split, held_out: Split, *, penalty: float, note: Callable[[Look], None]
) -> _Choice:
    """The best number of epochs and classifier of one course."""
    setting, rate, epochs = course.setting, course.rates.lr, course.rates.epochs
    best = _Choice(0, rate, _TRAINED, (-1.0, 0.0))
    num_below = 0
    with suppress(LostError):  # what was best before that is still there to be chosen
        for epoch in range(1, epochs + 1):
            loss = course.advance()
            if epoch % math.ceil(epochs / _LOOKS) and epoch != epochs:
                continue
            features = _embed(course.encoder, held_out, setting=setting)
            trained = _score(course.linear(), features, held_out.labels)
            refitted = _refit(course.encoder, fit, penalty=penalty, setting=setting)
            logistic = _score(refitted, features, held_out.labels)
            note(Look(rate, epoch, loss, len(held_out.rows), logistic[0], trained[0]))
            num_below += 1
            for kind, score in (_LOGISTIC, logistic), (_TRAINED, trained):
                if score > best.score:
                    best, num_below = _Choice(epoch, rate, kind, score), 0
            if num_below == _PATIENCE:
                break
    return best


def _score_frozen(
    features: Features, data: Split, part: Validation, penalty: float, setting: Setting
) -> tuple[float, float]:
    linear = fit_linear(
        features[part.fit],
        data.labels[part.fit],
        inverse_penalty=penalty,
        num_classes=setting.num_classes,
    )
    return _score(linear, features[part.held_out], data.labels[part.held_out])


def _score(linear: Linear, features: Features, labels: Classes) -> tuple[float, float]:
    """Top-1, and the log-likelihood that decides between equals."""
    logits, truth = torch.from_numpy(linear.logits(features)), torch.from_numpy(labels)
    right = float((logits.argmax(dim=1) == truth).double().mean())
    return right, -float(F.cross_entropy(logits.double(), truth))


# ---- The classifier, by logistic regression


def fit_linear(features: Features, labels: Classes, *, inverse_penalty: float, num_classes: int) -> Linear:
    """Multinomial logistic regression on standardised features, as a layer on the features as they are.

    Every one of the `num_classes` classes must occur in `labels`.
    """
    mean = features.mean(axis=0, dtype=np.float64)
    std = features.std(axis=0, dtype=np.float64)
    std[std <= 1e-6 * (np.abs(mean) + 1e-6)] = 1.0
    model = LogisticRegression(C=inverse_penalty, max_iter=10_000)
    model.fit((features - mean) / std, labels)
    assert len(model.classes_) == num_classes
    weight, bias = model.coef_, model.intercept_
    if num_classes == 2:  # one row, the second class against the first
        weight, bias = np.concatenate([-weight, weight]) / 2.0, np.concatenate([-bias, bias]) / 2.0
    weight = weight / std
    return Linear(weight.astype(np.float32), (bias - weight @ mean).astype(np.float32))


def _refit(module: nn.Module, data: Split, *, penalty: float, setting: Setting) -> Linear:
    """Logistic regression on the features of at most 10,000 of these images, every class among them."""
    if len(data.rows) > _CLASSIFIER_IMAGES:
        share = _CLASSIFIER_IMAGES / len(data.rows)
        data = _take(data, draw_fraction(data.labels, share, seed=setting.seed))
    features = _embed(module, data, setting=setting)
    return fit_linear(features, data.labels, inverse_penalty=penalty, num_classes=setting.num_classes)


def draw_fraction(labels: Classes, fraction: float, *, seed: int) -> Int64[np.ndarray, " drawn"]:
    """Indices of this share of each class's images, at least one of each, ascending."""
    rng = np.random.default_rng(seed)
    drawn = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        drawn.append(members[: max(1, round(fraction * len(members)))])
    return np.sort(np.concatenate(drawn))


def _embed(module: nn.Module, data: Split, *, setting: Setting) -> Features:
    # A copy: the frozen encoder's parameters take no gradient, and its norms keep their statistics.
    encoder = Encoder(setting.spec, deepcopy(module), device=str(setting.device))
    features = encoder.embed_packed(data.images, rows=data.rows)
    if not np.isfinite(features).all():
        raise LostError
    return features


def _take(data: Split, which: Int64[np.ndarray, " some"]) -> Split:
    return replace(data, rows=data.rows[which], labels=data.labels[which])
