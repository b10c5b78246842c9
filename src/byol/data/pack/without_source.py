"""The packed copy of images that are gone, found by the hash of its values."""

from dataclasses import replace
from pathlib import Path

from byol.base.errors import DataError
from byol.data.labels.label_file import LabelFile
from byol.data.pack.packed import Packed, fingerprint_of, open_pack, read_json
from byol.data.sources.opening import splits_of


def is_gone(source: str) -> bool:
    """Whether a path leads nowhere, or into an empty folder: the mount point of a disk that is not there."""
    path = Path(source)
    if splits_of(source):
        return False
    try:
        return not path.exists() or (path.is_dir() and not any(path.iterdir()))
    except OSError:
        return False


def open_without_source(
    packs: Path, *, source: str, fingerprint: str, labels: LabelFile | None, stored_px: int | None
) -> Packed | None:
    """The pack of these values below `packs`, with `labels` or those that were packed; None: there is none.

    `stored_px`: the side that the images must have, if that matters.

    Raises:
        DataError: the pack is damaged, or `labels` does not fit the names of its images.
    """
    for folder in sorted(packs.iterdir()) if packs.is_dir() else ():
        if _fingerprint_of(folder) != fingerprint:
            continue
        packed = open_pack(folder)
        if stored_px is not None and packed.stored_px != stored_px:
            continue
        note = f"{source} is gone: byol takes the images from the pack {folder}"
        if labels is not None:
            numbers, class_names = labels.match(packed.names)["label"]
            packed = replace(packed, labels=numbers, class_names=class_names)
        return replace(packed, note=note, is_source_gone=True)
    return None


def _fingerprint_of(folder: Path) -> str | None:
    """As `Packed.fingerprint`; None: no pack that can be read."""
    try:
        return fingerprint_of(read_json(folder))
    except (DataError, OSError, LookupError, TypeError, ValueError):
        return None
