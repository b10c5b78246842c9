"""Encoder, projector, predictor; `Byol` = an online and a target branch, the loss between them, the average.

    online:  images -> encoder f -> representation y -> projector g -> projection z -> predictor q -> q(z)
    target:  images -> encoder   -> representation   -> projector   -> projection z'

Equation numbers are those of arXiv 2006.07733.
"""

import copy
import difflib
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from byol.base.errors import ConfigError
from byol.config import Config
from byol.kernels.convolution import accelerate
from byol.kernels.normalisation import fuse_norms
from byol.kernels.onednn_faults import avoid_faults

SMALL_VIEW_PX = 64  # at most: "auto" gives a ResNet the small stem, as its standard one divides the size by 4
# ResNets: timm starts a block's last norm at gamma 0. After 14,500 CIFAR-10 images BYOL then had kNN 26.7 %
# against 32.8 % with gamma 1 (untrained 31.3 %).
ZERO_INIT_LAST = False
_STRIDES = {"small": (1, 1), "strided": (2, 2)}  # of the first convolution, by the stem


def byol_loss(
    prediction: Float[Tensor, "batch dim"], target_projection: Float[Tensor, "batch dim"]
) -> Float[Tensor, " batch"]:
    """2 - 2 cos(q(z), z') of each image, eq. 2 for one direction: 0 equal, 2 orthogonal, 4 opposite.

    Computed in float32, whatever autocast says.
    """
    return 2.0 - 2.0 * F.cosine_similarity(prediction.float(), target_projection.float(), dim=-1)


class Branch(nn.Module):
    """Encoder and projector, the part that online and target network have in common."""

    def __init__(self, encoder: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch dim"]:
        """The projection z of each image."""
        return cast(Tensor, self.projector(self.encoder(images)))


class Byol(nn.Module):
    """Bootstrap Your Own Latent: an online network learns to predict a slow average of itself.

    Works alone, with any module that turns images into vectors of `num_features`:

        learner = Byol(encoder, num_features=512, hidden_size=4096, projection_size=256)
        optimizer = torch.optim.SGD((p for p in learner.parameters() if p.requires_grad), lr=0.1)
        for view1, view2 in loader:  # two random views of the same images, each (batch, channel, px, px)
            loss, _ = learner(view1, view2)
            loss.backward(); optimizer.step(); optimizer.zero_grad()
            learner.update_target(tau=0.99)

    `learner.online.encoder` is the encoder trained so far. The target starts as a copy of online and gets no
    gradient; its BatchNorm normalises by the batch, as online's does.
    """

    def __init__(
        self, encoder: nn.Module, *, num_features: int, hidden_size: int, projection_size: int
    ) -> None:
        super().__init__()
        self.online = Branch(encoder, _mlp(num_features, hidden_size, projection_size))
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.predictor = _mlp(projection_size, hidden_size, projection_size)

    @classmethod
    def of(cls, config: Config, *, channels: int, seed_key: int) -> "Byol":
        """The networks of a configuration, their first weights a function of `seed_key` alone.

        Raises:
            ConfigError: an unknown encoder, or one that cannot take such a stem or such images.
        """
        network, view_px = config.network, config.view_px
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which seeds the generators of GPUs as well.
            torch.default_generator.manual_seed(seed_key)
            stem = resolve_stem(network.stem, name=network.name, view_px=view_px)
            encoder = build_encoder(network.name, channels=channels, view_px=view_px, stem=stem)
            byol = cls(
                encoder,
                num_features=count_features(encoder, channels=channels, view_px=view_px),
                hidden_size=network.projection_head.mlp_hidden_size,
                projection_size=network.projection_head.projection_size,
            )
        return fuse_norms(accelerate(byol)) if config.trainer.convolution == "fast" else byol

    def forward(
        self,
        view1: Float[Tensor, "batch channel height width"],
        view2: Float[Tensor, "batch channel height width"],
        *,
        symmetric: bool = True,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "batch dim"]]:
        """The symmetric loss, eq. 2 in both directions, mean over images (0..8); the projection z of view1.

        Not `symmetric`: one direction alone, view2 predicted from view1 (0..4). The other one is had by
        exchanging the views; both add up to the same loss and gradients, and with a backward pass after each
        the activations of one view are in memory at a time.
        Both values are float32, the projection without gradient. Each view passes each network on its own, so
        that BatchNorm sees one view at a time.
        """
        with torch.no_grad():  # first: online's activations do not wait in memory
            target1 = self.target(view1) if symmetric else None
            target2 = self.target(view2)
        projection1 = self.online(view1)
        loss = byol_loss(self.predictor(projection1), target2)
        if target1 is not None:
            loss = loss + byol_loss(self.predictor(self.online(view2)), target1)
        return loss.mean(), projection1.detach().float()

    @torch.no_grad()
    def update_target(self, tau: float) -> None:
        """target <- tau * target + (1 - tau) * online, once per optimizer step: parameters, no buffers."""
        target: list[Tensor] = [*self.target.parameters()]
        online: list[Tensor] = [*self.online.parameters()]
        torch._foreach_lerp_(target, online, 1.0 - tau)


