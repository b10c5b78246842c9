"""A DataLoader without end, for the systems that read files in worker processes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import ImageFolder


def read_files(folder: Path, transform: Callable[[Any], Any], *, batch: int, workers: int) -> Iterator[Any]:
    """Random batches of (transformed image, class) for ever.

    One endless epoch: the restart of the workers after each, which real data sets make rare, is not measured.
    """
    images = ImageFolder(str(folder), transform=transform)
    sampler = RandomSampler(images, replacement=True, num_samples=2**40)
    return iter(DataLoader(images, batch_size=batch, sampler=sampler, num_workers=workers, drop_last=True))
