"""JPEGs without an end mark, cut in the middle, and damaged inside."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from byol.base.errors import DataError
from byol.data.decode.image import decode, read_square
from byol.data.decode.jpeg import find_damage, find_damage_in, has_all_rows
from byol.data.decode.reading import NO_END, noting

RNG = np.random.default_rng(0)


def encode(seed: int = 0, **options: object) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC).save(file, "jpeg", **options)
    return file.getvalue()


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
def test_whole_jpegs_are_no_false_alarm(options: dict[str, object], tmp_path: Path) -> None:
    for seed in range(20):
        file = encode(seed, **options)
        assert find_damage(file) is None
        assert find_damage(file + bytes(100)) is None  # cameras pad their files
    flat = io.BytesIO()
    Image.new("RGB", (200, 100), (255, 255, 255)).save(flat, "jpeg")
    assert find_damage(flat.getvalue()) is None
    (tmp_path / "a.jpg").write_bytes(file)
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    assert find_damage_in(str(tmp_path / "a.jpg")) is None and find_damage_in(str(tmp_path / "a.png")) is None


def test_damage_inside_is_found_where_it_shifts_what_follows(tmp_path: Path) -> None:
    """A lost stretch always; a few changed bytes in most of the files."""
    for seed in range(10):
        file = encode(seed)
        middle = (file.rfind(b"\xff\xda") + len(file)) // 2
        assert find_damage(file[:middle] + file[middle + 300 :]) == "its data end before the picture does"
        assert find_damage(file[:middle] + file[middle - 300 : middle] + file[middle:]) is not None
    found = 0
    for seed in range(30):
        file = bytearray(encode(seed))
        middle = (file.rfind(b"\xff\xda") + len(file)) // 2
        file[middle : middle + 8] = RNG.integers(0, 255, 8, dtype=np.uint8).tobytes()
        found += find_damage(bytes(file)) is not None
    assert found >= 12
    (tmp_path / "a.jpg").write_bytes(file)
    assert (
        "damaged inside" in str(find_damage_in(str(tmp_path / "a.jpg"))) or find_damage(bytes(file)) is None
    )
