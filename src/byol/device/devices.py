"""Find and choose a device for the networks, its precision and its memory.

"cuda" (NVIDIA and AMD), "xpu" (Intel) and "mps" (Apple) are GPUs. This file handles all their differences.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from byol.base.errors import ConfigError
from byol.kernels.cpu import computes_bf16

DeviceName = Literal["cpu", "cuda", "xpu", "mps"]
GPUS: tuple[DeviceName, ...] = ("cuda", "xpu", "mps")  # "auto" chooses the first that exists
UNMEASURED = {"xpu": "Intel GPUs", "mps": "Apple GPUs"}
_PINS = ("cuda", "xpu")  # devices to which copies from pinned memory are asynchronous
_BACKENDS = {"cpu": "gloo", "cuda": "nccl", "xpu": "xccl"}


# ---- Choice


def find_gpus() -> tuple[DeviceName, ...]:
    """Return the kinds of GPU that PyTorch finds on this machine, the preferred one first."""
    there: dict[DeviceName, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "xpu": torch.xpu.is_available,
        "mps": torch.backends.mps.is_available,
    }
    return tuple(name for name in GPUS if there[name]())


def choose_device(name: str, *, local_rank: int = 0, key: str = "trainer.device") -> torch.device:
    """Return the device `name`: "auto", a kind, or a kind and a number such as "cuda:1". Errors name `key`.

    auto: a GPU if there is one, otherwise the CPU. Without a number it is the GPU of this rank.

    Raises:
        ConfigError: there is no such device, or there are more ranks than GPUs.
    """
    gpus = find_gpus()
    kind, number = _parse(name, gpus, key=key)
    if kind == "cpu":
        return torch.device("cpu")
    if kind not in gpus:
        raise ConfigError(f"{key}: '{name}' is set, but {_list_there(gpus)}")
    rank = 0 if kind == "mps" else local_rank  # mps is one device; `choose_backend` refuses several ranks
    index = rank if number is None else number
    count = torch.get_device_module(kind).device_count()
    if index < count:
        return torch.device(kind, index)
    if number is not None:
        raise ConfigError(f"{key}: '{name}' is set, but there are {count}, numbered from 0; use {kind}")
    raise ConfigError(
        f"{key}: rank {local_rank} of this machine has no GPU, because there are {count} ({kind}); start "
        f"{count} ranks (--nproc-per-node={count}), or use cpu"
    )


def _parse(name: str, gpus: tuple[DeviceName, ...], *, key: str) -> tuple[str, int | None]:
    if name == "auto":
        return (gpus[0] if gpus else "cpu"), None
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in get_args(DeviceName):
        raise ConfigError(f"{key}: '{name}' is not a device that byol knows; {_list_there(gpus)}")
    return device.type, device.index


def _list_there(gpus: tuple[DeviceName, ...]) -> str:
    names = ["cpu", *gpus]
    listed = " and ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"PyTorch finds {listed} here; use {' or '.join(['auto', *names])}"


def kind_of(device: torch.device) -> DeviceName:
    """Return the kind of a device from `choose_device`."""
    assert device.type in get_args(DeviceName)
    return cast(DeviceName, device.type)


def explain_device(device: torch.device) -> str | None:
    """Return a line to print before a run on a device that byol supports but was not measured on."""
    if device.type not in UNMEASURED:
        return None
    return (
        f"{UNMEASURED[device.type]}: byol supports them, but they are not yet measured; compare the "
        "first losses with those of trainer.device=cpu, and see docs/devices.md"
    )


def name_gpu(device: torch.device) -> str | None:
    """Return the model of a GPU, such as "NVIDIA H200"; None on a CPU."""
    match device.type:
        case "cuda":
            return torch.cuda.get_device_name(device)
        case "xpu":
            return torch.xpu.get_device_name(device)
        case "mps":
            return torch.backends.mps.get_name()
    return None


# ---- Precision


def choose_dtype(precision: str, *, device: torch.device) -> torch.dtype:
    """Return the type for a precision. auto: bfloat16 if the hardware computes in it, otherwise float32.

    On Apple GPUs auto is float32: macOS 14 stores bfloat16 on all of them, but the first generation computes
    it in float32, and PyTorch cannot tell the generations apart.

    Raises:
        ConfigError: bf16 is set on an Apple GPU with a macOS before 14, which does not support it.
    """
    if precision == "fp32":
        return torch.float32
    if precision == "bf16":
        if device.type == "mps" and not torch.backends.mps.is_macos_or_newer(14, 0):
            raise ConfigError(
                "trainer.precision: bf16 on an Apple GPU needs macOS 14; use fp32, or trainer.device=cpu"
            )
        return torch.bfloat16
    return torch.bfloat16 if _computes_bf16(device) else torch.float32


def _computes_bf16(device: torch.device) -> bool:
    match device.type:
        case "cuda":
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        case "xpu":
            return bool(torch.xpu.is_bf16_supported(including_emulation=False))
        case "cpu":
            return computes_bf16()
    return False


@contextmanager
def exact_fp32(device: torch.device) -> Iterator[None]:
    """Make a GPU compute in exact float32. By default cuDNN's convolutions round to 10 bits (TF32).

    The libraries of Intel and Apple do not round by default.
    """
    if device.type != "cuda":
        yield
        return
    backends: Any = torch.backends  # the type stubs of PyTorch lack `conv`
    operations = (backends.cudnn.conv, backends.cuda.matmul)
    before = [operation.fp32_precision for operation in operations]
    try:
        for operation in operations:
            operation.fp32_precision = "ieee"
        yield
    finally:
        for operation, precision in zip(operations, before, strict=True):
            operation.fp32_precision = precision


# ---- Several processes


def choose_backend(device: torch.device) -> str:
    """Return the library with which ranks on this kind of device exchange tensors.

    Raises:
        ConfigError: this PyTorch has no such library.
    """
    if device.type == "mps":
        raise ConfigError(
            "trainer.device: an Apple GPU (mps) trains with one process only; start byol without torchrun, "
            "or set trainer.device=cpu"
        )
    backend = _BACKENDS[device.type]
    if not torch.distributed.is_backend_available(backend):
        raise ConfigError(
            f"trainer.device: several ranks on {device.type} need PyTorch with {backend}, but this one was "
            "built without it; start one process, or set trainer.device=cpu"
        )
    return backend


# ---- Memory and waiting


def pins(device: torch.device) -> bool:
    """Return whether copies from pinned memory to this device are asynchronous."""
    return device.type in _PINS


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to the device, asynchronously from pinned memory if the device allows it."""
    if pins(device):
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished all work."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


