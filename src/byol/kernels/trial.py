"""Find whether a fast path is faster than PyTorch on this machine; the result is cached.

On the instruction sets in `MEASURED` it is: docs/performance.md has the times. On others, each path is timed
against PyTorch when it could first be used. The result is kept in the cache folder of the user, so that a
continued run on this machine computes in the same way as before.
"""

import hashlib
import json
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from byol.base.errors import CheckpointError
from byol.base.files import write_atomically
from byol.kernels.build import cache_folder, describe_cpu
from byol.kernels.cpu import instruction_set

MEASURED = ("avx2", "avx512", "avx512_bf16")
_ROUNDS = 5
_MARGIN = 0.95  # a path must take at most this fraction of the time of PyTorch

Work = Callable[[torch.dtype], object]


@cache
def wins(
    name: str,
    dtype: torch.dtype,
    *,
    ours: Work,
    library: Work,
    now: Callable[[], float] = time.perf_counter,
) -> bool:
    """Return whether `ours` is faster than `library`, which computes the same; `name` is that of the path.

    Both are called with `dtype`, in which the maps of the network are.
    """
    if instruction_set() in MEASURED:
        return True
    path = _place(f"{name}-{str(dtype).removeprefix('torch.')}")
    measured = _read(path)
    if measured is None:
        measured = _measure(ours, library, dtype, now)
        # If nothing can be cached, each process measures again.
        with suppress(CheckpointError):
            write_atomically(path, json.dumps({"ours_s": measured[0], "library_s": measured[1]}).encode())
    return measured[0] <= _MARGIN * measured[1]


def _measure(ours: Work, library: Work, dtype: torch.dtype, now: Callable[[], float]) -> tuple[float, float]:
    """Return the seconds of the fastest round of each, after a warm-up round. They alternate.

    A path may ask within the target network (no gradients), autocast or inference mode; the work is the same.
    """
    times: tuple[list[float], list[float]] = [], []
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        for _ in range(1 + _ROUNDS):
            for work, found in zip((ours, library), times, strict=True):
                start = now()
                work(dtype)
                found.append(now() - start)
    return min(times[0][1:]), min(times[1][1:])


def _place(name: str) -> Path:
    depends = (describe_cpu(), platform.platform(), torch.__version__, str(torch.get_num_threads()))
    key = hashlib.sha256("\0".join((name, *depends)).encode()).hexdigest()[:20]
    return cache_folder() / f"trial-{name}-{key}.json"


def _read(path: Path) -> tuple[float, float] | None:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return float(fields["ours_s"]), float(fields["library_s"])
    except (OSError, ValueError, KeyError, TypeError):  # missing or damaged
        return None
