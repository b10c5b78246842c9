"""A step that is not finite changes nothing; one that is finite is the step of the optimizer, bit for bit."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from byol.config import load_config
from byol.device.ranks import Ranks
from byol.method.networks import Byol
from byol.method.optimizers import build_optimizer
from byol.method.schedule import Plan
from byol.training.snapshot import Snapshot
from byol.training.update import apply_on_device, apply_step, measure

ALONE = Ranks(0, 1, torch.device("cpu"), torch.float32)
NAMES = ["sgd", "lars", "adamw"]


def make(name: str) -> tuple[Byol, Optimizer]:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8))
    byol = Byol(encoder, num_features=8, hidden_size=8, projection_size=4)
    overrides = ["trainer.batch_size=8", f"optimizer.name={name}", "optimizer.params.lr=0.1"]
    config = load_config(None, overrides, preset="demo")
    return byol, build_optimizer(byol, config.optimizer, plan=Plan.of(config, num_images=64))


def state(byol: Byol, optimizer: Optimizer) -> dict[str, Tensor]:
    """All values of networks and optimizer, except steps that an optimizer counts on the host."""
    own = optimizer.state_dict()["state"]
    momentum = {f"{n}.{k}": v for n, values in own.items() for k, v in values.items() if k != "step"}
    return copy.deepcopy({**byol.state_dict(), **momentum})


def step(byol: Byol, optimizer: Optimizer, *, seed: int, way: str, poison: str = "") -> None:
    """One step; `way`: plain PyTorch, or how `update` applies it."""
    views = torch.rand(2, 8, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    statistics = Snapshot(byol.buffers())
    if poison == "view":  # then BatchNorm statistics are not finite either
        views[0, 3] = float("nan")
    loss, _ = byol(views[0], views[1])
    if poison == "gradient":  # of a finite loss
        loss = loss + 0.0 * torch.sqrt(loss - loss.detach())
    loss.backward()
    if way == "plain":
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        byol.update_target(0.9)
        return
    finite = torch.isfinite(measure(loss, optimizer, ranks=ALONE)).all()
    assert bool(finite) == (not poison)
    if way == "host":
        assert apply_step(byol, optimizer, tau=0.9, finite=finite, statistics=statistics) == (not poison)
    else:
        apply_on_device(byol, optimizer, tau=0.9, finite=finite, statistics=statistics)
    assert all(parameter.grad is None for parameter in byol.parameters())


def assert_equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    assert [key for key in one if not torch.equal(one[key], two[key])] == []


@pytest.mark.parametrize("way", ["host", "device"])
@pytest.mark.parametrize("name", NAMES)
def test_finite_steps_are_those_of_pytorch(name: str, way: str) -> None:
    plain, guarded = make(name), make(name)
    for seed in range(3):
        step(*plain, seed=seed, way="plain")
        step(*guarded, seed=seed, way=way)
    assert_equal(state(*plain), state(*guarded))


@pytest.mark.parametrize("poison", ["view", "gradient"])
@pytest.mark.parametrize("way", ["host", "device"])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_that_is_not_finite_changes_nothing(name: str, way: str, poison: str) -> None:
    run = make(name)
    for seed in range(2):
        step(*run, seed=seed, way=way)
    before = state(*run)
    step(*run, seed=2, way=way, poison=poison)
    assert_equal(before, state(*run))
    assert all(bool(torch.isfinite(value).all()) for value in before.values())


@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_the_first_step_may_be_the_one(name: str) -> None:
    """On the device the optimizer then has a momentum of 0, which is the same as none."""
    skipped, plain = make(name), make(name)
    step(*skipped, seed=0, way="device", poison="view")
    for seed in (1, 2):
        step(*skipped, seed=seed, way="device")
        step(*plain, seed=seed, way="plain")
    for key, value in state(*plain).items():
        torch.testing.assert_close(state(*skipped)[key], value, msg=key)
