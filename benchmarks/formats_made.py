"""What the files of benchmarks/formats.py have in common: values, and what must come of a file.

Sides are odd (33 x 47 px), and values cover the whole range of their type.
"""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 33, 47


@dataclass(frozen=True)
class Case:
    """A file, and what must come of it: `want` (None: what the references say) or a refusal."""

    group: str
    name: str
    data: bytes
    want: np.ndarray | None = None
    references: tuple[str, ...] = ()  # readers whose values must be the file's, sample for sample
    atol: float = 0.0  # of lossy compressions, in the mean: decoders round, and enlarge colours, differently
    must_refuse: bool = False


def values(dtype: str, channels: int, *, seed: int, bits: int | None = None) -> np.ndarray:
    """A smooth image with noise, over the whole range of the type or of `bits`."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    planes = [np.sin(rows / (5 + c)) * np.cos(columns / (7 + c)) for c in range(channels)]
    unit = np.clip((np.stack(planes, axis=2) + 1) / 2 + rng.normal(0, 0.05, (HEIGHT, WIDTH, channels)), 0, 1)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return ((unit - 0.3) * 1000).astype(kind)
    if kind.kind == "u":
        return np.rint(unit * (2 ** min(bits or 8 * kind.itemsize, 24) - 1)).astype(kind)
    reach = 2 ** (min(8 * kind.itemsize, 24) - 1) - 1
    return np.rint((unit * 2 - 1) * reach).astype(kind)


def as_wanted(array: np.ndarray) -> np.ndarray:
    """What `decode` makes of values that it does not convert otherwise."""
    array = array if array.ndim == 3 else array[..., None]
    if array.dtype == bool:
        return array * np.uint8(255)
    return array if array.dtype in (np.uint8, np.uint16) else array.astype(np.float32)


def save(image: Image.Image, format: str, **options: Any) -> bytes:
    """The bytes of a file that Pillow writes."""
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()
