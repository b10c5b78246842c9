"""Settings and notes for readers: how to handle transparency, and what a reader changed in an image.

Readers are called through many layers, so they find the setting for transparency here, and leave notes here
about what they changed. `noting` collects the notes of all that is read inside it, separately per thread.

Transparency (`data.alpha`):

    drop    use the stored colours, also where they are invisible
    mask    8 bit: lay on white, as viewers do; deeper: replace transparent values by the median of the others
    auto    like mask, but lay bright shapes of one colour on black, because they would be lost on white, and
            use the stored colours of an image that is transparent everywhere
    keep    add the transparency as the last channel
"""

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped
from PIL import Image

Alpha = Literal["auto", "drop", "mask", "keep"]  # as data.alpha

DROPPED = "transparency ignored, the colours under it are used (data.alpha)"
KEPT = "transparency kept as the last channel (data.alpha)"
ON_WHITE = "transparent: laid on white; data.alpha=drop uses the colours under it, keep adds it as a channel"
FILLED = "transparent: values there replaced by the median of the others; data.alpha=drop uses them as stored"
ALONE = (
    "of one colour, with the shape in the transparency only: laid on white, or on black if bright; "
    "data.alpha=drop would make them blank"
)
VOID = "transparent everywhere: the transparency is ignored; data.alpha=mask makes them white"
FIRST_FRAME = "animations: only the first frame is used; save other frames as separate files"
SMALLER = (
    "TIFFs with pages of a half, a third or a quarter of the size, which are left out as overviews; save "
    "them as separate files if they are images"
)
NO_END = "JPEG without an end mark: all rows are there and used; save them again to repair them"

_ONE_COLOUR = 8  # of 255: colours that differ by less are equal except for compression noise


@dataclass
class Reading:
    """The setting for transparency, and the notes about the images that were read."""

    alpha: Alpha
    notes: list[str] = field(default_factory=list)


_CURRENT: ContextVar[Reading | None] = ContextVar("reading", default=None)


class noting:
    """A context that sets how transparency is handled, and collects the notes of readers.

    It is a class, because a generator would take 2 us more per image.
    """

    def __init__(self, alpha: Alpha) -> None:
        self._reading = Reading(alpha)

    def __enter__(self) -> Reading:
        self._token = _CURRENT.set(self._reading)
        return self._reading

    def __exit__(self, *error: object) -> None:
        _CURRENT.reset(self._token)


def note(text: str) -> None:
    """Add a note about the image that is being read, unless it is there already."""
    reading = _CURRENT.get()
    if reading is not None and text not in reading.notes:
        reading.notes.append(text)


def alpha_choice() -> Alpha:
    """Return how to handle transparency; auto outside of `noting`."""
    reading = _CURRENT.get()
    return "auto" if reading is None else reading.alpha


def resolve_alpha(
    colours: Shaped[np.ndarray, "height width channels"], alpha: Shaped[np.ndarray, "height width"]
) -> Shaped[np.ndarray, "height width _channels"]:
    """Combine colours and transparency as `data.alpha` says; the type of the colours does not change.

    `alpha` is 0 where the image is invisible. Fully opaque is the largest integer of its type or, for floats,
    1 or the largest value if that is above 1.
    """
    choice, full = alpha_choice(), _full(alpha)
    if choice == "keep":
        note(KEPT)
        return np.concatenate([colours, alpha[..., None].astype(colours.dtype)], axis=2)
    if bool((alpha >= full).all()):
        return colours
    if choice == "drop":
        note(DROPPED)
        return colours
    seen = alpha > 0
    if choice == "auto" and not seen.any():
        note(VOID)
        return colours
    if colours.dtype == np.uint8:
        return _lay(colours, alpha.astype(np.float32) / full, seen=seen, choice=choice)
    if seen.all():
        return colours
    note(FILLED)
    fill = np.median(colours[seen], axis=0) if seen.any() else np.zeros(colours.shape[2])
    filled = colours.copy()
    filled[~seen] = fill if colours.dtype.kind == "f" else np.rint(fill)
    return filled


def _full(alpha: Shaped[np.ndarray, "height width"]) -> Any:
    if alpha.dtype.kind in "iu":
        return np.iinfo(alpha.dtype).max
    return max(1.0, float(alpha.max()))


def _lay(
    colours: Shaped[np.ndarray, "height width channels"],
    opacity: Shaped[np.ndarray, "height width"],
    *,
    seen: Shaped[np.ndarray, "height width"],
    choice: Alpha,
) -> Shaped[np.ndarray, "height width channels"]:
    shown = colours[seen]
    is_alone = len(shown) > 0 and bool((np.ptp(shown, axis=0) < _ONE_COLOUR).all())
    is_bright = is_alone and float(shown.mean()) >= 128
    ground = 0.0 if choice == "auto" and is_bright else 255.0
    note(ALONE if choice == "auto" and is_alone else ON_WHITE)
    laid = np.rint(colours * opacity[..., None] + ground * (1.0 - opacity[..., None]))
    return np.asarray(laid, dtype=np.uint8)


def resolve_pillow_alpha(image: Image.Image) -> Image.Image:
    """Do the same in Pillow's mode LA or RGBA; return L or RGB, or with `keep` the image itself."""
    colours, alpha = image.convert(image.mode[:-1]), image.getchannel("A")
    choice = alpha_choice()
    if choice == "keep":
        note(KEPT)
        return image
    least, most = alpha.getextrema()
    if least == 255:
        return colours
    if choice == "drop":
        note(DROPPED)
        return colours
    if choice == "auto" and most == 0:
        note(VOID)
        return colours
    values = np.asarray(colours)
    laid = resolve_alpha(values.reshape(*values.shape[:2], -1), np.asarray(alpha))
    return Image.fromarray(laid.reshape(values.shape))
