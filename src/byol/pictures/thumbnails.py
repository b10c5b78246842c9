"""Small pictures of packed images: one by one, and many on sheets that a page cuts them out of.

Three channels and more are shown as red, green and blue, one or two as the grey of channel 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from jaxtyping import Int64, Real
from PIL import Image

from byol.data.pack.packed import Packed
from byol.method.views import Pixels

MOST_PX = 64  # side of a thumbnail on a sheet
COLUMNS, ROWS = 40, 25  # thumbnails on a sheet
_TRIES = ((64, 60), (64, 40), (48, 40), (32, 40), (24, 30))  # side in px, quality: until the sheets fit


@dataclass(frozen=True)
class Sheets:
    """Thumbnails of `px` pixels, COLUMNS in a row and ROWS rows on a sheet, as WebP."""

    px: int
    sheets: tuple[bytes, ...]


def draw_thumbnail(square: Real[np.ndarray, "px px channels"], pixels: Pixels, *, px: int) -> Image.Image:
    """One stored image as a picture of `px` x `px`, scaled as the encoder sees it; it is not enlarged."""
    shown = 3 if square.shape[2] >= 3 else 1
    low, high = (np.array(ends[:shown], np.float32) for ends in (pixels.low, pixels.high))
    unit = ((square[..., :shown] - low) / (high - low)).clip(0.0, 1.0)
    values = np.rint(unit * 255.0).astype(np.uint8)
    picture = Image.fromarray(values if shown == 3 else values[..., 0]).convert("RGB")
    if picture.width > px:
        picture = picture.resize((px, px), Image.Resampling.HAMMING)
    return picture


def encode(picture: Image.Image, *, quality: int = 80) -> bytes:
    """As WebP."""
    file = BytesIO()
    picture.save(file, "WEBP", quality=quality, method=4)
    return file.getvalue()


def draw_sheets(images: Packed, rows: Int64[np.ndarray, " image"], *, most_bytes: int) -> Sheets:
    """Sheets of these images, as large and as good as fit into `most_bytes`."""
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
