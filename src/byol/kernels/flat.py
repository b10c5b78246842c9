"""Run a fused network as one call of compiled code, if it has only convolutions and pools.

The maps of all steps lie in one piece of memory; a map takes the place of those that are not read any more.
`cpp/program.cpp` runs the steps.
"""

import math
import struct
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float32, Int64
from torch import Tensor, fx

from byol.kernels.build import load_kernels, run_kernel
from byol.kernels.direct import NARROWEST, convolve_depthwise, convolve_direct
from byol.kernels.recording import Recording, arguments_of, aten, pair
from byol.kernels.winograd import convolve_packed

# Kinds of steps; 2, 3 and 4: Winograd's algorithm with these tiles.
_DIRECT, _MAXIMUM, _MEAN, _DEPTHWISE, _NORM = 0, 1, 5, 6, 7
_TO_LAST, _FROM_LAST = (
    [0, 2, 3, 1],
    [0, 3, 1, 2],
)  # permutations of axes: all maps are channels_last in memory
_IMAGES, _FEATURES, _NONE = -1, -2, -3  # places that are not in the memory
_LINE = 16  # values of a cache line, at which maps begin


@dataclass(frozen=True)
class FlatProgram:
    """Steps as `Step` in cpp/program.cpp, and the tensors whose addresses they hold."""

    steps: Int64[Tensor, "step field"]
    memory: int  # values
    num_features: int
    held: list[Tensor]

    def __call__(
        self, images: Float32[Tensor, "image channel height width"]
    ) -> Float32[Tensor, "image feature"]:
        """Compute the features of channels_last images; as many as the program was made for."""
        features = images.new_empty(len(images), self.num_features)
        memory = images.new_empty(self.memory)
        run_kernel("program_run", self.steps, len(self.steps), images, memory, features, dtype=torch.float32)
        return features


def flatten(recording: Recording) -> FlatProgram | None:
    """Return the program of a fused recording; None: it has other operations, or there are no kernels."""
    if load_kernels() is None:
        return None
    nodes = [node for node in recording.graph.nodes if node.op != "get_attr"]
    source = {node: node for node in nodes}  # the node whose memory a node has
    last = set[fx.Node]()  # nodes whose last axis is that of the channels
    steps: dict[fx.Node, list[Any]] = {}
    for node in nodes:
        if node.op != "call_function":
            continue
        given = node.args[0]
        if node.target is aten.layer_norm.default and given in last:
            last.add(node)
        if node.target is aten.permute.default and node.args[1] == (
            _FROM_LAST if given in last else _TO_LAST
        ):
            source[node] = source[given]
            last |= set() if given in last else {node}
        elif _is_same_memory(node):
            source[node] = source[given]
        elif (step := _step(node, last)) is not None:
            steps[node] = step
        else:
            return None
    result = source[nodes[-1].args[0]]
    features = nodes[-1].args[0].meta["shape"]
    if result not in steps or len(features) != 2:
        return None
    read = {node: [source[each] for each in node.all_input_nodes if each in source] for node in steps}
    places, memory = _place(list(steps), read, result)
    placed = {**places, next(node for node in nodes if node.op == "placeholder"): _IMAGES, result: _FEATURES}
    rows, held = [], []
    for node, (kind, images, residual, kernels, bias, *numbers, epsilon) in steps.items():
        if residual is not None and placed[source[residual]] == _IMAGES:
            return None
        tensors = [
            recording.constants[str(each.target)] if each is not None else None for each in (kernels, bias)
        ]
        held += [tensor for tensor in tensors if tensor is not None]
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        where = [_NONE if residual is None else placed[source[residual]], *addresses]
        (as_integer,) = struct.unpack("q", struct.pack("d", epsilon))
        rows.append([kind, placed[source[images]], placed[node], *where, *numbers, as_integer])
    return FlatProgram(torch.tensor(rows), memory, features[1], held)


def _is_same_memory(node: fx.Node) -> bool:
    """Return whether a node is a map of one pixel in other shape."""
    shape, target, given = node.meta["shape"], cast(Any, node.target), cast(Any, node.args[0])
    is_reshaped = target in (aten.flatten.using_ints, aten.view.default, aten.reshape.default)
    return is_reshaped and len(shape) == 2 and given.meta["shape"][:2] == shape


