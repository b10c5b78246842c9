"""Make a recorded network faster on CPU: fewer passes over memory, weights packed once, Winograd's algorithm.

A convolution or linear layer takes up what follows it: BatchNorm and other constant factors and terms go into
its weight and bias; an activation and an addition (and a ReLU after it) become a part of the operation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor, fx

from byol.kernels.build import load_kernels
from byol.kernels.convolution import Side
from byol.kernels.direct import (
    ACTIVATIONS,
    NARROWEST,
    attend,
    convolve_depthwise,
    convolve_direct,
    pack_direct,
)
from byol.kernels.recording import Recording, arguments_of, aten, pair
from byol.kernels.winograd import choose_tile, convolve_packed, pack

# Activations that oneDNN computes at the end of a layer: its name and its numbers, from the node's arguments.
_ACTIVATIONS: dict[Any, Callable[..., tuple[str, list[float], str]]] = {
    aten.relu.default: lambda x: ("relu", [], ""),
    aten.gelu.default: lambda x, approximate="none": ("gelu", [], approximate),
    aten.silu.default: lambda x: ("swish", [], ""),
    aten.sigmoid.default: lambda x: ("sigmoid", [], ""),
    aten.tanh.default: lambda x: ("tanh", [], ""),
    aten.hardswish.default: lambda x: ("hardswish", [], ""),
    aten.hardtanh.default: lambda x, low=-1.0, high=1.0: ("hardtanh", [low, high], ""),
    aten.leaky_relu.default: lambda x, slope=0.01: ("leaky_relu", [slope], ""),
}
_NO_ACTIVATION: tuple[str, list[float], str] = ("none", [], "")
_RELU: tuple[str, list[float], str] = ("relu", [], "")
_READ = 25  # products in the time in which a value of a weight is read from the cache of level 3
Packs = dict[tuple[Any, ...], Tensor]  # packed weights, by layer and way; of programs for the same network


def fuse(recording: Recording, packs: Packs) -> None:
    """Fuse the layers of a recording in place; the weights are packed unless they are in `packs` already."""
    graph = recording.graph
    for node in graph.nodes:
        if node.target is aten.scaled_dot_product_attention.default and load_kernels() is not None:
            _replace_attention(node)
    layers = [node for node in graph.nodes if node.target in (aten.conv2d.default, aten.linear.default)]
    for index, node in enumerate(layers):
        layer = Layer.of(node, recording)
        if layer is None:
            continue
        layer.fold()
        if node.target is aten.conv2d.default:
            _replace_convolution(layer, index, packs)
        else:
            _replace_linear(layer)


@dataclass
class Layer:
    """A layer with constant weights, and the operations up to `last` that it computes as well."""

    recording: Recording
    node: fx.Node
    arguments: dict[str, Any]
    weight: Tensor
    bias: Tensor | None
    last: fx.Node

    @classmethod
    def of(cls, node: fx.Node, recording: Recording) -> "Layer | None":
        arguments = arguments_of(node)
        weight = _constant(arguments["weight"], recording)
        bias = _constant(arguments["bias"], recording)
        if (
            weight is None
            or weight.dtype != torch.float32
            or (arguments["bias"] is not None and bias is None)
        ):
            return None
        return cls(recording, node, arguments, weight, bias, node)

    # ---- Into the weight

    def fold(self) -> None:
        """Take up BatchNorm, constant factors and terms for each channel that follow the layer."""
        axis = 1 if self.node.target is aten.conv2d.default else len(self.node.meta["shape"]) - 1
        while (user := self._only_user()) is not None:
            if user.target is aten.batch_norm.default and user.args[0] is self.last and axis == 1:
                found = self._norm(user)
            elif (
                user.target in (aten.mul.Tensor, aten.add.Tensor) and len(user.args) == 2 and not user.kwargs
            ):
                found = self._factor_or_term(user, axis)
            else:
                return
            if found is None:
                return
            factor, term = found
            self.weight = self.weight * factor.view(-1, *[1] * (self.weight.ndim - 1)).float()
            bias = torch.zeros_like(term) if self.bias is None else self.bias
            self.bias = (bias * factor + term).float()
            self.last = user

    def _only_user(self) -> fx.Node | None:
        return next(iter(self.last.users)) if len(self.last.users) == 1 else None

    def _norm(self, node: fx.Node) -> tuple[Tensor, Tensor] | None:
        arguments = arguments_of(node)
        mean, var, weight, bias = (
            _constant(arguments[name], self.recording)
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        if mean is None or var is None or arguments["training"]:
            return None
        factor = torch.rsqrt(var.double() + arguments["eps"])
        factor = factor if weight is None else factor * weight
        return factor, (0 if bias is None else bias) - mean * factor

    def _factor_or_term(self, node: fx.Node, axis: int) -> tuple[Tensor, Tensor] | None:
        other = _constant(node.args[1] if node.args[0] is self.last else node.args[0], self.recording)
        if other is None or node.meta["shape"] != self.last.meta["shape"]:
            return None
        shape = [1] * len(node.meta["shape"])
        shape[axis] = node.meta["shape"][axis]
        if other.numel() != shape[axis] or list(other.shape) != shape[-other.ndim :]:
            return None
        values = other.double().flatten()
        if node.target is aten.mul.Tensor:
            return values, torch.zeros_like(values)
        return torch.ones_like(values), values

    # ---- Into the operation

    def activation(self) -> tuple[str, list[float], str]:
        """Return the activation that follows, as oneDNN takes it, or that for none."""
        user = self._only_user()
        make = None if user is None else _ACTIVATIONS.get(user.target)
        return _NO_ACTIVATION if user is None or make is None else make(*user.args, **user.kwargs)

    def take_activation(self) -> tuple[str, list[float], str]:
        """Return the activation that follows, which is taken up."""
        if (found := self.activation()) != _NO_ACTIVATION:
            self.last = next(iter(self.last.users))
        return found

    def activation_kind(self) -> int | None:
        """Return the number in `ACTIVATIONS` of what follows, also if that is none; None: it is another."""
        name, _, algorithm = self.activation()
        return ACTIVATIONS.get((name, algorithm))

    def take_activation_kind(self) -> int:
        """Return the number of the activation that follows, which is taken up; 0: none that has a number."""
        kind = self.activation_kind()
        if kind:
            self.take_activation()
        return kind or 0

    def filled_bias(self) -> Float32[Tensor, " out"]:
        return self.weight.new_zeros(len(self.weight)) if self.bias is None else self.bias

    def take_relu(self) -> bool:
        """Return whether a ReLU follows, which is taken up then."""
        return self.activation() == _RELU and bool(self.take_activation())

    def take_addition(self) -> fx.Node | None:
        """Return the map that is added to the result of the layer, if it is one of the same size."""
        user = self._only_user()
        if user is None or user.target is not aten.add.Tensor or len(user.args) != 2 or user.kwargs:
            return None
        other = user.args[1] if user.args[0] is self.last else user.args[0]
        if not isinstance(other, fx.Node) or other is self.last or other.op == "get_attr":
            return None
        if other.meta.get("shape") != self.last.meta["shape"]:
            return None
        self.last = user
        return other

    def replace(self, target: Callable[..., Tensor], *arguments: Any) -> None:
        """Compute the operations up to `last` by one call, in place of the last."""
        with self.recording.graph.inserting_before(self.last):
            given = [self.recording.constant(a) if isinstance(a, Tensor) else a for a in arguments]
            new = self.recording.graph.call_function(target, tuple(given))
        new.meta["shape"] = self.last.meta["shape"]
        new.meta["shared"] = self.last.meta.get("shared", False)
        self.last.replace_all_uses_with(new)
        self.recording.graph.eliminate_dead_code()


def _constant(argument: Any, recording: Recording) -> Tensor | None:
    if not isinstance(argument, fx.Node) or argument.op != "get_attr":
        return None
    return recording.constants[str(argument.target)]


# ---- The operations


def _replace_attention(node: fx.Node) -> None:
    given = arguments_of(node)
    shapes = [given[name].meta["shape"] for name in ("query", "key", "value")]
    size = shapes[0][-1]
    is_plain = given["attn_mask"] is None and not given["is_causal"] and not given["dropout_p"]
    are_alike = all(len(shape) == 4 and shape[:2] == shapes[0][:2] and shape[3] == size for shape in shapes)
    if is_plain and are_alike and size % NARROWEST == 0:
        scale = size**-0.5 if given["scale"] is None else given["scale"]
        node.target, node.args, node.kwargs = attend, (*node.args[:3], scale), {}


def _replace_linear(layer: Layer) -> None:
    activation = layer.take_activation()
    other = layer.take_addition() if activation == _NO_ACTIVATION else None
    x, weight, bias = layer.arguments["input"], layer.weight, layer.bias
    if other is not None:
        layer.replace(torch.ops.mkldnn._linear_pointwise.binary, x, other, weight, bias, "add")
    else:
        layer.replace(torch.ops.mkldnn._linear_pointwise.default, x, weight, bias, *activation)


def _replace_convolution(layer: Layer, index: int, packs: Packs) -> None:
    arguments, images = layer.arguments, layer.arguments["input"]
    size = list(images.meta["shape"][2:])
    kernel = list(layer.weight.shape[2:])
    stride, padding, dilation = (pair(arguments[name]) for name in ("stride", "padding", "dilation"))
    rows, columns = map(Side.of, size, kernel, stride, padding)
    has_kernel = load_kernels() is not None and layer.activation_kind() is not None and dilation == [1, 1]
    if has_kernel and arguments["groups"] == len(layer.weight) == images.meta["shape"][1] >= NARROWEST:
        weight = layer.weight.flatten(1).T.contiguous()
        how = (kernel, stride, padding, layer.take_activation_kind())
        layer.replace(convolve_depthwise, images, weight, layer.filled_bias(), *how)
        return
    if arguments["groups"] != 1 or dilation != [1, 1]:
        _replace_by_onednn(layer, packs, index, padding, stride, dilation)
        return
    m = None
    if kernel == [3, 3] and stride == [1, 1] and padding[0] == padding[1] <= 2:
        m = _choose_tile(layer.weight, (images.meta["shape"][0], rows.out, columns.out))
    if m is None:
        layer.weight, padding = _leave_out_taps(layer.weight, size, rows, columns)
    if m is not None or has_kernel:
        _replace_by_kernel(layer, packs, index, stride, padding, m)
    elif rows.out == columns.out == 1 and padding == [0, 0] and list(layer.weight.shape[2:]) == size:
        matrix = layer.weight.permute(0, 2, 3, 1).flatten(1).contiguous()
        layer.replace(multiply_map, images, matrix, layer.bias, *layer.take_activation())
    else:
        _replace_by_onednn(layer, packs, index, padding, stride, dilation)


def _choose_tile(weight: Tensor, maps: tuple[int, int, int]) -> int | None:
    """Return the tile for Winograd's algorithm; None: another way takes less time for so many images.

    With few images, most of the time goes into reading the weights, of which this algorithm has more.
    """
    out, channels = weight.shape[:2]
    batch, height, width = maps
    m = choose_tile(channels, out, height=height, width=width, dtype=torch.float32, with_gradients=False)
    if m is None:
        return None
    tiles = batch * -(-height // m) * -(-width // m)
    winograd = (m + 2) ** 2 * (tiles + _READ * -(-tiles // 24))
    direct = 9 * (batch * height * width + _READ * -(-batch * height * width // 96))
    return m if winograd < direct else None


def _replace_by_kernel(
    layer: Layer, packs: Packs, index: int, stride: list[int], padding: list[int], m: int | None
) -> None:
    """Use the kernels of byol: Winograd's algorithm with tiles of m, or (None) direct products."""
    key = (index, m, *layer.weight.shape)
    if key not in packs:
        packs[key] = pack_direct(layer.weight) if m is None else pack(layer.weight, m=m)
    given = [layer.arguments["input"], packs[key], layer.filled_bias()]
    kernel, other = list(layer.weight.shape[2:]), None
    if layer.activation() == _NO_ACTIVATION:
        other = layer.take_addition()
    if m is None:
        kind = layer.take_activation_kind()
        layer.replace(convolve_direct, *given, other, kernel, stride, padding, kind)
    else:
        layer.replace(convolve_packed, *given, other, padding[0], m, layer.take_relu())


