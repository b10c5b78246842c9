"""A file of an OME-TIFF set: which of its pages are its own planes, and in which order.

The OME-XML of such a file describes the planes of all files of the set. tifffile opens the others, or puts
zeros in their place. Here a file is its own planes alone, along one axis at most.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from byol.base.errors import DataError

_AXES = "CZT"
_NOT_ONE = "save each as a separate file"


@dataclass(frozen=True)
class _Plane:
    image: int  # number of its <Image>
    place: tuple[int, ...]  # along C, Z and T
    page: int


def find_own_pages(tiff: Any, path: Path | None) -> list[int] | None:
    """The numbers of the pages that are the image, in the order of the axis along which they differ.

    None: the file is not one of a set, or describes itself alone. `path` finds the companion file that
    describes the set.

    Raises:
        DataError: they differ along several axes or belong to several images; the description of several
            pages is missing, or names pages that the file does not have.
    """
    if not tiff.is_ome or (root := _parse(tiff.ome_metadata)) is None:
        return None
    own, number, companion = root.get("UUID"), len(tiff.pages), _find(root, "BinaryOnly")
    if companion is not None:
        if number == 1:
            return [0]
        name = os.path.basename(companion.get("MetadataFile") or "")
        found = _read_companion(path, name)
        if found is None:
            raise DataError(
                f"is one file of an OME-TIFF set and has {number} pages, but {name or 'the file'}, which "
                f"describes them, is not beside it; put it there, or {_NOT_ONE}"
            )
        root = found
    owners = {_owner(block) for block in root.iter() if _is(block, "TiffData")}
    if companion is None and owners <= {own, None}:
        return None
    # It describes itself alone, by another name than its own.
    is_renamed = companion is None and len(owners) == 1
    mine = owners if is_renamed else {own} if companion is not None else {own, None}
    return _order(list(_planes(root, number, mine)), number, root)


def _order(planes: list[_Plane], number: int, root: Any) -> list[int]:
    """The pages of the planes, sorted by their places; `number` are in the file."""
    what = f"is one file of an OME-TIFF set{_name_set(root)}"
    if not planes:
        if number == 1:
            return [0]
        raise DataError(f"{what} and has {number} pages that the set does not name; {_NOT_ONE}")
    if len({plane.image for plane in planes}) > 1:
        raise DataError(f"{what}, with pages of several images; {_NOT_ONE}")
    axes = [axis for at, axis in enumerate(_AXES) if len({plane.place[at] for plane in planes}) > 1]
    if len(axes) > 1:
        raise DataError(f"{what}, with pages along {' and '.join(axes)}; {_NOT_ONE}")
    if max(plane.page for plane in planes) >= number:
        raise DataError(
            f"{what} and has fewer pages than its description (OME-XML) names; export it again, or {_NOT_ONE}"
        )
    return [plane.page for plane in sorted(planes, key=lambda plane: plane.place)]


def _planes(root: Any, number: int, owners: set[str | None]) -> Iterator[_Plane]:
    """The planes that are described as those of these files; `number` pages are in the file."""
    images = [element for element in root.iter() if _is(element, "Image")]
    for image, element in enumerate(images):
        pixels = _find(element, "Pixels")
        if pixels is None:
            continue
        samples = [int(one.get("SamplesPerPixel", 1)) for one in pixels if _is(one, "Channel")]
        sizes = {axis: int(pixels.get(f"Size{axis}", 1)) for axis in _AXES}
        sizes["C"] = max(1, sizes["C"] // max(samples, default=1))
        order = (pixels.get("DimensionOrder") or "XYCZT")[2:]
        for block in pixels:
            if _is(block, "TiffData") and _owner(block) in owners:
                for place, page in _expand(block, order, sizes, number):
                    yield _Plane(image, place, page)


def _expand(
    block: Any, order: str, sizes: dict[str, int], number: int
) -> Iterator[tuple[tuple[int, ...], int]]:
    """Places and pages of the planes of one TiffData: it may stand for one, for several, or for all."""
    first_page = int(block.get("IFD", 0))
    default = 1 if block.get("IFD") is not None else number - first_page
    place = {axis: int(block.get(f"First{axis}", 0)) for axis in _AXES}
    for count in range(min(int(block.get("PlaneCount", default)), number + 1)):
        yield tuple(place[axis] for axis in _AXES), first_page + count
        for axis in order:  # the next plane
            place[axis] += 1
            if place[axis] < sizes.get(axis, 1):
                break
            place[axis] = 0


# ---- XML


def _read_companion(path: Path | None, name: str) -> Any | None:
    if path is None or not name:
        return None
    try:
        return _parse(path.with_name(name).read_bytes())
    except FileNotFoundError:
        return None


def _parse(text: str | bytes) -> Any | None:
    from xml.etree import ElementTree  # 1 MB, for OME-TIFF alone

    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return None


def _is(element: Any, name: str) -> bool:
    """Whether it is called so, in any namespace or none."""
    return str(element.tag).rpartition("}")[2] == name


def _find(element: Any, name: str) -> Any | None:
    return next((child for child in element if _is(child, name)), None)


def _owner(block: Any) -> str | None:
    """The UUID of the file that holds a block's planes."""
    uuid = _find(block, "UUID")
    return None if uuid is None else uuid.text


def _name_set(root: Any) -> str:
    """The name of the set, in brackets, or that of its first file."""
    for element in root.iter():
        name = element.get("Name") if _is(element, "Image") else element.get("FileName")
        if name:
            return f" ({os.path.basename(name)})"
    return ""
