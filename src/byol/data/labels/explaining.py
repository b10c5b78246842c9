"""In words, how a name in a list differs from the image that it is most like."""

import difflib
import html
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from urllib.parse import unquote

from byol.base.errors import quote
from byol.data.decode.index import Names
from byol.data.labels.spelling import cut, make_plain, stem_of
from byol.data.labels.text_files import decode_legacy, remove_unseen

ROUNDED = (  # follows the name
    "a number that a spreadsheet rounded: set that column to text, enter the names and save it again"
)
_ROUNDED = re.compile(r"\d+(?:[.,]\d+)?[eE][+-]?\d+")  # 1.2E+05
_NUMBER = re.compile(r"[1-9]\d*")
_NUM_NEAR = 5000  # images that a name is compared with
_WRITE = "use the names of the images"
# Encodings of tables that are neither UTF-8 nor Windows-1252: of old Macs, DOS and other Windows.
_LEGACY = ("mac_roman", "cp850", "cp437", "cp1250", "cp1251", "shift_jis", "gbk")
# Differences that are not matched, because they could be meant: what they are called, and how to undo them.
_KINDS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("", lambda name: name),
    ("the form of a web address", lambda name: unquote(re.split("[?#]", name)[0])),
    ("HTML entities", html.unescape),
    ("a second suffix", cut),
    ("thousands separators", lambda name: re.sub(r"(?<=\d)[,.'](?=\d{3}(?!\d))", "", name)),
    ("leading zeros of numbers", lambda name: re.sub(r"(?<![\d.,])0+(?=\d)", "", name)),
    ("spaces, underscores or hyphens", lambda name: re.sub(r"[\s_-]+", "", name)),
    ("brackets, quotes or equals signs", lambda name: re.sub(r"[][(){}<>='\"`]", "", name)),
    ("the width of its characters", lambda name: unicodedata.normalize("NFKC", name)),
    ("invisible characters", remove_unseen),
)


def explain(written: str, images: Names, *, is_legacy: bool) -> str:
    """An example for a message: the name, what it is most like, the kind of difference, and what to do.

    `is_legacy` says that the list is not Unicode and its names are kept as bytes.
    """
    file = decode_legacy(written) if is_legacy else written
    if len(images) == 0:
        return f"it names {file}, and there are no images"
    if is_rounded(file):
        return f"it names {file}, {ROUNDED}"
    return f"it names {file}, {_compare(written, file, _choose_near(file, images), is_legacy=is_legacy)}"


def is_rounded(file: str) -> bool:
    """Whether the name is a number with an exponent, as spreadsheets show long ones."""
    return _ROUNDED.fullmatch(_base_of(file).strip()) is not None


def _choose_near(file: str, images: Names) -> Sequence[str]:
    """Of many images those that hold the same numbers, and some from everywhere."""
    if len(images) <= _NUM_NEAR:
        return list(images)
    numbers = _NUMBER.findall(_base_of(file))
    same = (image for image in images if _NUMBER.findall(_base_of(image)) == numbers)
    step = -(-2 * len(images) // _NUM_NEAR)
    return [*islice(same, _NUM_NEAR // 2 if numbers else 0), *images.pick(range(0, len(images), step))]


def _compare(written: str, file: str, near: Sequence[str], *, is_legacy: bool) -> str:
    for kind, undo in _KINDS:
        if (image := _find_alike(file, near, undo)) is not None:
            is_in_folder = _are_tails(cut(undo(file)), cut(undo(image)))
            if kind:
                return (
                    f"which is {image} except for {kind}{'' if is_in_folder else ' and the folder'}: {_WRITE}"
                )
            if is_in_folder:
                return f"but another row names the image {image} more exactly: remove the wrong row"
            return f"and the nearest image, {image}, is in another folder: use the same folders"
    for encoding, read in _read_otherwise(written, file, is_legacy=is_legacy):
        if (image := _find_alike(read, near, lambda name: name)) is not None:
            return f"which is {image} in a wrong encoding{encoding}: save it again as UTF-8"
    stem, stems = stem_of(file).lower(), dict[str, list[str]]()
    for image in near:
        stems.setdefault(stem_of(image).lower(), []).append(image)
    # A name within the other goes first, however much shorter it is.
    within = [other for other in stems if stem and other and (other in stem or stem in other)]
    within.sort(key=lambda other: abs(len(other) - len(stem)))
    if not (closest := within or difflib.get_close_matches(stem, stems, n=1, cutoff=0.5)):
        return f"the images are named like {near[-1]}: {_WRITE}"
    image = _prefer_folder(file, stems[closest[0]])
    return f"the nearest image is {image}: {_describe_edit(stem_of(file), stem_of(image))}; {_WRITE}"


def _find_alike(file: str, near: Sequence[str], undo: Callable[[str], str]) -> str | None:
    """An image whose last part is the same once `undo` was applied to both; with the same folders, if any."""
    base = _base_of(cut(undo(file)))
    found = [image for image in near if base and _base_of(cut(undo(image))) == base]
    return _prefer_folder(undo(file), found) if found else None


def _prefer_folder(file: str, images: list[str]) -> str:
    """Of several images one in the folder of the file, if any is."""
    folder = make_plain(file).rpartition("/")[0]
    return next((image for image in images if _are_tails(folder, image.rpartition("/")[0])), images[0])


def _are_tails(one: str, other: str) -> bool:
    """Whether one path ends with the other."""
    return f"/{one}".endswith(f"/{other}") or f"/{other}".endswith(f"/{one}")


def _base_of(path: str) -> str:
    return make_plain(path).rpartition("/")[2]


def _read_otherwise(written: str, file: str, *, is_legacy: bool) -> Iterator[tuple[str, str]]:
    """The name in other encodings: UTF-8 that was read as Windows-1252, or what else its bytes could be."""
    with suppress(UnicodeError):
        yield "", file.encode("cp1252").decode("utf-8")
    for encoding in _LEGACY if is_legacy else ():
        with suppress(UnicodeError):
            yield f" ({encoding})", written.encode("utf-8", "surrogateescape").decode(encoding)


def _describe_edit(file: str, image: str) -> str:
    """The first place where two names differ by more than letter case, in words."""
    edits = difflib.SequenceMatcher(None, file.lower(), image.lower(), autojunk=False).get_opcodes()
    kind, start, end, image_start, image_end = next(edit for edit in edits if edit[0] != "equal")
    theirs, ours = quote(file[start:end]), quote(image[image_start:image_end])
    if kind == "insert":
        return f"the list lacks {ours}"
    return f"the list adds {theirs}" if kind == "delete" else f"it has {theirs} where the image has {ours}"
