"""Draw thumbnails of packed images: single ones, and sheets of many from which a page shows sections.

The first three channels are shown as red, green and blue; of one or two channels, channel 0 as grey.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from jaxtyping import Int64, Real
from PIL import Image

from byol.data.pack.packed import Packed
from byol.method.views import Pixels

MOST_PX = 64  # largest side of a thumbnail on a sheet
COLUMNS, ROWS = 40, 25  # thumbnails per sheet
_TRIES = ((64, 60), (64, 40), (48, 40), (32, 40), (24, 30))  # side in px, quality; tried until sheets fit


@dataclass(frozen=True)
class Sheets:
    """Thumbnails of `px` x `px`, COLUMNS per row and ROWS rows per sheet, as WebP."""

    px: int
    sheets: tuple[bytes, ...]


def draw_thumbnail(square: Real[np.ndarray, "px px channels"], pixels: Pixels, *, px: int) -> Image.Image:
    """Draw a stored image, scaled as for the encoder, as a picture of at most `px` x `px`."""
    shown = 3 if square.shape[2] >= 3 else 1
    low, high = (np.array(ends[:shown], np.float32) for ends in (pixels.low, pixels.high))
    unit = ((square[..., :shown] - low) / (high - low)).clip(0.0, 1.0)
    values = np.rint(unit * 255.0).astype(np.uint8)
    picture = Image.fromarray(values if shown == 3 else values[..., 0]).convert("RGB")
    if picture.width > px:
        picture = picture.resize((px, px), Image.Resampling.HAMMING)
    return picture


def encode(picture: Image.Image, *, quality: int = 80) -> bytes:
    """Encode a picture as WebP."""
    file = BytesIO()
    picture.save(file, "WEBP", quality=quality, method=4)
    return file.getvalue()


def draw_sheets(images: Packed, rows: Int64[np.ndarray, " image"], *, most_bytes: int) -> Sheets:
    """Draw sheets of these images, with the largest size and quality that fit into `most_bytes`."""
    sheets = Sheets(0, ())
    for px, quality in _TRIES:
        px = min(px, images.stored_px, MOST_PX)
        sheets = Sheets(px, tuple(_draw(images, rows, px=px, quality=quality)))
        if sum(map(len, sheets.sheets)) <= most_bytes:
            break
    return sheets


def _draw(images: Packed, rows: Int64[np.ndarray, " image"], *, px: int, quality: int) -> Iterator[bytes]:
    per_sheet = COLUMNS * ROWS
    for first in range(0, len(rows), per_sheet):
        chosen = rows[first : first + per_sheet]
        sheet = Image.new("RGB", (COLUMNS * px, -(-len(chosen) // COLUMNS) * px), "white")
        for place, square in enumerate(images.read(chosen)):
            tile = draw_thumbnail(square, images.pixels, px=px)
            sheet.paste(tile, (place % COLUMNS * px, place // COLUMNS * px))
        yield encode(sheet, quality=quality)
