"""Ranks: one process, or several that torchrun started, run the same training loop.

With several ranks, DistributedDataParallel averages the gradients, and BatchNorm uses the statistics of the
global batch, also on CPUs. So a run does not depend on the number of ranks, except for rounding.
"""

import ctypes
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from byol.base.errors import ConfigError, RankLostError
from byol.config import TrainerConfig
from byol.device.devices import choose_backend, choose_device, choose_dtype, exact_fp32

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_PATIENCE = timedelta(days=7)
_TIMEOUT = timedelta(minutes=10)  # if a rank hangs, the job ends after this time


@dataclass(frozen=True)
class Ranks:
    """This process among `world_size` processes, with its device and precision."""

    rank: int
    world_size: int
    device: torch.device
    dtype: torch.dtype
    patient: dist.ProcessGroup | None = None  # for waits that may take days

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """Return this rank's rows of a global batch: every `world_size`-th image.

        So the n-th micro-batches of all ranks together are the n-th micro-batch of the global batch.
        """
        return slice(self.rank, batch_size, self.world_size)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context that computes in bfloat16 if that is the precision, otherwise in float32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def wrap(self, module: nn.Module) -> nn.Module:
        """With several ranks, wrap `module` in DistributedDataParallel with synchronised BatchNorm."""
        if self.world_size == 1:
            return module
        if self.device.type != "cpu":
            module = convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
            return nn.parallel.DistributedDataParallel(module, [self.device])
        synchronise_on_cpu(module)
        return nn.parallel.DistributedDataParallel(module)

    def unwrap(self, network: nn.Module) -> Any:
        """Return the module that `wrap` was called with."""
        is_wrapped = isinstance(network, nn.parallel.DistributedDataParallel)
        return network.module if is_wrapped else network

    def exchange(self, network: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
        """Return a context for one micro-batch. Gradients are averaged over ranks only in the last one.

        Until then, each rank adds up its own gradients, so they are sent once per step.
        """
        if last or not isinstance(network, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return network.no_sync()

    def average(self, value: Tensor) -> Tensor:
        """Return the mean of a scalar over ranks, on the device."""
        value = value.detach().clone()
        if self.world_size > 1:
            dist.all_reduce(value)
            value /= self.world_size
        return value

    def mean(self, value: Tensor) -> float:
        """Return the mean of a scalar over ranks. The host waits here."""
        return float(self.average(value))

    def from_main(self, value: float) -> float:
        """Return the value of the first rank on every rank. All ranks wait here."""
        if self.world_size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.broadcast(shared, 0)
        return float(shared)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is true on any rank. All ranks wait here."""
        if self.world_size == 1:
            return flag
        return self.mean(torch.tensor(float(flag), device=self.device)) > 0.0

    def agree(self, text: str) -> bool:
        """Return whether all ranks call this with the same text. All ranks wait here."""
        if self.world_size == 1:
            return True
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        number = int.from_bytes(digest) >> 1
        extremes = torch.tensor([number, -number])
        dist.all_reduce(extremes, dist.ReduceOp.MAX, group=self.patient)
        return extremes.tolist() == [number, -number]

    def wait(self) -> None:
        """Wait for all ranks, for hours if necessary, because the first one may be packing images."""
        if self.world_size > 1:
            dist.barrier(self.patient)


@contextmanager
def connect(trainer: TrainerConfig) -> Iterator[Ranks]:
    """Connect the ranks that torchrun started, or yield a single rank. `exact_fp32` holds in the block.

    Raises:
        ConfigError: the device does not exist or cannot be used by several ranks, the batch cannot be divided
            evenly among ranks, or WORLD_SIZE is set without the other variables of torchrun.
        RankLostError: another rank ended or did not answer within `_TIMEOUT`.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1:
        _check_launcher(world_size)
    rank = int(os.environ.get("RANK", "0"))
    device = choose_device(trainer.device, local_rank=int(os.environ.get("LOCAL_RANK", "0")))
    if trainer.batch_size is not None:  # otherwise byol chooses a suitable one
        check_share(
            trainer.batch_size, world_size=world_size, num_microbatches=trainer.accumulation_steps or 1
        )
    backend = choose_backend(device) if world_size > 1 else None
    dtype = choose_dtype(trainer.precision, device=device)
    with exact_fp32(device):
        if backend is None:
            yield Ranks(rank, world_size, device, dtype)
            return
        if device.type != "cpu":
            torch.get_device_module(device).set_device(device)
        dist.init_process_group(
            backend, store=_store(world_size), rank=rank, world_size=world_size, timeout=_TIMEOUT
        )
        try:
            patient = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=_PATIENCE))
            with naming_lost_ranks(rank, world_size):
                yield Ranks(rank, world_size, device, dtype, patient)
        finally:
            dist.destroy_process_group()


@contextmanager
def naming_lost_ranks(rank: int, world_size: int) -> Iterator[None]:
    """What gloo and NCCL raise when another rank has ended or hangs becomes one line; other errors stay.

    Raises:
        RankLostError: another rank has ended or did not answer within `_TIMEOUT`.
    """
    try:
        yield
    except RuntimeError as error:
        reason, text = None, str(error)
        is_of_ranks = isinstance(error, dist.DistError) or "gloo" in text or "pair closure" in text
        if is_of_ranks and re.search(r"timed out|timeout", text, re.IGNORECASE):
            reason = f"another rank did not answer within {_TIMEOUT.total_seconds() / 60:g} minutes"
        elif is_of_ranks and re.search(r"connection|socket|broken pipe|remote process", text, re.IGNORECASE):
            reason = "another rank has ended, or the connection to it broke"
        if reason is None:
            raise
        raise RankLostError(
            f"rank {rank} of {world_size}: {reason}; look at what the other ranks say, then run the same "
            "command again, which resumes from the last checkpoint"
        ) from None


