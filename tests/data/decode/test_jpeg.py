"""JPEGs without an end mark, cut in the middle, and damaged inside."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from byol.base.errors import DataError
from byol.data.decode import jpeg
from byol.data.decode.image import decode, read_square
from byol.data.decode.jpeg import find_damage, find_damage_in, has_all_rows
from byol.data.decode.reading import NO_END, noting

RNG = np.random.default_rng(0)


def encode(seed: int = 0, **options: object) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC).save(file, "jpeg", **options)
    return file.getvalue()


@pytest.fixture(params=["with simplejpeg", "without"])
def simplejpeg(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to find damage."""
    is_there = request.param != "without"
    if is_there:
        pytest.importorskip("simplejpeg")
    monkeypatch.setattr(jpeg, "open_package", lambda name: is_there)


KINDS = [{}, {"quality": 95, "subsampling": 0}, {"progressive": True}, {"restart_marker_rows": 2}]


@pytest.mark.parametrize("options", KINDS)
def test_a_jpeg_without_its_end_mark_is_read_and_noted(options: dict[str, object]) -> None:
    file = encode(**options)
    assert file.endswith(b"\xff\xd9") and has_all_rows(file[:-2])
    for short in (file[:-2], file[:-1]):
        with noting("auto") as reading:
            np.testing.assert_array_equal(decode(short), decode(file))
        assert reading.notes == [NO_END]
    square = read_square(file[:-2], px=8, channels=None)
    assert square.notes == (NO_END,)
    np.testing.assert_array_equal(square.pixels, read_square(file, px=8, channels=None).pixels)
    assert read_square(file, px=8, channels=None).notes == ()


@pytest.mark.parametrize("options", [{}, {"quality": 95, "subsampling": 0}, {"restart_marker_rows": 2}])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_jpeg_that_is_cut_in_the_middle_is_refused(options: dict[str, object], share: float) -> None:
    file = encode(**options)
    start = file.rfind(b"\xff\xda")
    with pytest.raises(DataError, match=r"cut short \(image file is truncated"):
        decode(file[: start + int(share * (len(file) - start))])


@pytest.mark.parametrize("options", KINDS)
def test_whole_jpegs_are_no_false_alarm(options: dict[str, object], tmp_path: Path, simplejpeg: None) -> None:
    for seed in range(20):
        file = encode(seed, **options)
        assert find_damage(file) is None
        assert find_damage(file + bytes(100)) is None  # cameras pad their files
    for mode, size in (("RGB", (200, 100)), ("L", (17, 9)), ("CMYK", (40, 30)), ("RGB", (1, 1))):
        flat = io.BytesIO()
        Image.new(mode, size, "white").save(flat, "jpeg")
        assert find_damage(flat.getvalue()) is None
    (tmp_path / "a.jpg").write_bytes(file)
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    assert find_damage_in(str(tmp_path / "a.jpg")) is None and find_damage_in(str(tmp_path / "a.png")) is None


def test_damage_inside_is_found_where_it_shifts_what_follows(tmp_path: Path, simplejpeg: None) -> None:
    """A lost stretch always; a few changed bytes in most of the files."""
    for seed in range(10):
        file = encode(seed)
        middle = (file.rfind(b"\xff\xda") + len(file)) // 2
        assert find_damage(file[:middle] + file[middle + 300 :]) is not None
        assert find_damage(file[:middle] + file[middle - 300 : middle] + file[middle:]) is not None
    found = 0
    for seed in range(40):
        file = bytearray(encode(seed, quality=90))
        middle = (file.rfind(b"\xff\xda") + len(file)) // 2
        file[middle : middle + 24] = (
            np.random.default_rng(seed).integers(0, 255, 24, dtype=np.uint8).tobytes()
        )
        found += find_damage(bytes(file)) is not None
    assert found >= 25
    (tmp_path / "a.jpg").write_bytes(file)
    assert (
        "with damaged data" in str(find_damage_in(str(tmp_path / "a.jpg")))
        or find_damage(bytes(file)) is None
    )


def test_libjpegs_warnings_name_what_is_wrong() -> None:
    pytest.importorskip("simplejpeg")
    file = encode(restart_marker_rows=1)
    marks = [at for at in range(len(file) - 1) if file[at] == 0xFF and 0xD0 <= file[at + 1] <= 0xD7]
    lost = file[: marks[2]] + file[marks[4] :]
    assert find_damage(lost) == "its restart markers are out of order"
    plain = encode()
    start = plain.rfind(b"\xff\xda")
    middle = (start + len(plain)) // 2
    assert find_damage(plain[:middle] + plain[middle + 300 :]) == "its data end before the image does"
    rubbish = RNG.integers(0, 255, 40, dtype=np.uint8).tobytes()
    assert find_damage(plain[:-2] + rubbish + plain[-2:]) == "its data continue after the image"
    for padding in (b"\x5a", bytes(30), b"\xff" * 9):
        assert find_damage(plain[:-2] + padding + plain[-2:]) is None


def test_damage_between_restart_marks_is_found() -> None:
    """The next mark mends the shift, so nothing shows at the end."""
    pytest.importorskip("simplejpeg")
    found = 0
    for seed in range(40):
        file = bytearray(encode(seed, quality=90, restart_marker_rows=1))
        middle = (file.rfind(b"\xff\xda") + len(file)) // 2
        file[middle : middle + 24] = (
            np.random.default_rng(seed).integers(0, 255, 24, dtype=np.uint8).tobytes()
        )
        found += find_damage(bytes(file)) is not None
    assert found >= 27
