"""Watch a step, and find the first value that is not finite: which layer, pass and view, and which images.

The hooks change no value. Layers that byol computes together with their neighbours on a CPU (BatchNorm, ReLU
and max-pooling of an encoder) get no hook, because with hooks byol would compute them separately.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from byol.method.networks import Byol

WEAK = 3  # number of the weak view
_FUSED = (nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d)


@dataclass(frozen=True)
class Place:
    """Where a value that is not finite was seen first."""

    direction: Literal["forward", "backward"]
    what: str  # such as "the output of online.encoder.conv1 (Conv2d)"
    view: int | None  # 1, 2 or WEAK, which the network was computing; None: of all views
    rows: tuple[int, ...]  # the images of the batch with such values; (): the value is not of single images
    num_images: int  # that were computed together
    num_nan: int
    num_infinite: int
    num_values: int
    before: str | None  # what was seen last before, and was finite


@dataclass(frozen=True)
class _Call:
    """One call of the network: a micro-batch in one direction."""

    views: tuple[int, int]  # that the online and the target network compute
    first_row: int  # of the batch

    def view_of(self, name: str) -> int:
        return self.views[1] if name.startswith("target") else self.views[0]


def _name_kind(layer: nn.Module) -> str:
    """Return the class of a layer; of one that byol computes in its own way, the usual one."""
    kinds = (kind for kind in type(layer).__mro__ if not kind.__module__.startswith("byol.kernels."))
    return next(kinds).__name__


class FirstBad:
    """Watches the networks in a `with` block; `found` is the first place, or None.

    `num_microbatches` is the number per batch, and `batch_size` the number of its images. `fused`: byol may
    compute several layers of the encoder together. `weak`: the target network sees the weak view.
    """

    def __init__(
        self, byol: Byol, *, batch_size: int, num_microbatches: int, fused: bool, weak: bool
    ) -> None:
        self.found: Place | None = None
        self._byol, self._fused, self._rows = byol, fused, batch_size // num_microbatches
        self._num_calls, self._weak = 0, weak
        self._seen: str | None = None
        self._call = _Call((1, 2), 0)
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "FirstBad":
        byol, handles = self._byol, self._handles
        for name, parameter in byol.named_parameters():
            self._look(parameter, f"the weights {name}", "forward", per_image=False, view=None)
            if parameter.requires_grad:
                handles.append(self._watch(parameter, f"the gradient of the weights {name}", None, name))
        handles.append(byol.register_forward_pre_hook(self._begin))
        if self._weak:
            handles.append(byol.target.register_forward_pre_hook(self._begin_weak))
        handles.append(byol.register_forward_hook(self._end))
        for name, layer in byol.named_modules():
            is_fused = self._fused and ".encoder." in f".{name}." and type(layer) in _FUSED
            if name and not is_fused:
                shown = f"{name} ({_name_kind(layer)})"
                handles.append(layer.register_forward_pre_hook(self._make_before(name, shown)))
                handles.append(layer.register_forward_hook(self._make_after(name, shown)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    # ---- Hooks

    def _begin(self, _: nn.Module, views: tuple[Any, ...]) -> None:
        """Note which views of which images come now, in the order of `compute_gradients`."""
        microbatch, direction = divmod(self._num_calls, 2)
        self._num_calls += 1
        online = 1 + direction
        self._call = _Call((online, WEAK if self._weak else 3 - online), microbatch * self._rows)
        for number, view in zip(self._call.views, views, strict=False):
            self._look(view, "the view, before any layer", "forward", view=number)

    def _begin_weak(self, _: nn.Module, views: tuple[Any, ...]) -> None:
        """Note that the target network comes first, with the weak view of the next images."""
        self._call = _Call((1, WEAK), self._num_calls // 2 * self._rows)
        self._look(views[0], "the view, before any layer", "forward", view=WEAK)

    def _end(self, _: nn.Module, __: object, result: tuple[Tensor, Tensor]) -> None:
        what = "the loss of prediction and target projection"
        self._look(result[0], what, "forward", per_image=False, view=self._call.views[0])

    def _make_before(self, name: str, shown: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, given: tuple[Any, ...]) -> None:
            for value in given:
                self._look(value, f"the input of {shown}", "forward", view=self._call.view_of(name))

        return hook

    def _make_after(self, name: str, shown: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: object, result: object) -> None:
            self._look(result, f"the output of {shown}", "forward", view=self._call.view_of(name))
            if isinstance(result, Tensor) and result.requires_grad:
                what = f"the gradient of the output of {shown}"
                self._watch(result, what, self._call, name)

        return hook

    def _watch(self, tensor: Tensor, what: str, call: _Call | None, name: str) -> RemovableHandle:
        """Look at the gradient of a tensor in the backward pass."""
        register: Callable[..., RemovableHandle] = tensor.register_hook
        return register(partial(self._look_at_gradient, what=what, call=call, name=name))

    def _look_at_gradient(self, gradient: Tensor, *, what: str, call: _Call | None, name: str) -> None:
        view = None if call is None else call.view_of(name)
        self._call = self._call if call is None else call
        self._look(gradient, what, "backward", view=view, per_image=call is not None)

    def _look(
        self,
        value: object,
        what: str,
        direction: Literal["forward", "backward"],
        *,
        view: int | None,
        per_image: bool = True,
    ) -> None:
        """Remember the first value that is not finite. The host waits for the device here."""
        if self.found is not None or not isinstance(value, Tensor) or not value.is_floating_point():
            return
        value = value.detach()
        finite = torch.isfinite(value)
        if bool(finite.all()):
            self._seen = what
            return
        rows: tuple[int, ...] = ()
        if per_image and value.ndim > 0 and len(value) == self._rows:
            bad = ~finite.flatten(1).all(dim=1) if value.ndim > 1 else ~finite
            rows = tuple(self._call.first_row + row for row in bad.nonzero().flatten().tolist())
        self.found = Place(
            direction=direction,
            what=what,
            view=view,
            rows=rows,
            num_images=self._rows,
            num_nan=int(torch.isnan(value).sum()),
            num_infinite=int(torch.isinf(value).sum()),
            num_values=value.numel(),
            before=self._seen,
        )
