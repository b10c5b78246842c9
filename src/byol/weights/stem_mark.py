"""The mark in files of weights whose ResNet stem timm and torchvision do not have.

byol's stems "small" and "strided" have the state-dict keys of the standard stem, and with a deep stem (three
3x3 layers) its shapes too. Unmarked, a plain model would take such weights without an error and compute other
features. The mark is two things:

    an extra key      its name says why; `load_state_dict(strict=True)` prints it
    a fifth axis      of the first convolution's weight, of length 1: `strict=False` fails as well
"""

import torch
from torch import Tensor

State = dict[str, Tensor]

_MARKS = {
    stem: f"stem_{stem}_is_unknown_to_timm_use_byol_load_or_byol_export" for stem in ("small", "strided")
}
_FIRST = ("conv1.0.weight", "conv1.weight")  # of a deep stem, and of one layer


def mark_stem(state: State, stem: str) -> State:
    """The state dict as it is written to a file; that of a standard stem is returned as it is."""
    if stem not in _MARKS:
        return state
    first = next(key for key in _FIRST if key in state)
    return {**state, first: state[first].unsqueeze(-1), _MARKS[stem]: torch.ones(1)}


def unmark_stem(state: State) -> tuple[State, str | None]:
    """The state dict without its mark, and the stem that the mark names; None: there is no mark.

    Finds the mark behind any prefix. Files of other programs and of byol before 0.2 have none.
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
    """Whether `key` is `name`, behind a prefix or not."""
    return f".{key}".endswith(f".{name}")
