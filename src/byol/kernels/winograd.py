"""3x3 convolution of stride 1 on CPU with the Winograd algorithm: 2.25 to 4 times fewer products.

For tiles of m x m output pixels, with d the (m + 2)^2 input pixels of a tile and g the kernel,

    V = B^T d B,   U = G g G^T,   M = sum over input channels of V * U,   output = A^T M A

(Lavin and Gray, arXiv 1509.09308, eq. 8). The gradient of the images is the same convolution with rotated
kernels; that of the weight is G^T (dM^T V) G with dM = A dy A^T. `cpp/winograd.cpp` holds the kernels.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor
from torch.autograd.function import once_differentiable

from byol.kernels.build import CHANNEL_GROUP, load_kernels, run_kernel
from byol.kernels.cpu import instruction_set
from byol.kernels.eager import restore, runs_eagerly, save
from byol.kernels.trial import wins

CHUNK_BYTES = 2**22  # of V at once, for the weight gradient, so that it fits into the CPU cache
# Relative RMS error in bfloat16 against double precision, 3x3, 512 channels: PyTorch 0.0023, m = 2 0.0038,
# m = 3 0.0078. So m = 3 is used only for a map of 3 pixels, where m = 2 would compute too many pixels.
_TILES = {torch.float32: (2, 3, 4), torch.bfloat16: (2, 3)}


def multiplies_by_amx(dtype: torch.dtype) -> bool:
    """Return whether this CPU has matrix units for `dtype`, which make products fast."""
    return dtype == torch.bfloat16 and instruction_set() == "amx"


def choose_tile(
    in_channels: int,
    out_channels: int,
    *,
    height: int,
    width: int,
    dtype: torch.dtype,
    with_gradients: bool = True,
) -> int | None:
    """Return the side m of a tile for `height` x `width` output pixels; None: do not use this algorithm.

    Depends only on these arguments and the kind of CPU. With AMX, products are so fast that the transforms
    would take most of the time.
    """
    kernels = load_kernels()
    if kernels is None or not kernels.has("winograd_convolution_2", dtype) or min(height, width) < 2:
        return None
    if multiplies_by_amx(dtype) or not wins("winograd", dtype, ours=_try_winograd, library=_try_library):
        return None
    multiple = max(CHANNEL_GROUP, kernels.compiled.winograd_outputs())
    if in_channels % (multiple if with_gradients else CHANNEL_GROUP) or out_channels % multiple:
        return None
    if dtype == torch.bfloat16:
        return 3 if height == width == 3 else 2
    return min(_TILES[dtype], key=lambda m: (m + 2) ** 2 * -(-height // m) * -(-width // m))


def _try_winograd(dtype: torch.dtype) -> None:
    """Run a layer forward and backward, for `wins`; `_try_library` does the same with PyTorch."""
    images, weight = _draw_layer(dtype)
    m = 4 if dtype == torch.float32 else 2  # what `choose_tile` returns for 16 pixels
    torch.autograd.grad(convolve(images, weight, padding=1, m=m).sum(), (images, weight))


def _try_library(dtype: torch.dtype) -> None:
    images, weight = _draw_layer(dtype)
    torch.autograd.grad(F.conv2d(images, weight.to(dtype), padding=1).sum(), (images, weight))


def _draw_layer(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return images and a weight of sizes as in the middle of a network."""
    images, weight = torch.ones(8, 64, 16, 16, dtype=dtype), torch.ones(64, 64, 3, 3)
    images, weight = (one.contiguous(memory_format=torch.channels_last) for one in (images, weight))
    return images.requires_grad_(), weight.requires_grad_()


def convolve(
    images: Float[Tensor, "batch channel height width"],
    weight: Float32[Tensor, "out channel 3 3"],
    *,
    padding: int,
    m: int,
) -> Float[Tensor, "batch out height_out width_out"]:
    """Convolve with zero padding; the result is channels_last, in the dtype of the images."""
    return cast(Tensor, _Winograd.apply(images, weight, padding, m))


def pack(weight: Float32[Tensor, "out channel 3 3"], *, m: int) -> Float32[Tensor, " value"]:
    """Return the kernels of a weight for `convolve_packed`, which is called with the same m."""
    return _transform(weight, "pack", m=m, dtype=weight.dtype)


def convolve_packed(
    images: Float32[Tensor, "batch channel height width"],
    kernels: Float32[Tensor, " value"],
    bias: Float32[Tensor, " out"],
    residual: Float32[Tensor, "batch out height_out width_out"] | None,
    padding: int,
    m: int,
    relu: bool,
) -> Float32[Tensor, "batch out height_out width_out"]:
    """Convolve with kernels of `pack`, add the bias and the residual, apply ReLU if wanted; no gradients."""
    images = images.contiguous(memory_format=torch.channels_last)
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    return _convolve(
        images, kernels, len(bias), padding=padding, m=m, bias=bias, residual=residual, relu=relu
    )