def check_share(batch_size: int, *, world_size: int, num_microbatches: int) -> None:
    """Raise ConfigError if a batch cannot be divided evenly; the message names the required multiple."""
    share = world_size * num_microbatches
    if batch_size % share:
        raise ConfigError(
            f"trainer.batch_size: {batch_size} cannot be divided among {world_size} ranks x "
            f"{num_microbatches} accumulation steps; use a multiple of {share}"
        )


def _check_launcher(world_size: int) -> None:
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE={world_size} is set, but {' and '.join(missing)} not: start the ranks with "
            f"torchrun --nproc-per-node={world_size} -m byol train ..., or unset WORLD_SIZE for one process"
        )


def _store(world_size: int) -> Store:
    """Return the store of torchrun's agent, with a different prefix for each restart.

    Without the prefix, a restarted group reads the addresses of the killed group and hangs (pytorch issue
    135712). With it, 5 of 5 restarts after a kill continued.
    """
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    is_master = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and os.environ["RANK"] == "0"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, world_size, is_master=is_master, timeout=_TIMEOUT)
    return PrefixStore(f"byol_{os.environ.get('TORCHELASTIC_RUN_ID', '')}_{restart}", store)


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next step. With other C libraries, do nothing.

    By default glibc returns large blocks to the system, so every step causes page faults: a ResNet-18 step at
    32 px spent up to two thirds of its time in the kernel.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    if not mallopt(_M_MMAP_THRESHOLD, 1 << 30):  # older versions allow at most 32 MB
        mallopt(_M_MMAP_THRESHOLD, 1 << 25)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


# ---- Rows of all ranks


def gather(rows: Tensor) -> Tensor:
    """Return the rows (first axis) of all ranks, which have equally many; without other ranks, `rows`.

    If every rank computes the same function of the result, the gradients that DistributedDataParallel
    averages are those of this function on one rank.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    return cast(Tensor, _Gather.apply(rows))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


# ---- Synchronised BatchNorm on CPUs, which torch.nn.SyncBatchNorm does not support


def synchronise_on_cpu(module: nn.Module) -> None:
    """Make every BatchNorm in `module` use the statistics of all ranks, without changing parameters and keys.

    Raises:
        ConfigError: a BatchNorm layer is not one of torch's own classes.
    """
    for layer in module.modules():
        # Only the class is replaced, so references of the optimizer and the target stay valid.
        if type(layer) is nn.BatchNorm1d:
            layer.__class__ = _CpuSyncBatchNorm1d
        elif type(layer) is nn.BatchNorm2d:
            layer.__class__ = _CpuSyncBatchNorm2d
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(
                f"network.name: its {type(layer).__name__} layers cannot be synchronised between CPU ranks; "
                "use one rank, or a ResNet"
            )


class _SyncForward:
    def forward(self, input: Tensor) -> Tensor:
        layer = cast(nn.BatchNorm2d, self)
        if not layer.training:
            return F.batch_norm(
                input, layer.running_mean, layer.running_var, layer.weight, layer.bias, False, 0.0, layer.eps
            )
        output, mean, variance, count = _SyncBatchNorm.apply(input, layer.weight, layer.bias, layer.eps)
        assert layer.running_mean is not None and layer.running_var is not None
        assert layer.num_batches_tracked is not None and layer.momentum is not None
        with torch.no_grad():
            unbiased = variance * (count / (count - 1.0))
            layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), layer.momentum)
            layer.running_var.lerp_(unbiased.to(layer.running_var.dtype), layer.momentum)
            layer.num_batches_tracked += 1
        return cast(Tensor, output)


class _CpuSyncBatchNorm1d(_SyncForward, nn.BatchNorm1d):
    """BatchNorm1d with the statistics of all ranks."""


class _CpuSyncBatchNorm2d(_SyncForward, nn.BatchNorm2d):
    """BatchNorm2d with the statistics of all ranks."""


class _SyncBatchNorm(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps) * weight + bias; mean and biased var over all ranks."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        channels = input.shape[1]
        axes = [0, *range(2, input.ndim)]
        x = at_least_fp32(input)
        sums = torch.cat([x.sum(axes), (x * x).sum(axes), x.new_tensor([x.numel() / channels])]).double()
        dist.all_reduce(sums)
        count = sums[-1]
        mean = sums[:channels] / count
        variance = (sums[channels:-1] / count - mean * mean).clamp_min_(0.0)
        scale = torch.rsqrt(variance + eps).to(x.dtype)
        shape = (1, channels, *[1] * (input.ndim - 2))
        normalised = (x - mean.to(x.dtype).view(shape)) * scale.view(shape)
        ctx.save_for_backward(normalised, weight, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        output = normalised * weight.view(shape) + bias.view(shape)
        return output.to(input.dtype), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        normalised, weight, scale, count = ctx.saved_tensors
        channels = gradient.shape[1]
        axes = [0, *range(2, gradient.ndim)]
        shape = (1, channels, *[1] * (gradient.ndim - 2))
        dy = at_least_fp32(gradient)
        bias_gradient, weight_gradient = dy.sum(axes), (dy * normalised).sum(axes)
        # Gradients of weight and bias are this rank's, because DistributedDataParallel averages them.
        sums = torch.cat([bias_gradient, weight_gradient]).double()
        dist.all_reduce(sums)
        mean_dy, mean_dy_x = (sums / count).to(dy.dtype).view(2, *shape)
        dx = (dy - mean_dy - normalised * mean_dy_x) * (weight * scale).view(shape)
        return dx.to(gradient.dtype), weight_gradient, bias_gradient, None


def at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
