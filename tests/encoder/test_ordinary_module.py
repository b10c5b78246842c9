"""The module of a loaded encoder can be used like any other: traced, exported, copied, hooked."""

import copy
import io
import multiprocessing
import pickle
import random
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from byol.encoder.encoder import Encoder, load, save_encoder
from byol.encoder.spec import EncoderSpec
from byol.kernels import convolution
from byol.method.networks import build_encoder
from byol.method.views import Pixels

PX = 16


def make_spec() -> EncoderSpec:
    return EncoderSpec(
        name="test_resnet",
        stem="standard",
        channels=3,
        view_px=PX,
        stored_px=PX,
        num_features=96,
        pixels=Pixels((0.0,) * 3, (255.0,) * 3, (0.4,) * 3, (1.0,) * 3),
        which="online",
        done=7,
        byol_version="0.1.0",
        data_fingerprint="abc",
        data_name="cells",
    )


def make_module() -> nn.Module:
    """Its deep maps are of 2 pixels and less, where the matrix product is taken on every CPU."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_encoder("test_resnet", channels=3, view_px=PX, stem="standard")


def draw(*shape: int) -> Tensor:
    return torch.rand(shape or (2, 3, PX, PX), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(make_spec(), make_module())


@pytest.fixture
def expected() -> Tensor:
    with torch.no_grad():
        return make_module().eval()(draw())


def check(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got.detach().to(expected.dtype), expected, rtol=1e-3, atol=1e-4)


def test_it_takes_the_fast_ways(encoder: Encoder, expected: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without which the tests below could not fail."""
    calls = []
    whole = convolution.CpuConv2d.convolve_faster
    monkeypatch.setattr(
        convolution.CpuConv2d,
        "convolve_faster",
        lambda self, *args: (calls.append(out := whole(self, *args)), out)[1],
    )
    check(encoder.module(draw()), expected)
    assert any(output is not None for output in calls)
    calls.clear()
    with FlopCounterMode(display=False):
        check(encoder.module(draw()), expected)
    assert not calls


# ---- Traced, exported, compiled


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("make", [lambda net: torch.jit.trace(net, draw()), torch.jit.script])
def test_torchscript(make: Callable[[nn.Module], nn.Module], encoder: Encoder, expected: Tensor) -> None:
    file = io.BytesIO()
    torch.jit.save(make(encoder.module), file)
    file.seek(0)
    check(torch.jit.load(file)(draw()), expected)
    assert type(encoder.module.get_submodule("layer1.0.conv1")) is convolution.CpuConv2d


