"""A run folder has one writer; a second one is refused in one line and leaves no trace."""

import errno
import os
import re
from pathlib import Path
from typing import NoReturn

import pytest
from filelock import FileLock

from byol.base.console import silent
from byol.base.errors import CheckpointError, RunInUseError
from byol.base.locks import Holder
from byol.runfolder import checkpoint, lock
from byol.runfolder.lock import only_writer


def refuse_second(folder: Path) -> str:
    """What a second writer is told."""
    with pytest.raises(RunInUseError) as refused, only_writer(folder, say=silent):
        pass
    return str(refused.value)


def test_a_second_writer_is_refused_and_told_who_writes(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "a"
    with only_writer(run_dir, say=silent):
        said = refuse_second(run_dir)
        assert re.match(rf"{run_dir}: process {os.getpid()} on .* \(since 20.*-o", said)
        assert "\n" not in said and "stale" not in said
        (run_dir / "config.yaml").touch()
    with only_writer(run_dir, say=silent):
        pass
    assert run_dir.exists()


def test_a_writer_that_wrote_nothing_leaves_no_new_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyError), only_writer(tmp_path / "a", say=silent):
        raise KeyError
    assert not (tmp_path / "a").exists()
    (tmp_path / "b").mkdir()
    with only_writer(tmp_path / "b", say=silent):
        pass
    assert (tmp_path / "b").is_dir()


def test_a_lock_of_a_process_that_is_gone_is_called_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Holder, "is_gone", property(lambda self: True))
    with only_writer(tmp_path, say=silent):
        assert re.search(r"stale, delete .*\.lock", refuse_second(tmp_path))


def test_srun_without_n_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with only_writer(tmp_path, say=silent):
        assert "srun -n 1" in refuse_second(tmp_path)


def test_where_there_are_no_locks_the_run_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    said: list[str] = []
    with only_writer(tmp_path / "a", say=said.append):
        pass
    assert len(said) == 1 and "cannot be locked (No locks available)" in said[0]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    writer = only_writer(tmp_path / "file" / "a", say=silent)
    with pytest.raises(CheckpointError, match=r"file/a: cannot be written .*-o"), writer:
        pass


def test_locks_and_what_a_kill_left_do_not_make_a_folder_somebody_elses(tmp_path: Path) -> None:
    for name in (
        *lock.LOCK_FILES,
        ".config.yaml.abcd_123",
        ".environment.json.01234567",
        "..lock.json.01234567",
    ):
        (tmp_path / name).touch()
    checkpoint.check_run_folder(tmp_path)
    checkpoint.remove_temporaries(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == lock.LOCK_FILES
    (tmp_path / ".git").mkdir()
    with pytest.raises(CheckpointError, match="holds files but no run"):
        checkpoint.check_run_folder(tmp_path)
