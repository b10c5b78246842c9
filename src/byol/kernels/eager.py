"""Whether an operation may read tensors by their address, as compiled kernels do.

Tracing, exporting, `torch.func` transforms and tensor subclasses hand a layer tensors that record what is
done to them, or that hold no memory. There PyTorch's own operations must run: they can be recorded, and they
raise an error where a kernel would crash the process.
"""

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

DTYPES = (torch.float32, torch.bfloat16)  # that have fast ways
# What a plain tensor's operations pass on their way to the CPU. A batched, negated, wrapped, fake or absent
# tensor passes more, or something else.
_PLAIN_KEYS = torch._C._dispatch_keys(torch.empty(1))


def runs_eagerly(*tensors: object) -> bool:
    """Whether each tensor is plain CPU memory of one of `DTYPES`, and nothing records the operations.

    None, for an optional tensor, is passed over. False under `torch.compile`, `torch.export`, `torch.jit`,
    `torch.func`, forward-mode derivatives, and dispatch or function modes (FLOP counters, fake tensors,
    default devices).
    """
    # First, so that the compiler sees a constant and none of the calls below.
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    return not _is_observed() and all(tensor is None or _is_plain(tensor) for tensor in tensors)


def _is_observed() -> bool:
    return (
        _get_current_dispatch_mode() is not None
        or torch._C._len_torch_function_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


def save(ctx: Any, *tensors: Tensor) -> None:
    """Keep tensors for a backward pass by kernels."""
    ctx.save_for_backward(*tensors)
    ctx.saved_as = [(tensor.shape, tensor.dtype, tensor.stride()) for tensor in tensors]


def restore(ctx: Any) -> list[Tensor]:
    """What `save` has kept, in the same memory layout; hooks of saved tensors may have replaced it.

    Raises:
        RuntimeError: a hook has returned another shape or dtype, or what is no CPU memory.
    """
    restored = []
    for tensor, (shape, dtype, stride) in zip(ctx.saved_tensors, ctx.saved_as, strict=True):
        if not _is_memory(tensor) or tensor.shape != shape or tensor.dtype != dtype:
            raise RuntimeError("a hook for saved tensors returned another shape, dtype or device")
        same = tensor.stride() == stride
        restored.append(tensor if same else tensor.new_empty_strided(shape, stride).copy_(tensor))
    return restored


def _is_plain(tensor: object) -> bool:
    return _is_memory(tensor) and tensor.dtype in DTYPES


def _is_memory(tensor: object) -> TypeGuard[Tensor]:
    if type(tensor) is not Tensor and type(tensor) is not nn.Parameter:
        return False
    return (
        (torch._C._dispatch_keys(tensor) | _PLAIN_KEYS) == _PLAIN_KEYS
        and tensor.numel() > 0
        and tensor.data_ptr() != 0  # its storage was freed
    )