@pytest.mark.filterwarnings("ignore:While compiling:UserWarning")  # of what checks types in tests
@pytest.mark.parametrize("strict", [False, True])
def test_torch_export(strict: bool, encoder: Encoder, expected: Tensor) -> None:
    exported = torch.export.export(encoder.module, (draw(),), strict=strict)
    check(exported.module()(draw()), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx(dynamo: bool, encoder: Encoder, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    torch.onnx.export(encoder.module, (draw(),), str(tmp_path / "a.onnx"), dynamo=dynamo)
    kinds = [node.op_type for node in onnx.load(tmp_path / "a.onnx").graph.node]
    assert kinds.count("Conv") == sum(isinstance(m, nn.Conv2d) for m in encoder.module.modules())


def test_torch_compile(encoder: Encoder, expected: Tensor) -> None:
    """Without a graph break; what the graph is compiled to is PyTorch's affair."""
    torch._dynamo.reset()
    with torch.no_grad():
        check(torch.compile(encoder.module, backend="aot_eager", fullgraph=True)(draw()), expected)


def test_fx(encoder: Encoder, expected: Tensor) -> None:
    check(torch.fx.symbolic_trace(encoder.module)(draw()), expected)
    check(make_fx(encoder.module)(draw())(draw()), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_dynamic_quantisation(encoder: Encoder, expected: Tensor) -> None:
    network = nn.Sequential(encoder.module, nn.Linear(96, 4))
    got = torch.ao.quantization.quantize_dynamic(network, {nn.Linear})(draw())
    assert got.shape == (2, 4) and bool(got.isfinite().all())


# ---- Transformed and differentiated


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_function_transforms(encoder: Encoder, expected: Tensor) -> None:
    net = encoder.module
    check(torch.func.functional_call(net, dict(net.named_parameters()), draw()), expected)
    check(torch.vmap(lambda image: net(image[None])[0])(draw()), expected)
    value, tangent = torch.func.jvp(net, (draw(),), (torch.ones_like(draw()),))
    check(value, expected)
    step = 1e-3
    numeric = (net.double()(draw().double() + step) - net(draw().double() - step)) / (2 * step)
    torch.testing.assert_close(tangent.double(), numeric, rtol=0.02, atol=0.02)
    net.float()
    with torch.autograd.forward_ad.dual_level():
        dual = net(torch.autograd.forward_ad.make_dual(draw(), torch.ones_like(draw())))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, tangent)
    gradient = torch.func.grad(lambda image: net(image).sum())(draw())
    check(gradient, input_gradient(make_module().eval()))


def input_gradient(net: nn.Module) -> Tensor:
    images = draw().requires_grad_()
    return torch.autograd.grad(net(images).sum(), images)[0]


def test_gradients_to_the_input(encoder: Encoder) -> None:
    check(input_gradient(encoder.module), input_gradient(make_module().eval()))
    images = draw().requires_grad_()
    output = encoder.module(images).sum()
    with torch.device("meta"):  # where new tensors have no memory
        output.backward()
    assert images.grad is not None
    check(images.grad, input_gradient(make_module().eval()))


def test_second_derivatives_are_refused_or_right(encoder: Encoder) -> None:
    images = draw().requires_grad_()
    (gradient,) = torch.autograd.grad(encoder.module(images).square().sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_many_gradients_at_once(encoder: Encoder) -> None:
    """`is_grads_batched` hands backward passes tensors of `vmap`."""
    images = draw(1, 3, PX, PX).requires_grad_()
    features = encoder.module(images)[0, :3]
    expected = torch.stack([torch.autograd.grad(f, images, retain_graph=True)[0] for f in features])
    (got,) = torch.autograd.grad(features, images, torch.eye(3), is_grads_batched=True)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)


def test_another_default_dtype(encoder: Encoder) -> None:
    net, images = encoder.module.requires_grad_(True), draw()
    torch.set_default_dtype(torch.float64)
    try:
        net(images).sum().backward()
    finally:
        torch.set_default_dtype(torch.float32)
    plain = make_module().eval()
    plain(images).sum().backward()
    for (name, parameter), other in zip(net.named_parameters(), plain.parameters(), strict=True):
        assert parameter.grad is not None and other.grad is not None
        scale = float(other.grad.abs().max())
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-3, atol=1e-3 * scale, msg=name)


# ---- Copied, moved, hooked


def test_copies(encoder: Encoder, expected: Tensor, tmp_path: Path) -> None:
    check(copy.deepcopy(encoder.module)(draw()), expected)
    check(pickle.loads(pickle.dumps(encoder.module))(draw()), expected)
    other = make_module().eval()
    other.load_state_dict(encoder.module.state_dict())
    check(other(draw()), expected)
    image = np.zeros((PX, PX, 3), dtype=np.uint8)
    again = pickle.loads(pickle.dumps(encoder))
    assert np.array_equal(again.embed(image), encoder.embed(image))
    save_encoder(tmp_path, encoder.module, encoder.spec)
    assert np.array_equal(load(tmp_path, device="cpu").embed(image), encoder.embed(image))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype, encoder: Encoder, expected: Tensor) -> None:
    got = encoder.module.to(dtype)(draw().to(dtype))
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected, rtol=0.05, atol=0.05)
    with pytest.raises(RuntimeError, match=r"(?i)type"):
        encoder.module.float()(draw().to(dtype))


