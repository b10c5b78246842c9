"""byol's own files: a disk error is tried again, and is never taken for damage."""

import errno
import os
from pathlib import Path

import pytest

from byol.base.disk import read_bytes
from byol.base.errors import CheckpointError, DiskReadError
from byol.base.files import read_fields, write_fields
from failing_disk import fail_reading


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE])
def test_what_fails_for_a_while_is_read(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"whole")
    readings = fail_reading(monkeypatch, times=3, number=number)
    assert read_bytes(tmp_path / "a") == b"whole" and len(readings) == 4


def test_what_fails_every_time_may_be_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_fields(path, {"format": 1})
    readings = fail_reading(monkeypatch, times=99)
    with pytest.raises(DiskReadError, match=r"a\.json: .*errno 5\); the file itself may be intact: check"):
        read_fields(path, versions=(1,), make=dict, advice="delete it")
    assert len(readings) == 4 and issubclass(DiskReadError, CheckpointError)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ENOENT])
def test_what_a_pause_does_not_change_is_not_tried_again(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = fail_reading(monkeypatch, times=99, number=number)
    with pytest.raises(OSError, match=os.strerror(number)):
        read_bytes(tmp_path / "a")
    assert len(readings) == 1
