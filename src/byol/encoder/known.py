"""What is known of images beside their features: labels and metadata, as columns of a table."""

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

# Longer ones would be rounded, and leading zeros are those of an identifier.
_WHOLE = re.compile(r"-?(0|[1-9]\d{0,14})")
_NUMBER = re.compile(_WHOLE.pattern + r"(\.\d+)?([eE][-+]?\d{1,3})?")


@dataclass(frozen=True, eq=False)
class Known:
    """A column: what is known of each image, in words; numbers where all words are."""

    name: str
    codes: Int64[np.ndarray, " image"]  # index into `words`, -1: not known
    words: tuple[str, ...]

    def pick(self, places: Sequence[int]) -> "Known":
        """Of the images at these places."""
        return Known(self.name, self.codes[np.asarray(places, dtype=np.int64)], self.words)

    @property
    def is_whole(self) -> bool:
        """Whether all words are whole numbers."""
        return all(map(_WHOLE.fullmatch, self.words))

    @cached_property
    def numbers(self) -> Real[np.ndarray, " word"] | None:
        """The words as int64 or float64; None where they are no numbers."""
        if not self.words or not all(map(_NUMBER.fullmatch, self.words)):
            return None
        values = np.array(self.words, dtype=np.int64 if self.is_whole else np.float64)
        return values if np.isfinite(values).all() else None

    def texts(self, rows: slice) -> list[str]:
        """As they were given; "" where nothing is known."""
        words = [*self.words, ""]  # -1 finds the last
        return [words[code] for code in self.codes[rows].tolist()]

    def to_pandas(self) -> Any:
        """A Categorical; numbers as Int64 with missing ones, or float64 with NaN."""
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
    """Columns of the table `metadata`, before them the images' own labels if asked for; notes on the table.

    A column `label` of the table takes the place of the images' own. `taken` are names that other
    columns have; the names of the images are relative to `folder`.

    Raises:
        ConfigError: a column of the table has a name that is taken.
        DataError: the table cannot be read, contradicts itself or fits no image.
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
