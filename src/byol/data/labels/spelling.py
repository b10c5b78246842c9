"""Names of one file in different spellings, and which could be meant where a list and a folder differ.

Names are compared by 64-bit hashes in arrays: of a million files and a million images, one set in three
million would see two that are alike by chance.
"""

import os.path
import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from byol.base.errors import DataError
from byol.data.decode.content import IMAGE_SUFFIXES
from byol.data.decode.index import Names, NamesBuilder
from byol.data.labels.text_files import decode_legacy, strip_blank

Numbers = Int64[np.ndarray, " _n"]

# Suffixes that are left out when names are compared: those of images, and of files that go with one.
_SUFFIXES = frozenset(
    (*IMAGE_SUFFIXES, ".avif", ".czi", ".dng", ".heic", ".jfif", ".jp2", ".jpe", ".json", ".nd2", ".raw",
     ".svs", ".txt", ".xml")
)  # fmt: skip
# 7 of 007, 12 of 12.0 and 12,00; 12,000 may be twelve thousand
_WHOLE = re.compile(r"0*(\d+?)(?:[.,](?:0{1,2}|0{4,}))?")
_ROUGH = re.compile(r"\\|//|/\.|^\.|/$|^$")  # what a plain path has not; some that have it are plain
_QUOTES = "\"'`"


@dataclass(frozen=True)
class Spelled:
    """Names in the spelling of one rule, and their hashes."""

    names: Names
    keys: Numbers

    @classmethod
    def of(cls, names: Iterable[str]) -> "Spelled":
        builder, keys = NamesBuilder(), array("q")
        for name in names:
            builder.append(name)
            keys.append(hash(name))
        return cls(builder.build(), np.frombuffer(keys, dtype=np.int64))

    @classmethod
    def plain(cls, names: Iterable[str]) -> "Spelled":
        """Paths with forward slashes and without empty parts."""
        return cls.of(map(make_plain, names))


def make_plain(file: str) -> str:
    """A path with forward slashes and without `.`, `..` and empty parts."""
    if _ROUGH.search(file) is None:
        return file
    return os.path.normpath(file.replace("\\", "/"))


class Places:
    """Where each of many keys comes first, and how often it is there."""

    def __init__(self, keys: Numbers, places: Numbers) -> None:
        order = np.argsort(keys, kind="stable")
        self._keys, at, self._counts = np.unique(keys[order], return_index=True, return_counts=True)
        self._places = places[order[at]]

    def find(self, keys: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, " m"]:
        """-1 where a key is not there."""
        return self._look(keys, self._places, missing=-1)

    def count(self, keys: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, " m"]:
        return self._look(keys, self._counts, missing=0)

    def _look(self, keys: Numbers, values: np.ndarray, *, missing: int) -> Numbers:
        if len(self._keys) == 0:
            return np.full(len(keys), missing)
        at = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        return np.where(self._keys[at] == keys, values[at], missing)


def list_tails(names: Iterable[str]) -> tuple[Numbers, Numbers]:
    """Hashes of the proper tails (of `a/b/c` these are `b/c` and `c`), and whose they are."""
    keys, owners = array("q"), array("q")
    for place, name in enumerate(names):
        while (cut := name.find("/") + 1) > 0:
            name = name[cut:]
            keys.append(hash(name))
            owners.append(place)
    return np.frombuffer(keys, dtype=np.int64), np.frombuffer(owners, dtype=np.int64)


def hash_all(names: Iterable[str]) -> Numbers:
    return np.fromiter(map(hash, names), dtype=np.int64)


def refuse_many(path: Path, file: str, one: str, two: str) -> DataError:
    return DataError(f"{path}: {file} matches several images, {one} and {two}; write more of its path")


def _trim(name: str) -> str:
    """Without white space and quotes around it, nor the `=` of a spreadsheet's formula in front of these."""
    name = strip_blank(name)
    if name.startswith('="'):
        name = name[1:]
    return make_plain(strip_blank(name.strip(_QUOTES)))


