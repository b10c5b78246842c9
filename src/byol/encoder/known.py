"""Labels and metadata of images, as columns of a table."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Real

from byol.base.errors import ConfigError
from byol.data.decode.index import Source
from byol.data.labels.label_file import match_columns

# Not longer numbers, which would be rounded, nor numbers with leading zeros, which are identifiers.
_WHOLE = re.compile(r"-?(0|[1-9]\d{0,14})")
_NUMBER = re.compile(_WHOLE.pattern + r"(\.\d+)?([eE][-+]?\d{1,3})?")


@dataclass(frozen=True, eq=False)
class Known:
    """A column: one word per image; the words are numbers if all of them can be read as numbers."""

    name: str
    codes: Int64[np.ndarray, " image"]  # index into `words`, -1: not known
    words: tuple[str, ...]

    def pick(self, places: Sequence[int]) -> "Known":
        """Return the column for the images with these indices."""
        return Known(self.name, self.codes[np.asarray(places, dtype=np.int64)], self.words)

    @property
    def is_whole(self) -> bool:
        """Whether all words are integers."""
        return all(map(_WHOLE.fullmatch, self.words))

    @cached_property
    def numbers(self) -> Real[np.ndarray, " word"] | None:
        """The words as int64 or float64; None: they are not all numbers."""
        if not self.words or not all(map(_NUMBER.fullmatch, self.words)):
            return None
        values = np.array(self.words, dtype=np.int64 if self.is_whole else np.float64)
        return values if np.isfinite(values).all() else None

    def texts(self, rows: slice) -> list[str]:
        """Return the words as they were given; "" if not known."""
        words = [*self.words, ""]  # index -1 gives ""
        return [words[code] for code in self.codes[rows].tolist()]

    def to_pandas(self) -> Any:
        """Return a Categorical, or for numbers Int64 with missing values or float64 with NaN."""
        import pandas

        if self.numbers is None:
            return pandas.Categorical.from_codes(self.codes, list(self.words))
        missing = self.codes < 0
        if self.is_whole:
            return pandas.arrays.IntegerArray(self.numbers[self.codes], missing)
        return np.where(missing, np.nan, self.numbers[self.codes])


def find_known(
    images: Source,
    *,
    labels: bool,
    metadata: Path | None,
    taken: Sequence[str],
    folder: Path | None,
) -> tuple[list[Known], list[str]]:
    """Return the labels of the images (if `labels`) and the columns of the table `metadata`; and notes.

    A column `label` of the table replaces the labels of the images. `taken` are the names of other columns;
    the names of the images are relative to `folder`.

    Raises:
        ConfigError: a column of the table has a name in `taken`.
        DataError: the table cannot be read, contradicts itself or matches no image.
    """
    found = {}
    if labels and (images.labels >= 0).any():
        found["label"] = Known("label", images.labels.astype(np.int64), images.class_names)
    notes: list[str] = []
    if metadata is not None:
        names = (images.names(index) for index in range(len(images)))
        columns, notes = match_columns(metadata, names, folder=folder)
        for name, (codes, words) in columns.items():
            if name in taken:
                raise ConfigError(f"{metadata}: the column {name} has the name of a feature; rename it")
            found[name] = Known(name, codes, words)
    return list(found.values()), notes
