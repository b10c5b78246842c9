"""Find the tensors of a network in a file: their prefix, and the library whose names they have.

Files of self-supervised methods hold the encoder with a prefix (`module.encoder_q.`), beside heads, queues,
optimizers and often a second encoder. It is found by the names and shapes of the tensors of the network.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from byol.weights.files import show
from byol.weights.layouts import layouts_of

State = dict[str, Tensor]

COUNTER = "num_batches_tracked"  # missing in old files; no result depends on it
_CLASSIFIERS = ("fc.", "classifier.", "head.", "heads.", "head_dist.")  # of timm and torchvision
# Modules that are saved beside an encoder, by the beginning of their names.
_BESIDE = re.compile(
    r"(aux|classif|cls_head|contrast|decoder|dino|fc\d?\b|head|ibot|linear|last_linear|logit|loss|mask_token|mlp|"
    r"memory|momentum|neck|online|optim|predict|proj|prototype|queue|student|target|teacher|temperature)",
    re.IGNORECASE,
)
# The encoder that the authors of the method evaluate, and the other one.
_PREFERRED = (
    ("teacher", "student"),
    ("encoder_q", "encoder_k"),
    ("base_encoder", "momentum_encoder"),
    ("query_encoder", "key_encoder"),
    ("online", "target"),
)
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod)\.")  # of DDP and torch.compile
_SECOND = re.compile(r"_momentum(?=[._])|(?:^|(?<=[._]))momentum_")


@dataclass(frozen=True)
class Place:
    """A prefix in a file, and how the tensors with this prefix compare with a network."""

    prefix: str  # with its last dot; "": no prefix
    layout: str  # library whose names are used; "": the names of the network
    state: State  # tensors with the prefix; names without it
    missing: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)  # of another shape
    unknown: list[str] = field(default_factory=list)  # not in the network, and not in a head
    beside: list[str] = field(default_factory=list)  # heads and similar modules, which are left out

    @property
    def fits(self) -> bool:
        """Whether the tensors are exactly those of the network."""
        return not (self.missing or self.other or self.unknown)

    @property
    def name(self) -> str:
        """The prefix as in `FILE:PREFIX`."""
        return self.prefix.removesuffix(".")


def find_places(
    found: State, wanted: State, *, select: str | None, may_differ: frozenset[str]
) -> list[Place]:
    """Return prefixes with tensors of the network `wanted`, the best first; only those within `select`.

    The tensors named in `may_differ` are fitted later: only the first axis of their shape must match.
    """
    places = []
    for layout, state in layouts_of(found).items():
        counts = Counter(_prefixes(state, wanted))
        most = max(counts.values(), default=0)
        for prefix, count in counts.items():
            if _is_within(prefix, select) and count >= max(2, most // 2):
                places.append(compare_place(state, wanted, prefix, layout, may_differ))
    places.sort(key=lambda place: (not place.fits, -len(place.state), len(place.prefix), _distance(place)))
    return places


def prefer(places: list[Place]) -> list[Place]:
    """Return the places to use: encoders that the authors evaluate are preferred to others."""
    prefixes = {_WRAPPERS.sub("", place.prefix) for place in places}
    return [
        place
        for place in places
        if not any(better in prefixes for better in _better(_WRAPPERS.sub("", place.prefix)))
    ]


def count_prefixes(found: State, *, most: int = 6) -> str:
    """Describe the prefixes in a file, up to where layers begin, with their numbers of tensors."""
    groups = Counter(_group(name) for name in found)
    shown = [f"{repr_prefix(prefix)} ({number})" for prefix, number in groups.most_common(most)]
    more = len(groups) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def repr_prefix(prefix: str) -> str:
    """Return a prefix in printable form."""
    return f"'{show(prefix)}'" if prefix else "(no prefix)"


def _group(name: str) -> str:
    """Return the names of the containers of a tensor, up to where layers begin."""
    parts = name.split(".")[:-1]
    layers = next((at for at, part in enumerate(parts) if re.search(r"\d$", part)), None)
    return "".join(f"{part}." for part in (parts[:layers] if layers is not None else parts[:-1] or parts))


def _prefixes(state: State, wanted: State) -> Iterator[str]:
    for name in state:
        start = 0
        while True:
            if name[start:] in wanted and not name.endswith(COUNTER):
                yield name[:start]
            dot = name.find(".", start)
            if dot < 0:
                break
            start = dot + 1


def _is_within(prefix: str, select: str | None) -> bool:
    """Return whether the prefix contains the names in `select`, one after another."""
    return select is None or f".{select.strip('.')}." in f".{prefix}"


def compare_place(state: State, wanted: State, prefix: str, layout: str, may_differ: frozenset[str]) -> Place:
    """Compare the tensors of `state` that have a prefix with the network `wanted`."""
    inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    own = {name.partition(".")[0] for name in wanted}
    place = Place(prefix, layout, {name: inside[name] for name in wanted if name in inside})
    for name, value in wanted.items():
        if name.endswith(COUNTER):
            continue
        if name not in inside:
            place.missing.append(name)
            continue
        found = inside[name]
        same = found.shape == value.shape
        if name in may_differ and found.ndim == value.ndim > 0:
            same = found.shape[0] == value.shape[0]
        if not same or found.is_floating_point() != value.is_floating_point():
            place.other.append(name)
    for name in inside.keys() - wanted.keys():
        is_other_part = name.partition(".")[0] not in own and _BESIDE.match(name) is not None
        (place.beside if is_other_part or name.startswith(_CLASSIFIERS) else place.unknown).append(name)
    order = list(inside)
    place.unknown.sort(key=order.index)
    place.beside.sort(key=order.index)
    return place


def _distance(place: Place) -> int:
    return len(place.missing) + len(place.other) + len(place.unknown)


def drop_equal(places: list[Place]) -> list[Place]:
    """Remove places with the same tensors as an earlier one: the same network under two names."""
    kept: list[Place] = []
    for place in places:
        if not any(_are_equal(place.state, other.state) for other in kept):
            kept.append(place)
    return kept


def _are_equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(
        value.shape == other[name].shape and value.dtype == other[name].dtype and value.equal(other[name])
        for name, value in one.items()
    )


def _better(prefix: str) -> Iterator[str]:
    """Iterate over the prefixes that are preferred to `prefix` if they exist."""
    for better, worse in _PREFERRED:
        if worse in prefix:
            yield prefix.replace(worse, better)
    if (first := _SECOND.sub("", prefix)) != prefix:
        yield first
    parts = prefix.split(".")
    for at, part in enumerate(parts[:-1]):
        for average in (f"{part}_ema", f"ema_{part}"):
            yield ".".join([*parts[:at], average, *parts[at + 1 :]])