def _mlp(num_in: int, hidden_size: int, num_out: int) -> nn.Sequential:
    """Projector and predictor: linear, BatchNorm, ReLU, linear (section 3.3); no norm at the end."""
    return nn.Sequential(
        nn.Linear(num_in, hidden_size),
        nn.BatchNorm1d(hidden_size),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_size, num_out),
    )


# ---- Encoders. timm and torchvision are loaded on use: `Byol` with one's own encoder needs neither.


def build_encoder(name: str, *, channels: int, view_px: int, stem: str) -> nn.Module:
    """A timm or else torchvision model without its classifier: images -> (batch, features); random weights.

    `stem` is "standard", "small" (3x3, stride 1, no max-pool) or "strided" (3x3, stride 2, no max-pool); the
    last two need a ResNet and keep the state-dict keys. Of a deep stem (three 3x3 layers) only the stride of
    the first changes. Weights are drawn from torch's global generator.

    Raises:
        ConfigError: unknown name, a model without such a stem, or one that cannot be made for such images.
    """
    import timm

    check_name(name)
    try:
        if timm.is_model(name):
            encoder = _create_timm(name, channels=channels, view_px=view_px)
        else:
            encoder = _create_torchvision(name, channels=channels, view_px=view_px)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"network.name: '{name}' cannot be built for {channels} channels and {view_px} px: "
            f"{_one_line(error)}; choose another model or data_transforms.input_shape"
        ) from error
    if stem != "standard":
        _replace_stem(encoder, name=name, stem=stem)
    return avoid_faults(encoder)


def check_name(name: str) -> None:
    """Refuse a name that is none of a model and not "auto", before anything is made for it.

    Raises:
        ConfigError: with the nearest name.
    """
    import timm

    if name != "auto" and not timm.is_model(name) and name not in _torchvision_names():
        raise ConfigError(f"network.name: '{name}' is unknown to timm and torchvision{_guess(name)}")


def resolve_stem(stem: str, *, name: str, view_px: int) -> str:
    """What "auto" means: "small" for a ResNet with views of at most 64 px, otherwise "standard"."""
    import timm

    if stem != "auto":
        return stem
    if view_px > SMALL_VIEW_PX or not timm.is_model(name) or not _is_timm_resnet(name):
        return "standard"
    # On the meta device nothing is allocated, and no random number is drawn.
    with torch.device("meta"):
        encoder = _create_timm(name.partition(".")[0], channels=3, view_px=view_px)
    return "small" if _find_stem(encoder) is not None else "standard"


def count_features(encoder: nn.Module, *, channels: int, view_px: int) -> int:
    """The length of a representation, by a dry run on one image of zeros.

    BatchNorm statistics, training modes and the global generator stay as they were.

    Raises:
        ConfigError: the encoder fails on such an image, or does not give one vector per image.
    """
    modes = {module: module.training for module in encoder.modules()}
    parameter = next(encoder.parameters(), torch.empty(0))
    images = parameter.new_zeros(1, channels, view_px, view_px)
    what = f"network.name: the encoder, given images of {channels} channels and {view_px} px,"
    try:
        with torch.no_grad():
            features = encoder.eval()(images)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{what} fails: {_one_line(error)}; choose another model or data_transforms.input_shape"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not isinstance(features, Tensor) or features.ndim != 2:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ConfigError(f"{what} gives {shape}, not one vector per image; choose another model")
    return features.shape[1]


