"""ResNet blocks on CPU with fewer passes over memory: BatchNorm, addition and ReLU as one operation.

After the convolutions, these passes take most of the time of a step: as separate operations, BatchNorm,
addition and ReLU read and write a map nine times in the forward pass, here four times. `cpp/norm.cpp` holds
the kernels; modules, parameters and state-dict keys do not change.
"""

from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from byol.kernels.build import CHANNEL_GROUP, load_kernels, run_kernel
from byol.kernels.eager import DTYPES, restore, runs_eagerly, save
from byol.kernels.trial import wins

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Images = Float[Tensor, "batch channel height width"]


def fuse_norms(module: ModuleT) -> ModuleT:
    """Make the timm ResNets and their blocks in `module` use the fused operations on CPU; return `module`.

    A block uses the code of timm if it has other layers in between (attention, drop path, drop block,
    anti-aliasing), in evaluation mode, on other devices, and if hooks need the results in between.
    """
    fused = {BasicBlock: _FusedBasicBlock, Bottleneck: _FusedBottleneck, ResNet: _FusedResNet}
    for layer in module.modules():
        # Only the class changes, as in `convolution.accelerate`.
        layer.__class__ = fused.get(type(layer), type(layer))
    return module


# ---- The blocks


class _FusedBasicBlock(BasicBlock):
    def forward(self, x: Tensor) -> Tensor:
        block: Any = self
        if not _is_plain(block, x, norms=(block.bn1, block.bn2), relus=(block.act1, block.act2)):
            return super().forward(x)
        inner = norm_relu(block.conv1(x), block.bn1)
        return norm_relu(block.conv2(inner), block.bn2, residual=_shortcut(block, x))


class _FusedBottleneck(Bottleneck):
    def forward(self, x: Tensor) -> Tensor:
        block: Any = self
        norms, relus = (block.bn1, block.bn2, block.bn3), (block.act1, block.act2, block.act3)
        if not _is_plain(block, x, norms=norms, relus=relus):
            return super().forward(x)
        inner = norm_relu(block.conv1(x), block.bn1)
        inner = norm_relu(block.conv2(inner), block.bn2)
        return norm_relu(block.conv3(inner), block.bn3, residual=_shortcut(block, x))


class _FusedResNet(ResNet):
    def forward_features(self, x: Tensor) -> Tensor:
        network: Any = self
        if network.grad_checkpointing or not can_fuse(x, norms=(network.bn1,), relus=(network.act1,)):
            return super().forward_features(x)
        x = network.conv1(x)
        if is_plain_pool(network.maxpool):
            x = norm_relu_pool(x, network.bn1)
        else:
            x = network.maxpool(norm_relu(x, network.bn1))
        return cast(Tensor, network.layer4(network.layer3(network.layer2(network.layer1(x)))))


def _shortcut(block: Any, x: Tensor) -> Tensor:
    return x if block.downsample is None else cast(Tensor, block.downsample(x))


def _is_plain(block: Any, x: Tensor, *, norms: tuple[nn.Module, ...], relus: tuple[nn.Module, ...]) -> bool:
    nothing_between = block.se is None and block.drop_path is None
    nothing_between &= type(block.drop_block) is nn.Identity and type(block.aa) is nn.Identity
    return nothing_between and can_fuse(x, norms=norms, relus=relus)


