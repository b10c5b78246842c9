"""Text files that people write: UTF-8, UTF-16 as Excel saves it, or Windows-1252; no text is refused."""

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from byol.base.errors import DataError
from byol.data.decode.content import image_kind

LEGACY = "cp1252"  # what a file is read as that is not Unicode
EXPORT = "export it as CSV (in Excel: CSV UTF-8)"
_OTHER_FILES = (  # how files begin that are no tables, what they are, and what to do
    (b"PK\x03\x04", "an Excel workbook or another zip archive", EXPORT),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook", EXPORT),
    (b"\x1f\x8b", "compressed by gzip", "unpack it"),
    (b"PAR1", "a Parquet file", EXPORT),
    (b"%PDF", "a PDF", EXPORT),
    (b"\x80\x02", "a pickle", EXPORT),
    (b"\x80\x03", "a pickle", EXPORT),
    (b"\x80\x04", "a pickle", EXPORT),
    (b"\x80\x05", "a pickle", EXPORT),
    (b"version https://git-lfs", "a Git LFS pointer", "get the file itself with `git lfs pull`"),
    (codecs.BOM_UTF32_LE, "UTF-32", "save it as UTF-8"),
    (codecs.BOM_UTF32_BE, "UTF-32", "save it as UTF-8"),
)
_BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_BLOCK_BYTES = 2**20
# Soft hyphens, zero-width characters, marks of direction and of byte order.
_UNSEEN = "\u00ad\u061c\u200b\u200c\u200d\u2060\ufeff" + (
    "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)
_BLANK = "".join(chr(code) for code in range(0x3001) if chr(code).isspace()) + _UNSEEN
_NOTHING = str.maketrans("", "", _UNSEEN)


def decode_legacy(text: str) -> str:
    """Text of a file that is no Unicode, as Windows-1252; as it is where that has no such characters."""
    try:
        return text.encode("utf-8", "surrogateescape").decode(LEGACY)
    except UnicodeDecodeError:
        return text


def strip_blank(text: str) -> str:
    """Without white space and characters that are not seen around it."""
    return text.strip(_BLANK)


def remove_unseen(text: str) -> str:
    """Without characters that are not seen, wherever they are."""
    return text.translate(_NOTHING)


def refuse_empty(path: Path) -> DataError:
    return DataError(f"{path}: is empty; write file,label on its first line, then one line per image")


def find_encoding(path: Path) -> str:
    """`utf-8-sig`, a form of UTF-16, or what files are read as that are neither."""
    if path.exists() and not path.is_file():  # a pipe can be read only once
        raise DataError(f"{path}: is a folder, a pipe or a device; give a CSV or text file")
    with reading(path), path.open("rb") as file:
        head = file.read(4096)
        if not head:
            raise refuse_empty(path)
        for magic, what, advice in _OTHER_FILES:
            if head.startswith(magic):
                raise DataError(f"{path}: is {what}, not a table; {advice}")
        if b"\0" in head and (kind := image_kind(head)) is not None:
            raise DataError(f"{path}: is a {kind} image, not a table; give the file of its labels")
        for bom, encoding in _BOMS.items():
            if head.startswith(bom):
                return encoding
        nuls = [sum(byte == 0 for byte in head[parity::2]) for parity in (0, 1)]
        # Every other byte: UTF-16 without its mark.
        if max(nuls) > len(head) // 8 and min(nuls) * 8 < max(nuls):
            return "utf-16-be" if nuls[0] > nuls[1] else "utf-16-le"
        decoder, is_unicode, done = codecs.getincrementaldecoder("utf-8")(), True, 0
        while head:
            if (at := head.find(b"\0")) >= 0:
                raise DataError(
                    f"{path}: byte {done + at} is NUL, so the file is damaged or not text; export it again "
                    "as CSV (UTF-8)"
                )
            done += len(head)
            if is_unicode:
                is_unicode = _is_decodable(decoder, head)
            head = file.read(_BLOCK_BYTES)
        return "utf-8-sig" if is_unicode and _is_decodable(decoder, b"", is_end=True) else LEGACY


def _is_decodable(decoder: codecs.IncrementalDecoder, block: bytes, *, is_end: bool = False) -> bool:
    try:
        decoder.decode(block, is_end)
    except UnicodeDecodeError:
        return False
    return True


def open_text(path: Path, encoding: str) -> TextIO:
    if encoding.startswith("utf-16"):
        return path.open(encoding=encoding, newline="")
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")  # bytes are kept


@contextmanager
def reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: cannot be opened ({error.strerror}); give a CSV or text file that can be read"
        ) from None
    except UnicodeError:
        raise DataError(f"{path}: begins as UTF-16 but is damaged; save it as UTF-8") from None
