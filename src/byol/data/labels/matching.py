"""Which file of a list is which image: by its path, else by rules of spelling where only one can be meant."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64

from byol.base.errors import DataError
from byol.data.decode.index import Names
from byol.data.labels.spelling import (
    Numbers,
    Places,
    Spelled,
    Speller,
    cut,
    fold,
    hash_all,
    list_tails,
    make_plain,
    name_differences,
    refuse_many,
)
from byol.data.labels.text_files import decode_legacy

Mask = Bool[np.ndarray, " _n"]

EXACT, TAIL = "exactly", "by the end of the path"


@dataclass(frozen=True)
class Match:
    """Of each image the row of the list that names it, or -1; and how many were found by which rule."""

    rows: Int64[np.ndarray, " image"]
    is_used: Mask  # of each row: it names an image, or says the same of it in another spelling
    rules: Counter[str]
    examples: dict[str, str]  # of each rule but the exact one


def match_files(
    path: Path,
    files: Names,
    images: Names,
    *,
    plain: Spelled,
    codes: Numbers,
    is_legacy: bool = False,
    folder: Path | None = None,
) -> Match:
    """For each image the row of the list `path` that names it.

    A file fits an image if one path ends with the other: `plate1/a.png` fits `a.png` and
    `/data/plate1/a.png`, not `plate2/a.png`. What fits nothing is compared again without regard to white
    space, quotes, letter case, the Unicode form, the suffix and, in names that are numbers, leading zeros and
    `.0`; then only one file and one image may be alike. `plain` are the files in plain spelling; `codes` is
    the same for rows that say the same; `folder` is where the images lie.

    Raises:
        DataError: two images or two files could be meant; the message names both.
    """
    seen = Spelled.plain(images)
    first = find_first(plain.keys)
    match = _match_paths(path, plain, seen, first=first, codes=codes, folder=folder)
    whole = (match >= 0) & (plain.keys[match] == seen.keys)
    rules = Counter({EXACT: int(whole.sum()), TAIL: int(((match >= 0) & ~whole).sum())})
    examples = {}
    if rules[TAIL]:
        image = int(np.flatnonzero((match >= 0) & ~whole)[0])
        examples[TAIL] = _show_pair(files[int(match[image])], images[image], is_legacy=is_legacy)
    is_used = np.zeros(len(files), dtype=np.bool_)
    is_used[match[match >= 0]] = True
    rest = np.flatnonzero((first == np.arange(len(files))) & ~is_used)
    if len(rest) and len(images):
        speller = Speller(path, files, images, match=match, codes=codes, is_legacy=is_legacy)
        for row, image in speller.find(rest):
            match[image], is_used[row] = row, True
            file, name = files[row], images[image]
            rule = f"except for {' and '.join(name_differences(file, name, is_legacy=is_legacy))}"
            rules[rule] += 1
            if rule not in examples:
                examples[rule] = _show_pair(file, name, is_legacy=is_legacy)
        _mark_twins(files, rest[~is_used[rest]], codes=codes, is_used=is_used)
    return Match(match, is_used, +rules, examples)


def _show_pair(file: str, image: str, *, is_legacy: bool) -> str:
    shown = decode_legacy(file) if is_legacy else file
    return image if shown == image else f"{shown} for {image}"


def _mark_twins(files: Names, rest: Numbers, *, codes: Numbers, is_used: Mask) -> None:
    """Count rows as used that say the same as a used row of what is the same file but for its spelling."""
    used = np.flatnonzero(is_used)
    known = hash_all(map(cut, files.pick(used)))
    asked = hash_all(map(cut, files.pick(rest)))
    near = np.isin(known, asked)
    said = set(zip(known[near].tolist(), codes[used[near]].tolist(), strict=True))
    pairs = zip(asked.tolist(), codes[rest].tolist(), strict=True)
    is_used[rest[[pair in said for pair in pairs]]] = True


def find_contrary(
    files: Names, used: Numbers, rest: Numbers, *, codes: Numbers, is_legacy: bool
) -> tuple[int, int] | None:
    """A used row, and one of the rest that is the same file but for its spelling and says something else."""

    def spell(rows: Numbers) -> Numbers:
        names = files.pick(rows)
        return hash_all(map(fold, map(decode_legacy, names) if is_legacy else names))

    known = Places(spell(used), used)
    rows = known.find(spell(rest))
    contrary = np.flatnonzero((rows >= 0) & (codes[rows] != codes[rest]))
    return (int(rows[contrary[0]]), int(rest[contrary[0]])) if len(contrary) else None


def describe_rules(path: Path, rules: Counter[str], examples: dict[str, str]) -> Iterator[str]:
    """How the rows of a list were matched, in a line; none if each is exactly the name of its image."""
    others = [f"{rules[rule]} {rule} ({examples[rule]})" for rule in rules if rule != EXACT]
    if others:
        told = [f"{rules[EXACT]} {EXACT}"] if rules[EXACT] else []
        yield f"{path}: images found: {', '.join([*told, *others])}"


def find_first(keys: Numbers) -> Int64[np.ndarray, " n"]:
    """Where each key comes first."""
    return Places(keys, np.arange(len(keys))).find(keys)


# ---- By paths


def _match_paths(
    path: Path, files: Spelled, images: Spelled, *, first: Numbers, codes: Numbers, folder: Path | None
) -> Int64[np.ndarray, " image"]:
    """The row of the same path; else of a longer one; else of the longest that is shorter."""
    wholes = Places(files.keys, np.arange(len(files.keys)))
    match = wholes.find(images.keys)
    if (match >= 0).all():
        return match
    tails, owners = list_tails(files.names)
    is_first = first[owners] == owners
    tails, owners = tails[is_first], owners[is_first]
    longer = Places(tails, owners)
    open_ones = np.flatnonzero(match < 0)
    found = longer.find(images.keys[open_ones])
    many = np.flatnonzero(longer.count(images.keys[open_ones]) > 1)
    if len(many) and folder is not None:
        placed = _find_in_folder(wholes, images.names, open_ones[many], folder=folder)
        found[many] = np.where(placed >= 0, placed, found[many])
        many = many[placed < 0]
    _check_same(path, files, images.names, open_ones[many], tails=tails, meanings=codes[owners])
    match[open_ones] = found
    _match_tails(wholes, images.names, match)
    _check_single(path, files, images, match=match)
    return match


def _match_tails(wholes: "Places", images: Names, match: Numbers) -> None:
    """Fill in images whose path is longer than that of a file: the longest tail that is a file."""
    rest = np.flatnonzero(match < 0)
    tails, owners = list_tails(images.pick(rest))
    found = wholes.find(tails)
    owners, found = owners[found >= 0], found[found >= 0]
    longest, at = np.unique(owners, return_index=True)  # of each the first, which is the longest
    match[rest[longest]] = found[at]


def _find_in_folder(wholes: "Places", images: Names, places: Numbers, *, folder: Path) -> Numbers:
    """Of images that several files could be those that lie where the images do, or -1."""
    parts = make_plain(str(folder.resolve())).split("/")
    found = np.full(len(places), -1)
    for first in range(len(parts)):
        prefix = "/".join(parts[first:])
        there = wholes.find(hash_all(f"{prefix}/{image}" for image in images.pick(places)))
        found = np.where(found < 0, there, found)
    return found


def _check_same(
    path: Path, files: Spelled, images: Names, places: Numbers, *, tails: Numbers, meanings: Numbers
) -> None:
    """Refuse images whose path is the end of several files' that do not say the same."""
    if len(places) == 0:
        return
    said = np.unique(np.stack([tails, meanings]), axis=1)[0]
    keys = hash_all(images.pick(places))
    contested = Places(said, np.arange(len(said))).count(keys) > 1
    if contested.any():
        image = images[int(places[contested][0])]
        one, two = [name for name in dict.fromkeys(files.names) if name.endswith(f"/{image}")][:2]
        raise DataError(
            f"{path}: two of its files could be the image {image}: {one} and {two}; name the files as in the "
            "image folder, or leave the others out"
        )


def _check_single(path: Path, files: Spelled, images: Spelled, *, match: Numbers) -> None:
    """Refuse a file that fits several images."""
    order = np.argsort(match, kind="stable")
    order = order[match[order] >= 0]
    same, other = match[order[1:]] == match[order[:-1]], images.keys[order[1:]] != images.keys[order[:-1]]
    if len(twice := np.flatnonzero(same & other)):
        one, two = map(int, order[twice[0] :][:2])
        raise refuse_many(path, files.names[int(match[one])], images.names[one], images.names[two])
