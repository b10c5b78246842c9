"""The resizing of Pillow as matrix products, for images whose size is known only when a graph runs.

The weights are those of `Image.resize` with HAMMING or BILINEAR, in float64. For 8-bit images Pillow uses
integers: weights are multiples of 2^-22, and each of the two passes rounds to an integer. float64 holds these
sums exactly, so the result is identical to that of Pillow. For other images, Pillow keeps float32 after each
pass. Nothing here names a device: all tensors are made from the images, so a graph can be moved.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal, cast, no_type_check

import numpy as np
import torch
from jaxtyping import Bool, Float64
from PIL import Image
from torch import Tensor

_UNITS = 2.0**22  # 1 / the unit of weights, for 8-bit images
_HAMMING = (float(np.float32(0.54)), float(np.float32(0.46)))  # float32 in Pillow
# In two parts, because numbers in ONNX files are float32.
_PI = (float(np.float32(math.pi)), math.pi - float(np.float32(math.pi)))
_TALL = 100  # ratio of rows to columns
# Images whose rows Pillow resizes first; for others, columns. Rounding in between makes a difference.
Order = Literal["never", "tall", "if it saves"]


@dataclass(frozen=True)
class Weights:
    """The weight of each pixel of a side in each pixel of the result."""

    matrix: Float64[Tensor, "out side"]
    length: Float64[Tensor, ""]  # of the side, in px
    shrunk_by: Float64[Tensor, ""]  # px; negative if the side grows


@dataclass(frozen=True)
class OnCanvas:
    """The place of an image along one side of a canvas, and the weights that resize it to this place."""

    weights: Weights
    covered: Bool[Tensor, " canvas"]  # by the image
    first: Float64[Tensor, ""]  # first pixel that it covers
    length: Float64[Tensor, ""]  # in px of the canvas


@dataclass(frozen=True)
class Side:
    """The height or the width of an image."""

    pixels: Float64[Tensor, " side"]  # 0, 1, ...
    length: Float64[Tensor, ""]

    @classmethod
    def of(cls, values: Tensor) -> "Side":
        """Make the side from any values along it, of which only the number counts."""
        ones = torch.ones_like(values, dtype=torch.float64)
        return cls(ones.cumsum(0) - 1.0, ones.sum())

    def squash(self, px: int, *, shrinks: Tensor) -> Weights:
        """Return the weights to resize to `px`: Hamming if the image `shrinks`, a triangle otherwise."""
        matrix = self._weigh(self._count(px), scale=self.length / px, shrinks=shrinks)
        return Weights(matrix, self.length, self.length - px)

    def place(self, px: int, *, longest: Tensor) -> OnCanvas:
        """Place in the middle of `px`; shrink by the scale of the `longest` side if it exceeds `px`."""
        shrunk = (self.length * px / longest).round().clamp(min=1.0)
        length = torch.where(longest > px, shrunk, self.length)
        first = ((px - length) / 2.0).floor()
        place = self._count(px) - first
        covered = (place >= 0.0) & (place < length)
        matrix = self._weigh(place, scale=self.length / length, shrinks=length > 0.0)
        matrix = torch.where(covered[:, None], matrix, 0.0)
        weights = Weights(matrix, self.length, self.length - length)
        return OnCanvas(weights, covered, first, length)

    def _count(self, px: int) -> Float64[Tensor, " px"]:
        """Return 0, 1, ... px - 1."""
        return (self.pixels[:1] + 1.0).expand(px).cumsum(0) - 1.0

    def _weigh(self, out: Tensor, *, scale: Tensor, shrinks: Tensor) -> Float64[Tensor, "out side"]:
        centre = ((out + 0.5) * scale)[:, None]
        radius = scale.clamp(min=1.0)
        first = (centre - radius + 0.5).floor()
        end = (centre + radius + 0.5).floor()
        distance = ((self.pixels - centre + 0.5) * (1.0 / radius)).abs()
        angle = distance.clamp(min=1e-12)
        angle = angle * _PI[0] + angle * _PI[1]
        hamming = angle.sin() / angle * (_HAMMING[0] + _HAMMING[1] * angle.cos())
        weight = torch.where(shrinks, hamming, 1.0 - distance)
        is_met = (self.pixels >= first) & (self.pixels < end) & (distance < 1.0)
        weight = torch.where(is_met, weight, 0.0)
        return weight / weight.sum(dim=1, keepdim=True)


def resize(
    images: Tensor, rows: Weights, columns: Weights, *, bits: int, order: Order
) -> Float64[Tensor, "batch channel height width"]:
    """Resize both sides of images (batch, channel, side, side), and round as Pillow does for their dtype."""
    x, of_rows, of_columns = images.to(torch.float64), rows.matrix, columns.matrix
    rows_first, columns_first = _rows_first, _columns_first
    if bits == 8:
        of_rows, of_columns = ((matrix * _UNITS + 0.5).floor() for matrix in (of_rows, of_columns))
        rows_first, columns_first = _rows_first_8_bit, _columns_first_8_bit
    starts_with_rows = rows.shrunk_by > 0.0
    if order == "tall":
        starts_with_rows &= rows.length > _TALL * columns.length
    else:
        starts_with_rows &= rows.shrunk_by > 2.0 * columns.shrunk_by
    if order == "never":
        x = columns_first(x, of_rows, of_columns)
    elif torch.compiler.is_exporting():
        x = torch.cond(starts_with_rows, rows_first, columns_first, (x, of_rows, of_columns))
    else:
        x = (rows_first if bool(starts_with_rows) else columns_first)(x, of_rows, of_columns)
    return cast(Tensor, x.round() if bits == 16 else x)


@cache
def find_order() -> Order:
    """Find by trial whose rows this Pillow version resizes first: versions have different rules."""
    if _fits("if it saves", height=40, width=12):
        return "if it saves"
    return "tall" if _fits("tall", height=8 * _TALL, width=7) else "never"


def _fits(order: Order, *, height: int, width: int, px: int = 6) -> bool:
    """Return whether Pillow gives the result of an order, for an image that only this order resizes so."""
    values = np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(values).resize((px, px), Image.Resampling.HAMMING))
    images = torch.from_numpy(values)[None, None]
    rows, columns = (
        Side.of(side).squash(px, shrinks=torch.tensor(True)) for side in (images[0, 0, :, 0], images[0, 0, 0])
    )
    found = resize(images, rows, columns, bits=8, order=order)
    return np.array_equal(found[0, 0].numpy(), expected)


# PyTorch compiles these functions, and cannot compile the type checks that tests add.


@no_type_check
def _columns_first(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return _round(rows @ _round(x @ columns.mT))


@no_type_check
def _rows_first(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return _round(_round(rows @ x) @ columns.mT)


@no_type_check
def _columns_first_8_bit(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return _round_8_bit(rows @ _round_8_bit(x @ columns.mT))


@no_type_check
def _rows_first_8_bit(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return _round_8_bit(_round_8_bit(rows @ x) @ columns.mT)


@no_type_check
def _round(sums: Tensor) -> Tensor:
    """Round to float32, which Pillow keeps after each pass."""
    return sums.float().double()


@no_type_check
def _round_8_bit(sums: Tensor) -> Tensor:
    """Convert sums in units of 2^-22 to 8-bit values."""
    return (sums / _UNITS + 0.5).floor().clamp(0.0, 255.0)
