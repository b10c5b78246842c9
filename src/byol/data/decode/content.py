"""Recognise files by their first bytes, not their names; advise about files that are not images."""

import os
import re
from functools import cache

from byol.base.packages import install_command

HEAD_BYTES = 512  # number of first bytes to look at

# Suffixes of images. Files with other suffixes are skipped and counted; those without a suffix are opened.
IMAGE_SUFFIXES: tuple[str, ...] = (
    ".apng", ".avif", ".avifs", ".bmp", ".dcm", ".dib", ".dic", ".dicom", ".gif", ".ima", ".j2c", ".j2k",
    ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".jxl", ".jxr", ".lsm", ".mpo", ".npy",
    ".npz", ".pbm", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".stk", ".tif", ".tiff", ".webp",
)  # fmt: skip
# Suffixes that need another package; they are image suffixes if it is installed.
_BY_PACKAGE = {".heic": "pillow_heif", ".heif": "pillow_heif", ".hif": "pillow_heif"}

_SUFFIXES_OF_KIND: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "WebP": (".webp",),
    "TIFF": (".tif", ".tiff", ".lsm", ".stk"),
    "AVIF": (".avif", ".avifs"),
    "HEIC": (".heic", ".heif", ".hif"),
    "JPEG 2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "JPEG XL": (".jxl",),
    "JPEG XR": (".jxr",),
    "NumPy": (".npy",),
    "DICOM": (".dcm", ".dicom", ".dic", ".ima"),
    "PNM": (".pbm", ".pgm", ".ppm", ".pnm", ".pfm"),
}
_KIND_OF_SUFFIX = {suffix: kind for kind, suffixes in _SUFFIXES_OF_KIND.items() for suffix in suffixes}

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"GIF8", "GIF"),
    (b"\x93NUMPY", "NumPy"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"II\xbc", "JPEG XR"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
)
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")
_VR = re.compile(rb"[A-Z]{2}")

_AGAIN = "copy or download it again"
_NOT_IMAGES: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the image itself; run: git lfs pull"),
    (b"/annex/objects/", "is a git-annex pointer, not the image itself; run: git annex get"),
    (b"\0\x05\x16\x07", "is a resource fork of macOS (._NAME), which holds no image; delete it"),
    (b"\0\x05\x16\0", "is a resource fork of macOS, which holds no image; delete it"),
    (b"PK\x03\x04", "is an archive (ZIP); unpack it"),
    (b"PK\x05\x06", "is an empty archive (ZIP)"),
    (b"\x1f\x8b", "is compressed (gzip); unpack it"),
    (b"BZh", "is compressed (bzip2); unpack it"),
    (b"\xfd7zXZ\0", "is compressed (xz); unpack it"),
    (b"\x28\xb5\x2f\xfd", "is compressed (zstd); unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "is an archive (7z); unpack it"),
    (b"Rar!", "is an archive (RAR); unpack it"),
    (b"%PDF", "is a PDF; export its pages as images"),
    (b"%!PS", "is PostScript; export it as an image"),
    (b"\x1aE\xdf\xa3", "is a video (Matroska, WebM); export its frames as images"),
    (b"\0\0\x01\xba", "is a video (MPEG); export its frames as images"),
    (b"\0\0\x01\xb3", "is a video (MPEG); export its frames as images"),
    (b"SQLite format 3", "is a database (SQLite)"),
    (b"\x7fELF", "is a program"),
    (b"MZ", "is a program"),
    (b"ID3", "is sound (MP3)"),
    (b"OggS", "is sound or video (Ogg)"),
)
HEIC = f"is a HEIC photo; {install_command('pillow-heif')} to read it, or convert it to JPEG"


def is_image_suffix(suffix: str) -> bool:
    """Return whether files with this suffix (lower case, with dot) are images by their name."""
    return suffix in IMAGE_SUFFIXES or (suffix in _BY_PACKAGE and open_package(_BY_PACKAGE[suffix]))


def suffix_of(name: str) -> str:
    """Return the suffix in lower case with its dot; "" if it is a number, as in names of DICOM files."""
    suffix = os.path.splitext(name)[1].lower()
    return "" if suffix[1:].isdigit() else suffix


