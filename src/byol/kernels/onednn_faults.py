"""Convolutions that PyTorch's library for CPUs (oneDNN) computes wrongly, computed in another way.

A 1x1 convolution with a stride is, for oneDNN, one of stride 1 over every second (third, ...) pixel. For the
gradient by the weight it copies these pixels to a scratch memory of pixels x channels, but steps through that
by its block of channels, 8 with AVX2 and 16 with AVX512. With fewer channels it writes behind the end: the
gradient is wrong, or the process ends ("double free or corruption"). This happens where
images or weight are channels_last, without padding, in one group (oneDNN issue 6035, `docs/convolutions.md`).

Here these layers take every second pixel themselves, and the library sees a convolution of stride 1.
"""

from dataclasses import dataclass
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_BLOCK = 16  # channels: the larger of oneDNN's blocks


def avoid_faults(module: ModuleT) -> ModuleT:
    """Route every `nn.Conv2d` in `module` (itself included) round the library's faults; returns `module`.

    A layer that can meet one gets stride 1 and a hook that takes the pixels of its former stride from its
    images: the same sums, on any kind of CPU and device, also of a subclass, if it reads its own `stride`.
    Parameters, buffers and state-dict keys stay as they are, and a second call changes nothing.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and can_meet_fault(layer):
            layer.register_forward_pre_hook(_TakePixels(*layer.stride))
            layer.stride = (1, 1)
    return module


def can_meet_fault(layer: nn.Conv2d) -> bool:
    """Whether the library may compute this layer wrongly on some kind of CPU, by its shape alone.

    Wider than what was seen: all numbers of channels that do not fill whole blocks count, not only those
    smaller than one, because such layers are rare and lose nothing.
    """
    # A subclass may pad on its own (timm's Conv2dSame): a kernel of one pixel needs none.
    is_unpadded = layer.padding in ((0, 0), "valid")
    is_strided_1x1 = layer.kernel_size == (1, 1) and layer.stride != (1, 1) and is_unpadded
    return is_strided_1x1 and layer.groups == 1 and layer.in_channels % _BLOCK != 0


@dataclass(frozen=True)
class _TakePixels:
    """A forward pre-hook: the images at each `rows`-th row and `columns`-th column."""

    rows: int
    columns: int

    def __call__(
        self, layer: nn.Module, arguments: tuple[Float[Tensor, "*batch channel height width"]]
    ) -> tuple[Float[Tensor, "*batch channel rows columns"]]:
        (images,) = arguments
        return (images[..., :: self.rows, :: self.columns],)
