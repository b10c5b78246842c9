"""When a kernel may read a tensor's memory, and that ResNet blocks ask before they do."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from byol.kernels.build import load_kernels
from byol.kernels.convolution import accelerate
from byol.kernels.eager import restore, runs_eagerly, save
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


@pytest.mark.skipif(load_kernels() is None, reason="no compiler")
@pytest.mark.parametrize("unpack", [lambda saved: saved, lambda saved: saved.contiguous().clone()])
def test_hooks_of_saved_tensors_keep_gradients(unpack: Callable[[Tensor], Tensor]) -> None:
    """Also hooks that change the layout in memory, as going through a file or another device can."""
    network, images = _make_fused()
    expected = _backward(network, images)
    rounding = 1e-5 * float(expected.abs().max())  # another layout may be computed in another order
    with saved_tensors_hooks(lambda saved: saved, unpack):
        torch.testing.assert_close(_backward(network, images), expected, rtol=0.0, atol=rounding)


@pytest.mark.skipif(load_kernels() is None, reason="no compiler")
@pytest.mark.parametrize(
    "unpack",
    [
        lambda saved: saved.bfloat16(),
        lambda saved: saved.double(),
        lambda saved: saved[..., :1],
        lambda saved: saved.to("meta"),
    ],
)
def test_hooks_that_return_something_else_are_an_error_and_no_crash(
    unpack: Callable[[Tensor], Tensor],
) -> None:
    network, images = _make_fused()
    with saved_tensors_hooks(lambda saved: saved, unpack), pytest.raises((RuntimeError, NotImplementedError)):
        _backward(network, images)
    ctx = SimpleNamespace(save_for_backward=lambda *saved: None)
    save(ctx, torch.rand(2, 16, 4, 4))
    ctx.saved_tensors = [unpack(torch.rand(2, 16, 4, 4))]
    with pytest.raises(RuntimeError, match="hook for saved tensors"):
        restore(ctx)


def _make_fused() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    network = accelerate(fuse_norms(timm.create_model("resnet10t", num_classes=0).train()))
    return network, torch.rand(2, 3, 32, 32)


def _backward(network: nn.Module, images: Tensor) -> Tensor:
    watched = images.clone().requires_grad_()
    network(watched).pow(2).sum().backward()
    assert watched.grad is not None
    return watched.grad
