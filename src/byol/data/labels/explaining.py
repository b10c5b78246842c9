"""In words, how a name in a list differs from the image that it is most like."""

import difflib
import html
import re
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import suppress
from urllib.parse import unquote

from byol.data.decode.index import Names
from byol.data.labels.spelling import cut, make_plain
from byol.data.labels.text_files import decode_legacy

_ROUNDED = re.compile(r"\d+(?:[.,]\d+)?[eE][+-]?\d+")  # 1.2E+05
_NUM_NEAR = 5000  # images that an unmatched name is compared with
_WRITE = "write the names of the images"
# Encodings of tables that are neither UTF-8 nor Windows-1252: of old Macs and of DOS.
_LEGACY = ("mac_roman", "cp850", "cp437", "cp1250", "cp1251", "shift_jis", "gbk")
# Differences that are not matched, because they could be meant: what they are called, and how to undo them.
_KINDS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("the form of a web address", lambda name: unquote(name.partition("?")[0])),
    ("HTML's way to write signs", html.unescape),
    ("a second suffix", cut),
    ("zeros in front of numbers", lambda name: re.sub(r"(?<!\d)0+(?=\d)", "", name)),
    ("separators of thousands", lambda name: re.sub(r"(?<=\d)[,.'](?=\d{3}(?!\d))", "", name)),
    ("spaces, underscores or hyphens", lambda name: re.sub(r"[\s_-]+", " ", name)),
    ("brackets, quotes or equals signs", lambda name: re.sub(r"[][(){}<>='\"`]", "", name)),
    ("the width of its characters", lambda name: unicodedata.normalize("NFKC", name)),
)


def explain(written: str, images: Names, *, is_legacy: bool) -> str:
    """An example for a message: the name, what it is most like, the kind of difference, and what to do.

    `is_legacy` says that the list is no Unicode and its names are kept as bytes.
    """
    file = decode_legacy(written) if is_legacy else written
    if len(images) == 0:
        return f"it names {file}, the images are named like (there are none)"
    if _ROUNDED.fullmatch(file.rpartition("/")[2].strip()):
        return (
            f"it names {file}, a number that a spreadsheet has rounded: make the column text there, fill in "
            "the names and save it again"
        )
    step = -(-len(images) // _NUM_NEAR)
    sample = [images[place] for place in range(0, len(images), step)]
    return f"it names {file}, {_compare(written, file, images, sample)}"


def _compare(written: str, file: str, images: Names, sample: list[str]) -> str:
    if (twin := _find_alike(file, sample, lambda name: name)) is not None:
        return f"but another row names the image {twin} more exactly: keep the right one of the two"
    for kind, undo in _KINDS:
        if (image := _find_alike(file, sample, undo)) is not None:
            return f"which is {image} but for {kind}: {_WRITE}"
    for encoding, read in _read_otherwise(written, file):
        if (image := _find_alike(read, sample, lambda name: name)) is not None:
            return f"which is {image} in a wrong encoding{encoding}: save it as UTF-8 once more"
    plain = make_plain(file)
    base = plain.rpartition("/")[2]
    same = [image for image in images if make_plain(image).rpartition("/")[2] == base] if base else []
    if same:
        return f"and the nearest image, {same[0]}, is in another folder: name the same folders"
    near = difflib.get_close_matches(plain, sample, n=1, cutoff=0.5)
    if not near:
        return f"the images are named like {sample[-1]}: {_WRITE}"
    return f"the nearest image is {near[0]}: {_describe_edit(plain, near[0])}"


def _find_alike(file: str, sample: list[str], undo: Callable[[str], str]) -> str | None:
    """The first image that is the same file once `undo` was applied to both; paths may begin otherwise."""
    ours = f"/{cut(undo(file))}"
    if ours == "/":
        return None
    for image in sample:
        theirs = f"/{cut(undo(image))}"
        if ours.endswith(theirs) or theirs.endswith(ours):
            return image
    return None


def _read_otherwise(written: str, file: str) -> Iterator[tuple[str, str]]:
    """The name in other encodings: UTF-8 that was read as Windows-1252, or what else the bytes could be."""
    with suppress(UnicodeError):
        yield "", file.encode("cp1252").decode("utf-8")
    if written == file:  # the list is Unicode
        return
    content = written.encode("utf-8", "surrogateescape")
    for encoding in _LEGACY:
        with suppress(UnicodeError):
            yield f" ({encoding})", content.decode(encoding)


def _describe_edit(file: str, image: str) -> str:
    """The first place where two names differ, in words."""
    for kind, start, end, image_start, image_end in difflib.SequenceMatcher(
        None, file, image, autojunk=False
    ).get_opcodes():
        theirs, ours = file[start:end], image[image_start:image_end]
        if kind == "insert":
            return f"{ours!r} is missing from it; {_WRITE}"
        if kind == "delete":
            return f"it has {theirs!r} too much; {_WRITE}"
        if kind == "replace":
            return f"it has {theirs!r} where the image has {ours!r}; {_WRITE}"
    return _WRITE
