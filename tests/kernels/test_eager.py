"""When a kernel may read a tensor's memory, and that ResNet blocks ask before they do."""

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from byol.kernels.build import load_kernels
from byol.kernels.eager import runs_eagerly
from byol.kernels.normalisation import fuse_norms


class Wrapped(Tensor):
    pass


def free() -> Tensor:
    tensor = torch.rand(4)
    tensor.untyped_storage().resize_(0)
    return tensor


def test_plain_tensors() -> None:
    plain = torch.rand(2, 3)
    assert runs_eagerly(
        plain, None, nn.Parameter(plain), plain.T[1:], plain.bfloat16(), plain.expand(4, 2, 3)
    )
    with torch.inference_mode(), torch.autocast("cpu"):
        assert runs_eagerly(plain, torch.rand(2))


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.rand(2).double(),
        lambda: torch.rand(2).half(),
        lambda: torch.zeros(2, dtype=torch.uint8),
        lambda: torch.rand(0),
        lambda: torch.rand(2, device="meta"),
        lambda: torch.rand(2, 2).to_sparse(),
        lambda: torch.rand(2, 2).to_mkldnn(),
        lambda: torch.rand(2).as_subclass(Wrapped),
        lambda: torch._neg_view(torch.rand(2)),
        lambda: torch._efficientzerotensor(2),
        lambda: nn.UninitializedParameter(),
        free,
        lambda: "a proxy",
    ],
)
def test_other_tensors(make: Callable[[], object]) -> None:
    assert not runs_eagerly(torch.rand(2), make())


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_whatever_records_or_transforms() -> None:
    plain, asked = torch.rand(2), []

    def ask(x: Tensor) -> Tensor:
        asked.append(runs_eagerly(plain) or runs_eagerly(x))
        return x * 2

    ask(plain)
    assert asked == [True]
    asked.clear()
    torch.jit.trace(ask, plain, check_trace=False)
    torch.vmap(ask)(plain)
    torch.func.grad(lambda x: ask(x).sum())(plain)
    torch.func.jvp(ask, (plain,), (plain,))
    with FlopCounterMode(display=False):
        ask(plain)
    with torch.device("meta"):
        ask(plain)
    with torch.autograd.forward_ad.dual_level():
        ask(plain)
    torch.fx.experimental.proxy_tensor.make_fx(ask)(plain)
    torch.compile(ask, backend="eager")(plain)
    assert len(asked) >= 8 and not any(asked)


@pytest.mark.skipif(load_kernels() is None, reason="no compiler")
def test_fused_blocks_are_pytorchs_where_kernels_may_not_read() -> None:
    """In numbers, and in the error for a layer of other channels."""
    torch.manual_seed(0)
    plain = timm.create_model("resnet10t", num_classes=0).train()
    fused = fuse_norms(timm.create_model("resnet10t", num_classes=0).train())
    fused.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 32, 32)
    expected = plain(images).detach()
    with FlopCounterMode(display=False):
        torch.testing.assert_close(fused(images).detach(), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(fused(images).detach(), expected, rtol=1e-3, atol=1e-3)

    fused.layer2[0].conv1 = nn.Conv2d(64, 96, 3, padding=1)
    with pytest.raises(RuntimeError, match="running_mean should contain 96 elements not 128"):
        fused(images)
    fused.layer2[0].conv1 = nn.Conv2d(64, 128, 3, 2, padding=1).double()
    with pytest.raises(RuntimeError, match=r"(?i)type"):
        fused(images)
    fused.layer1[0].bn1.running_mean = torch.zeros(32)
    with pytest.raises(RuntimeError, match="running_mean should contain 64 elements not 32"):
        fused(images)
