"""What a folder holds besides images is counted; folders and files that the system does not give."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from byol.base import disk
from byol.base.errors import DataError
from byol.data.sources.opening import FileSource, open_folder
from byol.data.sources.summary import describe_passed_by


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "PAUSES_S", (0.0, 0.0, 0.0))


def write(path: Path, format: str = "png") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(path, format)
    return path


def names(source: FileSource) -> list[str]:
    return list(source.files)


def said(source: FileSource) -> str:
    return "\n".join(describe_passed_by(source.left_out))


def test_other_kinds_are_counted_with_three_names(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    for number in range(5):
        (tmp_path / f"IMG_{number}.MOV").write_bytes(b"x")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "notes.txt").write_text("x")
    text = said(open_folder(tmp_path))
    assert "6 files of kinds that byol does not read" in text and "list (.txt)" in text
    assert "5 .mov (IMG_0.MOV, IMG_1.MOV, IMG_2.MOV, ...), 1 .txt (sub/notes.txt)" in text


def test_an_unknown_suffix_that_hides_images_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    for number in range(4):
        write(tmp_path / f"{number}.svs", "tiff")
    source = open_folder(tmp_path)
    assert names(source) == ["a.png"] and "they hold TIFF: rename them" in said(source)


def test_hidden_and_system_files(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    for name in (".DS_Store", "._a.png", "Thumbs.db", "@eaDir/a.png/b.jpg", "__MACOSX/a.png", "DICOMDIR"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    source = open_folder(tmp_path)
    assert names(source) == ["a.png"] and source.left_out.hidden.count == 6
    assert not source.left_out.suffixes and ".DS_Store" in said(source)


def test_images_without_a_suffix_are_read_by_content(tmp_path: Path) -> None:
    write(tmp_path / "IM000001", "jpeg")
    write(tmp_path / "1.2.840.17", "tiff")
    (tmp_path / "S1").mkdir()
    (tmp_path / "S1" / "IM000002").write_bytes(bytes(128) + b"DICM" + bytes(64))
    (tmp_path / "S1" / "IM000003").write_bytes(b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100")
    (tmp_path / "README").write_text("not an image")
    source = open_folder(tmp_path)
    assert names(source) == ["1.2.840.17", "IM000001", "S1/IM000002", "S1/IM000003"]
    assert "because their content is an image: 4" in said(source)
    assert "1 without suffix (README)" in said(source)


def test_pipes_are_not_waited_for_and_links_that_lead_nowhere_are_told_when_read(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to("gone.png")
    (tmp_path / "d.png").symlink_to("d.png")
    (tmp_path / "up").symlink_to(tmp_path)
    source = open_folder(tmp_path)
    assert names(source) == ["a.png", "c.png", "d.png"]
    assert "pipes, sockets and devices: 1 (b.png)" in said(source)


Times = dict[str, int]


def fail(monkeypatch: pytest.MonkeyPatch, function: str, part: str, *, times: int, number: int) -> Times:
    """An `os` function fails so many times for paths that end in `part`."""
    real, tries = getattr(os, function), {"count": 0}

    def faulty(path: Any, *rest: Any, **named: Any) -> Any:
        if not isinstance(path, int) and os.fsdecode(path).endswith(part):
            tries["count"] += 1
            if tries["count"] <= times:
                raise OSError(number, os.strerror(number), path)
        return real(path, *rest, **named)

    monkeypatch.setattr(os, function, faulty)
    return tries


@pytest.mark.parametrize(("function", "part"), [("scandir", "/sub"), ("stat", "/sub"), ("stat", "/b.png")])
def test_a_disk_that_fails_once_loses_nothing(
    function: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.png")
    write(tmp_path / "sub" / "b.png")
    expected = open_folder(tmp_path).fingerprint()
    tries = fail(monkeypatch, function, part, times=2, number=errno.EIO)
    source = open_folder(tmp_path)
    assert names(source) == ["a.png", "sub/b.png"] and tries["count"] == 3
    assert source.fingerprint() == expected


@pytest.mark.parametrize(("function", "part"), [("scandir", "/sub"), ("stat", "/sub"), ("stat", "/b.png")])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_every_time_stops_the_walk(
    function: str, part: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.png")
    write(tmp_path / "sub" / "b.png")
    fail(monkeypatch, function, part, times=99, number=number)
    with pytest.raises(DataError) as caught:
        open_folder(tmp_path)
    text = str(caught.value)
    assert part in text and os.strerror(number) in text and "data.skip_unreadable=true" in text


def test_folders_that_may_not_be_read_are_all_named_or_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.png")
    for name in ("s1", "s2"):
        write(tmp_path / name / "locked" / "b.png")
    write(tmp_path / "z" / "c.png")
    fail(monkeypatch, "scandir", "/locked", times=99, number=errno.EACCES)
    with pytest.raises(DataError) as caught:
        open_folder(tmp_path)
    text = str(caught.value)
    assert "s1/locked" in text and "s2/locked" in text and "Permission denied" in text
    assert "data.skip_unreadable=true" in text and "\n" not in text
    source = open_folder(tmp_path, skip_unreadable=True)
    assert names(source) == ["a.png", "z/c.png"]
    assert "folders that cannot be read: 2" in said(source)
