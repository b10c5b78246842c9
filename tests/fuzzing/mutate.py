"""Damage bytes, text and JSON at random. Everything follows from the generator that is passed."""

import copy
import struct
import zlib
from collections.abc import Sequence
from random import Random
from typing import Any

_NUMBERS = (
    0,
    1,
    2,
    7,
    8,
    16,
    127,
    128,
    255,
    256,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x10000,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
)
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 255, 2**31, 2**63, -(2**70), 10**30, 0.5, -0.0, 1e308, float("inf"),
    float("nan"), "", "a", "x" * 500, "../../etc/passwd", "\0", "\ud800", "ä", "1", "None", [], {}, [[]], [0],
    {"": None}, [1, 2, 3, 4], [1.0] * 5, {"a": {"b": []}},
)  # fmt: skip


def mutate(content: bytes, others: Sequence[bytes], random: Random, *, words: Sequence[bytes] = ()) -> bytes:
    """Damage a file at a few places, with pieces of `others`, and with `words` that mean something in it."""
    data = bytearray(content)
    for _ in range(1 + min(int(random.expovariate(0.7)), 12)):
        at = random.randrange(len(data) + 1)
        match random.randrange(11):
            case 0 | 1 if data:
                data[at % len(data)] ^= 1 << random.randrange(8)
            case 2 if data:
                data[at % len(data)] = random.randrange(256)
            case 3:
                del data[at : at + _length(random)]
            case 4:
                data[at:at] = random.randbytes(_length(random))
            case 5:
                piece = data[at : at + _length(random)]
                data[at:at] = piece * random.choice((1, 1, 2, 50))
            case 6:
                other = random.choice(others)
                start = random.randrange(len(other) + 1)
                data[at : at + random.choice((0, _length(random)))] = other[start : start + _length(random)]
            case 7 if random.random() < 0.3:
                del data[at:]
            case 8 | 9:
                number = random.choice(_NUMBERS) + random.choice((-1, 0, 0, 1))
                form = random.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
                size = struct.calcsize(form)
                data[at : at + size] = struct.pack(form, number % 256**size)
            case _ if words:
                data[at : at + random.choice((0, 0, _length(random)))] = random.choice(words)
    return bytes(data[: 2**16])


def _length(random: Random) -> int:
    return 1 + min(int(random.expovariate(0.2)), 200)


def mutate_value(value: Any, random: Random) -> Any:
    """Change a copy of plain values in lists and dictionaries at one or two places."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 2))):
        places: list[tuple[Any, Any]] = []
        _list_places(value, places)
        if not places:
            return random.choice(_VALUES)
        holder, key = random.choice(places)
        match random.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[random.choice(("", "a", "format", "sha256", "../x"))] = random.choice(_VALUES)
            case 2 if isinstance(holder, list):
                holder.insert(key, random.choice(_VALUES))
            case 3 if isinstance(holder[key], int | float):
                holder[key] = holder[key] * random.choice((-1, 2, 1000, 10**9)) + random.choice((0, 1))
            case _:
                holder[key] = copy.deepcopy(random.choice(_VALUES))
    return value


def _list_places(value: Any, places: list[tuple[Any, Any]]) -> None:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        places.append((value, key))
        _list_places(item, places)


def mend_png(data: bytes) -> bytes:
    """Correct the checksums of a PNG's chunks, so that a reader goes on to what is in them."""
    mended, at = bytearray(data), 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        mended[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(mended)


def mend_tar(data: bytes) -> bytes:
    """Correct the checksums of a tar file's headers, as far as their sizes lead from one to the next."""
    mended, at = bytearray(data), 0
    while at + 512 <= len(data):
        header = mended[at : at + 512]
        if any(header):
            total = sum(header[:148]) + 8 * 32 + sum(header[156:])
            mended[at + 148 : at + 156] = b"%06o\0 " % (total % 8**6)
        digits = bytes(header[124:136]).strip(b" \0")
        size = int(digits, 8) if digits and not set(digits) - set(b"01234567") else 0
        at += 512 + -(-size // 512) * 512
    return bytes(mended)
