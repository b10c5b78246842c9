"""Find how to rename the tensors of a file so that they fit a network, and write it as Python code."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from byol.weights.prefixes import Place

State = dict[str, Tensor]

_MOST_STEPS = 8


@dataclass(frozen=True)
class Conversion:
    """Take the tensors with a prefix and remove it, replace parts of names, drop some by their beginning."""

    prefix: str
    renames: tuple[tuple[str, str], ...] = ()
    dropped: tuple[str, ...] = ()

    def apply(self, found: State) -> State:
        """Return the converted tensors of a file."""
        inside = {name.removeprefix(self.prefix): v for name, v in found.items() if self._takes(name)}
        for old, new in self.renames:
            inside = {name.replace(old, new): value for name, value in inside.items()}
        return inside

    def write(self, file: str) -> str:
        """Return one line of Python code for it; control characters in names are escaped."""
        name = f"k.removeprefix({self.prefix!r})" if self.prefix else "k"
        renamed = "".join(f".replace({old!r}, {new!r})" for old, new in self.renames)
        tests = [f"k.startswith({self.prefix!r})"] if self.prefix else []
        tests += [f"not {name}.startswith({self.dropped!r})"] if self.dropped else []
        chosen = f" if {' and '.join(tests)}" if tests else ""
        return (
            "import torch; from byol.weights.files import read_weights; "
            f"torch.save({{{name}{renamed}: v for k, v in read_weights({file!r}).items(){chosen}}}, "
            "'encoder.pth')"
        )

    def _takes(self, name: str) -> bool:
        return name.startswith(self.prefix) and not name.removeprefix(self.prefix).startswith(self.dropped)


def find_conversion(found: State, nearest: Place, compare: Callable[[State], Place]) -> Conversion | None:
    """Find a conversion after which `found` fits; None: renaming and dropping are not enough.

    The search starts at the place `nearest`; `compare` compares tensors with those of the network.
    """
    conversion = Conversion(nearest.prefix)
    for _ in range(_MOST_STEPS):
        state = conversion.apply(found)
        now = compare(state)
        if now.fits:
            return conversion
        if now.other:
            return None
        if not now.missing:
            dropped = dict.fromkeys(name.partition(".")[0] for name in now.unknown)
            if dropped.keys() & {name.partition(".")[0] for name in now.state}:
                return None  # more layers than this network: the weights are of another one
            conversion = replace(conversion, dropped=(*conversion.dropped, *dropped))
            continue
        wanted = now.missing[0]
        end = f".{wanted.rpartition('.')[2]}"
        theirs = next((name for name in now.unknown if name.endswith(end)), None)
        if theirs is None:
            return None
        conversion = replace(conversion, renames=(*conversion.renames, _find_rename(theirs, wanted)))
        if len(compare(conversion.apply(found)).missing) >= len(now.missing):
            return None
    return None


def _find_rename(theirs: str, ours: str) -> tuple[str, str]:
    """Return the parts in which two names differ, between dots, without a number at both ends."""
    one, two = theirs.split("."), ours.split(".")
    while len(one) > 1 and len(two) > 1 and one[-1] == two[-1]:
        one, two = one[:-1], two[:-1]
    while len(one) > 1 and len(two) > 1 and one[0] == two[0]:
        one, two = one[1:], two[1:]
    old, new = ".".join(one), ".".join(two)
    number = re.search(r"\d*$", new)
    if number is not None and number[0] and old.endswith(number[0]) and old != number[0] != new:
        old, new = old.removesuffix(number[0]), new.removesuffix(number[0])
    return old, new
