"""Avoid convolutions that oneDNN, the CPU library of PyTorch, computes wrongly.

oneDNN computes a 1x1 convolution with a stride as one of stride 1 over every second (third, ...) pixel. For
the weight gradient it copies these pixels to a buffer of pixels x channels, but indexes the buffer in blocks
of channels: 8 with AVX2, 16 with AVX512. With fewer channels it writes beyond the end: the gradient is wrong,
or the process ends ("double free or corruption"). This happens if images or weight are channels_last, without
padding, in one group (oneDNN issue 6035, `docs/convolutions.md`). Here these layers select every second pixel
themselves, so that oneDNN computes a convolution of stride 1.
"""

from dataclasses import dataclass
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_BLOCK = 16  # channels: the larger block of oneDNN


def avoid_faults(module: ModuleT) -> ModuleT:
    """Change every `nn.Conv2d` in `module`, or itself, that oneDNN may compute wrongly; return `module`.

    Such a layer gets stride 1 and a hook that selects the pixels of its former stride from its images. The
    results are the same on any CPU and device, also for subclasses, if they read their `stride`. Parameters,
    buffers and state-dict keys do not change, and a second call changes nothing.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and can_meet_fault(layer):
            layer.register_forward_pre_hook(TakePixels(*layer.stride))
            layer.stride = (1, 1)
    return module


def can_meet_fault(layer: nn.Conv2d) -> bool:
    """Return whether oneDNN may compute this layer wrongly on some kind of CPU, from its shape alone.

    Includes more than the observed faults: all numbers of channels that are no multiple of a block, not only
    those below one block, because such layers are rare and lose nothing.
    """
    # A subclass may pad on its own (Conv2dSame of timm), but a kernel of one pixel needs no padding.
    is_unpadded = layer.padding in ((0, 0), "valid")
    is_strided_1x1 = layer.kernel_size == (1, 1) and layer.stride != (1, 1) and is_unpadded
    return is_strided_1x1 and layer.groups == 1 and layer.in_channels % _BLOCK != 0


@dataclass(frozen=True)
class TakePixels:
    """A forward pre-hook that selects each `rows`-th row and `columns`-th column of the images."""

    rows: int
    columns: int

    def __call__(
        self, layer: nn.Module, arguments: tuple[Float[Tensor, "*batch channel height width"]]
    ) -> tuple[Float[Tensor, "*batch channel rows columns"]]:
        (images,) = arguments
        return (images[..., :: self.rows, :: self.columns],)
