"""The number of threads that PyTorch computes with on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def limited_threads(num: int | None) -> Iterator[None]:
    """Let PyTorch use `num` threads in the block; None: as many as outside of it."""
    before = torch.get_num_threads()
    try:
        if num is not None:
            torch.set_num_threads(num)
        yield
    finally:
        torch.set_num_threads(before)
