"""Copy tensors, so that what a step changes in them can be undone."""

from collections.abc import Iterable

import torch
from jaxtyping import Bool
from torch import Tensor

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes per value


class Snapshot:
    """A copy of some tensors."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        # Grouped by type, because PyTorch copies a list of tensors at once only if they have one type.
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_type.setdefault(tensor.dtype, []).append(tensor.detach())
        self._pairs = [(found, [torch.empty_like(t) for t in found]) for found in by_type.values()]
        for found, copies in self._pairs:
            torch._foreach_copy_(copies, found)

    def restore(self) -> None:
        """Give the tensors the values that they had."""
        for found, copies in self._pairs:
            torch._foreach_copy_(found, copies)

    def restore_unless(self, kept: Bool[Tensor, ""]) -> None:
        """Do the same if `kept` is false. The host does not wait for it. Call it once."""
        for found, copies in self._pairs:
            # As integers, because in floating point NaN * 0 is NaN.
            integer = _INTEGERS[found[0].element_size()]
            new, old = [t.view(integer) for t in found], [t.view(integer) for t in copies]
            torch._foreach_mul_(new, kept.to(integer))
            torch._foreach_mul_(old, (~kept).to(integer))
            torch._foreach_add_(new, old)


def clear_unless(tensors: Iterable[Tensor], kept: Bool[Tensor, ""]) -> None:
    """Set the tensors to 0 if `kept` is false. The host does not wait for it."""
    for tensor in tensors:
        integer = _INTEGERS[tensor.element_size()]
        tensor.detach().view(integer).mul_(kept.to(integer))
