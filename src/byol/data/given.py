"""Images that the caller holds, or names one by one, read in the same way as those of a source."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from byol.data.formats import ImageArray
from byol.errors import DataError

OneImage = str | Path | Image.Image | NDArray[Any] | Tensor


@runtime_checkable
class Images(Protocol):
    """Images that `decode.read_square` can read one by one: a `data.index.Source`, or `Given`."""

    def __len__(self) -> int: ...

    def names(self, index: int) -> str: ...

    def item(self, index: int) -> str | Path | ImageArray | Image.Image: ...


@dataclass(frozen=True)
class Given:
    """Images that the caller holds or names one by one."""

    items: Sequence[OneImage]

    def __len__(self) -> int:
        return len(self.items)

    def names(self, index: int) -> str:
        item = self.items[index]
        return str(item) if isinstance(item, str | Path) else f"image {index}"

    def item(self, index: int) -> str | Path | ImageArray | Image.Image:
        """A path or a Pillow image as it is; the values of an array or a tensor.

        Raises:
            DataError: they are not those of an image.
        """
        match self.items[index]:
            case str() | Path() as path:
                return path
            case Image.Image() as image:
                return image
            case Tensor() as tensor:
                if tensor.ndim != 3:
                    raise DataError(
                        f"has the shape {tuple(tensor.shape)}; (channel, height, width) is wanted"
                    )
                return _check_values(tensor.detach().cpu().numpy().transpose(1, 2, 0))
            case array:
                if array.ndim not in (2, 3):
                    raise DataError(f"has the shape {array.shape}; (height, width, channel) is wanted")
                return _check_values(array if array.ndim == 3 else array[..., None])


def _check_values(image: NDArray[Any]) -> ImageArray:
    if image.dtype not in (np.uint8, np.uint16):
        raise DataError(
            f"holds {image.dtype} values; give uint8 or uint16 as in the file, scaling is done here"
        )
    if 0 in image.shape:
        raise DataError(f"has no pixels {image.shape}")
    return np.ascontiguousarray(image)
