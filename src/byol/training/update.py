"""Update the networks by the gradient of a step, if loss and gradient are finite.

A CPU reads that in each step. On a GPU the host would have to wait for it, so the device selects between the
values before and after the update.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.optim import Optimizer

from byol.device.ranks import Ranks
from byol.method.networks import Byol
from byol.training.snapshot import Snapshot, clear_unless


def measure(
    loss: Float[Tensor, ""], optimizer: Optimizer, *, ranks: Ranks
) -> Float[Tensor, "loss_and_gradient_norm=2"]:
    """Return the mean loss over ranks and the norm of the gradient, on the device."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return torch.stack([ranks.average(loss).to(norm.dtype), norm])


def apply_step(
    byol: Byol, optimizer: Optimizer, *, tau: float, finite: Bool[Tensor, ""], statistics: Snapshot
) -> bool | None:
    """Update the online network by its gradient, then the target network; do neither if `finite` is false.

    `statistics`: the BatchNorm statistics before the step, which are then restored. Returns `finite` if the
    host knows it, that is on a CPU.
    """
    if finite.device.type != "cpu":
        apply_on_device(byol, optimizer, tau=tau, finite=finite, statistics=statistics)
        return None
    is_finite = bool(finite.item())
    if is_finite:
        _update(byol, optimizer, tau=tau)
    else:
        statistics.restore()
        optimizer.zero_grad(set_to_none=True)
    return is_finite


@torch.no_grad()
def apply_on_device(
    byol: Byol, optimizer: Optimizer, *, tau: float, finite: Bool[Tensor, ""], statistics: Snapshot
) -> None:
    """Do the step and undo it if `finite` is false, without reading that value.

    The step counts of AdamW, which are on the host, also count steps that are undone.
    """
    known = _list_state(optimizer, device=finite.device)
    before = Snapshot([*(p for p in byol.parameters()), *known])
    with torch.enable_grad():
        _update(byol, optimizer, tau=tau)
    before.restore_unless(finite)
    statistics.restore_unless(finite)
    if not known:  # the first step of a run made the state, which is 0 before
        clear_unless(_list_state(optimizer, device=finite.device), finite)


def _update(byol: Byol, optimizer: Optimizer, *, tau: float) -> None:
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    byol.update_target(tau)


def _list_state(optimizer: Optimizer, *, device: torch.device) -> list[Tensor]:
    """Return the state of the optimizer that is on the device, such as momentum."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    return [value for value in values if isinstance(value, Tensor) and value.device == device]