def empty_cache(device: torch.device) -> None:
    """Return memory that no tensor uses to the device."""
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a GPU in bytes."""
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return int(torch.get_device_module(device).mem_get_info(device)[0])


class PeakMemory:
    """Measures the peak increase of a GPU's memory since its creation, when it frees unused memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        empty_cache(device)
        if device.type != "mps":
            torch.get_device_module(device).reset_peak_memory_stats(device)
        self._before = self._reserved()

    def bytes(self) -> int:
        """Return the peak increase so far. On mps, do not call `empty_cache` in between."""
        if self._device.type == "mps":  # has no peak counter, but keeps all memory for later tensors
            return self._reserved() - self._before
        return int(torch.get_device_module(self._device).max_memory_reserved(self._device)) - self._before

    def _reserved(self) -> int:
        if self._device.type == "mps":
            return torch.mps.driver_allocated_memory()
        return int(torch.get_device_module(self._device).memory_reserved(self._device))


# ---- Operations that some devices lack


def measured_on(tensor: Tensor) -> Tensor:
    """Return `tensor` on a device that can compute health checks: Intel and Apple GPUs lack pdist or svdvals.

    There it copies the tensor (a few hundred vectors) to the host, which waits for the result anyway.
    """
    return tensor.cpu() if tensor.device.type in UNMEASURED else tensor


def send_stored(images: Tensor, device: torch.device, *, non_blocking: bool = False) -> Tensor:
    """Copy stored images to the device in their own type; uint16 as bits of int16 on Intel and Apple GPUs."""
    if images.dtype == torch.uint16 and device.type in UNMEASURED:
        return images.view(torch.int16).to(device, non_blocking=non_blocking).view(torch.uint16)
    return images.to(device, non_blocking=non_blocking)


def to_float32(images: Tensor) -> Tensor:
    """Return a float32 copy of the values in the same memory order, exact up to 16 bits.

    uint16 is converted directly on CPU and CUDA, and via the bits of int16 elsewhere.
    """
    if images.dtype == torch.uint16 and images.device.type in UNMEASURED:
        return images.view(torch.int16).to(torch.int32).bitwise_and_(0xFFFF).to(torch.float32)
    return images.to(torch.float32, copy=True)
