"""What one image loses or gains while it is read, noted by whichever reader changes it; and transparency.

A format's reader is far below those who ask for the image. It finds here how transparency is to be treated,
and leaves a note of what it changed; `noting` collects the notes of everything read inside it, by thread.

Transparency (`data.alpha`):

    drop    the colours as they are stored, also where they cannot be seen
    mask    8 bit: laid on white, as viewers do; deeper: transparent values become the median of the others
    auto    as mask; but bright shapes of one colour are laid on black, since on white they would be lost, and
            an image that is transparent everywhere is taken as it is stored
    keep    the transparency is a further channel, the last
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

_ONE_COLOUR = 8  # of 255: colours that differ by less, with the noise of a compression, are one


@dataclass
class Reading:
    """How images are read, and what was noted of those that have been."""

    alpha: Alpha
    notes: list[str] = field(default_factory=list)


_CURRENT: ContextVar[Reading | None] = ContextVar("reading", default=None)


class noting:
    """A context in which what is read treats transparency so, and its notes are collected.

    A class, since a generator would take 2 us more for each image.
    """

    def __init__(self, alpha: Alpha) -> None:
        self._reading = Reading(alpha)

    def __enter__(self) -> Reading:
        self._token = _CURRENT.set(self._reading)
        return self._reading

    def __exit__(self, *error: object) -> None:
        _CURRENT.reset(self._token)


def note(text: str) -> None:
    """Of the image that is being read; each text once."""
    reading = _CURRENT.get()
    if reading is not None and text not in reading.notes:
        reading.notes.append(text)


def alpha_choice() -> Alpha:
    """How transparency is to be treated here; auto where nobody has said."""
    reading = _CURRENT.get()
    return "auto" if reading is None else reading.alpha


def resolve_alpha(
    colours: Shaped[np.ndarray, "height width channels"], alpha: Shaped[np.ndarray, "height width"]
) -> Shaped[np.ndarray, "height width _channels"]:
    """The image that colours and transparency make, by the choice; of the colours' own type.

    `alpha` is 0 where nothing can be seen; full is the largest value of a whole number, of floats 1 or, if
    it goes beyond, its own largest value.
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
    """The same of an image in Pillow's mode LA or RGBA, as L, RGB or, with `keep`, in its own mode."""
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
