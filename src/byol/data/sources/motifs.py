"""A generated, labelled data set: ten classes of two-colour patterns. No network, no files.

The class of an image is the KIND of its pattern. The two colours, which of them is the figure, light, phase,
rotation, period, line width and a slight warp are random: single pixels or colours do not tell the class.

How an image is made:  position (x, y) in image sides
    -> warp, rotate, divide by the period: pattern coordinates (u, v), in which 1 is one period
    -> function of the class: signed distance to the edge of the figure, in periods, positive inside
    -> soft threshold -> two colours -> brightness gradient -> noise -> uint8.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from jaxtyping import Float, Int64, UInt8
from numpy.typing import NDArray

SIZE_PX = 48
NUM_TRAIN = 5000
NUM_TEST = 2000

_ROTATION = np.deg2rad(15.0)  # each image is rotated by up to this angle, in either direction
_PERIOD = (0.21, 0.30)  # in image sides, log-uniform; then multiplied by the scale of the class
_WARP = 0.0126  # largest displacement of a point, in image sides
_SHARPNESS = 1.6  # of the figure's edge, per pixel
_LIGHT = 0.45  # largest relative change of brightness between two opposite edges, along each axis
_NOISE = 0.02  # standard deviation, as a fraction of full scale
IMAGES_AT_ONCE = 250  # images made at once, to limit the memory

Array = NDArray[np.float64]
Maps = Float[np.ndarray, "batch height width"]


@dataclass(frozen=True)
class Sheet:
    """Pattern coordinates of the pixels of a batch of images, and other inputs of the pattern functions."""

    u: Array  # (batch, height, width), in periods
    v: Array
    width: Array  # (batch, 1, 1), -1..1: from thin to thick lines, from small to large figures
    rng: np.random.Generator


def make_motifs(
    num_images: int, *, seed: int
) -> tuple[UInt8[np.ndarray, "num_images height width 3"], Int64[np.ndarray, " num_images"]]:
    """Draw `num_images` patterns, SIZE_PX pixels a side, and their classes (indices into CLASS_NAMES).

    Classes are balanced (their counts differ by at most one) and in random order. The same seed gives the
    same images; global random generators are not used. Takes about 0.4 s per 1,000 images on one core.
    """
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(num_images, dtype=np.int64) % len(CLASS_NAMES))
    images = np.empty((num_images, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    for label, (scale, pattern) in enumerate(_PATTERNS.values()):
        members = np.flatnonzero(labels == label)
        for first in range(0, len(members), IMAGES_AT_ONCE):
            chunk = members[first : first + IMAGES_AT_ONCE]
            sheet, period_px = _lay_sheets(rng, num_images=len(chunk), scale=scale)
            images[chunk] = _paint(rng, distance_px=pattern(sheet) * period_px)
    return images, labels


def load_motifs(
    split: Literal["train", "test"], *, seed: int = 0
) -> tuple[UInt8[np.ndarray, "num_images height width 3"], Int64[np.ndarray, " num_images"]]:
    """Return the NUM_TRAIN training or NUM_TEST test images of the data set `seed`, and their classes.

    Train splits use even seeds of `make_motifs`, test splits odd ones, so no test split of any `seed` holds
    an image of a train split. The arrays are made once per process and are read-only.
    """
    return _cached_motifs(NUM_TRAIN if split == "train" else NUM_TEST, 2 * seed + (split == "test"))


@cache
def _cached_motifs(
    num_images: int, seed: int
) -> tuple[UInt8[np.ndarray, "num_images height width 3"], Int64[np.ndarray, " num_images"]]:
    images, labels = make_motifs(num_images, seed=seed)
    for array in (images, labels):
        array.setflags(write=False)
    return images, labels


# ---- From pixels to pattern coordinates, and from distances to colours


def _each(rng: np.random.Generator, low: float, high: float, num_images: int) -> Array:
    """Return one uniform random number per image, of shape (num_images, 1, 1) for broadcasting."""
    return rng.uniform(low, high, (num_images, 1, 1))


def _pixel_centres() -> tuple[Array, Array]:
    """Return x (1, width) and y (height, 1) in image sides, 0 at the centre of the image."""
    axis = (np.arange(SIZE_PX) + 0.5) / SIZE_PX - 0.5
    return axis[None, :], axis[:, None]


def _lay_sheets(rng: np.random.Generator, *, num_images: int, scale: float) -> tuple[Sheet, Array]:
    """Warp, rotate, scale and shift the pixel grids; also return the periods in px, (num_images, 1, 1)."""
    x, y = _pixel_centres()
    warp = _each(rng, 0.0, _WARP, num_images)
    warped_x = x + warp * _wave(y * _each(rng, 0.7, 1.6, num_images) + _each(rng, 0.0, 1.0, num_images))
    warped_y = y + warp * _wave(x * _each(rng, 0.7, 1.6, num_images) + _each(rng, 0.0, 1.0, num_images))
    angle = _each(rng, -_ROTATION, _ROTATION, num_images)
    cosine, sine = np.cos(angle), np.sin(angle)
    period = scale * np.exp(_each(rng, float(np.log(_PERIOD[0])), float(np.log(_PERIOD[1])), num_images))
    sheet = Sheet(
        u=(warped_x * cosine + warped_y * sine) / period + _each(rng, 0.0, 1.0, num_images),
        v=(warped_y * cosine - warped_x * sine) / period + _each(rng, 0.0, 1.0, num_images),
        width=_each(rng, -1.0, 1.0, num_images),
        rng=rng,
    )
    return sheet, period * SIZE_PX


def _paint(rng: np.random.Generator, *, distance_px: Array) -> UInt8[np.ndarray, "batch height width 3"]:
    """Colour figure and background, one dark and one light; add a brightness gradient and noise."""
    num_images = len(distance_px)
    figure_share = (1.0 / (1.0 + np.exp(-_SHARPNESS * distance_px)))[..., None]
    hue = rng.uniform(0.0, 1.0, num_images)
    other_hue = hue + rng.uniform(0.12, 0.88, num_images)
    dark = _rgb(hue, rng.uniform(0.25, 0.9, num_images), rng.uniform(0.15, 0.55, num_images))
    light = _rgb(other_hue, rng.uniform(0.1, 0.75, num_images), rng.uniform(0.75, 1.0, num_images))
    dark_figure = rng.uniform(size=(num_images, 1, 1, 1)) < 0.5
    figure, ground = np.where(dark_figure, dark, light), np.where(dark_figure, light, dark)
    x, y = _pixel_centres()
    slant = x * _each(rng, -_LIGHT, _LIGHT, num_images) + y * _each(rng, -_LIGHT, _LIGHT, num_images)
    image = (ground + (figure - ground) * figure_share) * (1.0 + slant)[..., None]
    image += rng.normal(0.0, _NOISE, image.shape)
    return np.asarray(np.rint(image.clip(0.0, 1.0) * 255.0), dtype=np.uint8)


def _rgb(hue: Array, saturation: Array, value: Array) -> Array:
    """Convert HSV, each (batch,) in 0..1 (hue modulo 1), to RGB in 0..1 of shape (batch, 1, 1, 3)."""
    sector = (np.array([5.0, 3.0, 1.0]) + 6.0 * hue[:, None]) % 6.0
    lost = np.clip(np.minimum(sector, 4.0 - sector), 0.0, 1.0)
    rgb: Array = value[:, None] * (1.0 - saturation[:, None] * lost)
    return rgb[:, None, None, :]


# ---- Waves and tilings as functions of pattern coordinates


def _wave(z: Array) -> Array:
    """Return a sine wave of period 1."""
    return np.asarray(np.sin(2.0 * np.pi * z))


def _ramp(z: Array) -> Array:
    """Return a triangle wave of period 1: 1 at integers, 0 half-way between."""
    return np.asarray(np.abs(2.0 * (z - np.floor(z)) - 1.0))


def _from_middle(z: Array) -> Array:
    """Return the distance from z to the middle of the cell [n, n + 1) that contains it: 0..0.5."""
    return np.asarray(np.abs(z - np.floor(z) - 0.5))


def _to_hexagon_centre(sheet: Sheet) -> tuple[Array, Array]:
    """Return |horizontal| and |vertical| offset from the nearest point of a triangular lattice, spacing 1."""
    row = np.sqrt(0.75)
    even = sheet.u - np.rint(sheet.u), sheet.v - 2 * row * np.rint(sheet.v / (2 * row))
    u, v = sheet.u - 0.5, sheet.v - row
    odd = u - np.rint(u), v - 2 * row * np.rint(v / (2 * row))
    near_even = np.hypot(*even) < np.hypot(*odd)
    return np.abs(np.where(near_even, even[0], odd[0])), np.abs(np.where(near_even, even[1], odd[1]))


def _random_waves(sheet: Sheet, *, along_u: Array, along_v: Array) -> Array:
    """Return a smooth random field of unit variance: waves of these frequencies, (waves, batch, 1, 1)."""
    field: Array = np.zeros_like(sheet.u)
    for frequency_u, frequency_v in zip(along_u, along_v, strict=True):
        phase = sheet.rng.uniform(size=sheet.width.shape)
        field += _wave(sheet.u * frequency_u + sheet.v * frequency_v + phase)
    field *= np.sqrt(2.0 / len(along_u))
    return field


# ---- The ten patterns: Sheet -> signed distance to the edge of the figure, in periods


def _stripes(sheet: Sheet) -> Array:
    """Parallel bars, half a period wide."""
    return (_ramp(sheet.u) - 0.5) + 0.17 * sheet.width


def _zigzag(sheet: Sheet) -> Array:
    """Bars with a bend after every 1.33 periods of their length."""
    return (_ramp(0.9 * sheet.u + 0.42 * _ramp(0.75 * sheet.v)) - 0.5) + 0.17 * sheet.width


def _checks(sheet: Sheet) -> Array:
    """A chessboard with squares of 0.85 period."""
    return 0.6 * _wave(sheet.u / 1.7) * _wave(sheet.v / 1.7) + 0.08 * sheet.width


def _dots(sheet: Sheet) -> Array:
    """Discs of radius 0.29 in a hexagonal lattice."""
    return 0.29 + 0.05 * sheet.width - np.hypot(*_to_hexagon_centre(sheet))


def _rings(sheet: Sheet) -> Array:
    """Circles of radius 0.31 in a hexagonal lattice."""
    return 0.11 + 0.03 * sheet.width - np.abs(np.hypot(*_to_hexagon_centre(sheet)) - 0.31)


def _bricks(sheet: Sheet) -> Array:
    """The joints between bricks of 1.3 by 0.62, each row shifted by half a brick."""
    course = np.floor(sheet.v / 0.62)
    to_joint_below = 0.62 * (0.5 - _from_middle(sheet.v / 0.62))
    to_joint_beside = 1.3 * (0.5 - _from_middle(sheet.u / 1.3 + 0.5 * (course % 2)))
    return 0.10 + 0.026 * sheet.width - np.minimum(to_joint_below, to_joint_beside)


def _honeycomb(sheet: Sheet) -> Array:
    """The walls between regular hexagons whose centres are 1 apart."""
    across, along = _to_hexagon_centre(sheet)
    to_centre = np.maximum(across, 0.5 * across + np.sqrt(0.75) * along)  # 0.5 on a wall
    return np.asarray(to_centre - 0.425 + 0.02 * sheet.width)


def _scales(sheet: Sheet) -> Array:
    """Rows of overlapping discs with concentric rings, like the scales of a fish."""
    row_of_pixel = np.floor(2.0 * sheet.v)
    radius: Array = np.full_like(sheet.u, np.inf)
    for rows_behind in range(3):
        row = row_of_pixel - rows_behind
        beside = _from_middle(sheet.u + 0.5 * (row % 2))
        to_centre = np.hypot(beside, sheet.v - 0.5 * row)
        radius = np.where(np.isinf(radius) & (to_centre < 0.56), to_centre, radius)
    radius = np.where(np.isinf(radius), 0.0, radius)
    return 0.25 * np.cos(2.0 * np.pi * radius / 0.28) + 0.06 * sheet.width


def _camouflage(sheet: Sheet) -> Array:
    """Blobs of all sizes: random waves of frequency 0 to about 1 per period."""
    frequency = sheet.rng.normal(0.0, 0.35, (2, 24, *sheet.width.shape))
    return 0.25 * _random_waves(sheet, along_u=frequency[0], along_v=frequency[1]) + 0.08 * sheet.width


def _maze(sheet: Sheet) -> Array:
    """Winding walls of one width: random waves in all directions, of nearly one frequency."""
    direction = sheet.rng.uniform(0.0, 2.0 * np.pi, (24, *sheet.width.shape))
    frequency = sheet.rng.normal(1.08, 0.1, direction.shape)
    waves = _random_waves(sheet, along_u=frequency * np.cos(direction), along_v=frequency * np.sin(direction))
    return 0.35 * waves + 0.08 * sheet.width


# Class -> (scale of its period, its pattern). The scale is larger for patterns with finer details.
_PATTERNS: dict[str, tuple[float, Callable[[Sheet], Array]]] = {
    "stripes": (1.0, _stripes),
    "zigzag": (1.0, _zigzag),
    "checks": (1.0, _checks),
    "dots": (1.0, _dots),
    "rings": (1.2, _rings),
    "bricks": (1.25, _bricks),
    "honeycomb": (1.35, _honeycomb),
    "scales": (1.45, _scales),
    "camouflage": (1.0, _camouflage),
    "maze": (1.0, _maze),
}
CLASS_NAMES: tuple[str, ...] = tuple(_PATTERNS)
