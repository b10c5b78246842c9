"""The networks of BYOL: encoder, projector and predictor; online and target branch; loss and target update.

    online:  images -> encoder f -> representation y -> projector g -> projection z -> predictor q -> q(z)
    target:  images -> encoder   -> representation   -> projector   -> projection z'

Equation and section numbers refer to arXiv 2006.07733.
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
from byol.device.ranks import at_least_fp32, gather
from byol.kernels.convolution import accelerate
from byol.kernels.normalisation import fuse_norms
from byol.kernels.onednn_faults import avoid_faults

SMALL_VIEW_PX = 64  # largest view with the small stem for "auto"; the standard stem divides the size by 4
# timm initialises gamma of the last norm in a ResNet block with 0. After 14,500 CIFAR-10 images, BYOL then
# had a kNN accuracy of 26.7 %, but 32.8 % with gamma 1 (untrained: 31.3 %).
ZERO_INIT_LAST = False
_VARIANCE_EPS, _COVARIANCE_WEIGHT = 1e-4, 0.04  # of VICReg's terms
_STRIDES = {"small": (1, 1), "strided": (2, 2)}  # stride of the first convolution, by stem


def byol_loss(
    prediction: Float[Tensor, "batch dim"], target_projection: Float[Tensor, "batch dim"]
) -> Float[Tensor, " batch"]:
    """Return 2 - 2 cos(q(z), z') of each image (eq. 2, one direction): 0 equal, 2 orthogonal, 4 opposite.

    It is computed in float32, also under autocast.
    """
    return 2.0 - 2.0 * F.cosine_similarity(prediction.float(), target_projection.float(), dim=-1)


def vicreg_penalty(projection: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """Return VICReg's variance term plus 0.04 times its covariance term (arXiv 2105.04906, eq. 1 to 4).

    The first is large if projections hardly differ between images, the second if their components say the
    same. 0.04 is the ratio of the weights there. With several ranks, the images are those of all ranks. It
    is computed in float32, also under autocast.
    """
    with torch.autocast(projection.device.type, enabled=False):
        centred = gather(at_least_fp32(projection))
        centred = centred - centred.mean(dim=0)
        num, dim = centred.shape
        covariance = centred.T @ centred / (num - 1)
        variances = covariance.diagonal()
        variance_term = torch.relu(1.0 - (variances + _VARIANCE_EPS).sqrt()).mean()
        covariance_term = (covariance.square().sum() - variances.square().sum()) / dim
    return variance_term + _COVARIANCE_WEIGHT * covariance_term


class Branch(nn.Module):
    """Encoder and projector: the layers that both the online and the target network have."""

    def __init__(self, encoder: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch dim"]:
        """Return the projection z of each image."""
        return cast(Tensor, self.projector(self.encoder(images)))


class Byol(nn.Module):
    """Bootstrap Your Own Latent: an online network learns to predict a moving average of itself.

    It works with any module that maps images to vectors of length `num_features`:

        learner = Byol(encoder, num_features=512, hidden_size=4096, projection_size=256)
        optimizer = torch.optim.SGD((p for p in learner.parameters() if p.requires_grad), lr=0.1)
        for view1, view2 in loader:  # two random views of the same images, each (batch, channel, px, px)
            loss, _ = learner(view1, view2)
            loss.backward(); optimizer.step(); optimizer.zero_grad()
            learner.update_target(tau=0.99)

    `learner.online.encoder` is the trained encoder. The target network starts as a copy of the online network
    and gets no gradient. Its BatchNorm uses batch statistics, like that of the online network.
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
        """Build the networks of a configuration. Their random weights depend only on `seed_key`.

        Raises:
            ConfigError: the encoder is unknown, or does not accept the stem or the images.
        """
        network, view_px = config.network, config.view_px
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would also seed the generators of GPUs.
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
        vicreg_weight: float = 0.0,
        target: Float[Tensor, "batch dim"] | None = None,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "batch dim"]]:
        """Return the symmetric loss (eq. 2, both directions; mean over images, 0..8), and z of view1.

        Without `symmetric`, compute one direction: view2 is predicted from view1 (0..4). Exchange the views
        for the other. The sum has the same value and gradients; with a backward pass after each direction,
        memory holds the activations of only one view. Both results are float32; the projection has no
        gradient. Each network processes one view at a time, so BatchNorm sees the views separately.

        `vicreg_weight`: weight of `vicreg_penalty` of each online projection. It adds to the gradients of the
        loss, and not to its value, so that the loss remains that of BYOL. `target`: what the target network
        returns for view2, if it was computed before.
        """
        with torch.no_grad():  # before the online network, whose activations stay in memory
            target1 = self.target(view1) if symmetric else None
            target2 = self.target(view2) if target is None else target
        projection1 = self.online(view1)
        loss = self._loss(projection1, target2, vicreg_weight)
        if target1 is not None:
            loss = loss + self._loss(self.online(view2), target1, vicreg_weight)
        return loss, projection1.detach().float()

    def _loss(self, projection: Tensor, target: Tensor, vicreg_weight: float) -> Float[Tensor, ""]:
        loss = byol_loss(self.predictor(projection), target).mean()
        if vicreg_weight == 0.0:
            return loss
        penalty = vicreg_penalty(projection)
        return loss + vicreg_weight * (penalty - penalty.detach())

    @torch.no_grad()
    def update_target(self, tau: float) -> None:
        """Set target to tau * target + (1 - tau) * online, after an optimizer step. Buffers do not change."""
        target: list[Tensor] = [*self.target.parameters()]
        online: list[Tensor] = [*self.online.parameters()]
        torch._foreach_lerp_(target, online, 1.0 - tau)


