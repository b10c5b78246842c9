"""Tensors that say they are on a GPU, which need not be there: what a step would do on it, without values.

A `Pretend` has shape, type and strides (of a tensor on the device "meta") and a device of your choice. While
a `Trace` is active, what is made on that device is a `Pretend`, what is made on the host is real. It raises

    MixedDevicesError   a host tensor meets a device tensor in one operation
    HostWaitsError      the host needs a value from the device, or a copy that makes it wait
    NoSuchTypeError     a tensor of a type that the device does not have
    NoKernelError       an operation that PyTorch does not list for the device

PyTorch's own FakeTensorMode cannot do it in builds with CUDA on a machine without: the backward pass asks the
driver for streams. Below Python a `Pretend` is a CPU tensor, so autograd needs no GPU, and `torch.autocast`
is that of the CPU, whose list of operations in bfloat16 is nearly the same.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torchgen
import yaml
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

_ATEN = torch.ops.aten
_READS = {  # what they return, or its shape, depends on values
    _ATEN._local_scalar_dense, _ATEN.item, _ATEN.is_nonzero, _ATEN.equal, _ATEN.nonzero, _ATEN.nonzero_numpy,
    _ATEN.masked_select, _ATEN._unique, _ATEN._unique2, _ATEN.unique_dim, _ATEN.unique_consecutive,
    _ATEN.bincount, _ATEN.argwhere,
}  # fmt: skip
_INDEXING = {_ATEN.index, _ATEN.index_put, _ATEN.index_put_, _ATEN._index_put_impl_}
_COPIES = {_ATEN._to_copy, _ATEN.copy_, _ATEN.lift_fresh}
_LACKING = {"mps": {torch.float64, torch.complex128}, "xpu": set[torch.dtype](), "cuda": set[torch.dtype]()}
_WAITS_FOR_COPIES = ("mps",)  # its memory is the host's: a copy is short, and there is no pinned memory


class MixedDevicesError(Exception):
    """A host tensor meets a device tensor."""


class HostWaitsError(Exception):
    """The host waits for the device."""


class NoSuchTypeError(Exception):
    """The device has no such type."""


class NoKernelError(Exception):
    """PyTorch lists no kernel for the device."""


class Pretend(Tensor):
    """A tensor without values that says it is on `place`."""

    @staticmethod
    def __new__(cls, shape: Tensor, place: torch.device) -> "Pretend":
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, shape.size(), strides=shape.stride(), storage_offset=shape.storage_offset(),
            dtype=shape.dtype, layout=shape.layout, device="cpu",
        )  # fmt: skip
        made.shape_only, made.place = shape, place
        return made  # type: ignore[no-any-return]

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of a trace")

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place  # type: ignore[no-any-return, attr-defined]

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return self.device.type == "cuda"

    def to(self, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        places = [x for x in (*args, *kwargs.values()) if isinstance(x, str | torch.device)]
        if any(torch.device(place).type == "cpu" for place in places):
            raise HostWaitsError(f"{_describe([self])} is copied to the host")
        return super().to(*args, **kwargs)

    def cpu(self, *args: Any, **kwargs: Any) -> Tensor:
        raise HostWaitsError(f"{_describe([self])} is copied to the host")

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise HostWaitsError(f"{_describe([self])} is read as an array")

    def tolist(self) -> Any:
        raise HostWaitsError(f"{_describe([self])} is read as a list")


class Trace(TorchDispatchMode):
    """While active, `device` is pretended to be there. With `strict` no copy may make the host wait."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.strict = device, False
        self.operations: dict[str, set[torch.dtype]] = {}  # name: types of the results
        self._pinned: dict[int, Tensor] = {}  # by address; kept, so that no other tensor gets it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_device = [tensor for tensor in tensors if isinstance(tensor, Pretend)]
        asked = kwargs.get("device")
        is_made_there = asked is not None and torch.device(asked).type == self.device.type
        # Formulas of derivatives make tensors like those below Python, which are "cpu".
        is_made_there |= torch._C._current_graph_task_id() != -1 and not tensors and asked is not None
        if not on_device and not is_made_there:
            return self._on_host(func, args, kwargs)
        host = [tensor for tensor in tensors if not isinstance(tensor, Pretend)]
        self._check(func, args, kwargs, host=host)
        if is_made_there or asked is not None:
            kwargs["device"] = torch.device("meta")
        kwargs.pop("pin_memory", None)
        shapes = func(*tree_map(_shape_of, args), **tree_map(_shape_of, kwargs))
        made = tree_map(lambda x: Pretend(x, self.device) if isinstance(x, Tensor) else x, shapes)
        types = {tensor.dtype for tensor in tree_leaves(made) if isinstance(tensor, Tensor)}
        if types & _LACKING[self.device.type]:
            raise NoSuchTypeError(f"{func}: {types} on {self.device.type}")
        self.operations.setdefault(func.name(), set()).update(types)
        return made if not on_device else return_and_correct_aliasing(func, args, kwargs, made)

    def _on_host(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func.overloadpacket is _ATEN.is_pinned:
            return self._is_pinned(args[0])
        if func.overloadpacket is _ATEN._pin_memory:
            return self._pin(args[0].clone())
        pin = kwargs.pop("pin_memory", False)
        made = func(*args, **kwargs)
        return self._pin(made) if pin else made

    def _pin(self, tensor: Tensor) -> Tensor:
        self._pinned[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def _is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._pinned

    def _check(self, func: Any, args: Any, kwargs: Any, *, host: list[Tensor]) -> None:
        packet = func.overloadpacket
        indices = tree_leaves(args[1]) if packet in _INDEXING else []
        if packet in _READS or any(isinstance(x, Tensor) and x.dtype == torch.bool for x in indices):
            raise HostWaitsError(f"{func} needs values of {_describe(args)}")
        if packet is _ATEN.repeat_interleave and isinstance(args[-1], Tensor):
            raise HostWaitsError(f"{func} needs values of {_describe(args)}")
        if not host:
            return
        if packet not in _COPIES:
            if all(tensor.ndim == 0 for tensor in host):  # goes along as a number
                return
            raise MixedDevicesError(f"{func}: {_describe(args)}")
        if packet is _ATEN.copy_ and not isinstance(args[0], Pretend):
            raise HostWaitsError(f"{_describe(args[1:])} is copied to the host")
        if self.strict and self.device.type not in _WAITS_FOR_COPIES:
            non_blocking = kwargs.get("non_blocking") or (packet is _ATEN.copy_ and args[2:] == (True,))
            if not (non_blocking and all(map(self._is_pinned, host))):
                raise HostWaitsError(f"{func}: a copy from memory that is not pinned, or not non_blocking")

    def check_kernels(self) -> None:
        """Raises NoKernelError for an operation so far that PyTorch does not list for the device."""
        lacking = sorted(name for name in self.operations if not has_kernel(name, self.device.type))
        if lacking:
            raise NoKernelError(f"{self.device.type}: {', '.join(lacking)}")


def _shape_of(x: Any) -> Any:
    """Of a tensor one on "meta" that shares nothing with it; a `Pretend`'s own."""
    if isinstance(x, Pretend):
        return x.shape_only  # type: ignore[attr-defined]
    if isinstance(x, Tensor):
        return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device="meta")
    return x


def _describe(args: Any) -> str:
    tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
    return ", ".join(f"{x.dtype} {tuple(x.shape)} on {x.device}" for x in tensors)


@cache
def _kernels() -> dict[str, dict[str, Any]]:
    """PyTorch's list of operations, by name."""
    path = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    entries = yaml.load(path.read_text(encoding="utf-8"), loader)
    return {entry["func"].partition("(")[0]: entry for entry in entries}


def has_kernel(operation: str, kind: str) -> bool:
    """Whether PyTorch lists a kernel of `operation` ("aten::add.Tensor") for "mps", "xpu" or "cuda"."""
    entry = _kernels().get(operation.removeprefix("aten::").removesuffix(".default"))
    if entry is None:
        return False
    if "structured_delegate" in entry:
        return has_kernel(entry["structured_delegate"], kind)
    if "ufunc_inner_loop" in entry and kind != "mps":  # made from one loop for CPU and GPUs
        return True
    keys = {key.strip() for keys in entry.get("dispatch", {"Composite": ""}) for key in keys.split(",")}
    return kind.upper() in keys or any(key.startswith("Composite") for key in keys)


@contextmanager
def pretending(kind: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trace]:
    """A trace on the first device of a kind; `torch.autocast` for it is that of what a `Pretend` is below."""
    autocast: Callable[..., Any] = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda device, *args, **kwargs: autocast("cpu", *args, **kwargs))
    for module in (torch.cuda, torch.xpu):
        monkeypatch.setattr(module, "_lazy_init", lambda: None)  # it asks for the driver
    # `Module.to` is to make new parameters, rather than to give the old ones the data of a `Pretend`.
    monkeypatch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # so does torch.tensor
    try:
        with Trace(torch.device(kind, 0)) as trace:
            yield trace
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
