"""ResNet blocks with fused norms against timm's own, in double precision."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from byol.kernels import build, normalisation
from byol.kernels.normalisation import fuse_norms

pytestmark = pytest.mark.skipif(
    build.load_kernels() is None, reason=f"no kernels on this machine: {build.explain_kernels()}"
)


def error(got: Tensor, expected: Tensor) -> float:
    got, expected = got.detach().double(), expected.detach().double()
    return float((got - expected).norm() / expected.norm().clamp_min(1e-30))


def draw(dtype: torch.dtype, *, channels: int = 64) -> tuple[Tensor, Tensor, nn.BatchNorm2d]:
    """Maps far from mean 0, in channels_last, and a norm with weights of its own."""
    torch.manual_seed(0)
    x, residual = (torch.randn(5, channels, 7, 9).to(memory_format=torch.channels_last) for _ in range(2))
    norm = nn.BatchNorm2d(channels, momentum=0.3)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    return (x * 2.0 + 5.0).to(dtype).requires_grad_(), residual.to(dtype).requires_grad_(), norm


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_the_operation_equals_its_three_parts(dtype: torch.dtype, limit: float, with_residual: bool) -> None:
    x, residual, norm = draw(dtype)
    double = copy.deepcopy(norm).double()
    doubles = [tensor.detach().double().requires_grad_() for tensor in (x, residual)]
    got = normalisation.norm_relu(x, norm, residual=residual if with_residual else None)
    expected = (double(doubles[0]) + (doubles[1] if with_residual else 0.0)).relu()
    assert got.dtype == dtype and error(got, expected) < limit
    for name, buffer in norm.named_buffers():
        assert error(buffer, double.get_buffer(name)) < 1e-6, name
    gradient = torch.randn(got.shape).to(dtype)
    # Where rounding moves a value over the edge of the ReLU, its gradient differs; there are few.
    wanted = [0, 1] if with_residual else [0]
    one = torch.autograd.grad(got, [*([x, residual][i] for i in wanted), *norm.parameters()], gradient)
    other = torch.autograd.grad(
        expected, [*(doubles[i] for i in wanted), *double.parameters()], gradient.double()
    )
    for a, b in zip(one, other, strict=True):
        assert error(a, b) < 2.0 * limit


@pytest.mark.parametrize("size", [(7, 9), (8, 8), (1, 2)])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_the_start_of_a_resnet_equals_its_three_parts(
    dtype: torch.dtype, limit: float, size: tuple[int, int]
) -> None:
    x, _, norm = draw(dtype)
    x = x.detach()[:, :, : size[0], : size[1]].contiguous(memory_format=torch.channels_last).requires_grad_()
    double = copy.deepcopy(norm).double()
    same = x.detach().double().requires_grad_()
    got = normalisation.norm_relu_pool(x, norm)
    expected = F.max_pool2d(double(same).relu(), 3, 2, 1)
    assert got.dtype == dtype and got.is_contiguous(memory_format=torch.channels_last)
    assert error(got, expected) < limit
    for name, buffer in norm.named_buffers():
        assert error(buffer, double.get_buffer(name)) < 1e-6, name
    gradient = torch.randn(got.shape).to(dtype)
    one = torch.autograd.grad(got, [x, *norm.parameters()], gradient)
    other = torch.autograd.grad(expected, [same, *double.parameters()], gradient.double())
    for a, b in zip(one, other, strict=True):
        assert error(a, b) < 2.0 * limit


def test_statistics_do_not_suffer_from_a_large_mean() -> None:
    x, _, norm = draw(torch.float32)
    shifted = (x.detach() + 1000.0).contiguous(memory_format=torch.channels_last)
    plain = copy.deepcopy(norm).double()
    assert error(normalisation.norm_relu(shifted, norm), plain(shifted.double()).relu()) < 1e-4
    assert error(norm.running_var, plain.running_var) < 1e-5


def test_the_number_of_threads_changes_no_bit() -> None:
    x, residual, norm = draw(torch.float32)
    expected = normalisation.norm_relu(x, norm, residual=residual)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(normalisation.norm_relu(x, norm, residual=residual), expected)
    finally:
        torch.set_num_threads(threads)


def test_nan_is_not_hidden() -> None:
    x, _, norm = draw(torch.float32)
    with torch.no_grad():
        x[0, 3] = float("nan")
        output = normalisation.norm_relu(x, norm)
    assert output[:, 3].isnan().all() and output[:, 4:].isfinite().all()


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnet_learns_the_same_and_keeps_its_keys(name: str) -> None:
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=0, zero_init_last=False).double().train()
    fused = fuse_norms(copy.deepcopy(plain).float().to(memory_format=torch.channels_last))
    assert {type(layer) for layer in fused.modules()} >= {normalisation._FusedResNet}
    images = torch.randn(4, 3, 64, 64)
    expected, got = plain(images.double()), fused(images)
    assert error(got, expected) < 1e-4
    assert list(fused.state_dict()) == list(plain.state_dict())
    for output in (expected, got):
        output.sum().backward()
    # Rounding flips ReLUs: PyTorch's own single precision differs from double by up to 6 % here.
    for (key, one), other in zip(fused.named_parameters(), plain.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert error(one.grad, other.grad) < 0.1, key
    for key, buffer in fused.named_buffers():
        assert error(buffer, plain.get_buffer(key)) < 1e-4, key
    fused.eval(), plain.eval()
    assert error(fused(images), plain(images.double())) < 1e-4


def make_odd(change: Callable[[nn.Module], object]) -> nn.Module:
    encoder = timm.create_model("resnet10t", num_classes=0).train()
    change(encoder)
    return encoder


def add_hook(encoder: nn.Module) -> None:
    encoder.get_submodule("layer1.0.act1").register_forward_hook(lambda *_: None)


@pytest.mark.parametrize(
    "change",
    [
        add_hook,
        lambda encoder: encoder.eval(),
        lambda encoder: setattr(encoder.get_submodule("layer1.0.bn1"), "momentum", None),
        lambda encoder: setattr(encoder.get_submodule("layer1.0"), "act2", nn.GELU()),
        lambda encoder: setattr(encoder.get_submodule("layer1.0"), "drop_path", nn.Dropout(0.0)),
        lambda encoder: setattr(encoder.get_submodule("layer1.0"), "drop_block", nn.Dropout(0.0)),
    ],
)
def test_what_is_not_plain_goes_timms_own_way(
    change: Callable[[nn.Module], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    block = fuse_norms(make_odd(change)).get_submodule("layer1.0")
    x = torch.randn(2, 64, 8, 8)
    expected = copy.deepcopy(block)
    expected.__class__ = timm.models.resnet.BasicBlock
    monkeypatch.setattr(normalisation, "run_kernel", None)  # would fail if it were called
    assert torch.equal(block(x), expected(x))