def _step(node: fx.Node, last: set[fx.Node]) -> list[Any] | None:
    """Return kind, images, residual, kernels, bias, and the numbers of a `Step`; None: it cannot be one.

    `last`: the nodes whose last axis is that of the channels.
    """
    images, arguments = cast(Any, node.args[0]), cast(Any, node.args)
    if not isinstance(images, fx.Node) or images.op == "get_attr":
        return None
    batch, *size = images.meta["shape"]
    channels, height, width = (*size[2:], *size[:2]) if images in last else (*size, 1, 1)[:3]
    size, out = [batch, height, width, channels], node.meta["shape"][1]
    if node.target is convolve_direct:
        _, kernels, bias, residual, kernel, stride, padding, activation = arguments
        numbers = [activation, *size, out, *kernel, *stride, *padding, 0, 0, 0.0]
        return [_DIRECT, images, residual, kernels, bias, *numbers]
    if node.target is convolve_packed:
        _, kernels, bias, residual, padding, m, relu = arguments
        numbers = [int(relu), *size, out, 3, 3, 1, 1, padding, padding, 0, 0, 0.0]
        return [m, images, residual, kernels, bias, *numbers]
    if node.target is convolve_depthwise:
        _, weight, bias, kernel, stride, padding, activation = arguments
        numbers = [activation, *size, channels, *kernel, *stride, *padding, 0, 0, 0.0]
        return [_DEPTHWISE, images, None, weight, bias, *numbers]
    if node.target is aten.layer_norm.default:
        given = arguments_of(node)
        is_of_pixels = images in last or images.meta["shape"][1:] == (channels,)
        is_scaled = given["weight"] is not None and given["bias"] is not None
        if (
            not is_of_pixels
            or not is_scaled
            or given["normalized_shape"] != [channels]
            or channels < NARROWEST
        ):
            return None
        numbers = [0, *size, channels, *[0] * 8, given["eps"]]
        return [_NORM, images, None, given["weight"], given["bias"], *numbers]
    if images in last or (window := _window(node, height, width)) is None:
        return None
    kind, kernel, stride, padding = window
    rows, columns = node.meta["shape"][2:] or (1, 1)
    return [
        kind,
        images,
        None,
        None,
        None,
        0,
        *size,
        channels,
        *kernel,
        *stride,
        *padding,
        rows,
        columns,
        0.0,
    ]


def _window(node: fx.Node, height: int, width: int) -> tuple[int, list[int], list[int], list[int]] | None:
    """Return kind, size, stride and padding of a pool; None: it is none, or counts pixels of the padding."""
    target: Any = node.target
    if target in (aten.adaptive_avg_pool2d.default, aten.mean.dim):
        of_all = ([1, 1],) if target is aten.adaptive_avg_pool2d.default else ([2, 3], [-2, -1], [-1, -2])
        is_all = list(cast(Any, node.args[1])) in of_all and "dtype" not in node.kwargs
        return (_MEAN, [height, width], [1, 1], [0, 0]) if is_all else None
    if target not in (aten.max_pool2d.default, aten.avg_pool2d.default):
        return None
    given = arguments_of(node)
    kernel = pair(given["kernel_size"])
    stride, padding = pair(given["stride"] or kernel), pair(given["padding"])
    if target is aten.max_pool2d.default:
        return (_MAXIMUM, kernel, stride, padding) if pair(given["dilation"]) == [1, 1] else None
    counts = padding != [0, 0] and given["count_include_pad"]
    return None if counts or given["divisor_override"] is not None else (_MEAN, kernel, stride, padding)


def _place(
    steps: list[fx.Node], read: dict[fx.Node, list[fx.Node]], result: fx.Node
) -> tuple[dict[fx.Node, int], int]:
    """Return the place of the map of each step, and the size of the memory, both in values.

    A map gets the first gap between the maps that are still read when it is written.
    """
    last = {each: number for number, node in enumerate(steps) for each in read[node]}
    places, memory = dict[fx.Node, int](), 0
    sizes = {node: -(-math.prod(node.meta["shape"]) // _LINE) * _LINE for node in steps}
    for number, node in enumerate(steps):
        if node is result:
            continue
        place = 0
        for other in sorted(
            (each for each in places if last.get(each, -1) >= number), key=places.__getitem__
        ):
            if place + sizes[node] <= places[other]:
                break
            place = max(place, places[other] + sizes[other])
        places[node] = place
        memory = max(memory, place + sizes[node])
    return places, memory
