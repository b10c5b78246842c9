"""An error of the system that no room has put into words is still one line; a bug keeps its traceback."""

import errno
import os
from typing import NoReturn

import pytest

from byol.cli.main import main
from byol.reporting import compare
from command_line import Capture, fail


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EDQUOT, errno.ENOSPC])
def test_an_error_of_the_system_is_one_line(
    number: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(options: object) -> NoReturn:
        raise OSError(number, os.strerror(number), "runs/a/file")

    monkeypatch.setattr(compare, "compare", refuse)
    said = fail(capsys, "compare", "a", "b")
    assert "runs/a/file" in said and os.strerror(number) in said


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(options: object) -> NoReturn:
        raise FileNotFoundError(errno.ENOENT, "No such file", "x")

    monkeypatch.setattr(compare, "compare", refuse)
    with pytest.raises(FileNotFoundError):
        main(["compare", "a", "b"])
