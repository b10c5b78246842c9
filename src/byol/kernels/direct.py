"""Convolution with bias, addition and ReLU on CPU, for kernels of any size and stride, without gradients.

It computes in float32, as one matrix product over the pixels under the kernel (`cpp/direct.cpp`).
"""

import torch
from jaxtyping import Float32
from torch import Tensor

from byol.kernels.build import load_kernels, run_kernel

Pair = list[int]


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
    relu: bool,
) -> Float32[Tensor, "batch out height_out width_out"]:
    """Convolve with kernels of `pack_direct`, add the bias and the residual, apply ReLU if wanted.

    Pairs are height and width. The result is channels_last.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    batch, channels, *size = images.shape
    rows, columns = (
        (n + 2 * p - k) // s + 1 for n, p, k, s in zip(size, padding, kernel, stride, strict=True)
    )
    output = images.new_empty(batch, rows, columns, len(bias))
    numbers = (int(relu), batch, *size, channels, len(bias), *kernel, *stride, *padding)
    run_kernel("direct_convolution", images, kernels, bias, residual, output, *numbers, dtype=torch.float32)
    return output.permute(0, 3, 1, 2)