def test_meta_and_memory_formats(encoder: Encoder, expected: Tensor) -> None:
    for memory_format in (torch.contiguous_format, torch.channels_last):
        net = encoder.module.to(memory_format=memory_format)  # type: ignore[call-overload]
        check(net(draw().contiguous(memory_format=memory_format)), expected)
    assert copy.deepcopy(encoder.module).to("meta")(draw().to("meta")).device.type == "meta"
    with pytest.raises((RuntimeError, NotImplementedError)):
        encoder.module(draw().to("meta")).sum().item()


def test_hooks(encoder: Encoder, expected: Tensor) -> None:
    seen = []
    layer = encoder.module.get_submodule("layer4.0.conv1")
    layer.register_forward_pre_hook(lambda module, args: seen.append("before"))
    layer.register_forward_hook(lambda module, args, output: seen.append("after"))
    layer.register_full_backward_hook(lambda module, given, wanted: seen.append("backward"))
    images = draw().requires_grad_()
    features = encoder.module(images)
    check(features, expected)
    features.sum().backward()
    assert seen == ["before", "after", "backward"]


def test_encoding_sees_hooks_and_changes(encoder: Encoder) -> None:
    """`encode_views` does not call the module as long as it need not."""
    views, seen = draw(), list[str]()
    before = encoder.encode_views(views)
    layer = encoder.module.get_submodule("layer4.0.conv1")
    handle = layer.register_forward_hook(lambda module, args, output: seen.append("after"))
    check(encoder.encode_views(views), before)
    assert seen == ["after"]
    handle.remove()
    assert torch.equal(encoder.encode_views(views), before) and seen == ["after"]
    with torch.no_grad():
        layer.get_parameter("weight").mul_(1.5)
    changed = encoder.encode_views(views)
    assert not torch.allclose(changed, before, rtol=1e-3)
    check(changed, encoder.module(views))
    encoder.module = make_module().eval()
    check(encoder.encode_views(views), encoder.module(views).detach())
    check(copy.deepcopy(encoder).encode_views(views), encoder.encode_views(views))


def test_train_and_eval(encoder: Encoder, expected: Tensor) -> None:
    net = encoder.module
    assert not net.training
    plain = make_module().train()
    check(net.train()(draw(8, 3, PX, PX)), plain(draw(8, 3, PX, PX)).detach())
    check(net.eval()(draw()), plain.eval()(draw()).detach())


def test_changed_layers_do_what_they_say(encoder: Encoder) -> None:
    """People dilate ResNets, replace kernels and reparametrise weights."""
    plain = make_module().eval()
    for net in (plain, encoder.module):
        layer = net.get_submodule("layer4.0.conv2")
        assert isinstance(layer, nn.Conv2d)
        layer.dilation, layer.padding = (2, 2), (2, 2)
        other = net.get_submodule("layer3.0.conv2")
        assert isinstance(other, nn.Conv2d)
        other.weight = nn.Parameter(other.weight.detach()[:, :, 1:2, 1:2].clone())
        other.padding = (0, 0)
        parametrize.register_parametrization(net.get_submodule("layer2.0.conv1"), "weight", Halved())
    check(encoder.module(draw()), plain(draw()).detach())


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def _embed_elsewhere(net: nn.Module, images: Tensor, queue: "multiprocessing.Queue[Tensor]") -> None:
    queue.put(net(images).detach().numpy())


@pytest.mark.slow
def test_another_process(encoder: Encoder, expected: Tensor) -> None:
    spawn = torch.multiprocessing.get_context("spawn")
    queue = spawn.Queue()
    child = spawn.Process(target=_embed_elsewhere, args=(encoder.module.share_memory(), draw(), queue))
    child.start()
    got = queue.get(timeout=120)
    child.join()
    check(torch.from_numpy(got), expected)


