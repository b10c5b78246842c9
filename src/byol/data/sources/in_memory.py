"""Images that the caller holds, or names one by one, read in the same way as those of a source."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from byol.base.errors import DataError
from byol.data.decode.arrays import as_given
from byol.data.decode.formats import ImageArray, LaidFile, Layout

OneImage = str | Path | Image.Image | NDArray[Any] | Tensor


@runtime_checkable
class Images(Protocol):
    """Images that `image.read_square` can read one by one: a `data.index.Source`, or `InMemoryImages`."""

    def __len__(self) -> int: ...

    def names(self, index: int) -> str: ...

    def item(self, index: int) -> str | Path | LaidFile | ImageArray | Image.Image: ...


@dataclass(frozen=True)
class InMemoryImages:
    """Images that the caller holds or names one by one."""

    items: Sequence[OneImage]
    layout: Layout = "auto"  # of arrays, as data.layout

    def __len__(self) -> int:
        return len(self.items)

    def names(self, index: int) -> str:
        item = self.items[index]
        return str(item) if isinstance(item, str | Path) else f"image {index}"

    def item(self, index: int) -> str | Path | LaidFile | ImageArray | Image.Image:
        """A path or a Pillow image as it is; the values of an array or a tensor.

        Raises:
            DataError: they are not those of an image.
        """
        match self.items[index]:
            case str() | Path() as path:
                return path if self.layout == "auto" else LaidFile(str(path), self.layout)
            case Image.Image() as image:
                return image
            case Tensor() as tensor:
                if tensor.ndim != 3:
                    raise DataError(
                        f"has the shape {tuple(tensor.shape)}; (channel, height, width) is wanted"
                    )
                tensor = tensor.detach().cpu()
                tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor  # NumPy has none
                return as_given(tensor.numpy(), "chw")
            case array:
                return as_given(array, self.layout)
