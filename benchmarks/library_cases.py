"""The cases of `convolutions.py`: one computation each, drawn at random, and its error against float64."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layout = Literal["first", "last"]  # of the channels in memory: contiguous, or channels_last
Pair = tuple[int, int]

LAYOUTS: tuple[Layout, ...] = ("first", "last")
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}  # of the largest value of the result
_CHANNELS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 20, 24, 32, 48, 64)
_BATCHES = (1, 2, 3, 4, 8, 17)
_MOST_PRODUCTS, _MOST_VALUES = 8_000_000, 1_000_000  # of a case: a few ms in float64


@dataclass(frozen=True)
class Convolution:
    """A convolution in its three directions; heights stand before widths."""

    batch: int
    channels: int
    out: int
    size: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: int
    groups: int
    bias: bool
    dtype: str
    images: Layout
    gradient: Layout
    weight: Layout

    @property
    def out_size(self) -> Pair:
        spans = zip(self.size, self.kernel, self.stride, self.padding, strict=True)
        sides = [(size + 2 * pad - self.dilation * (k - 1) - 1) // step + 1 for size, k, step, pad in spans]
        return sides[0], sides[1]

    @property
    def is_possible(self) -> bool:
        """There is output, and float64 computes it soon."""
        area = self.out_size[0] * self.out_size[1] * self.kernel[0] * self.kernel[1]
        products = self.batch * self.out * self.channels // self.groups * area
        values = self.batch * self.channels * self.size[0] * self.size[1]
        return min(self.out_size) > 0 and products <= _MOST_PRODUCTS and values <= _MOST_VALUES

    def describe(self) -> str:
        kernel, stride, padding, size = (
            f"{one}x{two}" for one, two in (self.kernel, self.stride, self.padding, self.size)
        )
        return (
            f"convolution {kernel} stride {stride} padding {padding} dilation {self.dilation} "
            f"groups {self.groups}, {self.channels} -> {self.out} channels, {self.batch} images {size}, "
            f"{self.dtype}, channels {self.images} (gradient {self.gradient}, weight {self.weight})"
        )

    def errors(self, *, ours: bool, repeats: int) -> dict[str, float]:
        """The largest of each direction; `ours`: of a layer that the package has accelerated."""
        dtype = getattr(torch, self.dtype)
        images = torch.randn(self.batch, self.channels, *self.size).to(dtype)
        weight = torch.randn(self.out, self.channels // self.groups, *self.kernel).to(dtype)
        bias = torch.randn(self.out).to(dtype) if self.bias else None
        gradient = torch.randn(self.batch, self.out, *self.out_size).to(dtype)
        exact = self._by_library(
            gradient.double(), images.double(), weight.double(), None if bias is None else bias.double()
        )
        compute = self._by_layer if ours else self._by_library
        gradient, images = lay_out(gradient, self.gradient), lay_out(images, self.images)
        weight = lay_out(weight, self.weight)
        return _worst(lambda: compute(gradient, images, weight, bias), exact, repeats=repeats)

    def _by_library(
        self, gradient: Tensor, images: Tensor, weight: Tensor, bias: Tensor | None
    ) -> dict[str, Tensor]:
        how = (self.stride, self.padding, (self.dilation, self.dilation))
        output = F.conv2d(images, weight, bias, *how, self.groups)
        by_images, by_weight, by_bias = torch.ops.aten.convolution_backward(
            gradient,
            images,
            weight,
            None if bias is None else bias.shape,
            *how,
            False,
            (0, 0),
            self.groups,
            (True, True, bias is not None),
        )
        found = {"forward": output, "by images": by_images, "by weight": by_weight}
        return found if bias is None else found | {"by bias": by_bias}

    def _by_layer(
        self, gradient: Tensor, images: Tensor, weight: Tensor, bias: Tensor | None
    ) -> dict[str, Tensor]:
        """Trained as the package does: weights in float32, bfloat16 by autocast."""
        from byol.kernels.convolution import accelerate
        from byol.kernels.onednn_faults import avoid_faults

        layer = nn.Conv2d(
            self.channels,
            self.out,
            self.kernel,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            bias is not None,
        )
        layer.weight.data = lay_out(weight.float(), self.weight)
        if bias is not None:
            layer.bias.data = bias.float()  # type: ignore[union-attr]
        layer = accelerate(avoid_faults(layer))
        images = images.detach().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == "bfloat16"):
            output = layer(images)
        output.backward(gradient)
        found = {"forward": output.detach(), "by images": images.grad, "by weight": layer.weight.grad}
        if bias is not None:
            found["by bias"] = layer.bias.grad  # type: ignore[union-attr]
        return cast(dict[str, Tensor], found)


@dataclass(frozen=True)
class Operation:
    """Another operation of a network, forward and by images."""

    name: str
    batch: int
    channels: int
    size: Pair
    dtype: str
    images: Layout
    gradient: Layout

    def describe(self) -> str:
        return (
            f"{self.name}, {self.channels} channels, {self.batch} images {self.size[0]}x{self.size[1]}, "
            f"{self.dtype}, channels {self.images} (gradient {self.gradient})"
        )

    def errors(self, *, ours: bool, repeats: int) -> dict[str, float]:
        """The largest of the output, and of the gradients by images and parameters: the library's."""
        dtype = getattr(torch, self.dtype)
        images = torch.randn(self.batch, self.channels, *self.size).to(dtype)
        parameters = torch.randn(2, self.channels)  # float32, as under autocast
        compute = OPERATIONS[self.name]
        shape = compute(images.double(), parameters.double()).shape
        gradient = torch.randn(shape).to(dtype)
        laid_out = lay_out(gradient, self.gradient) if gradient.ndim == 4 else gradient
        exact = _run(compute, images.double(), parameters.double(), gradient.double())
        images = lay_out(images, self.images)
        return _worst(lambda: _run(compute, images, parameters, laid_out), exact, repeats=repeats)


