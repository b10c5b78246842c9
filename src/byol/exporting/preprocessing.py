"""Convert stored images to the views for an encoder, with operations that can be exported.

These are the steps of `Encoder.embed` without decoding, for images of any size in one graph:

    images (batch, channel, height, width) -> square of stored_px (`data.decode.fitting`)
    -> values in [0, 1] -> views of seen_px (`method.views.whole_view`) -> normalised

Height and width are known only when the graph runs, so each side is resized by a product with a matrix that
the graph computes (`resampling`).
"""

from typing import cast

import torch
from jaxtyping import Float, Float64, Real
from torch import Tensor, nn

from byol.encoder.spec import EncoderSpec
from byol.exporting.resampling import OnCanvas, Side, find_order, resize
from byol.method import pixelwise
from byol.method.views import Pixels, encode_whole

DTYPES = {8: torch.uint8, 16: torch.uint16, 32: torch.float32}  # of images, by bits per value


class WholeEncoder(nn.Module):
    """An encoder with its preprocessing: stored values in, features out."""

    def __init__(self, spec: EncoderSpec, network: nn.Module) -> None:
        super().__init__()
        self.preprocess = Preprocessing(spec)
        self.network = network
        self.mirrored = spec.mirrored

    def forward(self, images: Real[Tensor, "batch channel height width"]) -> Float[Tensor, "batch feature"]:
        """Compute features of images of dtype `DTYPES[spec.bits]` with the channels of the encoder."""
        return encode_whole(self.encode, self.preprocess(images), mirrored=self.mirrored)

    def encode(self, views: Float[Tensor, "batch channel view view"]) -> Float[Tensor, "batch feature"]:
        """Compute features of prepared views."""
        return cast(Tensor, self.network(views)).float()


class Preprocessing(nn.Module):
    """Converts images of any height and width to normalised views of `spec.seen_px`."""

    low: Tensor
    span: Tensor
    mean: Tensor
    std: Tensor
    to_view: Tensor

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.bits, self.px, self.order = spec.bits, spec.stored_px, find_order()
        self.on_canvas = spec.geometry == "scale"
        self.resizes_again = spec.stored_px != spec.seen_px
        pixels = spec.pixels
        self.clips = not _fills_the_type(pixels, spec.bits)
        span = [high - low for low, high in zip(pixels.low, pixels.high, strict=True)]
        per_channel = {"low": pixels.low, "span": span, "mean": pixels.mean, "std": pixels.std}
        for name, values in per_channel.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[:, None, None])
        self.register_buffer("to_view", _view_matrix(spec.stored_px, spec.seen_px))

    def forward(
        self, images: Real[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel view view"]:
        """Return normalised views as in training."""
        square = self.place(images) if self.on_canvas else self.squash(images)
        x = (square.float() - self.low) / self.span
        x = x.clamp(0.0, 1.0) if self.clips else x
        if self.resizes_again:
            x = (self.to_view @ x) @ self.to_view.mT
        return (x - self.mean) / self.std

    def squash(self, images: Tensor) -> Float64[Tensor, "batch channel stored stored"]:
        """Do the same as `fit`: Hamming weights if both sides shrink, triangles otherwise."""
        rows, columns = Side.of(images[0, 0, :, 0]), Side.of(images[0, 0, 0, :])
        shrinks = (rows.length >= self.px) & (columns.length >= self.px)
        weights = (side.squash(self.px, shrinks=shrinks) for side in (rows, columns))
        return resize(images, *weights, bits=self.bits, order=self.order)

    def place(self, images: Tensor) -> Float64[Tensor, "batch channel stored stored"]:
        """Do the same as `place_on_canvas`: shrink if too large, centre, fill with the border median."""
        rows, columns = Side.of(images[0, 0, :, 0]), Side.of(images[0, 0, 0, :])
        longest = torch.maximum(rows.length, columns.length)
        on_rows, on_columns = (side.place(self.px, longest=longest) for side in (rows, columns))
        square = resize(images, on_rows.weights, on_columns.weights, bits=self.bits, order=self.order)
        fill = _border_median(square, on_rows, on_columns)
        fill = fill if self.bits == 32 else fill.round()
        inside = on_rows.covered[:, None] & on_columns.covered
        return torch.where(inside, square, fill[:, :, None, None])


def _border_median(square: Tensor, rows: OnCanvas, columns: OnCanvas) -> Float64[Tensor, "batch channel"]:
    """Return the median of the border rows and columns of an image on a canvas; corners count twice."""
    values = []
    for side, other, dim in ((rows, columns, 2), (columns, rows, 3)):
        ends = torch.stack([side.first, side.first + side.length - 1.0]).long()
        lines = square.index_select(dim, ends)
        lines = lines if dim == 2 else lines.mT
        values.append(torch.where(other.covered, lines, torch.inf).flatten(2))
    half = rows.length + columns.length  # half the number of values
    middle = torch.stack([half - 1.0, half]).long()
    return torch.cat(values, dim=2).sort(dim=2).values.index_select(2, middle).mean(dim=2)


def _fills_the_type(pixels: Pixels, bits: int) -> bool:
    """Return whether low and high are the limits of the dtype, so that no value can be clipped."""
    return bits < 32 and set(pixels.low) == {0.0} and set(pixels.high) == {2.0**bits - 1.0}


def _view_matrix(stored_px: int, seen_px: int) -> Float[Tensor, "seen stored"]:
    """Return the resampling of `whole_view` as a matrix."""
    start = torch.zeros(1)
    taps = pixelwise.resampling(start, start + 1.0, start > 0.0, num_in=stored_px, num_out=seen_px)
    return torch.zeros(seen_px, stored_px).scatter_add_(1, taps.index[0], taps.weight[0])
