"""Decode JPEG XR in a process of its own, because damaged files can end the process that decodes them.

jxrlib, which nobody maintains, divides by zero or writes beyond its memory for some damaged files. The
process starts at the first such image, takes 50 MB, and ends with byol.
"""

import atexit
import json
import os
import sys
import threading
from contextlib import suppress
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from byol.base.errors import DataError
from byol.data.decode.child import Child
from byol.data.decode.formats import check_header

# Tags: width and height; offset and number of bytes of the image; offset of its alpha.
_WIDTH, _HEIGHT, _OFFSET, _COUNT, _ALPHA_OFFSET = 0xBC80, 0xBC81, 0xBCC0, 0xBCC1, 0xBCC2
_HEADER_BYTES = 20  # of a stream, which hold its size
_LENGTH_BYTES = 8
_TIFF_COMPRESSIONS = 34934, 22610  # numbers of JPEG XR in TIFF
SERVE = f"from {__name__} import serve; serve()"


def decode_jpeg_xr(file: bytes) -> NDArray[Any]:
    """Return the stored values.

    Raises:
        DataError: the file is damaged, or too large.
    """
    _check(file)
    with _lock:
        if workers and workers[0].owner != os.getpid():
            workers.clear()  # of the process that this one was forked from
        if not workers:
            workers.append(_Worker())
        try:
            answer, values = workers[0].ask(file)
        except (OSError, EOFError):
            workers.pop().end()
            raise DataError("is damaged or cut short (its decoder, jxrlib, failed)") from None
    if "error" in answer:
        raise DataError(f"is damaged or cut short ({answer['error']})")
    return np.frombuffer(bytearray(values), answer["dtype"]).reshape(answer["shape"])


def isolate_in_tiff() -> None:
    """Make tifffile use this decoder for the JPEG XR in TIFF files."""
    from tifffile import TIFF

    decoders = TIFF.DECOMPRESSORS._codecs  # type: ignore[attr-defined] # there is no public way
    for number in _TIFF_COMPRESSIONS:
        decoders[number] = lambda data, **options: decode_jpeg_xr(bytes(data))


def _check(file: bytes) -> None:
    """Refuse an image of another size than its container says, for which jxrlib reserves the memory."""
    at = int.from_bytes(file[4:8], "little")
    tags = dict[int, int]()
    for entry in range(at + 2, at + 2 + 12 * int.from_bytes(file[at : at + 2], "little"), 12):
        tag = int.from_bytes(file[entry : entry + 2], "little")
        tags[tag] = int.from_bytes(file[entry + 8 : entry + 12], "little")
    first = tags.get(_OFFSET, 0)
    if len(file) < first + max(1, tags.get(_COUNT, 0)):
        raise DataError("is damaged or cut short (the image ends beyond the file)")  # else the rest is grey
    for start in (first, tags.get(_ALPHA_OFFSET)):
        if start is None:
            continue
        head = file[start : start + _HEADER_BYTES]
        size = 2 if head[10:11] >= b"\x80" else 4  # bytes per side
        width, height = (int.from_bytes(head[at : at + size], "big") + 1 for at in (12, 12 + size))
        if head[:8] != b"WMPHOTO\0" or (width, height) != (tags.get(_WIDTH), tags.get(_HEIGHT)):
            raise DataError("is damaged or cut short (the size of its image is not that of its container)")
        check_header(height, width, np.dtype(np.uint8))


class _Worker(Child):
    def __init__(self) -> None:
        super().__init__(SERVE, quiet=True)
        self.owner = os.getpid()

    def ask(self, file: bytes) -> tuple[dict[str, Any], bytes]:
        """Return what the process says of a file, and the values.

        Raises:
            OSError, EOFError: it has ended.
        """
        _write(self.input, file)
        return json.loads(_read(self.output)), _read(self.output)


_lock = threading.Lock()
workers: list[_Worker] = []  # at most one


@atexit.register
def _end() -> None:
    if workers and workers[0].owner == os.getpid():
        workers.pop().end()


# ---- The side of the process


def serve() -> None:
    """Read files and write their values, until the input ends."""
    import signal

    import imagecodecs

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides
    with suppress(EOFError, BrokenPipeError):
        while True:
            file = _read(sys.stdin.buffer)
            try:
                values = np.ascontiguousarray(imagecodecs.jpegxr_decode(file))
                answer: dict[str, Any] = {"dtype": values.dtype.str, "shape": values.shape}
                content = values.tobytes()
            except Exception as error:
                answer, content = {"error": " ".join(str(error).split()) or type(error).__name__}, b""
            _write(sys.stdout.buffer, json.dumps(answer).encode())
            _write(sys.stdout.buffer, content)


def _write(stream: IO[bytes], content: bytes) -> None:
    stream.write(len(content).to_bytes(_LENGTH_BYTES, "little"))
    stream.write(content)
    stream.flush()


def _read(stream: IO[bytes]) -> bytes:
    head = stream.read(_LENGTH_BYTES)
    num = int.from_bytes(head, "little")
    content = stream.read(num) if len(head) == _LENGTH_BYTES else b""
    if len(head) < _LENGTH_BYTES or len(content) < num:
        raise EOFError("the process has ended")
    return content
