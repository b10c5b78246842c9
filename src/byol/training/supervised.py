"""Training with labels: an encoder of whatever weights and a linear classifier on it.

In two stages (arXiv 2202.10054): the classifier is fitted to the frozen encoder by logistic regression, then
everything learns together, the first layers slower than the last. At the end logistic regression on the new
features takes the classifier's place if it is better.

Learning rate, number of epochs and classifier are chosen on a validation part of the given images; then the
encoder is trained anew on all of them. Nothing here has a parameter for test images.
"""

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from sklearn.linear_model import LogisticRegression
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]
from torch import Tensor, nn

from byol.artifacts.classifier import Linear
from byol.artifacts.encoder import Encoder, EncoderSpec
from byol.config import DataTransforms
from byol.errors import DataError, DivergedError
from byol.evaluation.probes import Validation, choose_logistic, standardise
from byol.evaluation.splits import Split
from byol.method.convolution import accelerate
from byol.method.normalisation import fuse_norms
from byol.method.views import make_view
from byol.method.winograd import constant_weights
from byol.plan import make_key

BATCH_SIZE = 64
WEIGHT_DECAY = 0.05
SMOOTHING = 0.1  # of the labels
FEW_LABELS = 5000  # up to here several learning rates are tried
_RATES = (1e-3, 3e-4, 3e-3)  # of AdamW, for the classifier; the first is taken where there are many labels
_LAYER_DECAY = 0.75  # learning rate of a block, relative to the block above it
_IMAGES_SEEN, _MIN_EPOCHS, _MAX_EPOCHS = 15_000, 10, 30
_WARM_SHARE = 0.1  # of the steps, in which the learning rate rises
_LOOKS = 6  # at the validation part, in the course of a training
_PATIENCE = 3  # looks without a gain, after which a training is given up
_CLASSIFIER_IMAGES = 10_000  # that logistic regression is fitted on at most

Features = Float32[np.ndarray, "image feature"]
Classes = Int64[np.ndarray, " image"]
Kind = Literal["logistic regression", "trained"]


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
class Setting:
    """Where and on what a training computes."""

    spec: EncoderSpec  # how the encoder is to see images
    transforms: DataTransforms  # the table `view1` counts, see `mild`
    num_classes: int
    dtype: torch.dtype  # of the forward pass; weights are float32
    device: torch.device
    seed: int


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


def mild(transforms: DataTransforms) -> DataTransforms:
    """The same symmetries (flips, turns, rotation), crops of at least half of the area, and no other change.

    A run whose crops all have one size says that size matters: its images are seen whole.
    """
    view = transforms.view1
    low, high = view.crop_area
    area = (1.0, 1.0) if low == high else (max(0.5, low), 1.0)
    names = ("jitter", "grey", "blur", "solarize", "invert", "noise", "channel_drop", "gamma")
    view = view.model_copy(update={"crop_area": area, **dict.fromkeys(names, 0.0)})
    return transforms.model_copy(update={"view1": view, "view2": view})


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
    features = _embed(start, data, setting=setting)
    if not np.isfinite(features).all():
        raise DataError("the encoder's features are not finite: its training diverged; train it again")
    penalty = choose_logistic(standardise(features, features)[0], data.labels, seed=setting.seed)
    frozen = fit_linear(features, data.labels, inverse_penalty=penalty, num_classes=setting.num_classes)
    fit, held_out = _take(data, part.fit), _take(data, part.held_out)
    best = _Choice(0, 0.0, "logistic regression", _score_frozen(features, data, part, penalty, setting))
    note(Look(0.0, 0, None, len(part.held_out), best.score[0], None))
    for rate in recipe.rates:
        course = _Course(start, frozen, fit, recipe=recipe, rate=rate, setting=setting, tick=tick)
        best = max(
            best, _follow(course, fit, held_out, penalty=penalty, note=note), key=lambda one: one.score
        )
    chosen: dict[str, str | int | float] = {"lr": best.rate, "classifier": best.kind, "C": penalty}
    if best.epochs == 0:
        return Trained(start, frozen, frozen, 0, chosen)
    course = _Course(start, frozen, data, recipe=recipe, rate=best.rate, setting=setting, tick=tick)
    for epoch in range(1, best.epochs + 1):
        loss = course.advance()
        if not math.isfinite(loss):
            raise DivergedError(f"the loss is {loss} in epoch {epoch}; give a smaller number of --epochs")
        note(Look(best.rate, epoch, loss, 0, None, None))
    linear = course.linear()
    if best.kind == "logistic regression":
        linear = _refit(course.encoder, data, penalty=penalty, setting=setting)
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
    course: "_Course", fit: Split, held_out: Split, *, penalty: float, note: Callable[[Look], None]
) -> _Choice:
    """The best number of epochs and classifier of one course."""
    setting, rate, epochs = course.setting, course.rate, course.recipe.epochs
    best = _Choice(0, rate, "trained", (-1.0, 0.0))
    num_below = 0
    for epoch in range(1, epochs + 1):
        loss = course.advance()
        if not math.isfinite(loss):
            break
        if epoch % math.ceil(epochs / _LOOKS) and epoch != epochs:
            continue
        features = _embed(course.encoder, held_out, setting=setting)
        trained = _score(course.linear(), features, held_out.labels)
        refitted = _refit(course.encoder, fit, penalty=penalty, setting=setting)
        logistic = _score(refitted, features, held_out.labels)
        note(Look(rate, epoch, loss, len(held_out.rows), logistic[0], trained[0]))
        options: tuple[tuple[Kind, tuple[float, float]], ...] = (
            ("logistic regression", logistic),
            ("trained", trained),
        )
        num_below += 1
        for kind, score in options:
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
    return encoder.embed_packed(data.images, rows=data.rows)