class _Packed(threading.local):
    """Packed kernels of the block `constant_weights` of a thread, with their weights.

    Keeping the weights alive keeps their addresses unique. None outside the block.
    """

    kernels: dict[tuple[Any, ...], tuple[Tensor, Tensor]] | None = None


_packed = _Packed()


@contextmanager
def constant_weights() -> Iterator[None]:
    """Pack each weight only once in the block, in which no weight may change; for this thread only."""
    before, _packed.kernels = _packed.kernels, {}
    try:
        yield
    finally:
        _packed.kernels = before


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, padding: int, m: int) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        save(ctx, images, weight)
        ctx.padding, ctx.m = padding, m
        return _convolve(images, _pack(weight, m=m, dtype=images.dtype), len(weight), padding=padding, m=m)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        images, weight = restore(ctx)
        m, padding = ctx.m, ctx.padding
        if not runs_eagerly(gradient):
            return *_library_gradients(gradient, images, weight, padding, ctx.needs_input_grad), None, None
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        image_gradient = weight_gradient = None
        if ctx.needs_input_grad[0]:
            U = _transform(weight, "pack_back", m=m, dtype=images.dtype)
            image_gradient = _convolve(gradient, U, weight.shape[1], padding=2 - padding, m=m)
        if ctx.needs_input_grad[1]:
            weight_gradient = _weight_gradient(images, gradient, padding=padding, m=m)
        return image_gradient, weight_gradient, None, None


def _library_gradients(
    gradient: Tensor, images: Tensor, weight: Tensor, padding: int, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    image_gradient, weight_gradient, _ = torch.ops.aten.convolution_backward(
        gradient,
        images,
        weight.to(images.dtype),
        bias_sizes=None,
        stride=(1, 1),
        padding=(padding, padding),
        dilation=(1, 1),
        transposed=False,
        output_padding=(0, 0),
        groups=1,
        output_mask=(wanted[0], wanted[1], False),
    )
    return image_gradient, None if weight_gradient is None else weight_gradient.to(weight.dtype)


def _pack(weight: Tensor, *, m: int, dtype: torch.dtype) -> Tensor:
    kernels = _packed.kernels
    if kernels is None:
        return _transform(weight, "pack", m=m, dtype=dtype)
    key = (weight.data_ptr(), weight.shape, weight.stride(), m, dtype)
    if key not in kernels:
        kernels[key] = weight, _transform(weight, "pack", m=m, dtype=dtype)
    return kernels[key][1]


def _transform(weight: Tensor, name: str, *, m: int, dtype: torch.dtype) -> Tensor:
    """Return U in the order in which `convolution` in cpp/winograd.cpp reads it."""
    weight = weight.contiguous(memory_format=torch.channels_last)
    out, channels = weight.shape[:2]
    U = weight.new_empty((m + 2) ** 2 * out * channels, dtype=dtype)
    run_kernel(f"winograd_{name}_{m}", weight, U, out, channels, dtype=dtype)
    return U


def _convolve(
    images: Tensor,
    U: Tensor,
    out: int,
    *,
    padding: int,
    m: int,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    batch, channels, height, width = images.shape
    output = images.new_empty(batch, height + 2 * padding - 2, width + 2 * padding - 2, out)
    size = (batch, height, width, channels, out, padding)
    end = (bias, residual, int(relu))
    run_kernel(f"winograd_convolution_{m}", images, U, output, *end, *size, dtype=images.dtype)
    return output.permute(0, 3, 1, 2)


def _weight_gradient(images: Tensor, gradient: Tensor, *, padding: int, m: int) -> Tensor:
    batch, out, out_height, out_width = gradient.shape
    channels, height, width = images.shape[1:]
    places, tiles = (m + 2) ** 2, -(-out_height // m) * -(-out_width // m)
    num_bytes = batch * places * tiles * max(channels, out) * images.element_size()
    num_parts = min(batch, -(-num_bytes // CHUNK_BYTES))
    weight_gradient = images.new_zeros(out, 3, 3, channels, dtype=torch.float32)
    for first, end in pairwise(batch * part // num_parts for part in range(num_parts + 1)):
        num = end - first
        V = images.new_empty(places, num * tiles, channels)
        dM = images.new_empty(places, num * tiles, out)
        maps, gradients = (num, height, width, channels, padding), (num, out_height, out_width, out)
        run_kernel(f"winograd_input_{m}", images[first:end], V, *maps, dtype=images.dtype)
        run_kernel(f"winograd_output_gradient_{m}", gradient[first:end], dM, *gradients, dtype=images.dtype)
        dU = torch.bmm(dM.mT, V)
        run_kernel(f"winograd_weight_gradient_{m}", dU, weight_gradient, out, channels, dtype=images.dtype)
    return weight_gradient.permute(0, 3, 1, 2)
