"""Which errors are of the disk, what is tried again, and that damage is not taken for one or the other."""

import builtins
import errno
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from byol.base import disk
from byol.base.disk import DiskError, is_of_the_disk, is_worth_a_try, try_again
from byol.base.errors import DataError
from byol.data.decode import opened
from byol.data.decode.image import decode, peek, read_square

pytestmark = pytest.mark.usefixtures("pauses")


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "PAUSES_S", (0.0, 0.0, 0.0))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    return tmp_path / "a.png"


Fail = Callable[..., dict[str, int]]


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """`open` fails so many times, with such an error; returns the count of the tries."""
    real = builtins.open

    def start(times: int, number: int = errno.EIO, *, at: int | None = None) -> dict[str, int]:
        tries = {"count": 0}

        class Stream(io.FileIO):
            def _fail(self, end: float) -> None:
                if end > (at or 0) and tries["count"] < times:
                    tries["count"] += 1
                    raise OSError(number, os.strerror(number))

            def readinto(self, buffer: Any) -> int | None:
                self._fail(self.tell() + len(buffer))
                return super().readinto(buffer)

            def readall(self) -> bytes:
                self._fail(np.inf)
                return super().readall()

            def read(self, size: int | None = -1) -> bytes:
                self._fail(np.inf if size is None or size < 0 else self.tell() + size)
                return super().read(-1 if size is None else size)

        def faulty(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
            if not str(file).endswith((".png", ".jpg", ".tif")) or mode != "rb":
                return real(file, mode, *rest, **named)
            if at is not None:
                stream = Stream(file)
                return stream if named.get("buffering") == 0 else io.BufferedReader(stream)
            tries["count"] += 1
            if tries["count"] <= times:
                raise OSError(number, os.strerror(number), str(file))
            return real(file, mode, *rest, **named)

        monkeypatch.setattr(builtins, "open", faulty)
        return tries

    return start


@pytest.mark.parametrize(
    "number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENXIO, errno.EAGAIN, errno.EMFILE]
)
def test_what_fails_for_a_while_is_read(number: int, image: Path, fail: Fail) -> None:
    expected = np.asarray(Image.open(image))
    tries = fail(3, number)
    np.testing.assert_array_equal(decode(str(image)), expected)
    assert tries["count"] == 4


@pytest.mark.parametrize("read", [decode, peek, lambda path: read_square(path, px=8, channels=None)])
def test_what_fails_every_time_is_no_damage(read: Callable[[str], object], image: Path, fail: Fail) -> None:
    tries = fail(99)
    with pytest.raises(DiskError, match="Input/output error, errno 5") as caught:
        read(str(image))
    assert tries["count"] == 4
    located = str(caught.value.locate(str(image)))
    assert located.startswith(f"{image}: ") and "data.skip_unreadable=true" in located
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.for_good) == (str(caught.value), False)


def test_permissions_do_not_change_by_waiting(image: Path, fail: Fail) -> None:
    tries = fail(99, errno.EACCES)
    with pytest.raises(DiskError, match="Permission denied") as caught:
        decode(str(image))
    assert tries["count"] == 1 and "chmod" in str(caught.value.locate("a.png"))


@pytest.mark.parametrize("times", [1, 99])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_a_disk_that_fails_in_the_middle_of_a_large_file(
    times: int, suffix: str, tmp_path: Path, fail: Fail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened, "SMALL_BYTES", 1000)
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise).save(path)
    expected = decode(path.read_bytes())
    fail(times, at=9000)
    if times == 1:
        np.testing.assert_array_equal(decode(str(path)), expected)
    else:
        with pytest.raises(DiskError, match="errno 5"):
            decode(str(path))


def test_a_damaged_large_file_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (99, 99, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:20000])
    for small, large in ((10**6, 2**28), (1000, 2**28), (1000, 1000)):
        monkeypatch.setattr(opened, "SMALL_BYTES", small)
        monkeypatch.setattr(opened, "LARGE_BYTES", large)
        with pytest.raises(DataError, match="damaged or cut short") as caught:
            decode(str(tmp_path / "a.png"))
        assert not isinstance(caught.value, DiskError)


def test_what_is_of_the_name_or_the_content_is_not_tried_again() -> None:
    tries = []

    def read() -> None:
        tries.append(1)
        raise FileNotFoundError(errno.ENOENT, "gone")

    with pytest.raises(FileNotFoundError):
        try_again(read)
    assert len(tries) == 1
    for number in (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, None):
        assert not is_of_the_disk(
            OSError("image file is truncated") if number is None else OSError(number, "")
        )


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("the system cannot read it (Input/output error, errno 5)", True),
        ("cannot be opened (Input/output error)", True),  # as earlier versions wrote them
        ("cannot be opened (Stale file handle)", True),
        ("is damaged or cut short ([Errno 5] Input/output error)", True),
        ("cannot be opened (Permission denied)", True),
        ("no such file", True),
        ("is damaged or cut short (image file is truncated)", False),
        ("is damaged or cut short ([Errno 22] Invalid argument)", False),
        ("cannot be opened (Is a directory)", False),
        ("the file is empty", False),
    ],
)
def test_reasons_that_may_have_passed(reason: str, expected: bool) -> None:
    assert is_worth_a_try(reason) is expected
