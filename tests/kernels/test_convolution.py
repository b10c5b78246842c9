"""The CPU convolution against the library's, in each direction, whichever way the rule takes."""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from byol.kernels import convolution
from byol.kernels.convolution import accelerate
from byol.kernels.onednn_faults import avoid_faults

WAYS = [convolution.Ways(*flags) for flags in itertools.product((False, True), repeat=3)]
SHAPES = [  # kernel, stride, padding
    (1, 1, 0),
    (1, 2, 0),
    (3, 1, 1),
    (3, 2, 1),
    (3, 1, 0),
    (3, 2, 2),
    (7, 2, 3),
    ((3, 1), (2, 1), (1, 0)),
]


@pytest.fixture
def force_ways(monkeypatch: pytest.MonkeyPatch) -> Callable[[convolution.Ways], None]:
    """Every shape goes the given ways, as if the CPU were one on which they are faster."""

    def force(ways: convolution.Ways) -> None:
        monkeypatch.setattr(convolution, "choose_ways", lambda rows, columns, dtype: ways)

    return force


def draw_layer(
    kernel: object, stride: object, padding: object, *, channels: int = 5, bias: bool = True
) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(channels, 6, kernel, stride, padding, bias=bias)  # type: ignore[arg-type]


def run(layer: nn.Module, images: Tensor) -> list[Tensor]:
    """The output, and the gradients by image and by parameters of a fixed weighted sum of it."""
    images = images.clone().requires_grad_()
    output = layer(images)
    weights = torch.linspace(-1.0, 1.0, output.numel()).view(output.shape)
    wanted = [images, *layer.parameters()]
    return [output.detach().float(), *torch.autograd.grad((output.float() * weights).sum(), wanted)]


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (2, 5), (3, 3), (6, 4), (12, 12)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("channels", [5, 16])
def test_every_way_equals_float64(channels, shape, size, force_ways) -> None:
    kernel, _, padding = shape
    if kernel == 3 and padding == 0 and min(size) < 3:
        pytest.skip("no output pixel: the library's error, tested below")
    # Of 5 channels the library's 1x1 convolution of stride 2 would end the process on some CPUs.
    library = avoid_faults(draw_layer(*shape, channels=channels))
    images = torch.randn(4, channels, *size)
    expected = [value.float() for value in run(copy.deepcopy(library).double(), images.double())]
    for ways, memory_format in itertools.product(WAYS, (torch.contiguous_format, torch.channels_last)):
        force_ways(ways)
        layer = accelerate(copy.deepcopy(library)).to(memory_format=memory_format)
        for got, reference in zip(
            run(layer, images.contiguous(memory_format=memory_format)), expected, strict=True
        ):
            assert got.shape == reference.shape and got.dtype == reference.dtype
            torch.testing.assert_close(got, reference, rtol=1e-5, atol=1e-5 * float(reference.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_rule_equals_the_library_on_deep_layers(dtype) -> None:
    """The layers of a ResNet's end, as the rule of this CPU sends them."""
    torch.manual_seed(0)
    for size, channels, kernel, stride in [
        (1, 64, 3, 1),
        (2, 64, 3, 2),
        (3, 32, 3, 1),
        (6, 16, 3, 2),
        (2, 64, 1, 2),
    ]:
        library = nn.Conv2d(channels, 48, kernel, stride, kernel // 2, bias=False, dtype=dtype)
        images = torch.randn(8, channels, size, size, dtype=dtype)
        expected = run(library, images)
        for got, reference in zip(run(accelerate(copy.deepcopy(library)), images), expected, strict=True):
            torch.testing.assert_close(got, reference, rtol=1e-5, atol=1e-5 * float(reference.abs().max()))


@pytest.mark.parametrize("ways", WAYS, ids=str)
def test_bfloat16_autocast(ways, force_ways) -> None:
    """As close to the fp32 result as the library's bf16 is, in the library's dtypes."""
    library = draw_layer(3, 1, 1)
    images = torch.randn(4, 5, 3, 3)
    exact = run(library, images)
    force_ways(ways)
    layer = accelerate(copy.deepcopy(library))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(images).dtype == library(images).dtype == torch.bfloat16
        got = run(layer, images)
    for value, reference in zip(got, exact, strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, reference, rtol=0.0, atol=0.02 * float(reference.abs().max()))


def test_keys_parameters_and_class_stay() -> None:
    network = nn.Sequential(draw_layer(3, 1, 1), nn.BatchNorm2d(6), draw_layer(1, 1, 0, bias=False))
    before = dict(network.state_dict())
    parameters = list(network.parameters())
    assert accelerate(network) is network
    once = [type(layer) for layer in network]
    assert [type(layer) for layer in accelerate(network)] == once
    assert isinstance(network[0], nn.Conv2d) and type(network[0]) is not nn.Conv2d
    assert list(network.state_dict()) == list(before)
    assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))
    network.load_state_dict(before)


def test_deepcopy_is_independent() -> None:
    layer = accelerate(draw_layer(3, 1, 1))
    images = torch.randn(2, 5, 1, 1)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(images), layer(images))
    with torch.no_grad():
        twin.weight.zero_()
    assert not torch.equal(twin(images), layer(images))


