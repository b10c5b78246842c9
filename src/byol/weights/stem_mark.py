"""Mark files of weights whose ResNet stem does not exist in timm and torchvision.

The stems "small" and "strided" of byol have the state-dict keys of the standard stem, and with a deep stem
(three 3x3 layers) also its shapes. Without a mark, a standard model would load such weights without an error
and compute wrong features. The mark has two parts:

    an extra key      its name says why; `load_state_dict(strict=True)` prints it
    a fifth axis      of length 1 in the first convolution weight: `strict=False` fails as well
"""

import torch
from torch import Tensor

State = dict[str, Tensor]

_MARKS = {
    stem: f"stem_{stem}_is_unknown_to_timm_use_byol_load_or_byol_export" for stem in ("small", "strided")
}
_FIRST = ("conv1.0.weight", "conv1.weight")  # of a deep stem, of a stem with one layer


def mark_stem(state: State, stem: str) -> State:
    """Return the state dict with the mark, as it is written to a file; unchanged for a standard stem."""
    if stem not in _MARKS:
        return state
    first = next(key for key in _FIRST if key in state)
    return {**state, first: state[first].unsqueeze(-1), _MARKS[stem]: torch.ones(1)}


def unmark_stem(state: State) -> tuple[State, str | None]:
    """Return the state dict without its mark, and the stem that the mark names; None: there is no mark.

    Finds the mark with any prefix. Files of other programs and of byol before 0.2 have no mark.
    """
    found = [(key, stem) for key in state for stem, mark in _MARKS.items() if _is_at(key, mark)]
    if not found:
        return state, None
    marks = {key for key, _ in found}
    plain = {key: value for key, value in state.items() if key not in marks}
    for key, value in plain.items():
        if value.ndim == 5 and value.shape[-1] == 1 and any(_is_at(key, first) for first in _FIRST):
            plain[key] = value.squeeze(-1)
    return plain, found[0][1]


def _is_at(key: str, name: str) -> bool:
    """Return whether `key` is `name`, with or without a prefix."""
    return f".{key}".endswith(f".{name}")
