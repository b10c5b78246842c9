"""Images that the caller holds, or names one by one, read in the same way as those of a source."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from byol.base.errors import DataError
from byol.data.decode.arrays import as_given, find_shape
from byol.data.decode.formats import ImageArray, LaidFile, Layout
from byol.data.sources.array_layout import ARRAY_SUFFIXES, TrainedLayout, resolve_layout

OneImage = str | Path | Image.Image | NDArray[Any] | Tensor


@runtime_checkable
class Images(Protocol):
    """Images that `image.read_square` can read one by one: a `data.index.Source`, or `InMemoryImages`."""

    def __len__(self) -> int: ...

    def names(self, index: int) -> str: ...

    def item(self, index: int) -> str | Path | LaidFile | ImageArray | Image.Image: ...


def in_memory(
    items: Sequence[OneImage], layout: Layout, *, trained: TrainedLayout | None = None
) -> "InMemoryImages":
    """These images, whose arrays have this layout; auto: what the shapes of all of them tell.

    Raises:
        DataError: they do not tell.
    """
    if layout != "auto":
        return InMemoryImages(items, layout)
    images = InMemoryImages(items)
    try:
        return InMemoryImages(items, resolve_layout(images.shapes(), trained), pages="auto")
    except DataError as error:
        raise DataError(f"{error}; in Python, give tensors, which have channels first") from None


@dataclass(frozen=True)
class InMemoryImages:
    """Images that the caller holds or names one by one."""

    items: Sequence[OneImage]
    layout: Layout = "auto"  # of arrays
    pages: Layout | None = None  # as of `LaidFile`

    def __len__(self) -> int:
        return len(self.items)

    def names(self, index: int) -> str:
        item = self.items[index]
        return str(item) if isinstance(item, str | Path) else f"image {index}"

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the arrays, in memory or in files."""
        for index, item in enumerate(self.items):
            if isinstance(item, np.ndarray):
                yield self.names(index), item.shape
            elif (
                isinstance(item, str | Path)
                and str(item).lower().endswith(ARRAY_SUFFIXES)
                and (shape := find_shape(item)) is not None
            ):
                yield self.names(index), shape

    def item(self, index: int) -> str | Path | LaidFile | ImageArray | Image.Image:
        """A path or a Pillow image as it is; the values of an array or a tensor.

        Raises:
            DataError: they are not those of an image.
        """
        match self.items[index]:
            case str() | Path() as path:
                return path if self.layout == "auto" else LaidFile(str(path), self.layout, self.pages)
            case Image.Image() as image:
                return image
            case Tensor() as tensor:
                if tensor.ndim != 3:
                    raise DataError(
                        f"has the shape {tuple(tensor.shape)}; give tensors of (channel, height, width)"
                    )
                tensor = tensor.detach().cpu()
                tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor  # NumPy has none
                return as_given(tensor.numpy(), "chw")
            case array:
                return as_given(array, self.layout)
