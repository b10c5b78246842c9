"""Layers that the library may compute wrongly: which they are, and that byol computes them rightly."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d
from torch import Tensor, nn

from byol.kernels.onednn_faults import avoid_faults, can_meet_fault
from byol.method.networks import build_encoder

KINDS = [nn.Conv2d, Conv2dSame, StdConv2d, ScaledStdConv2d, ScaledStdConv2dSame]


def run(layer: nn.Module, images: Tensor) -> list[Tensor]:
    """The output, and the gradients by image and by parameters of a fixed weighted sum of it."""
    images = images.clone().requires_grad_()
    output = layer(images)
    weights = torch.linspace(-1.0, 1.0, output.numel(), dtype=output.dtype).view(output.shape)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), [images, *layer.parameters()])]


@pytest.mark.parametrize(
    ("layer", "faulty"),
    [
        (nn.Conv2d(5, 6, 1, 2), True),
        (nn.Conv2d(1, 6, 1, (2, 1)), True),
        (nn.Conv2d(12, 16, 1, 2), True),
        (nn.Conv2d(5, 6, 1, 3, padding="valid"), True),
        (nn.Conv2d(5, 6, 1, 2, dilation=2), True),  # dilation of one tap is nothing
        (Conv2dSame(3, 6, 1, 2), True),
        (nn.Conv2d(64, 6, 1, 2), False),
        (nn.Conv2d(5, 6, 1, 1), False),
        (nn.Conv2d(5, 6, 3, 2), False),
        (nn.Conv2d(5, 6, 1, 2, padding=1), False),
        (nn.Conv2d(6, 6, 1, 2, groups=2), False),
    ],
    ids=str,
)
def test_which_layers_can_meet_a_fault(layer: nn.Conv2d, faulty: bool) -> None:
    assert can_meet_fault(layer) == faulty
    stride = layer.stride
    avoid_faults(layer)
    assert not can_meet_fault(layer) and (layer.stride == stride) != faulty
    assert len(layer._forward_pre_hooks) == faulty
    avoid_faults(layer)
    assert len(layer._forward_pre_hooks) == faulty


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stride", [2, 3, (2, 1), (1, 2)], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (4, 6), (12, 12), (7, 5)], ids=str)
def test_the_sums_stay_the_same(kind, stride, size) -> None:
    torch.manual_seed(0)
    layer = kind(5, 6, 1, stride).double()
    images = torch.randn(3, 5, *size, dtype=torch.float64)
    keys = list(layer.state_dict())
    expected = run(layer, images)  # float64 is not computed by oneDNN
    for routed in (avoid_faults(copy.deepcopy(layer)), copy.deepcopy(avoid_faults(copy.deepcopy(layer)))):
        assert list(routed.state_dict()) == keys and type(routed) is kind
        for got, reference in zip(run(routed, images), expected, strict=True):
            torch.testing.assert_close(got, reference)


def test_one_image_without_a_batch() -> None:
    assert avoid_faults(nn.Conv2d(5, 6, 1, 2))(torch.randn(5, 4, 7)).shape == (6, 2, 4)


def test_exports_with_the_pixels_taken() -> None:
    layer = avoid_faults(nn.Conv2d(5, 6, 1, 2)).eval()
    images = torch.randn(2, 5, 6, 6)
    program = torch.export.export(layer, (images,))
    torch.testing.assert_close(program.module()(images), layer(images))


PROGRAM = """
import copy, sys
import torch
from torch import nn
from byol.kernels.convolution import accelerate
from byol.kernels.onednn_faults import avoid_faults

class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.shortcut = nn.Conv2d(5, 8, 1, 2)
        self.main = nn.Sequential(nn.Conv2d(5, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))
        self.last = nn.Conv2d(8, 12, 1, 2, bias=False)
    def forward(self, images):
        return self.last(torch.relu(self.main(images) + self.shortcut(images))).mean((2, 3))

def gradients(network, images):
    features = network(images)
    weights = torch.linspace(-1, 1, features.numel(), dtype=features.dtype).view(features.shape)
    return torch.autograd.grad((features * weights).sum(), list(network.parameters()))

torch.manual_seed(0)
torch.set_num_threads(int(sys.argv[1]))
layer = nn.Conv2d(5, 6, 1, 2)
for network, px in ((layer, 12), (layer, 64), (Encoder(), 32)):
    images = torch.randn(8, 5, px, px).contiguous(memory_format=torch.channels_last)
    exact = gradients(copy.deepcopy(network).double(), images.double())
    for make in (avoid_faults, lambda network: accelerate(avoid_faults(network))):
        routed = make(copy.deepcopy(network)).to(memory_format=torch.channels_last)
        # Of a whole network in bfloat16 the gradients differ by rounding.
        for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2 if network is layer else 0.3)):
            for _ in range(3):
                with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
                    got = gradients(routed, images)
                for one, reference in zip(got, exact, strict=True):
                    error = float((one - reference).abs().max() / reference.abs().max())
                    # Of a bias before a BatchNorm the gradient is rounding alone.
                    assert error < tolerance or reference.abs().max() < 1e-6, (network, px, dtype, error)
print("right")
"""


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("isa", ["AVX2", "native"])
def test_gradients_are_right_on_other_kinds_of_cpu(isa: str, threads: int) -> None:
    """In processes of their own: with a fault, these would end or wait for ever rather than fail."""
    kind = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"} if isa == "AVX2" else {}
    environment = os.environ | kind | {"MALLOC_CHECK_": "3", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(threads)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr


def test_encoders_are_built_round_the_faults() -> None:
    """This one's first block has a 1x1 branch of stride 2 on the images."""
    with torch.device("meta"):
        encoder = build_encoder("repvgg_a0", channels=5, view_px=32, stem="standard")
    layers = [layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d)]
    assert not any(map(can_meet_fault, layers))
    assert any(layer._forward_pre_hooks for layer in layers)