def _compose(name: str) -> str:
    return unicodedata.normalize("NFC", _trim(name))


def fold(name: str) -> str:
    """In one letter case."""
    composed = _compose(name)
    return composed.lower() if composed.isascii() else unicodedata.normalize("NFC", composed.casefold())


def cut(name: str) -> str:
    """In one letter case, without suffix; numbers without leading zeros and `.0`."""
    folder, slash, base = fold(name).rpartition("/")
    stem = _split(base)[0]
    number = _WHOLE.fullmatch(stem) if stem[:1].isdecimal() else None
    return f"{folder}{slash}{number[1] if number else stem}"


def stem_of(name: str) -> str:
    """The last part of a path, without suffix."""
    return _split(_compose(name).rpartition("/")[2])[0]


_SPELLINGS = (_trim, _compose, fold, cut)  # the later, the more names are alike


@dataclass(frozen=True)
class _Candidates:
    """Of each name on one side how many names of the other side it could be, and one of them."""

    counts: Numbers
    one: Numbers


class Speller:
    """Finds images of files that are spelled otherwise. `match` is what is known already, of all images."""

    def __init__(
        self, path: Path, files: Names, images: Names, *, match: Numbers, codes: Numbers, is_legacy: bool
    ) -> None:
        self._path, self._files, self._images = path, files, images
        self._match, self._codes, self._is_legacy = match.copy(), codes, is_legacy

    def find(self, rows: Int64[np.ndarray, " m"]) -> Iterator[tuple[int, int]]:
        """Rows of the list, and the images that they name.

        Each rule is tried where the one before left several that could be meant; the widest comes first,
        because what is alone by that is alone by all.
        """
        images = np.arange(len(self._images))
        for spell in (cut, *_SPELLINGS):
            rows, images, found = self._try(spell, rows, images)
            yield from found
            if len(rows) == 0:
                return
        raise self._refuse(rows, images)

    def _try(
        self, spell: Callable[[str], str], rows: Numbers, images: Numbers
    ) -> tuple[Numbers, Numbers, list[tuple[int, int]]]:
        """Rows and images between which it is still to be chosen, and pairs that were found."""
        ours = Names.of(map(spell, self._read(rows)))
        theirs = Names.of(map(spell, self._images.pick(images)))
        bases, their_bases = _hash_bases(ours), _hash_bases(theirs)  # what differs in these cannot be one
        near, their_near = np.isin(bases, their_bases), np.isin(their_bases, bases)
        is_wide = spell is cut  # what no image could be by this rule, none could be by any
        others = rows[:0] if is_wide else rows[~near]
        all_images, rows, images = images, rows[near], images[their_near]
        files = Spelled.of(ours.pick(np.flatnonzero(near)))
        seen = Spelled.of(theirs.pick(np.flatnonzero(their_near)))
        # Rows of one spelling that say the same are one.
        _, kept = np.unique(np.stack([files.keys, self._codes[rows]]), axis=1, return_index=True)
        kept = np.sort(kept)
        rows, files = rows[kept], Spelled.of(files.names.pick(kept))
        may_be, may_name = _find_candidates(files, seen), _find_candidates(seen, files)
        taken = self._match[images] >= 0
        single = may_be.counts == 1
        single[single] &= may_name.counts[may_be.one[single]] == 1
        found = [
            (int(rows[at]), int(images[may_be.one[at]]))
            for at in np.flatnonzero(single).tolist()
            if not taken[may_be.one[at]]
        ]
        for row, image in found:
            self._match[image] = row
        # What has one candidate that another file names better is left alone.
        alone = np.flatnonzero(may_be.counts == 1)
        is_settled = single | ((may_be.counts == 0) & is_wide)
        is_settled[alone] |= taken[may_be.one[alone]]
        left = np.sort(np.concatenate([rows[~is_settled], others]))
        return left, images[may_name.counts > 0] if is_wide else all_images, found

    def _read(self, rows: Numbers) -> Iterator[str]:
        names = self._files.pick(rows)
        return map(decode_legacy, names) if self._is_legacy else names

    def _refuse(self, rows: Numbers, images: Numbers) -> DataError:
        file = next(self._read(rows[:1]))
        key = f"/{cut(file)}"

        def are_related(other: str) -> bool:
            return key.endswith(f"/{other}") or f"/{other}".endswith(key)

        near = [image for image in self._images.pick(images) if are_related(cut(image))]
        if len(near) > 1:
            return refuse_many(self._path, file, near[0], near[1])
        others = [name for name in self._read(rows) if are_related(cut(name))]
        return DataError(
            f"{self._path}: two of its files could be the image {near[0]}: {others[0]} and {others[1]}; "
            "spell the right one like the image, or remove the other"
        )