def _replace_by_onednn(
    layer: Layer, packs: Packs, index: int, padding: list[int], stride: list[int], dilation: list[int]
) -> None:
    images = layer.arguments["input"]
    how = (padding, stride, dilation, layer.arguments["groups"])
    key = (index, "oneDNN", *layer.weight.shape)
    if key not in packs:
        weight = layer.weight.clone().to_mkldnn()  # a clone, because it may be a tensor of inference mode
        reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # its type lacks an argument
        packs[key] = reorder(weight, *how, list(images.meta["shape"]))
    given = (images, packs[key], layer.bias, *how)
    operations: Any = torch.ops.mkldnn
    activation = layer.take_activation()
    if activation != _NO_ACTIVATION or (other := layer.take_addition()) is None:
        layer.replace(operations._convolution_pointwise.default, *given, *activation)
        return
    end: tuple[Any, ...] = ("add", 1.0, "relu" if layer.take_relu() else None, [], "")
    if _is_free(other, layer) and other is not images:
        layer.replace(operations._convolution_pointwise_.binary, other, *given, *end)
    else:
        layer.replace(operations._convolution_pointwise.binary, images, other, *given[1:], *end)


def multiply_map(
    images: Float32[Tensor, "batch channel height width"],
    matrix: Float32[Tensor, "out pixel_channel"],
    bias: Float32[Tensor, " out"] | None,
    *activation: Any,
) -> Float32[Tensor, "batch out 1 1"]:
    """Convolve with kernels as large as the map, as one matrix product, and apply an activation of oneDNN."""
    rows = images.permute(0, 2, 3, 1).flatten(1)
    product: Tensor = torch.ops.mkldnn._linear_pointwise.default(rows, matrix, bias, *activation)
    return product[:, :, None, None]


def _leave_out_taps(
    weight: Tensor, size: list[int], rows: Side, columns: Side
) -> tuple[Float32[Tensor, "out channel taps_y taps_x"], list[int]]:
    """Leave out taps that only multiply padding; return the rest of the weight and its padding."""
    padding = []
    for axis, (pixels, side) in enumerate(zip(size, (rows, columns), strict=True), start=2):
        taps, left = side.end_tap - side.first_tap, side.padding - side.first_tap
        if taps > 0 and left >= 0 and (pixels + 2 * left - taps) // side.stride + 1 == side.out:
            weight = weight.narrow(axis, side.first_tap, taps)
        else:
            left = side.padding
        padding.append(left)
    return weight, padding


def _is_free(node: fx.Node, layer: Layer) -> bool:
    """Return whether the memory of a map may be overwritten by the last operation of a layer."""
    order = {each: place for place, each in enumerate(layer.recording.graph.nodes)}
    is_last = all(order[user] <= order[layer.last] for user in node.users)
    return is_last and node.op == "call_function" and not node.meta.get("shared")
