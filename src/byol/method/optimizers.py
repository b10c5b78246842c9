"""SGD, LARS and AdamW, with biases and normalisation parameters in a group of their own."""

from typing import Any

import torch
from timm.optim.lars import Lars
from torch import nn

from byol.config import OptimizerConfig
from byol.method.schedule import Plan

TRUST = 0.001  # LARS, eta of arXiv 1708.03888 and of the paper
_ENCODER = "apart"  # marks the encoder's parameter groups; checkpoints hold the word


def build_optimizer(
    byol: nn.Module, config: OptimizerConfig, *, plan: Plan, encoder: nn.Module | None = None
) -> torch.optim.Optimizer:
    """The optimizer of every parameter that takes a gradient: online network and predictor, never the target.

    Two groups: matrices and kernels with weight decay; parameters of one dimension (biases, normalisation)
    without, and without LARS adaptation. For gradient g, decay d, momentum m and weights w:

        sgd    v = m v + (g + d w);                              w -= lr v
        lars   v = m v + 0.001 |w| / (|g| + d |w|) (g + d w);    w -= lr v    (arXiv 1708.03888, eq. 6)
        adamw  arXiv 1711.05101, algorithm 2, with the first beta m and the second 0.999

    With `encoder`, a submodule of `byol`, its parameters are two groups of their own, for `set_lr`.

    The authors' code of BYOL divides by |g + d w|; at the paper's decay of about 1e-6 the two are alike.
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
    # timm does not adapt where weight decay is 0: wanted for vectors, not for matrices.
    for group in groups[::2]:
        group["always_adapt"] = True
    lars: torch.optim.Optimizer = Lars(groups, lr=lr, momentum=momentum, trust_coeff=TRUST)
    return lars


def set_lr(optimizer: torch.optim.Optimizer, lr: float, *, encoder_share: float = 1.0) -> None:
    """Give every group this learning rate, the encoder's own groups the share `encoder_share` of it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * encoder_share if group.get(_ENCODER) else lr


def _group(parameters: list[nn.Parameter], *, plan: Plan) -> list[dict[str, Any]]:
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": plan.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
