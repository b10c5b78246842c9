"""Draw sheets of a set of images: the stored images, their views, and histograms of their values.

Three channels are shown as red, green and blue, one as grey. For other numbers, each channel is a grey
picture, side by side in reading order from channel 0, at most MOST_CHANNELS.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int32, Real
from PIL import Image, ImageDraw
from torch import Tensor

from byol.config import DataTransforms
from byol.data.pack.statistics import CLIP, count_measured, find_clipped, find_extremes, no_counts, summarise
from byol.method.views import Pixels, make_views

MOST_CHANNELS = 16
NUM_IMAGES, NUM_VIEWS = 8, 8  # rows and columns of the sheet of views
_LEAST_PX, _MOST_PX = 64, 128  # smallest and largest side of the picture of an image or a channel
_SHEET_PX = 1100  # approximate width of the contact sheet
_GAP_PX, _GAP = 2, (128, 128, 128)
_BINS, _PLOT_PX = 256, (512, 72)
_COLOURS = ((200, 40, 40), (30, 140, 60), (50, 80, 200))
_GREY = (90, 90, 90)


@dataclass(frozen=True, eq=False)
class Sample:
    """Some images as training stores them, and the statistics with which they are scaled."""

    names: tuple[str, ...]
    squares: Real[np.ndarray, "n px px channels"]
    sizes: Int32[np.ndarray, "n 2"]  # height, width, px, as in packs
    pixels: Pixels
    clipped: float = 0.0  # fraction of the values that are below low or above high of their channel

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        squares: Real[np.ndarray, "n px px channels"],
        sizes: Int32[np.ndarray, "n 2"],
        filled: Sequence[Bool[np.ndarray, "px px _channels"] | None] = (),
        *,
        clip: float = CLIP,
    ) -> "Sample":
        """Make a sample with the statistics of these images only, without `filled` values.

        The statistics of all images are known only when the set is packed.
        """
        gaps = np.zeros(squares.shape, np.bool_)
        for gap, is_filled in zip(gaps, filled, strict=False):
            gap |= False if is_filled is None else is_filled
        counts = no_counts(squares.shape[3], squares.dtype)
        count_measured(squares, gaps, out=counts)
        extremes = find_extremes(squares, gaps) if squares.dtype == np.float32 else None
        pixels = summarise(counts, extremes, clip=clip)
        return cls(tuple(names), squares, sizes, pixels, find_clipped(counts, pixels))

    def __len__(self) -> int:
        return len(self.squares)

    def every(self, step: int) -> "Sample":
        """Return every `step`-th image, with the same statistics."""
        part = slice(None, None, step)
        return replace(self, names=self.names[part], squares=self.squares[part], sizes=self.sizes[part])

    @property
    def scaled(self) -> Float32[np.ndarray, "n px px channels"]:
        """The stored values v scaled to clip((v - low) / (high - low), 0, 1)."""
        low, high = (np.array(ends, np.float32) for ends in (self.pixels.low, self.pixels.high))
        scaled: Float32[np.ndarray, "n px px channels"] = ((self.squares - low) / (high - low)).clip(0.0, 1.0)
        return scaled

    @property
    def images(self) -> Real[Tensor, "n channels px px"]:
        """The images in the form for `make_views`."""
        return torch.from_numpy(self.squares).permute(0, 3, 1, 2)


def describe_mapping(channels: int) -> str:
    """Describe how images with this number of channels are shown."""
    if channels in (1, 3):
        return "channel 0 as grey" if channels == 1 else "channels 0, 1, 2 as red, green, blue"
    shown = f"channels 0 to {min(channels, MOST_CHANNELS) - 1} of {channels}"
    return f"{shown} as grey pictures, side by side in reading order"


# ---- The three pictures


def draw_contact(sample: Sample, *, columns: int | None = None) -> bytes:
    """Draw the scaled stored images, as PNG, in `columns` columns; None: as many as fit on a page."""
    tiles = [_tile(image) for image in sample.scaled]
    columns = columns or max(1, _SHEET_PX // (tiles[0].width + _GAP_PX))
    return _png(_arrange([tiles[first : first + columns] for first in range(0, len(tiles), columns)]))


def draw_views(sample: Sample, transforms: DataTransforms, *, seed: int) -> bytes:
    """Draw NUM_VIEWS views of at most NUM_IMAGES images, as PNG: first and second view alternate."""
    rows = [list[Image.Image]() for _ in sample.names[:NUM_IMAGES]]
    for key in range(seed, seed + NUM_VIEWS // 2):
        for views in _make_views(sample, transforms, key=key, num=len(rows)):
            for row, view in zip(rows, _unnormalise(views, sample.pixels), strict=True):
                row.append(_tile(view))
    return _png(_arrange(rows))


def draw_histograms(sample: Sample) -> bytes:
    """Draw histograms of the scaled values of each channel, as PNG; height: square root of the count."""
    width, height = _PLOT_PX
    values = sample.scaled
    channels = min(values.shape[3], MOST_CHANNELS)
    sheet = Image.new("RGB", (width + 20, channels * (height + 34) + 6), "white")
    draw = ImageDraw.Draw(sheet)
    for channel in range(channels):
        counts, _ = np.histogram(values[..., channel], bins=_BINS, range=(0.0, 1.0))
        bars = np.sqrt(counts / counts.max()) * height
        low, high = sample.pixels.low[channel], sample.pixels.high[channel]
        top, colour = channel * (height + 34) + 22, _COLOURS[channel] if values.shape[3] == 3 else _GREY
        draw.text((10, top - 18), f"channel {channel}: {low:g} .. {high:g}", fill="black")
        for place, bar in enumerate(bars.tolist()):
            left = 10 + place * width // _BINS
            draw.rectangle((left, top + height - bar, left + width // _BINS - 1, top + height), fill=colour)
        draw.line((10, top + height + 1, 10 + width, top + height + 1), fill="black")
    return _png(sheet)


def _make_views(
    sample: Sample, transforms: DataTransforms, *, key: int, num: int
) -> tuple[Float[Tensor, "n channels view view"], Float[Tensor, "n channels view view"]]:
    return make_views(
        sample.images[:num],
        torch.from_numpy(sample.sizes[:num]).float(),
        transforms,
        key=key,
        rows=slice(None),
        pixels=sample.pixels,
    )


def _unnormalise(
    views: Float[Tensor, "n channels view view"], pixels: Pixels
) -> Float32[np.ndarray, "n view view channels"]:
    values = views.permute(0, 2, 3, 1).numpy()
    unit: Float32[np.ndarray, "n view view channels"] = values * np.array(pixels.std, np.float32) + np.array(
        pixels.mean, np.float32
    )
    return unit.clip(0.0, 1.0)


# ---- Tiles


def _tile(image: Float32[np.ndarray, "height width channels"]) -> Image.Image:
    """Draw one image of values in 0..1; small images are enlarged by integer factors."""
    values = np.rint(image[..., :MOST_CHANNELS] * 255.0).astype(np.uint8)
    channels = values.shape[2]
    if channels in (1, 3):
        return _enlarge(Image.fromarray(values if channels == 3 else values[..., 0]).convert("RGB"))
    planes = [_enlarge(Image.fromarray(values[..., channel]).convert("RGB")) for channel in range(channels)]
    columns = math.ceil(math.sqrt(channels))
    rows = [planes[first : first + columns] for first in range(0, channels, columns)]
    return _arrange(rows, gap=1)


def _enlarge(image: Image.Image) -> Image.Image:
    side = image.width
    if side > _MOST_PX:
        return image.resize((_MOST_PX, _MOST_PX), Image.Resampling.HAMMING)
    side *= -(-_LEAST_PX // side)
    return image.resize((side, side), Image.Resampling.NEAREST)


def _arrange(rows: Sequence[Sequence[Image.Image]], *, gap: int = _GAP_PX) -> Image.Image:
    """Arrange tiles of one size in rows, which may have different lengths."""
    width, height = (side + gap for side in rows[0][0].size)
    sheet = Image.new("RGB", (width * max(map(len, rows)) - gap, height * len(rows) - gap), _GAP)
    for down, row in enumerate(rows):
        for across, tile in enumerate(row):
            sheet.paste(tile, (across * width, down * height))
    return sheet


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