def _create_timm(name: str, *, channels: int, view_px: int) -> nn.Module:
    import timm

    if _is_timm_resnet(name):
        return timm.create_model(name, num_classes=0, in_chans=channels, zero_init_last=ZERO_INIT_LAST)
    pretrained = timm.get_pretrained_cfg(name)
    if pretrained is not None and pretrained.fixed_input_size:
        return timm.create_model(name, num_classes=0, in_chans=channels, img_size=view_px)
    return timm.create_model(name, num_classes=0, in_chans=channels)


def _is_timm_resnet(name: str) -> bool:
    import timm

    return bool(timm.models.is_model_in_modules(name, {"resnet"}))


def _torchvision_names() -> list[str]:
    import torchvision

    return cast(list[str], torchvision.models.list_models(module=torchvision.models))


def _create_torchvision(name: str, *, channels: int, view_px: int) -> nn.Module:
    import torchvision

    if name.startswith("vit_"):
        network = torchvision.models.get_model(name, weights=None, image_size=view_px)
    elif name == "googlenet":  # without its extra classifiers, which make it give a tuple in training
        network = torchvision.models.get_model(
            name, weights=None, aux_logits=False, dropout=0.0, init_weights=False
        )
    else:
        network = torchvision.models.get_model(name, weights=None)
    _remove_classifier(network)
    if channels != 3:
        path, first = next((p, m) for p, m in network.named_modules() if isinstance(m, nn.Conv2d))
        _set_module(network, path, _like(first, channels, first.kernel_size, first.stride, first.padding))
    return cast(nn.Module, network)


def _remove_classifier(network: nn.Module) -> None:
    """The last layer with weights, and dropout before it, become identities."""
    head = next(name for name in ("fc", "classifier", "heads", "head") if hasattr(network, name))
    layers = [
        (f"{head}.{path}".rstrip("."), layer) for path, layer in network.get_submodule(head).named_modules()
    ]
    last = [path for path, layer in layers if isinstance(layer, nn.Linear | nn.Conv2d)][-1]
    for path in [last, *(path for path, layer in layers if isinstance(layer, nn.Dropout))]:
        _set_module(network, path, nn.Identity())


def _find_stem(encoder: nn.Module) -> str | None:
    """Where a ResNet's first convolution is: 7x7, or the first of a deep stem's three; None without one."""
    if not isinstance(getattr(encoder, "maxpool", None), nn.MaxPool2d):
        return None
    first = getattr(encoder, "conv1", None)
    deep = isinstance(first, nn.Sequential)
    path = "conv1.0" if deep else "conv1"
    kernel_size = getattr(encoder.get_submodule(path), "kernel_size", None) if first is not None else None
    return path if kernel_size == ((3, 3) if deep else (7, 7)) else None


def stem_of(encoder: nn.Module) -> str:
    """The stem that `build_encoder` gave an encoder: "standard", "small" or "strided"."""
    first = getattr(encoder, "conv1", None)
    if first is None or not isinstance(getattr(encoder, "maxpool", None), nn.Identity):
        return "standard"
    first = first[0] if isinstance(first, nn.Sequential) else first
    return next((stem for stem, stride in _STRIDES.items() if stride == first.stride), "standard")


def _replace_stem(encoder: nn.Module, *, name: str, stem: str) -> None:
    path = _find_stem(encoder)
    if path is None:
        raise ConfigError(
            f"network.stem: '{stem}' needs a ResNet with a max-pool after its first convolution, but "
            f"'{name}' has none; set network.stem=standard"
        )
    stride = _STRIDES[stem]
    first = cast(nn.Conv2d, encoder.get_submodule(path))
    _set_module(encoder, path, _like(first, first.in_channels, (3, 3), stride, (1, 1)))
    encoder.maxpool = nn.Identity()


def _like(
    layer: nn.Conv2d,
    channels: int,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    padding: str | tuple[int, ...],
) -> nn.Conv2d:
    """A convolution of another shape in the place of `layer`, initialised as ResNets are (He, fan-out)."""
    assert layer.groups == 1
    new = nn.Conv2d(
        channels,
        layer.out_channels,
        cast(tuple[int, int], kernel_size),
        cast(tuple[int, int], stride),
        cast(tuple[int, int] | str, padding),
        bias=layer.bias is not None,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    return new


def _set_module(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(network.get_submodule(parent), leaf, module)


def _guess(name: str) -> str:
    import timm

    near = difflib.get_close_matches(name, [*timm.list_models(), *_torchvision_names()], n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else "; `timm.list_models()` lists the names"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