def test_leaves_other_layers_alone() -> None:
    class OwnConv2d(nn.Conv2d):
        pass

    others = [
        OwnConv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv1d(4, 4, 3),
    ]
    for other in others:
        kind = type(other)
        assert type(accelerate(other)) is kind


def test_without_gradients_and_with_frozen_parts() -> None:
    library = draw_layer(3, 1, 1)
    layer = accelerate(copy.deepcopy(library))
    images = torch.randn(3, 5, 1, 1)
    with torch.no_grad():
        assert not layer(images).requires_grad
    torch.testing.assert_close(layer(images), library(images))
    layer.weight.requires_grad_(False)
    layer(images).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is not None


def test_the_same_again_bit_for_bit() -> None:
    layer = accelerate(nn.Conv2d(64, 64, 3, padding=1))
    images = torch.randn(16, 64, 1, 1)
    for first, second in zip(run(layer, images), run(layer, images), strict=True):
        assert torch.equal(first, second)


def test_odd_input_is_the_librarys_business() -> None:
    layer = accelerate(draw_layer(3, 1, 0))
    assert layer(torch.randn(5, 4, 4)).shape == (6, 2, 2)  # one image, no batch
    assert layer(torch.randn(0, 5, 4, 4)).shape == (0, 6, 2, 2)
    with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        layer(torch.randn(2, 5, 2, 2))
    with pytest.raises(RuntimeError, match="channels"):
        layer(torch.randn(2, 4, 3, 3))
    with pytest.raises(RuntimeError, match="type"):
        layer(torch.randn(2, 5, 3, 3, dtype=torch.float64))


def test_exports_as_a_convolution() -> None:
    layer = accelerate(draw_layer(3, 1, 1)).eval()
    images = torch.randn(2, 5, 1, 1)
    program = torch.export.export(layer, (images,))
    assert any("conv2d" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(images), F.conv2d(images, layer.weight, layer.bias, 1, 1))


def test_trains_under_distributed_data_parallel(tmp_path) -> None:
    library = draw_layer(3, 1, 1)
    images = torch.randn(4, 5, 1, 1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        layer = accelerate(copy.deepcopy(library))
        wrapped = nn.parallel.DistributedDataParallel(layer)
        wrapped(images).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    library(images).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, library.weight.grad)


def test_dtypes_that_differ_are_refused_as_by_the_library() -> None:
    """Also by a layer that is faster by Winograd's algorithm."""
    images = torch.randn(2, 64, 8, 8, dtype=torch.bfloat16)
    for layer in (nn.Conv2d(64, 64, 3, padding=1), accelerate(nn.Conv2d(64, 64, 3, padding=1))):
        with pytest.raises(RuntimeError, match=r"(?i)type"):
            layer(images)