def _take(data: Split, which: Int64[np.ndarray, " some"]) -> Split:
    return replace(data, rows=data.rows[which], labels=data.labels[which])


# ---- Training


class _Course:
    """One training from the start, an epoch at a time; AdamW, rates that rise and fall by a cosine."""

    def __init__(
        self,
        start: nn.Module,
        linear: Linear,
        data: Split,
        *,
        recipe: Recipe,
        rate: float,
        setting: Setting,
        tick: Callable[[], None],
    ) -> None:
        self.encoder = fuse_norms(accelerate(deepcopy(start)))
        self.recipe, self.rate, self.setting = recipe, rate, setting
        self._classifier = nn.Linear(linear.weight.shape[1], linear.weight.shape[0])
        with torch.no_grad():
            self._classifier.weight.copy_(torch.from_numpy(linear.weight))
            self._classifier.bias.copy_(torch.from_numpy(linear.bias))
        self.encoder.to(setting.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._classifier.to(setting.device)
        groups = list(_make_groups(self.encoder.requires_grad_(True), self._classifier, recipe.layer_decay))
        self._optimizer = torch.optim.AdamW(groups, lr=rate)
        self._data, self._tick = data, tick
        self._num_parts = math.ceil(len(data.rows) / BATCH_SIZE)
        self._step = 0

    def linear(self) -> Linear:
        """The classifier that learns along, as it is now."""
        weight, bias = (p.detach().cpu().numpy().copy() for p in self._classifier.parameters())
        return Linear(weight, bias)

    def advance(self) -> float:
        """Train for an epoch; the mean loss of its images, NaN if weights or statistics are not finite after it.

        The host waits once, at the end.
        """
        self.encoder.train()
        epoch = self._step // self._num_parts
        key = make_key(self.setting.seed, "finetune order", index=epoch)
        order = np.random.default_rng(key).permutation(len(self._data.rows))
        losses = [
            self._make_step(part) * len(part)
            # Even parts: BatchNorm could do nothing with a single image.
            for part in np.array_split(order, self._num_parts)
        ]
        self.encoder.eval()
        self._tick()
        state = self.encoder.state_dict().values()
        finite = all(bool(value.isfinite().all()) for value in state)
        return float(torch.stack(losses).sum()) / len(order) if finite else math.nan

    def _make_step(self, part: Int64[np.ndarray, " batch"]) -> Float[Tensor, ""]:
        self._set_lr()
        setting = self.setting
        view = self._make_view(self._data.rows[part])
        truth = torch.from_numpy(self._data.labels[part]).to(setting.device)
        torch.manual_seed(make_key(setting.seed, "finetune network", index=self._step))  # dropout
        autocast = torch.autocast(setting.device.type, setting.dtype, enabled=setting.dtype != torch.float32)
        with constant_weights():
            with autocast:
                logits = self._classifier(self.encoder(view))
            loss = F.cross_entropy(logits.float(), truth, label_smoothing=SMOOTHING)
            loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._step += 1
        return loss.detach()

    def _make_view(self, rows: Int64[np.ndarray, " batch"]) -> Float[Tensor, "batch channel view view"]:
        images, setting = self._data.images, self.setting
        squares = torch.from_numpy(images.read(rows)).permute(0, 3, 1, 2).to(setting.device)
        return make_view(
            squares,
            torch.from_numpy(images.sizes[rows].astype(np.float32)),
            setting.transforms,
            key=make_key(setting.seed, "finetune views", index=self._step),
            pixels=setting.spec.pixels,
        )

    def _set_lr(self) -> None:
        total = self._num_parts * self.recipe.epochs
        warm = max(1, round(_WARM_SHARE * total))
        share = min((self._step + 1) / warm, 0.5 * (1.0 + math.cos(math.pi * self._step / total)))
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate * share * group["lr_scale"]


class _Grouped(nn.Module):
    """What timm wants to know of a model to divide it into layers."""

    pretrained_cfg = {"classifier": "classifier"}  # noqa: RUF012

    def __init__(self, encoder: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.encoder, self.classifier = encoder, classifier


def _make_groups(encoder: nn.Module, classifier: nn.Linear, layer_decay: float) -> Iterator[dict[str, Any]]:
    """Parameter groups with a share `lr_scale` of the learning rate: of a timm model by its blocks.

    Models that do not say what their blocks are (torchvision's) are cut into runs of 12 parameters.
    """
    if not hasattr(encoder, "group_matcher"):
        yield from param_groups_layer_decay(
            _Grouped(encoder, classifier), WEIGHT_DECAY, layer_decay=layer_decay
        )
        return
    known: Any = encoder
    without = known.no_weight_decay() if hasattr(encoder, "no_weight_decay") else ()
    for group in param_groups_layer_decay(encoder, WEIGHT_DECAY, without, layer_decay=layer_decay):
        yield {**group, "lr_scale": layer_decay * group["lr_scale"]}
    yield {"params": [classifier.weight], "weight_decay": WEIGHT_DECAY, "lr_scale": 1.0}
    yield {"params": [classifier.bias], "weight_decay": 0.0, "lr_scale": 1.0}
