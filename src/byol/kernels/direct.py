"""Convolutions with what follows them, and attention, on CPU in float32, without gradients.

`cpp/direct.cpp`, `cpp/maps.cpp` and `cpp/attention.cpp` hold the kernels.
"""

import torch
from jaxtyping import Float32
from torch import Tensor

from byol.kernels.build import load_kernels, run_kernel

Pair = list[int]
# Activations that the kernels apply, as oneDNN names them; the values are those in cpp/ends.h.
ACTIVATIONS = {("none", ""): 0, ("relu", ""): 1, ("gelu", "none"): 2}
NARROWEST = 16  # channels for `convolve_depthwise`: a vector at least


def pack_direct(weight: Float32[Tensor, "out channel kernel_y kernel_x"]) -> Float32[Tensor, " value"]:
    """Return the kernels of a weight for `convolve_direct`; there must be compiled kernels."""
    kernels = load_kernels()
    assert kernels is not None, "whoever packs looks first"
    rows = weight.permute(0, 2, 3, 1).flatten(1).contiguous()
    out, depth = rows.shape
    multiple = kernels.compiled.direct_outputs_float32()
    packed = rows.new_empty(-(-out // multiple) * multiple * depth)
    run_kernel("direct_pack", rows, packed, out, depth, dtype=torch.float32)
    return packed


def convolve_direct(
    images: Float32[Tensor, "batch channel height width"],
    kernels: Float32[Tensor, " value"],
    bias: Float32[Tensor, " out"],
    residual: Float32[Tensor, "batch out height_out width_out"] | None,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    activation: int,
) -> Float32[Tensor, "batch out height_out width_out"]:
    """Convolve with kernels of `pack_direct`, add the bias and the residual, apply one of `ACTIVATIONS`.

    Pairs are height and width. The result is channels_last.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    batch, channels, *size = images.shape
    rows, columns = _size(size, kernel, stride, padding)
    output = images.new_empty(batch, rows, columns, len(bias))
    numbers = (activation, batch, *size, channels, len(bias), *kernel, *stride, *padding)
    run_kernel("direct_convolution", images, kernels, bias, residual, output, *numbers, dtype=torch.float32)
    return output.permute(0, 3, 1, 2)


def convolve_depthwise(
    images: Float32[Tensor, "batch channel height width"],
    weight: Float32[Tensor, "tap channel"],
    bias: Float32[Tensor, " channel"],
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    activation: int,
) -> Float32[Tensor, "batch channel height_out width_out"]:
    """Convolve each channel with its own kernel, else as `convolve_direct`."""
    images = images.contiguous(memory_format=torch.channels_last)
    batch, channels, *size = images.shape
    rows, columns = _size(size, kernel, stride, padding)
    output = images.new_empty(batch, rows, columns, channels)
    numbers = (activation, batch, *size, channels, *kernel, *stride, *padding)
    run_kernel("depthwise_convolution", images, weight, bias, output, *numbers, dtype=torch.float32)
    return output.permute(0, 3, 1, 2)


def attend(
    q: Float32[Tensor, "image head query size"],
    k: Float32[Tensor, "image head key size"],
    v: Float32[Tensor, "image head key size"],
    scale: float,
) -> Float32[Tensor, "image head query size"]:
    """Return softmax(scale * q k^T) v; the size is a multiple of `NARROWEST`."""
    q, k, v = (each if each.stride(3) == 1 else each.contiguous() for each in (q, k, v))
    image, head, query, size = q.shape
    output = q.new_empty(image, query, head, size)
    numbers = (image, head, query, k.shape[2], size)
    strides = [stride for each in (q, k, v) for stride in each.stride()[:3]]
    run_kernel("attention", q, k, v, output, scale, *numbers, *strides, dtype=torch.float32)
    return output.transpose(1, 2)


def _size(size: Pair, kernel: Pair, stride: Pair, padding: Pair) -> Pair:
    return [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, kernel, stride, padding, strict=True)]
