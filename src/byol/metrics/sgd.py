"""Train a linear classifier with minibatch SGD, for training sets on which L-BFGS takes too long."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor

from byol.metrics.folds import Validation
from byol.metrics.probes import Labels, Prediction, Scaler, Test, Train, draw, rank, standardise

LEARNING_RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # for batches of 256

_EPOCHS = 20
_BATCH = 256
_MOMENTUM = 0.9
SWEEP_ROWS = 50_000  # images that learning rates are compared on
_BLOCK = 4096  # test images scored at once


def sgd(
    train: Train,
    labels: Labels,
    *,
    test: Test,
    seed: int,
    groups: Labels | None = None,
    scale: Scaler = standardise,
) -> Prediction:
    """Multinomial logistic regression by SGD: Nesterov momentum 0.9, cosine decay to 0, 20 epochs, batch 256.

    The learning rate is chosen on a validation split; the classifier is then retrained on all training
    images. There is no penalty: the short schedule regularises.
    """
    train, test = scale(train, test)
    lr = choose_sgd(train, labels, seed=seed, groups=groups)
    classes, index = np.unique(labels, return_inverse=True)
    weights, biases = train_classifiers(train, index, lrs=(lr,), num_classes=len(classes), seed=seed)
    blocks = (test[first : first + _BLOCK] for first in range(0, len(test), _BLOCK))
    ranked = [rank(_score(block, weights, biases)[0].numpy(), classes) for block in blocks]
    return Prediction(np.concatenate(ranked), {"lr": lr})


def choose_sgd(train: Train, labels: Labels, *, seed: int, groups: Labels | None = None) -> float:
    """Return the learning rate with the highest top-1 on a validation split; ties go to the smallest.

    All rates train side by side on the same batches. Above 50,000 training images, 50,000 drawn with `seed`
    are used for training and validation together.
    """
    if len(train) > SWEEP_ROWS:
        drawn = draw(len(train), SWEEP_ROWS, seed=seed)
        train, labels = train[drawn], labels[drawn]
        groups = None if groups is None else groups[drawn]
    part = Validation.of(labels, seed=seed, groups=groups)
    classes, index = np.unique(labels, return_inverse=True)
    heads = train_classifiers(
        train[part.fit], index[part.fit], lrs=LEARNING_RATES, num_classes=len(classes), seed=seed
    )
    num_right = np.zeros(len(LEARNING_RATES), dtype=np.int64)
    for first in range(0, len(part.held_out), _BLOCK):
        rows = part.held_out[first : first + _BLOCK]
        predicted = _score(train[rows], *heads).argmax(dim=2).numpy()
        num_right += (predicted == index[rows]).sum(axis=1)
    return LEARNING_RATES[int(num_right.argmax())]


def train_classifiers(
    train: Train, index: Labels, *, lrs: Sequence[float], num_classes: int, seed: int
) -> tuple[Float[Tensor, "rate klass feature"], Float[Tensor, "rate 1 klass"]]:
    """Train one classifier per learning rate, starting from zeros; return their weights and biases."""
    features, truth = torch.from_numpy(np.ascontiguousarray(train)), torch.from_numpy(index)
    weights = [torch.zeros(num_classes, train.shape[1], requires_grad=True) for _ in lrs]
    biases = [torch.zeros(1, num_classes, requires_grad=True) for _ in lrs]
    heads = [{"params": pair, "lr": lr} for *pair, lr in zip(weights, biases, lrs, strict=True)]
    optimizer = torch.optim.SGD(heads, momentum=_MOMENTUM, nesterov=True)
    num_steps = _EPOCHS * -(-len(features) // _BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(_EPOCHS):
        for batch in torch.split(torch.randperm(len(features), generator=generator), _BATCH):
            logits = _score(features[batch], torch.stack(weights), torch.stack(biases))
            wanted = truth[batch].expand(len(lrs), -1)
            loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten()) * len(lrs)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return torch.stack(weights).detach(), torch.stack(biases).detach()


def _score(
    features: Float32[np.ndarray, "image feature"] | Float[Tensor, "image feature"],
    weights: Float[Tensor, "rate klass feature"],
    biases: Float[Tensor, "rate 1 klass"],
) -> Float[Tensor, "rate image klass"]:
    return torch.baddbmm(biases, torch.as_tensor(features).expand(len(weights), -1, -1), weights.mT)
