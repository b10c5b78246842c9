"""Optimizers against their closed formulas, over several steps."""

import pytest
import torch
from torch import Tensor, nn

from byol.config import load_config
from byol.method.optimizers import build_optimizer, set_lr
from byol.method.schedule import Plan

LR, MOMENTUM = 0.3, 0.8


def make_network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2, bias=False))
    network.add_module("frozen", nn.Linear(2, 2).requires_grad_(False))
    return network


def make_optimizer(network: nn.Module, name: str, weight_decay: float) -> torch.optim.Optimizer:
    overrides = [
        f"optimizer.name={name}",
        f"optimizer.params.lr={LR}",
        f"optimizer.params.momentum={MOMENTUM}",
        f"optimizer.params.weight_decay={weight_decay}",
        "optimizer.warmup_epochs=0",
        "optimizer.scale_lr=false",
    ]
    config = load_config(None, overrides, preset="demo")
    return build_optimizer(network, config.optimizer, plan=Plan.of(config, num_images=64))


def gradients(step: int, shape: torch.Size) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(step))


def test_groups_split_by_dimension_and_leave_frozen_parameters_out() -> None:
    network = make_network()
    decayed, plain = make_optimizer(network, "sgd", 0.1).param_groups
    assert [p.shape for p in decayed["params"]] == [(3, 4), (2, 3)] and decayed["weight_decay"] == 0.1
    assert [p.shape for p in plain["params"]] == [(3,), (3,), (3,)] and plain["weight_decay"] == 0.0


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_four_steps_follow_the_formula(name: str, weight_decay: float) -> None:
    """LARS adapts kernels even without weight decay, and never vectors; to 1e-6."""
    network = make_network()
    optimizer = make_optimizer(network, name, weight_decay)
    parameters = [p for p in network.parameters() if p.requires_grad]
    expected = [p.detach().clone() for p in parameters]
    velocity = [torch.zeros_like(p) for p in parameters]
    for step in range(4):
        lr = LR / (step + 1)
        for i, w in enumerate(expected):
            update = gradients(step, w.shape)
            if w.ndim > 1:
                trust = 0.001 * w.norm() / (update.norm() + weight_decay * w.norm())
                update = (update + weight_decay * w) * (trust if name == "lars" else 1.0)
            velocity[i] = MOMENTUM * velocity[i] + update
            expected[i] = w - lr * velocity[i]
        for parameter in parameters:
            parameter.grad = gradients(step, parameter.shape)
        set_lr(optimizer, lr)
        optimizer.step()
    for parameter, value in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value, atol=1e-6, rtol=1e-5)


def test_adamw_decays_kernels_only_and_uses_the_momentum() -> None:
    network = make_network()
    optimizer = make_optimizer(network, "adamw", 0.5)
    assert all(group["betas"] == (MOMENTUM, 0.999) for group in optimizer.param_groups)
    kernel, bias = network[0].weight, network[0].bias
    before_kernel, before_bias = kernel.detach().clone(), bias.detach().clone()
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    torch.testing.assert_close(kernel.detach(), before_kernel * (1 - LR * 0.5))
    assert torch.equal(bias.detach(), before_bias)


def test_lars_leaves_a_kernel_of_zeros_to_plain_sgd() -> None:
    """|w| = 0 gives no scale; the trust ratio is 1 there, as in the reference."""
    network = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(network.weight)
    optimizer = make_optimizer(network, "lars", 0.0)
    network.weight.grad = torch.ones(2, 2)
    optimizer.step()
    torch.testing.assert_close(network.weight.detach(), torch.full((2, 2), -LR))


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_a_part_set_apart_has_its_share_of_the_rate(name: str) -> None:
    """A share of 0 leaves it as it was; every parameter is in one group, decayed as without."""
    network = make_network()
    config = load_config(
        None, [f"optimizer.name={name}", f"optimizer.params.lr={LR}", "optimizer.derive=paper"], preset="demo"
    )
    plan = Plan.of(config, num_images=100)
    optimizer = build_optimizer(network, config.optimizer, plan=plan, encoder=network[0])
    groups = optimizer.param_groups
    wanted = [p for p in network.parameters() if p.requires_grad]
    assert sorted(map(id, wanted)) == sorted(id(p) for group in groups for p in group["params"])
    assert [group.get("apart", False) for group in groups] == [False, False, True, True]
    assert [group["weight_decay"] > 0 for group in groups] == [True, False, True, False]
    before = [p.detach().clone() for p in network[0].parameters()]
    for parameter in wanted:
        parameter.grad = torch.ones_like(parameter)
    set_lr(optimizer, 0.1, encoder_share=0.0)
    optimizer.step()
    assert all(map(torch.equal, before, network[0].parameters()))
    set_lr(optimizer, 0.1, encoder_share=0.5)
    assert [group["lr"] for group in groups] == [0.1, 0.1, 0.05, 0.05]
