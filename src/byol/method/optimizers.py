"""SGD, LARS and AdamW, with a separate group for biases and normalisation parameters."""

from typing import Any

import torch
from timm.optim.lars import Lars
from torch import nn

from byol.config import OptimizerConfig
from byol.method.schedule import Plan

TRUST = 0.001  # trust coefficient of LARS: eta of arXiv 1708.03888 and of the BYOL paper
_ENCODER = "apart"  # key that marks the parameter groups of the encoder; checkpoints contain it


def build_optimizer(
    byol: nn.Module, config: OptimizerConfig, *, plan: Plan, encoder: nn.Module | None = None
) -> torch.optim.Optimizer:
    """Build the optimizer of online network and predictor (all parameters that require a gradient).

    There are two groups: matrices and kernels have weight decay; biases and normalisation parameters have
    neither weight decay nor LARS adaptation. For gradient g, weight decay d, momentum m and weights w:

        sgd    v = m v + (g + d w);                              w -= lr v
        lars   v = m v + 0.001 |w| / (|g| + d |w|) (g + d w);    w -= lr v    (arXiv 1708.03888, eq. 6)
        adamw  arXiv 1711.05101, algorithm 2, with the first beta m and the second 0.999

    With `encoder`, a submodule of `byol`, the encoder's parameters are in two separate groups, for `set_lr`.

    The code of the BYOL authors divides by |g + d w|, which is nearly equal at their d of about 1e-6.
    """
    own = set() if encoder is None else set(encoder.parameters())
    parameters = [parameter for parameter in byol.parameters() if parameter.requires_grad]
    groups = _group([parameter for parameter in parameters if parameter not in own], plan=plan)
    if encoder is not None:
        theirs = _group([parameter for parameter in parameters if parameter in own], plan=plan)
        groups += [{**group, _ENCODER: True} for group in theirs]
    lr, momentum = plan.lr(0), config.params.momentum
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(momentum, 0.999))
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum)
    # timm does not adapt groups with weight decay 0. That is right for vectors, but not for matrices.
    for group in groups[::2]:
        group["always_adapt"] = True
    lars: torch.optim.Optimizer = Lars(groups, lr=lr, momentum=momentum, trust_coeff=TRUST)
    return lars


def set_lr(optimizer: torch.optim.Optimizer, lr: float, *, encoder_share: float = 1.0) -> None:
    """Set the learning rate of all groups; separate encoder groups get the fraction `encoder_share` of it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * encoder_share if group.get(_ENCODER) else lr


def _group(parameters: list[nn.Parameter], *, plan: Plan) -> list[dict[str, Any]]:
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": plan.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