def can_fuse(x: Tensor, *, norms: tuple[nn.Module, ...], relus: tuple[nn.Module, ...]) -> bool:
    """Return whether the compiled loops can compute these layers: types, sizes and modes are theirs."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return (
        runs_eagerly(x)
        and dtype in DTYPES
        and load_kernels() is not None
        and wins("norms", dtype, ours=_try_fused, library=_try_library)
        and all(map(_is_plain_norm, norms))
        and all(type(layer) is nn.ReLU and not _has_hooks(layer) for layer in relus)
    )


def _is_plain_norm(layer: nn.Module) -> bool:
    """Return whether it is a BatchNorm with the statistics of the batch; SyncBatchNorm is another class."""
    return (
        type(layer) is nn.BatchNorm2d
        and layer.training
        and layer.momentum is not None
        and layer.num_features % CHANNEL_GROUP == 0
        and not _has_hooks(layer)
        and layer.num_batches_tracked is not None
        and all(
            tensor is not None
            and tensor.shape == (layer.num_features,)
            and tensor.dtype == torch.float32
            and tensor.is_contiguous()
            and runs_eagerly(tensor)
            for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var)
        )
    )


def is_plain_pool(layer: nn.Module) -> bool:
    if type(layer) is not nn.MaxPool2d or _has_hooks(layer):
        return False
    sizes = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)
    return sizes == (3, 2, 1, 1, False)


def _has_hooks(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks)


def _try_fused(dtype: torch.dtype) -> None:
    """Run a norm forward and backward, for `wins`; `_try_library` does the same with PyTorch operations."""
    maps, norm = _draw_maps(dtype)
    torch.autograd.grad(norm_relu(maps, norm, residual=maps).sum(), maps)


def _try_library(dtype: torch.dtype) -> None:
    maps, norm = _draw_maps(dtype)
    torch.autograd.grad(torch.relu(norm(maps) + maps).sum(), maps)


def _draw_maps(dtype: torch.dtype) -> tuple[Tensor, nn.BatchNorm2d]:
    """Return maps of a size as in the middle of a network, and a BatchNorm for them."""
    maps = torch.linspace(-1.0, 1.0, 8 * 64 * 24 * 24).view(8, 64, 24, 24).to(dtype)
    return maps.contiguous(memory_format=torch.channels_last).requires_grad_(), nn.BatchNorm2d(64)


# ---- The operations


def norm_relu(x: Images, norm: nn.BatchNorm2d, *, residual: Images | None = None) -> Images:
    """Return relu(norm(x) + residual); update the running statistics of `norm` as `nn.BatchNorm2d` does."""
    if not _fits(x, norm, residual):
        normed = norm(x)
        return torch.relu(normed if residual is None else normed + residual)
    return cast(Tensor, _NormRelu.apply(x, residual, *_count(x, norm)))


def norm_relu_pool(x: Images, norm: nn.BatchNorm2d) -> Float[Tensor, "batch channel height_out width_out"]:
    """Return maxpool(relu(norm(x))), 3x3 with stride 2 and padding 1, and update the running statistics."""
    if not _fits(x, norm):
        return F.max_pool2d(torch.relu(norm(x)), 3, 2, 1)
    return cast(Tensor, _NormReluPool.apply(x, *_count(x, norm)))


def _fits(x: Tensor, norm: nn.BatchNorm2d, residual: Tensor | None = None) -> bool:
    """Return whether `x` is a map for `norm` in plain memory; the layer before may have been replaced."""
    is_map = runs_eagerly(x, residual) and x.ndim == 4 and x.shape[1] == norm.num_features
    return is_map and (residual is None or residual.shape == x.shape)


def _count(x: Tensor, norm: nn.BatchNorm2d) -> tuple[Any, ...]:
    """Count the batch in `num_batches_tracked`; return the arguments from `norm` for the operations."""
    if x.numel() == x.shape[1]:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    return norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps, norm.momentum


class _NormRelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        eps: float,
        momentum: float,
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        if residual is not None:
            residual = residual.to(x.dtype).contiguous(memory_format=torch.channels_last)
        y = torch.empty_like(x)
        mean, inverse_std = torch.empty_like(weight), torch.empty_like(weight)
        tensors = (x, residual, weight, bias, y, mean, inverse_std, running_mean, running_var)
        run_kernel("norm_forward", *tensors, *_rows(x), eps, momentum, dtype=x.dtype)
        save(ctx, x, y, weight, mean, inverse_std)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight, mean, inverse_std = restore(ctx)
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x)
        residual_gradient = torch.empty_like(x) if ctx.needs_input_grad[1] else None
        dweight, dbias = torch.empty_like(weight), torch.empty_like(weight)
        tensors = (gradient, y, x, weight, mean, inverse_std, dx, residual_gradient, dweight, dbias)
        run_kernel("norm_backward", *tensors, *_rows(x), dtype=x.dtype)
        return dx, residual_gradient, dweight, dbias, None, None, None, None


class _NormReluPool(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        eps: float,
        momentum: float,
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        batch, channels, height, width = x.shape
        y = x.new_empty(batch, (height + 1) // 2, (width + 1) // 2, channels)
        winner = x.new_empty(y.shape, dtype=torch.uint8)
        mean, inverse_std = torch.empty_like(weight), torch.empty_like(weight)
        tensors = (x, weight, bias, y, winner, mean, inverse_std, running_mean, running_var)
        run_kernel("pool_forward", *tensors, batch, height, width, channels, eps, momentum, dtype=x.dtype)
        save(ctx, x, winner, weight, mean, inverse_std)
        return y.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, winner, weight, mean, inverse_std = restore(ctx)
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        batch, channels, height, width = x.shape
        tensors = (gradient, winner, x, weight, mean, inverse_std, dx, dweight, dbias)
        run_kernel("pool_backward", *tensors, batch, height, width, channels, dtype=x.dtype)
        return dx, dweight, dbias, None, None, None, None


def _rows(x: Tensor) -> tuple[int, int]:
    return x.numel() // x.shape[1], x.shape[1]
