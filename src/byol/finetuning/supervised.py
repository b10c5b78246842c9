"""Supervised training of an encoder and a linear classifier on its features, one epoch at a time.

The learning rate decays from the last layer to the first; timm defines the layers. Views are mild: flips and
rotations that the run used, and crops of at least half of the area.
"""

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]
from torch import Tensor, nn

from byol.config import DataTransforms
from byol.device.devices import send_stored
from byol.encoder.classifier import Linear
from byol.encoder.spec import EncoderSpec
from byol.evaluation.splits import Split
from byol.kernels.convolution import accelerate
from byol.kernels.normalisation import fuse_norms
from byol.kernels.winograd import constant_weights
from byol.method.schedule import derive_seed
from byol.method.views import make_view

BATCH_SIZE = 64
WEIGHT_DECAY = 0.05
SMOOTHING = 0.1  # label smoothing
SYMMETRIES = ("crop_area", "crop_aspect", "flip", "vertical_flip", "turn", "rotation")  # settings in use
_WARM_SHARE = 0.1  # fraction of the steps in which the learning rate rises


@dataclass(frozen=True)
class Setting:
    """The fixed settings of a training: input, classes, device and seed."""

    spec: EncoderSpec  # how the encoder prepares images
    transforms: DataTransforms  # only `view1` is used, see `mild`
    num_classes: int
    dtype: torch.dtype  # type of the forward pass; weights are float32
    device: torch.device
    seed: int


@dataclass(frozen=True)
class Rates:
    """The learning rates of one training."""

    lr: float  # highest learning rate of the classifier
    epochs: int  # length of the training; the learning rate falls to 0 at its end
    layer_decay: float  # learning rate of a block, divided by that of the next block


class LostError(Exception):
    """A loss or a feature is not finite. A caller that tries several learning rates catches this."""


def mild(transforms: DataTransforms) -> DataTransforms:
    """Return mild views: flips, turns, rotation as before, crops of at least half of the area, nothing else.

    If all crops of the run have one size, the size of objects matters, so images are not cropped.
    """
    view = transforms.view1
    low, high = view.crop_area
    area = (1.0, 1.0) if low == high else (max(0.5, low), 1.0)
    off = ("jitter", "grey", "blur", "solarize", "invert", "noise", "channel_drop", "gamma")
    view = view.model_copy(update={"crop_area": area, **dict.fromkeys(off, 0.0)})
    return transforms.model_copy(update={"view1": view, "view2": view})


class Course:
    """One training, run epoch by epoch with AdamW; the learning rate rises and then falls along a cosine."""

    def __init__(
        self,
        start: nn.Module,
        linear: Linear,
        data: Split,
        *,
        rates: Rates,
        setting: Setting,
        tick: Callable[[], None],
    ) -> None:
        self.encoder = fuse_norms(accelerate(deepcopy(start)))
        self.rates, self.setting = rates, setting
        self._classifier = nn.Linear(linear.weight.shape[1], linear.weight.shape[0])
        with torch.no_grad():
            self._classifier.weight.copy_(torch.from_numpy(linear.weight))
            self._classifier.bias.copy_(torch.from_numpy(linear.bias))
        self.encoder.to(setting.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._classifier.to(setting.device)
        groups = list(
            make_parameter_groups(self.encoder.requires_grad_(True), self._classifier, rates.layer_decay)
        )
        self._optimizer = torch.optim.AdamW(groups, lr=rates.lr)
        self._data, self._tick = data, tick
        self._num_batches = math.ceil(len(data.rows) / BATCH_SIZE)
        self._step = 0

    def linear(self) -> Linear:
        """Return the classifier that is trained with the encoder, in its current state."""
        weight, bias = (p.detach().cpu().numpy().copy() for p in self._classifier.parameters())
        return Linear(weight, bias)

    def advance(self) -> float:
        """Train for one epoch and return the mean loss of its images; LostError if that is not finite.

        It waits for the device once, at the end.
        """
        self.encoder.train()
        epoch = self._step // self._num_batches
        key = derive_seed(self.setting.seed, "finetune order", index=epoch)
        order = np.random.default_rng(key).permutation(len(self._data.rows))
        losses = [
            self._make_step(batch) * len(batch)
            # Batches of nearly equal size: BatchNorm cannot train on a single image.
            for batch in np.array_split(order, self._num_batches)
        ]
        self.encoder.eval()
        self._tick()
        loss = float(torch.stack(losses).sum()) / len(order)
        if not math.isfinite(loss):
            raise LostError
        return loss

    def _make_step(self, batch: Int64[np.ndarray, " batch"]) -> Float[Tensor, ""]:
        self._set_lr()
        setting = self.setting
        view = self._make_view(self._data.rows[batch])
        truth = torch.from_numpy(self._data.labels[batch]).to(setting.device)
        torch.manual_seed(derive_seed(setting.seed, "finetune network", index=self._step))  # dropout
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
        squares = send_stored(torch.from_numpy(images.read(rows)), setting.device).permute(0, 3, 1, 2)
        return make_view(
            squares,
            torch.from_numpy(images.sizes[rows].astype(np.float32)),
            setting.transforms,
            key=derive_seed(setting.seed, "finetune views", index=self._step),
            pixels=setting.spec.pixels,
        )

    def _set_lr(self) -> None:
        total = self._num_batches * self.rates.epochs
        warm = max(1, round(_WARM_SHARE * total))
        share = min((self._step + 1) / warm, 0.5 * (1.0 + math.cos(math.pi * self._step / total)))
        for group in self._optimizer.param_groups:
            group["lr"] = self.rates.lr * share * group["lr_scale"]


class _Grouped(nn.Module):
    """The interface that timm needs to divide a model into layers."""

    pretrained_cfg = {"classifier": "classifier"}  # noqa: RUF012

    def __init__(self, encoder: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.encoder, self.classifier = encoder, classifier


def make_parameter_groups(
    encoder: nn.Module, classifier: nn.Linear, layer_decay: float
) -> Iterator[dict[str, Any]]:
    """Yield parameter groups, each with a fraction `lr_scale` of the learning rate: a group per timm block.

    Models without named blocks (torchvision) are divided into groups of 12 successive parameters.
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
