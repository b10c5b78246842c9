"""Convolution on CPU: forward, weight gradient and input gradient, each by the faster method for its shape.

The convolution of oneDNN ("the library") is slow if the output map is only a few pixels wide. Then the same
sums are computed as one matrix product over the columns of the image (im2col):

    columns[(n, y, x), (i, j, c)] = padded[n, c, y * stride + i, x * stride + j]
    output = columns @ kernel.T
    kernel gradient = gradient.T @ columns
    column gradient = gradient @ kernel

Kernel taps that only multiply padding are left out: of a 3x3 kernel on a 1x1 map, one tap remains. The choice
depends only on shape, dtype and kind of CPU, never on a timing, so a continued run gives identical results.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, cast, no_type_check

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from byol.kernels.cpu import instruction_set
from byol.kernels.eager import runs_eagerly
from byol.kernels.onednn_faults import avoid_faults
from byol.kernels.winograd import choose_tile, convolve, multiplies_by_amx

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def accelerate(module: ModuleT) -> ModuleT:
    """Make every plain `nn.Conv2d` in `module` (or `module` itself) use the faster method on CPU.

    Returns `module`. Layers that oneDNN may compute wrongly are changed first (`onednn_faults`). Parameters,
    buffers and state-dict keys do not change, and a second call changes nothing. Not changed: subclasses of
    `nn.Conv2d`, and layers with groups, dilation, or padding other than a number of zeros. On other devices,
    and under `torch.compile` and `torch.export`, the layers use the convolution of PyTorch.
    """
    for layer in avoid_faults(module).modules():
        # Only the class changes: deepcopy, hooks and DistributedDataParallel work as with a plain Conv2d.
        if type(layer) is nn.Conv2d and _is_plain(layer):
            layer.__class__ = CpuConv2d
    return module


def _is_plain(layer: nn.Conv2d) -> bool:
    pairs = (layer.stride, layer.padding)
    are_numbers = all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs)
    return are_numbers and layer.padding_mode == "zeros" and layer.groups == 1 and layer.dilation == (1, 1)


class CpuConv2d(nn.Conv2d):
    """A plain `nn.Conv2d` that uses the methods of `choose_ways` on CPU."""

    @no_type_check  # torch.fx and TorchScript pass proxies of tensors
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if torch.jit.is_scripting():  # TorchScript compiles only this branch
            return F.conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        else:
            return self._convolve(input, weight, bias)

    @no_type_check
    @torch.jit.unused
    def _convolve(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if runs_eagerly(input, weight, bias) and self._fits(input, weight):
            autocast = torch.is_autocast_enabled("cpu")
            dtype = torch.get_autocast_dtype("cpu") if autocast else input.dtype
            if autocast or weight.dtype == dtype:
                output = self.convolve_faster(input, weight, dtype)
                if output is not None:
                    return output if bias is None else output + bias.to(dtype)[:, None, None]
        return cast(Tensor, super()._conv_forward(input, weight, bias))

    def _fits(self, input: Tensor, weight: Tensor) -> bool:
        """Return whether shapes and settings still allow the faster methods; users may have changed them."""
        shape = (self.out_channels, self.in_channels, *self.kernel_size)
        return weight.shape == shape and input.ndim == 4 and input.shape[1] == shape[1] and _is_plain(self)

    def convolve_faster(self, images: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Convolve in `dtype`, without bias; None: the convolution of PyTorch is the fastest."""
        rows, columns = self._sides(images)
        is_3x3 = self.kernel_size == (3, 3) and self.stride == (1, 1) and rows.padding == columns.padding <= 2
        if is_3x3 and weight.dtype == torch.float32:
            out, channels = self.out_channels, self.in_channels
            m = choose_tile(channels, out, height=rows.out, width=columns.out, dtype=dtype)
            if m is not None:
                return convolve(images.to(dtype), weight, padding=rows.padding, m=m)
        ways = choose_ways(rows, columns, dtype)
        if ways == _LIBRARY:
            return None
        return cast(Tensor, _Convolution.apply(images.to(dtype), weight, rows, columns, ways))

    def _sides(self, images: Tensor) -> tuple["Side", "Side"]:
        height, width = images.shape[2:]
        padding = cast(tuple[int, int], self.padding)
        return (
            Side.of(height, self.kernel_size[0], self.stride[0], padding[0]),
            Side.of(width, self.kernel_size[1], self.stride[1], padding[1]),
        )


# ---- The rule


