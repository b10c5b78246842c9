"""What files are by their first bytes: every kind of image, and for what is none what to do about it."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from byol.data.decode import content
from byol.data.decode.content import (
    find_false_suffix,
    find_refusal,
    image_kind,
    is_image_suffix,
    suffix_of,
)


def encode(format: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (9, 99, 199)).save(file, format, **options)
    return file.getvalue()


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(content, "open_package", lambda name: False)
    yield


@pytest.mark.parametrize(
    ("format", "kind"),
    [
        ("jpeg", "JPEG"),
        ("png", "PNG"),
        ("gif", "GIF"),
        ("bmp", "BMP"),
        ("tiff", "TIFF"),
        ("webp", "WebP"),
        ("avif", "AVIF"),
        ("jpeg2000", "JPEG 2000"),
        ("ppm", "PNM"),
    ],
)
def test_images_are_known_by_content(format: str, kind: str) -> None:
    head = encode(format)[: content.HEAD_BYTES]
    assert image_kind(head) == kind and find_refusal(head) is None


@pytest.mark.parametrize(
    "head",
    [
        bytes(128) + b"DICM\x02\x00\x00\x00UL\x04\x00",
        b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100",  # no preamble, explicit
        b"\x08\x00\x16\x00\x1a\x00\x00\x001.2.840.10008.5.1.4.1.1.2",  # no preamble, implicit
    ],
)
def test_dicom_with_and_without_its_preamble(head: bytes) -> None:
    assert image_kind(head) == "DICOM" and find_refusal(head) is None


NOT_IMAGES = {
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
    "heif of a camera": (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heichevc", "HEIC"),
    "html": (b"\n <!DOCTYPE html><html><title>429</title>", "web page"),
    "html without doctype": (b"<HTML><BODY>Not found", "web page"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML"),
    "svg": (b'<?xml version="1.0"?><svg width="4">', "SVG"),
    "json": (b'{"message": "Not Found"}', "JSON"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:6f", "git lfs pull"),
    "annex": (b"/annex/objects/SHA256E-s1--0", "git annex get"),
    "zip": (b"PK\x03\x04" + bytes(30), "unpack"),
    "gzip": (b"\x1f\x8b\x08" + bytes(30), "unpack"),
    "pdf": (b"%PDF-1.7\n", "PDF"),
    "mov": (b"\0\0\0\x14ftypqt  \0\0\0\0", "video"),
    "mp4": (b"\0\0\0\x18ftypisom\0\0\0\0", "video"),
    "avi": (b"RIFF\0\0\0\0AVI LIST", "video"),
    "raw": (b"\0\0\0\x18ftypcrx \0\0\0\0", "raw"),
    "fork": (b"\0\x05\x16\x07\0\x02\0\0Mac OS X        ", "resource fork"),
    "zeros": (bytes(512), "zeros"),
    "text": ("größe und breite\n".encode(), "text"),
    "text of windows": ("größe und breite\n".encode("latin-1"), "text"),
    "short text": (b"oops\n", "text"),
    "two letters": (b"ok", "text"),
    "utf-16": ("file,label\n".encode("utf-16"), "text"),
}


@pytest.mark.parametrize("name", NOT_IMAGES)
def test_what_is_no_image_is_told_with_what_to_do(name: str, no_packages: None) -> None:
    head, words = NOT_IMAGES[name]
    refusal = find_refusal(head)
    assert refusal is not None and words in refusal and "\n" not in refusal


def test_what_is_not_known_is_left_to_the_readers() -> None:
    noise = np.random.default_rng(0).integers(0, 255, 512, dtype=np.uint8).tobytes()
    assert image_kind(noise) is None and find_refusal(b"\x07" + noise) is None
    for cut in (b"", b"\x89PNG", b"\xff\xd8", b"GI"):  # too little to tell what it was
        assert find_refusal(cut) is None


def test_suffixes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [suffix_of(name) for name in ("a/B.JPG", "IM0001", "1.2.840.17", "a.b/c")] == [".jpg", "", "", ""]
    for suffix in (
        ".jfif",
        ".jp2",
        ".j2k",
        ".avif",
        ".webp",
        ".jpe",
        ".dib",
        ".pbm",
        ".pgm",
        ".ppm",
        ".jxl",
        ".npz",
    ):
        assert is_image_suffix(suffix)
    monkeypatch.setattr(content, "open_package", lambda name: name == "pillow_heif")
    assert is_image_suffix(".heic") and not is_image_suffix(".txt")
    assert find_refusal(NOT_IMAGES["heic"][0]) is None


def test_names_that_lie() -> None:
    assert find_false_suffix("PNG", "b/a.JPG") == ".jpg" and find_false_suffix("JPEG", "a.png") == ".png"
    assert find_false_suffix("WebP", "a.jpeg") == ".jpeg"
    assert all(find_false_suffix(*it) is None for it in (("JPEG", "a.jfif"), ("TIFF", "a.svs"), ("PNM", "a")))
