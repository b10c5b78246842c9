"""Frozen networks: the features of the module, by fused operations, or by the module if need be."""

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from byol.kernels import direct, frozen, fusing
from byol.kernels.build import load_kernels
from byol.kernels.convolution import accelerate
from byol.kernels.flat import FlatProgram
from byol.kernels.frozen import FrozenNetwork
from byol.method.networks import build_encoder

pytestmark = pytest.mark.skipif(
    not frozen.can_run(torch.zeros(1, 1, 1, 1)), reason="this PyTorch or CPU has no fused operations"
)
TINY = ("test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_nfnet", "test_byobnet")
PX = 32


def make(name: str = "test_resnet", *, channels: int = 3, px: int = PX) -> nn.Module:
    """A network whose every weight and statistic counts: with other statistics the features are others."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build_encoder(name, channels=channels, view_px=px, stem="standard").eval().requires_grad_(False)
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                    assert tensor is not None
                    nn.init.uniform_(tensor, 0.3, 1.2)
        for parameter_name, parameter in net.named_parameters():
            if "gamma" in parameter_name:  # layer scale, which is initialised with almost nothing
                nn.init.uniform_(parameter, 0.5, 1.0)
    return accelerate(net).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def draw(batch: int = 3, channels: int = 3, px: int = PX) -> Tensor:
    return torch.randn(batch, channels, px, px, generator=torch.Generator().manual_seed(1))


def check(got: Tensor, expected: Tensor, *, tolerance: float = 1e-5) -> None:
    assert got.shape == expected.shape and got.dtype == expected.dtype
    assert float((got - expected).abs().max()) <= tolerance * float(expected.abs().max())


@torch.inference_mode()
def run(network: FrozenNetwork, images: Tensor) -> Tensor:
    """Features of the network, which must be those of the module; there must be some."""
    before = images.clone()
    features = network(images)
    assert features is not None and torch.equal(images, before)
    check(features, network.module(images))
    return features


def compare(net: nn.Module, images: Tensor) -> Tensor:
    return run(FrozenNetwork(net), images)


# ---- The same features


@pytest.mark.parametrize("name", [*TINY, "resnet10t"])
def test_networks(name: str) -> None:
    compare(make(name, px=64), draw(px=64))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["resnet50", "mobilenetv3_small_050", "regnety_002", "densenet121", "shufflenet_v2_x0_5", "seresnet18"],
)
def test_larger_networks(name: str) -> None:
    compare(make(name, px=64), draw(px=64))


@pytest.mark.parametrize("px", [16, 33, 48])
@pytest.mark.parametrize("channels", [1, 5])
def test_sizes_and_channels(px: int, channels: int) -> None:
    compare(make(channels=channels, px=px), draw(2, channels, px))


def test_features_do_not_depend_on_the_other_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "PIXELS", 4 * PX**2 // torch.get_num_threads())
    images, net = draw(7), make()
    together = compare(net, images)
    alone = torch.cat([compare(net, image[None]) for image in images])
    check(together, alone)
    assert torch.equal(together, run(FrozenNetwork(net), images))


def test_layers_of_every_kind() -> None:
    """Strides, paddings, groups, dilations, activations and additions, with and without BatchNorm."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 64, 3, padding=1)
            self.norm = nn.BatchNorm2d(64)
            self.winograd = nn.Conv2d(64, 64, 3, padding=1, bias=False)
            self.grouped = nn.Conv2d(64, 64, (3, 1), padding=(2, 0), groups=4, dilation=(2, 1))
            self.strided = nn.Conv2d(64, 32, 5, stride=(2, 3), padding=2)
            self.same = nn.Conv2d(32, 32, 3, padding="same")
            self.linear = nn.Linear(32, 16)
            self.scale = nn.Parameter(torch.rand(64, 1, 1) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu_(self.norm(self.first(x)))
            kept = x
            x = self.winograd(x) * self.scale + x
            x = torch.relu(x + kept)
            x = nn.functional.gelu(self.grouped(x)) + x.mean(dim=(2, 3), keepdim=True)
            y = self.winograd(x)  # read twice: nothing may be taken up
            x = torch.relu(y) + y
            x = nn.functional.hardtanh(self.strided(x), -0.5, 0.7)
            x = x + nn.functional.silu(self.same(x))
            x = self.linear(x.mean(dim=(2, 3)))
            return x + self.linear.bias

    torch.manual_seed(0)
    net = Net().eval().requires_grad_(False)
    nn.init.uniform_(net.norm.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    compare(net, draw(px=17))


@pytest.mark.parametrize("out", [3, 16, 40, 69])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(1, 1, 0), (3, 2, 1), ((5, 2), (1, 3), (3, 0)), (9, 1, 4)]
)
@pytest.mark.parametrize("end", [nn.Identity(), nn.ReLU(), nn.GELU(), nn.GELU(approximate="tanh"), nn.SiLU()])
def test_convolutions(out: int, kernel: Any, stride: Any, padding: Any, end: nn.Module) -> None:
    """In a program of compiled code if there are kernels; more pixels than a block, and maps of one pixel."""
    torch.manual_seed(0)
    deep = [nn.Conv2d(out, out, 7, padding=3, groups=out), end] if out >= direct.NARROWEST else []
    pool = nn.MaxPool2d(3, 2, 1) if out != 40 else nn.AvgPool2d(2, ceil_mode=True)
    layers = (nn.Conv2d(20, out, kernel, stride, padding), end, pool, *deep, nn.AdaptiveAvgPool2d(1))
    net = nn.Sequential(*layers, nn.Flatten()).eval().requires_grad_(False)
    network = FrozenNetwork(net)
    for batch, px in ((3, 19), (1, 5)):
        run(network, draw(batch, 20, px))
    is_flat = [isinstance(each, FlatProgram) for each in network._current().programs.values()]  # type: ignore[union-attr]
    can_be_flat = load_kernels() is not None and str(end) not in ("GELU(approximate='tanh')", "SiLU()")
    assert all(each == can_be_flat for each in is_flat)