@dataclass(frozen=True)
class Side:
    """The sizes of a convolution along the height, or the width, of a map; all in pixels."""

    stride: int
    padding: int
    out: int
    taps: int  # of the kernel
    first_tap: int  # the taps first_tap .. end_tap - 1 overlap the image for some output pixel
    end_tap: int

    @classmethod
    @cache
    def of(cls, size: int, kernel: int, stride: int, padding: int) -> "Side":
        out = max((size + 2 * padding - kernel) // stride + 1, 0)
        used = [
            tap for tap in range(kernel) if any(0 <= y * stride + tap - padding < size for y in range(out))
        ]
        return cls(stride, padding, out, kernel, min(used, default=0), max(used, default=-1) + 1)

    @property
    def windows(self) -> list[slice]:
        """For each tap, the pixels of the padded image that it multiplies."""
        span = self.stride * (self.out - 1) + 1
        return [slice(tap, tap + span, self.stride) for tap in range(self.first_tap, self.end_tap)]


@dataclass(frozen=True)
class Ways:
    """The method for each direction: True is the matrix product, False the convolution of oneDNN."""

    forward: bool
    weight_gradient: bool
    input_gradient: bool


_WIDEST_1X1 = 12
_LIBRARY = Ways(forward=False, weight_gradient=False, input_gradient=False)


@cache
def choose_ways(rows: Side, columns: Side, dtype: torch.dtype) -> Ways:
    """Choose matrix products for narrow output maps; the limits were measured on each instruction set.

    Ratios: medians over five layers, timed alternately on one core of an AMD EPYC (Zen 4), torch 2.14.
    """
    out, kind = max(rows.out, columns.out), instruction_set()
    if out == 0 or rows.first_tap >= rows.end_tap or columns.first_tap >= columns.end_tap:
        return _LIBRARY  # nothing to do, or an error that PyTorch explains
    if kind in ("baseline", "neon"):
        # Not measured, but a map of one pixel needs only one tap of nine.
        return Ways(*[out <= 1] * 3)
    if multiplies_by_amx(dtype):
        # Intel AMX, complete ResNet-18 steps: at 32 px 158 -> 415 images/s, at 96 px 49 -> 72. Backward at
        # 96 px with the weight gradient as a product at <= 3, 6, 12, 24 px: 250, 227, 231, 323 ms.
        return Ways(forward=out <= 3, weight_gradient=out <= 6, input_gradient=out <= 3)
    if min(rows.stride, columns.stride) == 1:
        # 3x3 layers of 1, 2, 3, 4 px, time of oneDNN / time of the product, AVX2 fp32 (AVX512-bf16 in bf16):
        #   forward 9.6 (2.4), 0.9 (0.8), 0.7 (0.8), 0.6 (0.7); input gradient 5.4 (12), 0.9 (0.9), 0.7 (0.8)
        #   weight gradient 54 (12), 2.0 (1.7), 1.3 (1.3), 1.1 (0.9)
        return Ways(forward=out <= 1, weight_gradient=out <= 3, input_gradient=out <= 1)
    # The same with stride 2, to 1, 2, 3, 4, 6 px, with 64 to 512 channels:
    #   forward 1.0-2.1 (0.8-1.5), 0.8-1.2 (0.5-1.2), 0.8; input gradient 1.6-2.3 (1.0-2.0), 1.1 (1.0-1.3)
    #   weight gradient 4-17 (1.8-5.8), 1.5-1.8 (2.0-2.6), 1.6 (2.0), 1.1-1.2 (1.5), 1.1 (1.2)
    #   AVX-512 in fp32 0.9 at 6 px
    # 1x1 with stride 2, to 2, 3, 4, 6, 12 px: input gradient 1.6 (1.1), 1.7 (2.0), 2.5 (1.6), 1.7, 1.4
    widest = 6 if kind == "avx2" or dtype == torch.bfloat16 else 4
    is_1x1 = all(side.taps == 1 and side.padding == 0 for side in (rows, columns))
    return Ways(
        forward=out <= 1,
        weight_gradient=out <= widest,
        input_gradient=out <= 1 or (is_1x1 and out <= _WIDEST_1X1),
    )


# ---- The two methods


class _Convolution(torch.autograd.Function):
    """out[n, o, y, x] = sum weight[o, c, i, j] * padded[n, c, y * stride + i, x * stride + j].

    Computes in the dtype of the images: only the used taps of the weight are converted, one third of those of
    a ResNet-18 at 32 px. Has no second derivatives.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, rows: Side, columns: Side, ways: Ways) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.rows, ctx.columns, ctx.ways = rows, columns, ways
        if ways.forward:
            kernel = _kernel_matrix(weight, rows, columns).to(images.dtype)
            return _from_matrix(_unfold(images, rows, columns) @ kernel.T, rows, columns)
        stride, padding = (rows.stride, columns.stride), (rows.padding, columns.padding)
        return F.conv2d(images, weight.to(images.dtype), None, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        images, weight = ctx.saved_tensors
        rows, columns = ctx.rows, ctx.columns
        ways = ctx.ways if runs_eagerly(gradient) else _LIBRARY
        image_wanted, weight_wanted = ctx.needs_input_grad[:2]
        image_by_library = image_wanted and not ways.input_gradient
        weight_by_library = weight_wanted and not ways.weight_gradient
        image_gradient = weight_gradient = None
        if image_by_library or weight_by_library:
            image_gradient, weight_gradient, _ = torch.ops.aten.convolution_backward(
                gradient,
                images,
                weight.to(images.dtype),
                bias_sizes=None,
                stride=(rows.stride, columns.stride),
                padding=(rows.padding, columns.padding),
                dilation=(1, 1),
                transposed=False,
                output_padding=(0, 0),
                groups=1,
                output_mask=(image_by_library, weight_by_library, False),
            )
        matrix = gradient.permute(0, 2, 3, 1).reshape(-1, weight.shape[0])
        if weight_wanted and ways.weight_gradient:
            weight_gradient = _to_kernel(matrix.T @ _unfold(images, rows, columns), weight, rows, columns)
        if image_wanted and ways.input_gradient:
            kernel = _kernel_matrix(weight, rows, columns).to(images.dtype)
            image_gradient = _fold(matrix @ kernel, images, rows, columns)
        if weight_gradient is not None:
            weight_gradient = weight_gradient.to(weight.dtype)
        return image_gradient, weight_gradient, None, None, None


def _unfold(
    images: Float[Tensor, "batch channel height width"], rows: Side, columns: Side
) -> Float[Tensor, "pixel tap_channel"]:
    """Return the columns of the images, by tap, then channel; a copy up to kernel-size times as large."""
    channels_last = images.permute(0, 2, 3, 1)
    padded = F.pad(channels_last, (0, 0, columns.padding, columns.padding, rows.padding, rows.padding))
    taps = [padded[:, y, x] for y in rows.windows for x in columns.windows]
    return torch.cat(taps, dim=-1).flatten(0, 2)


def _fold(
    matrix: Float[Tensor, "pixel tap_channel"],
    images: Float[Tensor, "batch channel height width"],
    rows: Side,
    columns: Side,
) -> Float[Tensor, "batch channel height width"]:
    """Apply the transpose of `_unfold`: add each column entry to the pixel that it came from."""
    batch, channel, height, width = images.shape
    padded = matrix.new_zeros(batch, height + 2 * rows.padding, width + 2 * columns.padding, channel)
    taps = matrix.view(batch, rows.out, columns.out, -1, channel).unbind(dim=3)
    windows = [(y, x) for y in rows.windows for x in columns.windows]
    for (y, x), tap in zip(windows, taps, strict=True):
        padded[:, y, x] += tap
    inner = padded[:, rows.padding : rows.padding + height, columns.padding : columns.padding + width]
    return inner.permute(0, 3, 1, 2)


def _kernel_matrix(
    weight: Float[Tensor, "out channel kernel_height kernel_width"], rows: Side, columns: Side
) -> Float[Tensor, "out tap_channel"]:
    """Return the kernel taps in the order of `_unfold`; a view of a channels_last kernel if all are used."""
    used = weight[:, :, rows.first_tap : rows.end_tap, columns.first_tap : columns.end_tap]
    return used.permute(0, 2, 3, 1).flatten(1)


def _to_kernel(
    matrix: Float[Tensor, "out tap_channel"],
    weight: Float[Tensor, "out channel kernel_height kernel_width"],
    rows: Side,
    columns: Side,
) -> Float[Tensor, "out channel kernel_height kernel_width"]:
    """Apply the inverse of `_kernel_matrix`; unused taps get 0."""
    out, channel, kernel_height, kernel_width = weight.shape
    taps = matrix.to(weight.dtype).view(
        out, rows.end_tap - rows.first_tap, columns.end_tap - columns.first_tap, channel
    )
    unused = (columns.first_tap, kernel_width - columns.end_tap, rows.first_tap, kernel_height - rows.end_tap)
    return F.pad(taps, (0, 0, *unused)).permute(0, 3, 1, 2)


def _from_matrix(
    matrix: Float[Tensor, "pixel out"], rows: Side, columns: Side
) -> Float[Tensor, "batch out height width"]:
    """Return the rows of the matrix as maps, channels_last in memory."""
    return matrix.view(-1, rows.out, columns.out, matrix.shape[1]).permute(0, 3, 1, 2)
