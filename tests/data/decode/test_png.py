"""PNG beyond what Pillow keeps: 16 bits, interlaced, with one transparent colour, with damaged texts."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from byol.base.errors import DataError
from byol.data.decode.image import decode, peek, read_square
from byol.data.decode.png import SIGNATURE
from byol.data.decode.reading import FILLED, noting

RNG = np.random.default_rng(0)
COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}  # PNG's colour type, by the channels
STEPS = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(array: np.ndarray, *, interlaced: bool = False, added: bytes = b"", split: int = 1) -> bytes:
    """Of 16 bits, by hand; `added` chunks follow the header, the data lie in `split` chunks."""

    def rows(part: np.ndarray) -> bytes:  # the difference to the row above, PNG's filter 2
        raw = np.ascontiguousarray(part.astype(">u2")).view("u1").reshape(len(part), -1)
        return b"".join(b"\2" + row.tobytes() for row in np.diff(raw, axis=0, prepend=np.uint8(0)))

    parts = [array[top::down, left::right] for top, left, down, right in STEPS] if interlaced else [array]
    data = zlib.compress(b"".join(rows(part) for part in parts if part.size))
    header = struct.pack(
        ">IIBBBBB", array.shape[1], array.shape[0], 16, COLOURS[array.shape[2]], 0, 0, interlaced
    )
    size = -(-len(data) // split)
    body = b"".join(chunk(b"IDAT", data[first : first + size]) for first in range(0, len(data), size))
    return SIGNATURE + chunk(b"IHDR", header) + added + body + chunk(b"IEND", b"")


def draw(height: int, width: int, channels: int) -> np.ndarray:
    return RNG.integers(0, 65536, (height, width, channels)).astype(np.uint16)


@pytest.mark.parametrize("channels", COLOURS)
@pytest.mark.parametrize("size", [(33, 47), (1, 1), (1, 9), (9, 1), (3, 2), (8, 8)])
def test_interlaced_images_of_16_bits(channels: int, size: tuple[int, int]) -> None:
    array = draw(*size, channels)
    with noting("keep"):
        np.testing.assert_array_equal(decode(png(array, interlaced=True, split=3)), array)
        np.testing.assert_array_equal(decode(png(array)), array)


def test_an_interlaced_image_prints_nothing() -> None:
    """libpng warns of each on the standard error."""
    file = png(draw(33, 47, 3), interlaced=True)
    program = "import sys; from byol.data.decode.image import decode; decode(sys.stdin.buffer.read())"
    run = subprocess.run([sys.executable, "-c", program], input=file, check=True, capture_output=True)
    assert run.stdout == run.stderr == b""


def test_a_damaged_interlaced_image_is_refused() -> None:
    file = png(draw(33, 47, 3), interlaced=True)
    flipped = bytearray(file)
    flipped[1500] ^= 16
    for broken in (file[:3000], bytes(flipped), file[:-12][: len(file) // 2]):
        with pytest.raises(DataError, match="damaged or cut short"):
            decode(broken)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("interlaced", [False, True])
def test_one_transparent_colour_of_16_bits_is_an_alpha(channels: int, interlaced: bool) -> None:
    array = draw(33, 47, channels)
    array[3:9, 5:20] = array[0, 0]
    unseen = (array == array[0, 0]).all(axis=2)
    file = png(array, interlaced=interlaced, added=chunk(b"tRNS", array[0, 0].astype(">u2").tobytes()))
    with noting("auto") as reading:
        filled = decode(file)
    assert reading.notes == [FILLED]
    np.testing.assert_array_equal(filled[~unseen], array[~unseen])
    assert (filled[unseen] == np.rint(np.median(array[~unseen], axis=0))).all()
    with noting("drop"):
        np.testing.assert_array_equal(decode(file), array)
    with noting("keep"):
        np.testing.assert_array_equal(decode(file), np.dstack([array, np.where(unseen, 0, 65535)]))
    assert peek(file, alpha="keep").channels == channels + 1  # type: ignore[arg-type]
    assert read_square(file, px=8, channels=None, alpha="keep").pixels.shape[2] == channels + 1


@pytest.mark.parametrize("bits", [8, 16])
def test_a_damaged_text_does_not_cost_the_image(bits: int) -> None:
    array = draw(33, 47, 3) if bits == 16 else RNG.integers(0, 256, (33, 47, 3)).astype(np.uint8)
    text = bytearray(chunk(b"tEXt", b"Comment\0a text"))
    text[12] ^= 1
    if bits == 16:
        file = png(array, added=bytes(text))
    else:
        stream = io.BytesIO()
        Image.fromarray(array).save(stream, "png")
        file = stream.getvalue()[:33] + bytes(text) + stream.getvalue()[33:]
    np.testing.assert_array_equal(decode(file), array)
    header = bytearray(file)
    header[18] ^= 1
    with pytest.raises(
        DataError, match=r"begins like PNG, but is damaged.*download it again|damaged or cut short"
    ):
        decode(bytes(header))