def test_two_threads(encoder: Encoder) -> None:
    """And what one thread has packed is not used when the weights have changed."""
    views = draw(70, 3, PX, PX)
    alone = encoder.encode_views(views)
    results: dict[int, Tensor] = {}

    def work(number: int) -> None:
        for _ in range(5):
            results[number] = encoder.encode_views(views)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(torch.equal(got, alone) for got in results.values())
    with torch.no_grad():
        for parameter in encoder.module.parameters():
            parameter.mul_(1.1)
    copied = make_module().eval()
    copied.load_state_dict(encoder.module.state_dict())
    check(encoder.module(draw()), copied(draw()).detach())


# ---- Unusual inputs


def test_unusual_inputs(encoder: Encoder, expected: Tensor) -> None:
    net = encoder.module
    check(net(draw().transpose(2, 3).contiguous().transpose(2, 3)), expected)
    check(net(draw().repeat_interleave(2, dim=3)[..., ::2]), expected)
    one = draw()[:1]
    check(net(one.expand(3, -1, -1, -1)), make_module().eval()(one.expand(3, -1, -1, -1)).detach())
    check(net(torch._neg_view(-draw())), expected)
    check(net(nn.Parameter(draw())), expected)
    assert net(draw(0, 3, PX, PX)).shape == (0, 96)
    nan = draw()
    nan[0, 0, 3, 3] = torch.nan
    assert bool(net(nan)[0].isnan().any()) and not bool(net(nan)[1].isnan().any())


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 4, PX, PX),
        torch.zeros(2, PX, PX),
        torch.zeros(2, 3, PX),
        torch.zeros(2, 3, PX, PX, dtype=torch.uint8),
        torch.zeros(2, 3, PX, PX).to_sparse(),
    ],
    ids=["channels", "3 axes, wrong", "no columns", "uint8", "sparse"],
)
def test_wrong_inputs_are_pytorchs_own_errors(images: Tensor, encoder: Encoder) -> None:
    kinds = (RuntimeError, NotImplementedError, ValueError)
    with pytest.raises(kinds) as plain:
        make_module().eval()(images)
    with pytest.raises(kinds) as caught:
        encoder.module(images)
    assert str(caught.value) == str(plain.value)


def _fuzz(seed: int) -> None:
    """Layers and inputs of every kind; a wrong one may raise, nothing may crash."""
    rng = random.Random(seed)
    dtypes = [torch.float32] * 4 + [
        torch.bfloat16,
        torch.float16,
        torch.float64,
        torch.uint8,
        torch.complex64,
    ]
    for _ in range(150):
        given, out, px = rng.choice((1, 3, 32, 64)), rng.choice((8, 32, 64)), rng.choice((0, 1, 2, 3, 5, 8))
        layer = nn.Conv2d(given, out, rng.choice((1, 3, 5)), rng.choice((1, 2)), rng.choice((0, 1, 2)))
        layer = convolution.accelerate(layer).to(rng.choice(dtypes[:7]))
        if rng.random() < 0.2:
            layer.weight = nn.Parameter(torch.rand(rng.choice((1, 32)), rng.choice((1, 32)), 3, 3))
        images = torch.zeros(rng.choice((0, 1, 2, 4)), rng.choice((given, given, given, 1, 32)), px, px + 1)
        images = rng.choice(
            (
                images,
                images.mT,
                images[:, :, ::2],
                images[:1].repeat_interleave(2, dim=0),
                images[:, :1].expand(-1, 32, -1, -1),
            )
        )
        images = images.to(rng.choice(dtypes)).to(rng.choice(("cpu", "cpu", "cpu", "meta")))
        try:
            images.requires_grad_(images.is_floating_point())
            with torch.autocast("cpu", enabled=rng.random() < 0.3):
                output = layer(images)
            output.float().sum().backward()
        except (RuntimeError, NotImplementedError, ValueError, TypeError):
            continue


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_nothing_crashes_the_process() -> None:
    child = multiprocessing.get_context("spawn").Process(target=_fuzz, args=(0,))
    child.start()
    child.join(timeout=300)
    assert child.exitcode == 0