def _mlp(num_in: int, hidden_size: int, num_out: int) -> nn.Sequential:
    """Return a projector or predictor: linear, BatchNorm, ReLU, linear (section 3.3), without a last norm."""
    return nn.Sequential(
        nn.Linear(num_in, hidden_size),
        nn.BatchNorm1d(hidden_size),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_size, num_out),
    )


# ---- Encoders. timm and torchvision are imported on use, because `Byol` with your own encoder needs neither.


def build_encoder(name: str, *, channels: int, view_px: int, stem: str) -> nn.Module:
    """Build a timm or torchvision model without classifier, with random weights: images -> (batch, features).

    `stem` is "standard", "small" (3x3, stride 1, no max-pool) or "strided" (3x3, stride 2, no max-pool). The
    last two need a ResNet and do not change the state-dict keys. In a deep stem (three 3x3 layers) only the
    stride of the first layer changes. Weights are drawn from torch's global generator.

    Raises:
        ConfigError: the name is unknown, or the model has no such stem or does not accept such images.
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
    """Refuse an unknown model name that is not "auto".

    Raises:
        ConfigError: the name is unknown; the message suggests the nearest name.
    """
    import timm

    if name != "auto" and not timm.is_model(name) and name not in _torchvision_names():
        raise ConfigError(f"network.name: '{name}' is unknown to timm and torchvision{_guess(name)}")


def resolve_stem(stem: str, *, name: str, view_px: int) -> str:
    """Replace "auto" by "small" for a ResNet with views of at most 64 px, otherwise by "standard"."""
    import timm

    if stem != "auto":
        return stem
    if view_px > SMALL_VIEW_PX or not timm.is_model(name) or not _is_timm_resnet(name):
        return "standard"
    # The meta device allocates no memory and draws no random numbers.
    with torch.device("meta"):
        encoder = _create_timm(name.partition(".")[0], channels=3, view_px=view_px)
    return "small" if _find_stem(encoder) is not None else "standard"


def count_features(encoder: nn.Module, *, channels: int, view_px: int) -> int:
    """Return the number of features, found by a forward pass of one image of zeros.

    BatchNorm statistics, training modes and the global generator do not change.

    Raises:
        ConfigError: the encoder fails on the image, or does not return one vector per image.
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
    elif name == "googlenet":  # without its auxiliary classifiers, with which it returns a tuple in training
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
    """Replace the last layer with weights, and dropout before it, by identities."""
    head = next(name for name in ("fc", "classifier", "heads", "head") if hasattr(network, name))
    layers = [
        (f"{head}.{path}".rstrip("."), layer) for path, layer in network.get_submodule(head).named_modules()
    ]
    last = [path for path, layer in layers if isinstance(layer, nn.Linear | nn.Conv2d)][-1]
    for path in [last, *(path for path, layer in layers if isinstance(layer, nn.Dropout))]:
        _set_module(network, path, nn.Identity())


def _find_stem(encoder: nn.Module) -> str | None:
    """Return the path of a ResNet's first convolution (7x7, or first of a deep stem); None: there is none."""
    if not isinstance(getattr(encoder, "maxpool", None), nn.MaxPool2d):
        return None
    first = getattr(encoder, "conv1", None)
    deep = isinstance(first, nn.Sequential)
    path = "conv1.0" if deep else "conv1"
    kernel_size = getattr(encoder.get_submodule(path), "kernel_size", None) if first is not None else None
    return path if kernel_size == ((3, 3) if deep else (7, 7)) else None


def stem_of(encoder: nn.Module) -> str:
    """Return the stem that `build_encoder` gave an encoder: "standard", "small" or "strided"."""
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
    """Return a convolution of another shape to replace `layer`, initialised as in ResNets (He, fan-out)."""
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
