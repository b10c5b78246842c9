"""Read the headers of a tar file: the names of its files, and where their bytes lie.

Nothing is unpacked, so no name leads anywhere, and no link or device is followed. byol reads the headers by
itself, because `tarfile` makes an object per file and reads names of any length. Formats: the old one, POSIX
(ustar, pax) and GNU (long names, sparse files).
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

BLOCK = 512
_NAME_BYTES, _PAX_BYTES = 2**16, 2**20  # longest name and extended header that are read
_FILES = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes

Read = Callable[[int, int], bytes]  # (first byte, number of bytes); fewer at the end of the file
Kind = Literal["file", "folder", "special", "unsafe"]


class TarDamageError(Exception):
    """A tar file is damaged, so what follows in it is unknown. The text says where and how."""


@dataclass(frozen=True)
class Entry:
    """A file in a tar file. Its bytes are at `start`, one after the other."""

    name: bytes
    kind: Kind  # special: a link, a device, a pipe or a sparse file; unsafe: its name leads out of the tar
    start: int
    size: int


@dataclass
class _Extra:
    """What extended headers say about the next file."""

    name: bytes | None = None
    size: int | None = None
    is_sparse: bool = False


def read_entries(read: Read, length: int) -> Iterator[Entry]:
    """Yield the entries of a tar file of `length` bytes in their order. Bytes of files are passed over.

    Raises:
        TarDamageError: a header is damaged, or the file ends too early. All entries before have been yielded.
        Whatever `read` raises.
    """
    at, extra, is_ended = 0, _Extra(), False
    while at < length:
        header = read(at, BLOCK)
        if not any(header):  # the end, or the border of tar files that somebody put one after the other
            is_ended, at = True, at + BLOCK
            continue
        _check(header, at=at, is_ended=is_ended)
        is_ended, kind = False, header[156:157]
        size = _read_number(header[124:136], at=at)
        start = at + BLOCK
        if kind in (b"L", b"x"):
            _check_end(start + size, length, name=header[:100], at=at)
            _read_extra(read(start, _limit(size, kind, at=at)), kind, extra, at=at)
        elif kind not in (b"K", b"g"):
            start, size = _pass_over_map(read, header, start), size if extra.size is None else extra.size
            size = 0 if kind in _WITHOUT_DATA else size
            name = _find_name(header) if extra.name is None else extra.name
            _check_end(start + size, length, name=name, at=at)
            yield Entry(_clean(name), _judge(kind, name, extra), start, size)
            extra = _Extra()
        at = start + -(-size // BLOCK) * BLOCK
    if not is_ended:
        raise TarDamageError("has no end mark, so it may be cut short")


# ---- One header


def _check(header: bytes, *, at: int, is_ended: bool) -> None:
    """Compare a header with its checksum."""
    if len(header) == BLOCK:
        total = sum(header[:148]) + 8 * 32 + sum(header[156:])
        stored = header[148:156].strip(b" \0")
        if stored.isdigit() and not set(stored) & set(b"89") and total == int(stored, 8):
            return
    if at == 0:
        raise TarDamageError("does not begin like a tar file")
    if len(header) < BLOCK:
        raise TarDamageError(f"is cut short at byte {at:,}")
    what = "other data after its end" if is_ended else "a damaged header"
    raise TarDamageError(f"has {what} at byte {at:,}")


def _read_number(field: bytes, *, at: int) -> int:
    """Return a size: octal digits or, above 8 GB, a binary number."""
    if field[0] & 0x80:
        number = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:])
    else:
        text = field.strip(b" \0")
        if text and not (text.isdigit() and not set(text) & set(b"89")):
            raise TarDamageError(f"has a header with a damaged size at byte {at:,}")
        number = int(text or b"0", 8)
    if number >= 2**62:
        raise TarDamageError(f"has a header with a damaged size at byte {at:,}")
    return number


def _limit(size: int, kind: bytes, *, at: int) -> int:
    if size > (_NAME_BYTES if kind == b"L" else _PAX_BYTES):
        raise TarDamageError(f"has an extended header of {size:,} bytes at byte {at:,}")
    return size


def _read_extra(data: bytes, kind: bytes, extra: _Extra, *, at: int) -> None:
    """Read a long name of GNU, or the records "LENGTH KEY=VALUE" of a pax header."""
    if kind == b"L":
        extra.name = data.rstrip(b"\0")
        return
    while data.strip(b"\0"):
        length, _, _ = data.partition(b" ")
        if not (length.isdigit() and len(length) < 8 and len(length) + 2 < int(length) <= len(data)):
            raise TarDamageError(f"has a damaged extended header at byte {at:,}")
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        data = data[int(length) :]
        if key == b"path":
            extra.name = value
        elif key == b"size":
            if not (value.isdigit() and len(value) < 19):
                raise TarDamageError(f"has a damaged extended header at byte {at:,}")
            extra.size = int(value)
        elif key.startswith(b"GNU.sparse."):
            extra.is_sparse = True


def _pass_over_map(read: Read, header: bytes, start: int) -> int:
    """Return where the data begins: the map of an old GNU sparse file may take more blocks."""
    more = header[156:157] == b"S" and header[482] != 0
    while more:
        block = read(start, BLOCK)
        start += BLOCK
        more = len(block) == BLOCK and block[504] != 0
    return start


def _check_end(end: int, length: int, *, name: bytes, at: int) -> None:
    if end > length:
        shown = os.fsdecode(name.rstrip(b"\0"))
        raise TarDamageError(f"is cut short in {shown}, whose header is at byte {at:,}")


def _find_name(header: bytes) -> bytes:
    name, prefix = header[:100].partition(b"\0")[0], header[345:500].partition(b"\0")[0]
    is_posix = header[257:263] == b"ustar\0"
    return prefix + b"/" + name if is_posix and prefix else name


def _clean(name: bytes) -> bytes:
    """Return a name without `./` in it, as `tar -C FOLDER .` writes it, and without double slashes."""
    return b"/".join(part for part in name.split(b"/") if part not in (b"", b"."))


def _judge(kind: bytes, name: bytes, extra: _Extra) -> Kind:
    if kind == b"5" or (kind in _FILES and name.endswith(b"/")):
        return "folder"
    if kind not in _FILES or extra.is_sparse:
        return "special"
    is_unsafe = name.startswith(b"/") or b".." in name.split(b"/") or b"\0" in name or not _clean(name)
    return "unsafe" if is_unsafe else "file"