def _worst(
    compute: Callable[[], dict[str, Tensor]], exact: dict[str, Tensor], *, repeats: int
) -> dict[str, float]:
    tries = [compute() for _ in range(repeats)]
    return {name: max(relative_error(got[name], exact[name]) for got in tries) for name in exact}


def _run(
    compute: Callable[[Tensor, Tensor], Tensor], images: Tensor, parameters: Tensor, gradient: Tensor
) -> dict[str, Tensor]:
    images, parameters = images.clone().requires_grad_(), parameters.clone().requires_grad_()
    output = compute(images, parameters)
    by_images, by_parameters = torch.autograd.grad(
        output, (images, parameters), gradient, allow_unused=True, materialize_grads=True
    )
    return {"forward": output.detach(), "by images": by_images, "by parameters": by_parameters}


def _norm_over_channels(images: Tensor, parameters: Tensor) -> Tensor:
    rows = F.layer_norm(images.permute(0, 2, 3, 1), parameters.shape[1:], *parameters)
    return rows.permute(0, 3, 1, 2)


def _statistics(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """A running mean and variance, without gradient."""
    mean, deviation = parameters.detach().clone()
    return mean, deviation.abs() + 0.5


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "batch_norm": lambda x, p: F.batch_norm(x, None, None, *p, training=True),
    "batch_norm in evaluation": lambda x, p: F.batch_norm(x, *_statistics(p), *p, training=False),
    "layer_norm": _norm_over_channels,
    "group_norm of 1": lambda x, p: F.group_norm(x, 1, *p),
    "max_pool2d 3 stride 2": lambda x, _: F.max_pool2d(x, 3, 2, 1),
    "max_pool2d 2": lambda x, _: F.max_pool2d(x, 2, ceil_mode=True),
    "avg_pool2d 3 stride 2": lambda x, _: F.avg_pool2d(x, 3, 2, 1),
    "avg_pool2d 2": lambda x, _: F.avg_pool2d(x, 2, 2, 0, True, False),
    "adaptive_avg_pool2d 1": lambda x, _: F.adaptive_avg_pool2d(x, 1),
    "adaptive_avg_pool2d 3": lambda x, _: F.adaptive_avg_pool2d(x, 3),
    "adaptive_max_pool2d 2": lambda x, _: F.adaptive_max_pool2d(x, 2),
    "interpolate bilinear": lambda x, _: F.interpolate(x, (7, 5), mode="bilinear"),
    "interpolate bicubic": lambda x, _: F.interpolate(x, (7, 5), mode="bicubic"),
    "interpolate nearest": lambda x, _: F.interpolate(x, scale_factor=2.0),
    "linear": lambda x, p: F.linear(x.permute(0, 2, 3, 1), (p[:1].T @ p[1:]).to(x.dtype), p[0].to(x.dtype)),
    "gelu": lambda x, _: F.gelu(x),
    "silu": lambda x, _: F.silu(x),
    "hardswish": lambda x, _: F.hardswish(x),
    "mean of pixels": lambda x, _: x.mean((2, 3)),
    "softmax of channels": lambda x, _: x.softmax(1),
    "transposed convolution": lambda x, p: F.conv_transpose2d(
        x, p[0].to(x.dtype)[:, None, None, None].expand(-1, 5, 2, 2), None, 2
    ),
}