def advise_suffix(suffix: str) -> str | None:
    """Return how to make byol read files with this suffix; None: it cannot."""
    if suffix == ".tar":
        return "name one of them, or a folder or list with nothing else"
    package = _BY_PACKAGE.get(suffix)
    return None if package is None else install_command("pillow-heif")


@cache
def open_package(name: str) -> bool:
    """Import a package that reads more formats; return whether it is installed."""
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def image_kind(head: bytes) -> str | None:
    """Return the kind of image by the first bytes of a file; None: unknown. DICOM may lack its preamble."""
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return "BMP"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp":
        return _kind_of_brands(head)
    if head[128:132] == b"DICM" or _is_bare_dicom(head):
        return "DICOM"
    if head[:1] == b"P" and head[1:2] in b"1234567fF" and head[2:3] in (b"\n", b" ", b"\r", b"\t"):
        return "PNM"
    return None


def _kind_of_brands(head: bytes) -> str | None:
    """Return the kind of an ISO media file by its brands: the major brand and the compatible ones."""
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, min(int.from_bytes(head[:4]), 64), 4))]
    if brands[0] in (b"avif", b"avis") or (brands[0] in (b"mif1", b"msf1") and b"avif" in brands):
        return "AVIF"
    return "HEIC" if brands[0] in _HEIC_BRANDS else None


def _is_bare_dicom(head: bytes) -> bool:
    """Return whether it is little-endian DICOM without preamble: first an element of group 2 or 8."""
    group, element = int.from_bytes(head[:2], "little"), int.from_bytes(head[2:4], "little")
    if group not in (2, 8) or len(head) < 16 or element > 0x0100:
        return False
    return _VR.fullmatch(head[4:6]) is not None or int.from_bytes(head[4:8], "little") <= 128


def find_false_suffix(kind: str, name: str) -> str | None:
    """Return the suffix of a name (lower case) if it contradicts the kind of image; otherwise None."""
    if name.lower().endswith(_SUFFIXES_OF_KIND[kind]):
        return None
    suffix = os.path.splitext(name)[1].lower()
    return suffix if suffix in _KIND_OF_SUFFIX else None


def find_refusal(head: bytes) -> str | None:
    """Return why a file with these first bytes is not an image, and what to do; None: it may be an image."""
    kind = image_kind(head)
    if kind == "HEIC":
        return None if open_package("pillow_heif") else HEIC
    if kind is not None:
        return None
    for magic, reason in _NOT_IMAGES:
        if head.startswith(magic):
            return reason
    if head[4:8] == b"ftyp":
        what = "a camera's raw file" if head[8:12] == b"crx " else "a video (MP4, MOV)"
        return f"is {what}; export images from it"
    if head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"WAVE"):
        return "is a video (AVI) or sound (WAV), not an image"
    if len(head) >= 16 and not any(head):
        return f"begins with zeros only, as after an interrupted copy; {_AGAIN}"
    return _refuse_text(head)


def _refuse_text(head: bytes) -> str | None:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = head.decode("utf-16", "replace")
    elif b"\0" in head or any(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head):
        return None
    else:
        text = head.decode("utf-8", "replace").removeprefix("\ufeff")
        if text[:-4].count("\ufffd") > 0:  # the last character may be incomplete
            text = head.decode("latin-1")
    text = text.lstrip().lower()
    if text.startswith(("#define ", "/* xpm")):  # images as text
        return None
    if "<svg" in text:
        return "is a drawing (SVG); render it as PNG"
    if text.startswith(("<!doctype html", "<html", "<head", "<body")) or "<html" in text:
        return f"is a web page (HTML), which servers may send instead of an image; {_AGAIN}"
    if text.startswith("<"):
        return f"is XML, which servers may send instead of an image; {_AGAIN}"
    if text.startswith(("{", "[")):
        return f"is JSON, which servers may send instead of an image; {_AGAIN}"
    if len(head) < 8 and (
        not head or not head.isascii() or any(magic.startswith(head) for magic, _ in _MAGIC)
    ):
        return None  # too short to distinguish text from a truncated image
    return f"is text, not an image of a known format; {_AGAIN}"
