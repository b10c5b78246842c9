"""Looking at many images: in order, a little ahead, by threads or by processes with the same result."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from byol.base.errors import DataError
from byol.data.decode.formats import ImageArray, Kind
from byol.data.decode.image import Square, peek, read_square
from byol.data.sources import parallel as module
from byol.data.sources.opening import ArraySource, FileSource, Part, open_folder
from byol.data.sources.parallel import read_ahead

RNG = np.random.default_rng(0)
LOOK = partial(read_square, px=6, channels=None)


def make_arrays(num_images: int) -> ArraySource:
    images = RNG.integers(0, 256, (num_images, 4, 4, 1), dtype=np.uint8)
    return ArraySource("set", (Part("", images),), np.full(num_images, -1), ())


@pytest.fixture
def folder(tmp_path: Path) -> FileSource:
    """150 files, of which one is no image and one has a name that is not UTF-8."""
    for number in range(148):
        Image.fromarray(RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(tmp_path / f"{number:03d}.png")
    (tmp_path / "100b.png").write_bytes(b"not an image")
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes((tmp_path / "000.png").read_bytes())
    return open_folder(tmp_path)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[module.Reader]:
    """Small files are read by two processes, which are noted here, however few the files are."""
    started: list[module.Reader] = []

    class Noted(module.Reader):
        def __init__(self, look: Callable[[object], object], *, stop: bool) -> None:
            super().__init__(look, stop=stop)
            started.append(self)

    monkeypatch.setattr(module, "Reader", Noted)
    monkeypatch.setattr(module, "PROCESS_MIN_IMAGES", 1)
    monkeypatch.setattr(module, "count_cores", lambda: 2)
    return started


def told(found: object) -> object:
    return str(found) if isinstance(found, DataError) else found.pixels.tolist()  # type: ignore[attr-defined]


def test_processes_find_what_threads_find(
    folder: FileSource, children: list[module.Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    indices = range(3, 149, 2)
    by_processes = list(read_ahead(LOOK, folder, indices, num_workers=4))
    assert len(children) == 2 and all(child.process.returncode is not None for child in children)
    monkeypatch.setattr(module, "PROCESS_MIN_IMAGES", 1000)
    by_threads = list(read_ahead(LOOK, folder, indices, num_workers=4))
    assert len(children) == 2
    assert [index for index, _ in by_processes] == [index for index, _ in by_threads] == list(indices)
    assert [told(found) for _, found in by_processes] == [told(found) for _, found in by_threads]
    reasons = [str(found) for _, found in by_threads if isinstance(found, DataError)]
    assert len(reasons) == 1 and reasons[0].startswith("is text, not an image of a known format")


def test_headers_are_looked_at_by_processes_too(folder: FileSource, children: list[module.Reader]) -> None:
    found = dict(read_ahead(peek, folder, range(len(folder)), num_workers=2))
    assert found[0] == Kind(9, 3, 8) and len(children) == 2


@pytest.mark.parametrize(
    ("num_workers", "cores", "file_bytes", "expected"),
    [(1, 8, 100, 0), (4, 1, 100, 0), (2, 8, 8191, 2), (2, 8, 8192, 0), (9, 3, 100, 3)],
)
def test_when_there_are_processes(
    children: list[module.Reader],
    monkeypatch: pytest.MonkeyPatch,
    folder: FileSource,
    num_workers: int,
    cores: int,
    file_bytes: int,
    expected: int,
) -> None:
    monkeypatch.setattr(module, "count_cores", lambda: cores)
    monkeypatch.setattr(FileSource, "file_bytes", property(lambda source: float(file_bytes)))
    list(read_ahead(peek, folder, range(3), num_workers=num_workers))
    assert len(children) == expected


def test_arrays_and_few_files_are_left_to_threads(
    folder: FileSource, children: list[module.Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    list(read_ahead(LOOK, make_arrays(20), range(20), num_workers=2))
    monkeypatch.setattr(module, "PROCESS_MIN_IMAGES", len(folder) + 1)
    list(read_ahead(LOOK, folder, range(len(folder)), num_workers=2))
    assert children == []


def test_processes_end_with_an_early_stop(folder: FileSource, children: list[module.Reader]) -> None:
    with closing(read_ahead(LOOK, folder, range(len(folder)), num_workers=2)) as images:
        assert isinstance(next(images)[1], Square)
    assert len(children) == 2 and all(child.process.returncode is not None for child in children)


def test_a_process_ends_by_itself_when_nobody_asks_any_more() -> None:
    child = module.Reader(peek, stop=True)
    child.input.close()
    assert child.process.wait(20) == 0
    child.end()


def test_a_process_that_has_ended_is_one_line(
    folder: FileSource, children: list[module.Reader], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        DataError, match=r"a process .* ended \(exit code 1\) at .*000\.png or the 63 after it"
    ):
        list(read_ahead(abs, folder, range(len(folder)), num_workers=2))  # type: ignore[arg-type]
    assert "bad operand type for abs(): 'str'" in capfd.readouterr().err  # a bug shows where it is


def test_processes_do_not_load_torch() -> None:
    program = "import sys, byol.data.sources.parallel; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_tasks_are_several_small_images_or_one_large(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    look_at = module.look_at_each

    def note(
        look: Callable[[int], ImageArray], indices: range, *, stop: bool
    ) -> list[ImageArray | DataError]:
        sizes.append(len(indices))
        return look_at(look, indices, stop=stop)

    monkeypatch.setattr(module, "look_at_each", note)
    for result_bytes, expected in ((0, 64), (2**18 // 10, 10), (2**20, 1)):
        sizes.clear()
        found = read_ahead(LOOK, make_arrays(130), range(130), num_workers=2, result_bytes=result_bytes)
        assert [index for index, _ in found] == list(range(130))
        assert sum(sizes) == 130 and max(sizes) == expected


def test_reading_stays_a_few_tasks_ahead() -> None:
    """Memory does not grow with the number of images, however slowly they are taken."""
    source, read = make_arrays(300), []
    ahead = read_ahead(
        lambda image: read.append(image), source, range(300), num_workers=2, result_bytes=2**18
    )
    most = max(len(read) - index for index, _ in ahead)
    assert len(read) == 300 and most <= 4 * 2 + 1