def lay_out(tensor: Tensor, layout: Layout) -> Tensor:
    """The same values, in memory of their own with the strides of the layout, whatever sides are 1."""
    if layout == "first":
        return tensor.clone(memory_format=torch.contiguous_format).view(-1).view(tensor.shape)
    rows = tensor.permute(0, 2, 3, 1).contiguous()
    return rows.view(-1).view(rows.shape).permute(0, 3, 1, 2).clone(memory_format=torch.preserve_format)


def relative_error(got: Tensor, exact: Tensor) -> float:
    """The largest difference in parts of the largest value; infinite where something is not finite."""
    if got.shape != exact.shape or not bool(got.isfinite().all()):
        return float("inf")
    scale = float(exact.abs().max().clamp(min=1e-3))
    return float((got.double() - exact).abs().max()) / scale


# ---- Drawing


def draw_convolutions(count: int, *, seed: int) -> Iterator[Convolution]:
    """So many of all kinds; a third of them 1x1 with a stride, where the library was once found wrong."""
    draw = random.Random(seed)
    drawn = 0
    while drawn < count:
        case = _draw_strided_1x1(draw) if draw.random() < 0.33 else _draw_any(draw)
        if case.is_possible:
            drawn += 1
            yield case


def draw_operations(count: int, *, seed: int) -> Iterator[Operation]:
    draw = random.Random(seed)
    for number in range(count):
        name = [*OPERATIONS][number % len(OPERATIONS)]
        dtype = draw.choice([*TOLERANCES])
        size = (draw.randint(1, 24), draw.randint(1, 24))
        shape = (draw.choice((2, 3, 8)), draw.choice(_CHANNELS), size)
        yield Operation(name, *shape, dtype, draw.choice(LAYOUTS), draw.choice(LAYOUTS))


def _draw_any(draw: random.Random) -> Convolution:
    side = draw.choice((1, 2, 3, 3, 4, 5, 7))
    kernel = (side, side) if draw.random() < 0.9 else draw.choice(((1, side), (side, 1)))
    step = draw.choice((1, 2)) if side not in (2, 4) else side
    stride = (step, step) if draw.random() < 0.9 else draw.choice(((1, step), (step, 1)))
    padding = draw.choice(((0, 0), (kernel[0] // 2, kernel[1] // 2), (side - 1, side - 1)))
    channels, out, groups = draw.choice(_CHANNELS), draw.choice(_CHANNELS), 1
    kind = draw.random()
    if kind < 0.15:  # depthwise
        groups, out = channels, channels * draw.choice((1, 1, 2))
    elif kind < 0.3:
        groups = draw.choice((2, 3, 4))
        channels, out = channels * groups, out * groups
    dilation = draw.choice((1, 1, 1, 2))
    return _finish(
        draw,
        channels=channels,
        out=out,
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        size=_draw_size(draw),
    )


def _draw_strided_1x1(draw: random.Random) -> Convolution:
    """Sizes that the stride divides and others; also many channels, and large images."""
    stride = draw.choice(((2, 2), (2, 2), (2, 2), (3, 3), (4, 4), (2, 1), (1, 2)))
    size = _draw_size(draw)
    if draw.random() < 0.8:
        size = (size[0] * stride[0], size[1] * stride[1])
    if draw.random() < 0.05:
        size = (64, 64)
    many = draw.random()
    channels = draw.choice((128, 192, 256, 320, 512, 1024, 2048)) if many < 0.1 else draw.choice(_CHANNELS)
    out = draw.choice((128, 256, 512, 264, 1024)) if many > 0.9 else draw.choice(_CHANNELS)
    return _finish(
        draw,
        channels=channels,
        out=out,
        kernel=(1, 1),
        stride=stride,
        padding=(0, 0),
        dilation=1,
        groups=1,
        size=size,
    )


def _draw_size(draw: random.Random) -> Pair:
    height = draw.randint(1, 24)
    return (height, height) if draw.random() < 0.6 else (height, draw.randint(1, 24))


def _finish(
    draw: random.Random,
    *,
    channels: int,
    out: int,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: int,
    groups: int,
    size: Pair,
) -> Convolution:
    images = draw.choice(LAYOUTS)
    same = draw.random() < 0.5
    return Convolution(
        batch=draw.choice(_BATCHES),
        channels=channels,
        out=out,
        size=size,
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw.random() < 0.5,
        dtype="float32" if draw.random() < 0.6 else "bfloat16",
        images=images,
        gradient=images if same else draw.choice(LAYOUTS),
        weight=images if same else draw.choice(LAYOUTS),
    )
