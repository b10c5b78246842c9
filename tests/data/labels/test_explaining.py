"""What is said of a name that matches no image: the nearest image, the kind of difference, what to do."""

import pytest

from byol.data.decode.index import Names
from byol.data.labels.explaining import explain

IMAGES = [f"p{plate}/IMG_{number:04d}.jpg" for plate in (1, 2) for number in range(20)]


def explain_one(written: str | bytes, images: list[str], *, is_legacy: bool = False) -> str:
    name = written.decode("utf-8", "surrogateescape") if isinstance(written, bytes) else written
    return explain(name, Names.of(images), is_legacy=is_legacy)


@pytest.mark.parametrize(
    ("written", "image", "kind"),
    [
        ("p1/IMG_7.jpg", "p1/IMG_0007.jpg", "leading zeros of numbers"),
        ("https://a.org/p1/IMG_0007.jpg?raw=1", "p1/IMG_0007.jpg", "the form of a web address"),
        ("p1/IMG%5F0007.jpg", "p1/IMG_0007.jpg", "the form of a web address"),
        ("p1/IMG&#95;0007.jpg", "p1/IMG_0007.jpg", "HTML entities"),
        ("p2/IMG_0007.jpg.xml", "p2/IMG_0007.jpg", "a second suffix"),
        ("p1/IMG 0007.jpg", "p1/IMG_0007.jpg", "spaces, underscores or hyphens"),
        ("p1/img-0007.JPG", "p1/IMG_0007.jpg", "spaces, underscores or hyphens"),
        ("['p1/IMG_0007.jpg']", "p1/IMG_0007.jpg", "brackets, quotes or equals signs"),
        ("p1/IMG_\uff10\uff10\uff10\uff17.jpg", "p1/IMG_0007.jpg", "the width of its characters"),
        ("p1/IMG_00\u200b07.jpg", "p1/IMG_0007.jpg", "invisible characters"),
    ],
)
def test_differences_that_could_be_meant_are_named(written: str, image: str, kind: str) -> None:
    told = explain_one(written, IMAGES)
    assert f"it names {written}, which is {image} except for {kind}: use the names" in told


def test_separators_of_thousands_are_no_decimal_points() -> None:
    told = explain_one("1,000", ["1.jpg", "0999.jpg", "1000.jpg"])
    assert "which is 1000.jpg except for thousands separators" in told


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("1.2E+05", "rounded"),
        ("x/1,5e7", "rounded"),
        (
            "p3/IMG_0007.jpg",
            "the nearest image, p1/IMG_0007.jpg, is in another folder: use the same folders",
        ),
        ("p3/IMG_7.jpg", "p1/IMG_0007.jpg except for leading zeros of numbers and the folder"),
        ("p1/IMG_0007.bmp", "another row names the image p1/IMG_0007.jpg more exactly"),
        ("p1/DSC_IMG_0007.jpg", "the nearest image is p1/IMG_0007.jpg: the list adds 'DSC_'"),
        ("p1/0007.jpg", "the nearest image is p1/IMG_0007.jpg: the list lacks 'IMG_'"),
        ("p1/IMX_0007.jpg", "the nearest image is p1/IMG_0007.jpg: it has 'X' where the image has 'G'"),
        ("p1/IMG_0007_mask.png", "the nearest image is p1/IMG_0007.jpg: the list adds '_mask'"),
        ("p1/IMG_0007\x1b[31m.jpg", "the list adds '\\x1b[31m'"),
        ("something else", "the images are named like p2/IMG_0019.jpg: use the names of the images"),
        (".", "the images are named like"),
    ],
)
def test_other_differences(written: str, told: str) -> None:
    assert told in explain_one(written, IMAGES)


def test_the_image_of_the_same_folder_goes_first() -> None:
    assert "which is p2/IMG_0007.jpg" in explain_one("p2/IMG_7.jpg", IMAGES)


def test_without_images() -> None:
    assert "there are no images" in explain_one("a.jpg", [])


@pytest.mark.parametrize("encoding", ["mac_roman", "cp850", "cp437", "cp1250", "cp1251", "shift_jis", "gbk"])
def test_other_encodings_are_named(encoding: str) -> None:
    """Of some the bytes are no Windows-1252 either: `ü` of DOS is a byte that it lacks."""
    names = {"cp1251": "Жук.png", "cp1250": "řeka.png", "shift_jis": "ソ表.png", "gbk": "虫丂.png"}
    image = names.get(encoding, "Hütte.png")
    told = explain_one(image.encode(encoding), [image, "a.png"], is_legacy=True)
    assert f"which is {image} in a wrong encoding (" in told and "save it again as UTF-8" in told


def test_utf_8_read_as_windows_1252() -> None:
    told = explain_one("KÃ¤fer.png", ["Käfer.png"])
    assert "it names KÃ¤fer.png, which is Käfer.png in a wrong encoding: save it again as UTF-8" in told


def test_a_legacy_name_is_shown_decoded() -> None:
    told = explain_one("Käfer_neu.png".encode("cp1252"), ["Käfer.png"], is_legacy=True)
    assert "it names Käfer_neu.png, the nearest image is Käfer.png" in told


def test_among_many_images_the_one_with_the_same_number_is_found() -> None:
    images = [f"IMG_{number:06d}.jpg" for number in range(30_000)]
    assert "which is IMG_017171.jpg except for leading zeros" in explain_one("IMG_17171.jpg", images)
    assert "the images are named like IMG_0" in explain_one("x", images)
