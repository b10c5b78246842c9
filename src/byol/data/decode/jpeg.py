"""Find damage in JPEGs that Pillow does not report: missing rows, or data left over.

libjpeg fills missing data with grey, ignores excess data, and warns about both. simplejpeg passes these
warnings on; Pillow and imagecodecs do not. Without simplejpeg, byol decodes the file again with changed last
bytes and compares the images. If bytes do not affect the image, they lie beyond it. If random bytes after the
end change the image, it was incomplete.
"""

import re
from io import BytesIO
from typing import Any

from PIL import Image

from byol.base.errors import DataError
from byol.data.decode.content import open_package
from byol.data.decode.formats import Member

_END = b"\xff\xd9"
_TAIL = 24  # last bytes of the image data, whose loss must change the image
# Powers of 3 modulo a prime look random; numpy.random would take 2 MB. They contain no 0xff, so no markers.
_RUBBISH = bytes(pow(3, power, 65_537) % 255 for power in range(1, 513))
_TOO_SHORT, _TOO_LONG = "its data end before the image does", "its data continue after the image"
_WARNINGS = (  # texts of libjpeg
    (re.compile(r"premature end of data segment"), _TOO_SHORT),
    (re.compile(r"(\d+) extraneous bytes before marker 0xd9"), _TOO_LONG),
    (re.compile(r"extraneous bytes before marker"), "its data continue after a part of the image"),
    (re.compile(r"bad (Huffman|arithmetic) code"), "it holds invalid codes"),
    (re.compile(r"found marker .* instead of RST"), "its restart markers are out of order"),
    (re.compile(r"Inconsistent progression"), "its scans contradict each other"),
)


def has_all_rows(data: bytes) -> bool:
    """Return whether a JPEG without end mark is otherwise complete."""
    data = data.rstrip(b"\xff")
    picture = _decode(data + _END)
    return picture is not None and picture == _decode(data + _RUBBISH + _END)


def find_damage(data: bytes) -> str | None:
    """Return what is damaged in a JPEG that can be decoded; None: no damage was found.

    Most damage shifts all following data, so that the data end before or after the image. With simplejpeg, 44
    to 97 % of the damage is found (docs/formats.md); without it, 38 to 82 %, and 4 % in files with restart
    markers, because the next marker ends the shift.
    """
    if open_package("simplejpeg"):
        return _find_warning(data)
    end = data.rfind(_END)
    if end < 0:
        return None
    body, rest = data[:end], data[end:]
    picture = _decode(data, may_draft=True)
    if picture is None:
        return None
    if _decode(body + _RUBBISH + rest, may_draft=True) != picture:
        return _TOO_SHORT
    without_tail = body[:-_TAIL] + _RUBBISH + rest
    # An eighth of the size does not show the edges of a block.
    if _decode(without_tail, may_draft=True) == picture and _decode(without_tail) == _decode(data):
        return _TOO_LONG
    return None


def _find_warning(data: bytes) -> str | None:
    """Find damage from the warnings of libjpeg."""
    import simplejpeg

    colours: dict[str, Any] = {"colorspace": "CMYK"} if _is_cmyk(data) else {}
    try:
        simplejpeg.decode_jpeg(data, min_factor=8, **colours)  # reads all data, at an eighth of the size
    except ValueError as error:  # an error or a warning; errors are reported where the image is read
        for pattern, reason in _WARNINGS:
            if (found := pattern.search(str(error))) is not None:
                is_padding = reason == _TOO_LONG and _is_padding(data, int(found[1]))
                return None if is_padding else reason
    return None


def _is_padding(data: bytes, count: int) -> bool:
    """Return whether the last bytes before the end mark are padding, which some encoders write."""
    end = data.rfind(_END)
    return count == 1 or len(set(data[end - count : end])) == 1


def _is_cmyk(data: bytes) -> bool:
    with Image.open(BytesIO(data)) as image:
        return image.mode == "CMYK"


def find_damage_in(file: str | Member) -> str | None:
    """Find damage in a file and describe it for a report; None: no damage, or not a JPEG."""
    try:
        with BytesIO(file.read()) if isinstance(file, Member) else open(file, "rb") as stream:
            if stream.read(3) != b"\xff\xd8\xff":
                return None
            stream.seek(0)
            found = find_damage(stream.read())
    except (DataError, OSError):  # errors are reported where images are read
        return None
    return (
        None
        if found is None
        else f"JPEG with damaged data ({found}): part of the image may be wrong; look at it"
    )


def _decode(data: bytes, *, may_draft: bool = False) -> bytes | None:
    try:
        with Image.open(BytesIO(data)) as image:
            if may_draft and "progressive" not in image.info:
                image.draft(None, (1, 1))  # an eighth of the size: reads all data, a pixel per block
            return image.tobytes()
    except (OSError, SyntaxError, ValueError):
        return None
