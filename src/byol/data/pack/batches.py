"""Load this rank's images of each step onto the device; threads read ahead while the network computes."""

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64, Real
from torch import Tensor

from byol.data.pack.packed import Packed
from byol.data.pack.remote import RemoteRows
from byol.data.pack.shards import Rows
from byol.device.devices import free_bytes, pins, send_stored
from byol.method.schedule import Plan

_AHEAD = 2  # batches that are prepared in advance, each by its own thread
_CHUNK_BYTES = 2**26
_GPU_SHARE = 0.3  # fraction of the free GPU memory that images may take if memory is "auto"
_DTYPES = {1: torch.uint8, 2: torch.uint16, 4: torch.float32}  # of stored images, by bytes per value

Memory = Literal["auto", "ram", "map", "device"]


@dataclass(frozen=True)
class Batch:
    """The images of one step."""

    images: Real[Tensor, "batch channel stored stored"]  # of this rank, channels_last, on the device
    sizes: Float[
        Tensor, "global_batch 2"
    ]  # of the images of all ranks: height and width before packing, in px, on the host


class Batches:
    """Iterate over the batches of the steps from `first_step` on: the `rows` of each global batch.

    Iterate once, in a `with` block, which ends the threads. A thread's error is raised when its batch is due.
    `memory`: "ram" copies the images of all ranks into memory, "device" onto the GPU (on a CPU: "ram"),
    "map" reads them from the file when they are needed. "auto" means "device" if they fit into 30 % of the
    free GPU memory, else "map": the operating system caches the file once for all ranks, and a batch takes
    0.3 ms longer than from RAM.
    """

    def __init__(
        self,
        packed: Packed,
        plan: Plan,
        *,
        rows: slice,
        device: torch.device,
        first_step: int,
        memory: Memory,
    ) -> None:
        assert len(packed) == plan.num_images
        place = _choose_place(packed.file.nbytes, memory, device=device)
        self.where = _describe(packed, place)
        self.wait_s = 0.0  # total time that the consumer has waited for images
        if place == "device":
            self._store: DeviceStore | HostStore = DeviceStore(packed, device)
        else:
            self._store = HostStore(
                packed.read(np.arange(len(packed))) if place == "ram" else packed.file, device
            )
        self._remote = packed.file if isinstance(packed.file, RemoteRows) and place == "map" else None
        self._sizes = packed.sizes
        self._plan, self._rows = plan, rows
        # With a time budget, the consumer decides when to stop.
        self._steps = count(first_step) if plan.budget_s else iter(range(first_step, plan.total_steps))
        self._ahead: deque[tuple[Future[Tensor], Tensor]] = deque()
        self._threads = ThreadPoolExecutor(_AHEAD, thread_name_prefix="byol-batches")

    def __enter__(self) -> "Batches":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Threads may wait for a shard of a pack in object storage.
        with nullcontext() if self._remote is None else self._remote.stopping():
            self._threads.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        while len(self._ahead) <= _AHEAD and (step := next(self._steps, None)) is not None:
            if self._remote is not None:
                self._remote.prefetch(self._plan.shards_ahead(step))
            indices = self._plan.indices(step)
            future = self._threads.submit(self._store.prepare, indices[self._rows])
            self._ahead.append((future, torch.from_numpy(self._sizes[indices].astype(np.float32))))
        if not self._ahead:
            raise StopIteration
        future, sizes = self._ahead.popleft()
        start = time.perf_counter()
        prepared = future.result()
        self.wait_s += time.perf_counter() - start
        return Batch(self._store.deliver(prepared).permute(0, 3, 1, 2), sizes)


class HostStore:
    """Images in RAM or in a file: threads copy the rows, the consumer sends them to the device."""

    def __init__(self, images: Real[np.ndarray, "n px px channels"] | Rows, device: torch.device) -> None:
        self._images, self._device = images, device
        self._row_shape, self._dtype = images.shape[1:], _DTYPES[images.dtype.itemsize]

    def prepare(self, indices: Int64[np.ndarray, " batch"]) -> Real[Tensor, "batch px px channels"]:
        shape = (len(indices), *self._row_shape)
        rows = torch.empty(shape, dtype=self._dtype, pin_memory=pins(self._device))
        if isinstance(self._images, np.ndarray):  # "clip" avoids a temporary copy; all indices are valid
            np.take(self._images, indices, axis=0, out=rows.numpy(), mode="clip")
        else:
            self._images.read(indices, out=rows.numpy())
        return rows

    def deliver(self, prepared: Real[Tensor, "batch px px channels"]) -> Real[Tensor, "batch px px channels"]:
        """Send the images in the consumer's CUDA stream, so that later computation there can use them."""
        return send_stored(prepared, self._device, non_blocking=pins(self._device))


class DeviceStore:
    """All images on the GPU: each step sends only indices."""

    def __init__(self, packed: Packed, device: torch.device) -> None:
        # uint16 is stored as the bits of int16, because few operations support uint16.
        self._dtype = _DTYPES[packed.file.dtype.itemsize]
        kept = torch.int16 if self._dtype == torch.uint16 else self._dtype
        self._images = torch.empty(packed.file.shape, dtype=kept, device=device)
        num_rows = max(1, _CHUNK_BYTES * len(packed) // packed.file.nbytes)
        for first in range(0, len(packed), num_rows):  # in chunks: the host never holds a full copy
            part = packed.read(np.arange(first, min(first + num_rows, len(packed))))
            self._images[first : first + num_rows] = torch.from_numpy(part).view(kept)

    def prepare(self, indices: Int64[np.ndarray, " batch"]) -> Int64[Tensor, " batch"]:
        sent = torch.from_numpy(indices.copy())  # the array of the plan is read-only
        return sent.pin_memory() if pins(self._images.device) else sent

    def deliver(self, prepared: Int64[Tensor, " batch"]) -> Real[Tensor, "batch px px channels"]:
        device = self._images.device
        return self._images[prepared.to(device, non_blocking=pins(device))].view(self._dtype)


# ---- Where the images are kept


def _choose_place(num_bytes: int, memory: Memory, *, device: torch.device) -> Literal["ram", "map", "device"]:
    if memory == "device" and device.type == "cpu":
        return "ram"
    if memory != "auto":
        return memory
    if device.type in ("cpu", "mps"):  # an Apple GPU shares the host's memory
        return "map"
    fits = num_bytes < _GPU_SHARE * free_bytes(device)
    return "device" if fits else "map"


def _describe(packed: Packed, place: Literal["ram", "map", "device"]) -> str:
    size = f"{packed.file.nbytes / 1e9:.2f} GB"
    words = {"ram": f"in RAM ({size})", "device": f"on the GPU ({size})"}
    return words.get(place, f"read from {packed.folder} ({size}) as they are needed")
