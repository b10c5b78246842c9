"""Find the files of a list that do not exist under their names, by the matching rules for labels."""

import os
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from byol.data.decode.index import Names
from byol.data.labels.explaining import explain
from byol.data.labels.matching import describe_rules, match_files
from byol.data.labels.spelling import Spelled
from byol.data.sources.walk import Walk

_MOST_SEARCHED = 300_000  # images in the folder of a list, to find misspelled names; takes 3 s


def find_missing(
    path: Path, files: Names, missing: Int64[np.ndarray, " m"], *, is_legacy: bool
) -> tuple[Names, list[str]]:
    """Return the list with the missing names replaced by those of matching files, and notes about it."""
    images = Names.of(islice(Walk(skip_unreadable=True).names(os.fsencode(path.parent)), _MOST_SEARCHED + 1))
    if len(images) > _MOST_SEARCHED:
        return files, []
    sought = Names.of(files.raw(place) for place in missing.tolist())
    match = match_files(
        path,
        sought,
        images,
        plain=Spelled.plain(sought),
        codes=np.arange(len(sought)),
        is_legacy=is_legacy,
    )
    meant = {
        int(missing[row]): images.raw(image) for image, row in enumerate(match.rows.tolist()) if row >= 0
    }
    mended = Names.of(meant.get(place) or files.raw(place) for place in range(len(files)))
    notes = list(describe_rules(path, match.rules, match.examples))
    if len(lost := np.flatnonzero(~match.is_used)):
        example = explain(sought[int(lost[0])], images, is_legacy=is_legacy)
        notes.append(f"{path}: {len(lost)} of its {len(files)} files do not exist; {example}")
    return mended, notes