@pytest.mark.parametrize("size", [16, 24, 80])
@pytest.mark.parametrize("options", [{}, {"scale": 0.7}, {"is_causal": True}], ids=str)
def test_attention(size: int, options: dict[str, Any]) -> None:
    """With more than a block of keys, and other numbers of queries and keys."""

    class Attends(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            q = x[:, :, 1:3].reshape(len(x), 2, -1, size) * 3
            k, v = x.reshape(len(x), 2, -1, size), x.reshape(len(x), 2, -1, size).flip(2)
            y = nn.functional.scaled_dot_product_attention(q, k, v, **options)
            return y.transpose(1, 2).reshape(len(x), -1)

    compare(Attends().eval(), draw(2, size, 18))


def test_not_a_number_stays() -> None:
    images = draw()
    images[1, 0, 3, 3] = torch.nan
    features = FrozenNetwork(make())(images)
    assert features is not None
    assert features.isnan().any(dim=1).tolist() == [False, True, False]


# ---- Weights and layers that change


def change_in_place(net: nn.Module) -> None:
    with torch.no_grad():
        next(net.parameters()).mul_(1.5)


def replace_data(net: nn.Module) -> None:
    parameter = next(net.parameters())
    parameter.data = parameter.data * 1.5


def replace_parameter(net: nn.Module) -> None:
    layer = net.get_submodule("conv1.0")
    layer.weight = nn.Parameter(layer.weight.detach() * 1.5)


def replace_layer(net: nn.Module) -> None:
    old = net.get_submodule("layer1.0.conv2")
    assert isinstance(old, nn.Conv2d)
    net.get_submodule("layer1.0").conv2 = nn.Conv2d(old.in_channels, old.out_channels, 3, padding=1).eval()


def change_a_buffer(net: nn.Module) -> None:
    net.get_submodule("layer1.0.bn1").get_buffer("running_var").add_(1.0)


def change_a_setting(net: nn.Module) -> None:
    net.get_submodule("layer1.0.bn1").eps = 1.0


@pytest.mark.parametrize(
    "change",
    [change_in_place, replace_data, replace_parameter, replace_layer, change_a_buffer, change_a_setting],
)
def test_changes_are_noticed(change: Callable[[nn.Module], None]) -> None:
    net, images = make(), draw()
    network = FrozenNetwork(net)
    before = run(network, images)
    state = network._state
    assert torch.equal(run(network, images), before) and network._state is state
    change(net)
    assert not torch.allclose(run(network, images), before, rtol=1e-3)


def test_copies_belong_to_the_copied_module() -> None:
    network = FrozenNetwork(make())
    before = run(network, draw())
    for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert copied.module is not network.module
        change_in_place(copied.module)
        assert not torch.allclose(run(copied, draw()), before, rtol=1e-3)
    assert torch.equal(run(network, draw()), before)


def test_threads() -> None:
    network, images = FrozenNetwork(make()), draw(5)
    results: list[Tensor] = []

    def work() -> None:
        for _ in range(3):
            results.append(run(network, images))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 12 and all(torch.equal(each, results[0]) for each in results)


# ---- The module computes itself


def test_hooks_and_training_use_the_module() -> None:
    net = make()
    network = FrozenNetwork(net)
    run(network, draw())
    handle = net.get_submodule("layer1.0").register_forward_hook(lambda *_: None)
    assert network(draw()) is None
    handle.remove()
    run(network, draw())
    net.get_submodule("layer1.0").train()
    assert network(draw()) is None


class Reads(nn.Module):
    """Asks for a value, on which its operations depend."""

    def forward(self, x: Tensor) -> Tensor:
        return (x if bool(x[0, 0, 0, 0] > 0) else -x).mean(dim=(2, 3))


class Throws(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * torch.rand(1)).mean(dim=(2, 3)) + x.amax(dim=(2, 3))


class Writes(nn.Module):
    """Writes into a map that another name shows."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        shown = y.flatten(1)
        y.relu_()
        return shown


@pytest.mark.parametrize("net", [Reads(), Throws(), Writes()], ids=lambda net: type(net).__name__)
def test_what_cannot_be_repeated(net: nn.Module) -> None:
    assert FrozenNetwork(net.eval())(draw()) is None


def test_wrong_fusions_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    whole: Any = fusing.Layer.fold

    def fold(layer: Any) -> None:
        whole(layer)
        layer.weight = layer.weight * 1.001

    monkeypatch.setattr(fusing.Layer, "fold", fold)
    assert FrozenNetwork(make())(draw()) is None


def test_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("byol.kernels.winograd.load_kernels", lambda: None)
    compare(make(), draw())


def test_other_images() -> None:
    """Wrong ones are the module's own errors."""
    network = FrozenNetwork(make())
    assert all(
        network(images) is None for images in (draw(0), draw().double(), draw(2, 4), draw().to("meta"))
    )
    assert FrozenNetwork(make().double())(draw()) is None