def _hash_bases(names: Names) -> Numbers:
    return hash_all(name.rpartition("/")[2] for name in names)


def _find_candidates(ours: Spelled, theirs: Spelled) -> _Candidates:
    """For each of ours those of theirs that are the same, a proper tail of it, or longer by folders."""
    everywhere = np.arange(len(theirs.keys))
    tails, owners = list_tails(theirs.names)
    longer = Places(np.concatenate([theirs.keys, tails]), np.concatenate([everywhere, owners]))
    counts, one = longer.count(ours.keys), longer.find(ours.keys)
    wholes = Places(theirs.keys, everywhere)
    tails, owners = list_tails(ours.names)
    np.add.at(counts, owners, wholes.count(tails))
    found = wholes.find(tails)
    one[owners[found >= 0]] = found[found >= 0]
    return _Candidates(counts, one)


def name_differences(file: str, image: str, *, is_legacy: bool) -> Iterator[str]:
    """The kinds of difference between a name in the list and that of its image."""
    if file.isascii() and file.lower() == image.lower():  # the most common one
        yield "letter case"
        return
    if is_legacy and decode_legacy(file) != file:
        file = decode_legacy(file)
        yield "encoding"
    if make_plain(file) != _trim(file):
        yield "white space or quotes"
    ours, theirs = _trim(file).split("/"), _trim(image).split("/")
    if len(ours) != len(theirs):
        yield "folders"
    shared = min(len(ours), len(theirs))
    one, two = "/".join(ours[-shared:]), "/".join(theirs[-shared:])
    if one == two:
        return
    composed, their_composed = unicodedata.normalize("NFC", one), unicodedata.normalize("NFC", two)
    if (composed == one) != (their_composed == two):
        yield "Unicode form (NFC, NFD)"
    one, two = composed, their_composed
    yield from _name_spelling(one, two)


def _name_spelling(one: str, two: str) -> Iterator[str]:
    """The kinds of difference between two names in one Unicode form."""
    (stem, suffix), (their_stem, their_suffix) = _split(one), _split(two)
    folded, their_folded = suffix.casefold(), their_suffix.casefold()
    if folded != their_folded:
        yield "missing suffix" if not folded else "suffix"
    is_number = _WHOLE.fullmatch(stem.rpartition("/")[2])
    if stem.casefold() != their_stem.casefold() and is_number:
        yield "leading zeros" if stem.rpartition("/")[2].isdecimal() else "a number with a decimal point"
        stem, their_stem = stem.rpartition("/")[0], their_stem.rpartition("/")[0]
    if stem != their_stem or (folded == their_folded and suffix != their_suffix):
        yield "letter case"


def _split(name: str) -> tuple[str, str]:
    """The name without its suffix, and the suffix if it is one of a file."""
    stem, dot, suffix = name.rpartition(".")
    return (stem, dot + suffix) if stem and (dot + suffix).casefold() in _SUFFIXES else (name, "")
