"""Whether a fast path wins on this machine: known where it was measured, else tried once and cached.

On the instruction sets of `MEASURED` the paths win by what docs/performance.md says. Elsewhere each is timed
against PyTorch's own the first time it could be used; the answer stays in the user's cache folder, so that a
run that continues on the machine computes as it did before.
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
_MARGIN = 0.95  # of PyTorch's time: a path that hardly wins is not taken

Work = Callable[[], object]


@cache
def wins(name: str, *, ours: Work, library: Work, now: Callable[[], float] = time.perf_counter) -> bool:
    """Whether `ours` is faster than `library`, which do the same; `name` is the path's."""
    if instruction_set() in MEASURED:
        return True
    path = _place(name)
    measured = _read(path)
    if measured is None:
        measured = _measure(ours, now), _measure(library, now)
        # Where nothing can be cached, it is tried in each process.
        with suppress(CheckpointError):
            write_atomically(path, json.dumps({"ours_s": measured[0], "library_s": measured[1]}).encode())
    return measured[0] <= _MARGIN * measured[1]


def _measure(work: Work, now: Callable[[], float]) -> float:
    """Seconds of the fastest round, after one that is not counted."""
    times = []
    for _ in range(1 + _ROUNDS):
        start = now()
        work()
        times.append(now() - start)
    return min(times[1:])


def _place(name: str) -> Path:
    depends = (describe_cpu(), platform.platform(), torch.__version__, str(torch.get_num_threads()))
    key = hashlib.sha256("\0".join((name, *depends)).encode()).hexdigest()[:20]
    return cache_folder() / f"trial-{name}-{key}.json"


def _read(path: Path) -> tuple[float, float] | None:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return float(fields["ours_s"]), float(fields["library_s"])
    except (OSError, ValueError, KeyError, TypeError):  # not there, or not what was written
        return None
