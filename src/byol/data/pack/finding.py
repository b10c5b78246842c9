"""Find an existing pack, and find out whether it is still that of the source and the settings."""

from dataclasses import replace
from pathlib import Path

from byol.base.disk import DiskError, is_worth_a_try, try_again
from byol.base.errors import DataError
from byol.data.decode.formats import path_of
from byol.data.decode.image import DECODER, peek
from byol.data.decode.index import Source, skips_unreadable
from byol.data.pack.packed import Packed, read_json, read_pack
from byol.data.pack.partial import Recipe, read_bad


def find_pack(folder: Path, recipe: Recipe) -> tuple[Packed | None, str]:
    """Return the pack (None if it is incomplete or of another recipe), and a note on what was found."""
    if not folder.exists() or not any(folder.iterdir()):
        return None, "packed"
    if not (folder / "pack.json").exists():
        raise DataError(f"{folder}: holds files but no pack; choose another place with data.packs=FOLDER")
    try:
        packed = try_again(lambda: read_pack(folder))
        before = Recipe(**read_json(folder)["recipe"])
    except DiskError as error:  # the pack may be intact
        raise error.locate(str(folder)) from None
    except (DataError, TypeError) as error:
        return None, f"packed again: {error}"
    if before.source_fingerprint != recipe.source_fingerprint:
        return None, "packed again: the source has changed"
    if not _reads_alike(before, packed):
        return None, "packed again: an earlier version of byol decoded the images in another way"
    if replace(before, decoder=recipe.decoder) != recipe:
        keys = "data.stored_px, data.channels, data.geometry, data.alpha or data.clip"
        return None, f"packed again: {keys} differ"
    return packed, "found"


def _reads_alike(before: Recipe, packed: Packed) -> bool:
    """Return whether the decoder that made the pack gives the same values as the current one.

    Decoder 5 differs for 16-bit PNG with one transparent grey value, and for OME-TIFF with unordered pages.
    """
    is_usual = packed.bits == 8 and packed.channels in (1, 3)
    return before.decoder == DECODER or ((before.decoder, DECODER) == (5, 6) and is_usual)


def count_back(packed: Packed, source: Source) -> int:
    """Count the images that could not be read from the disk when the pack was made, but can be read now.

    Raises:
        DataError: the disk still fails and the source does not skip unreadable files.
    """
    names = {name for name, reason in read_bad(packed.folder) if is_worth_a_try(reason)}
    found = 0
    for index in range(len(source)) if names else ():
        if source.names(index) not in names:
            continue
        item = source.item(index)
        try:
            peek(item)
            found += 1
        except DiskError as error:
            if not skips_unreadable(source):
                raise error.locate(path_of(item) or source.names(index)) from None
        except DataError as error:
            found += not is_worth_a_try(str(error))  # the disk gives the file now, but its content is bad
    return found
