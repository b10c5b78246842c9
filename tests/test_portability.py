"""Other systems than this one: what they lack, and processes that start afresh."""

import multiprocessing
import os
import pkgutil
import signal
import subprocess
import sys
from ctypes import Structure
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import byol
from byol.base.errors import DataError
from byol.config import load_config
from byol.data.pack import place, rows
from byol.data.pack.packed import Packed, digest_file, open_pack
from byol.data.pack.packing import pack
from byol.data.pack.place import move_into_place
from byol.data.sources import parallel
from byol.data.sources.opening import open_folder
from byol.device import memory
from byol.training.step_benchmark import benchmark_step, name_signal

LACKING = """
import os, signal, socket, sys, time
for name in ("fcntl", "resource", "pwd", "grp", "termios", "posix_spawn"):
    sys.modules[name] = None
for module, names in (
    (os, ("sysconf", "getuid", "geteuid", "getgid", "getloadavg", "fork", "preadv", "pwritev", "uname",
          "sched_getaffinity", "posix_fadvise", "statvfs", "chown", "mkfifo", "killpg", "getpgid", "setsid")),
    (signal, ("SIGUSR1", "SIGUSR2", "SIGKILL", "SIGHUP", "SIGALRM", "SIGPIPE", "SIGQUIT", "SIGCHLD",
              "setitimer", "pthread_sigmask", "alarm")),
    (time, ("tzset",)),
):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
"""


def list_modules() -> list[str]:
    found = pkgutil.walk_packages(byol.__path__, "byol.")
    return [module.name for module in found if not module.name.endswith("__main__")]


@pytest.mark.slow
def test_every_module_is_imported_without_what_windows_lacks() -> None:
    modules = list_modules()
    assert len(modules) > 90
    # Libraries are imported before: they look at the system in their own ways.
    libraries = [
        "torch", "torchvision", "timm", "sklearn.linear_model", "rich.progress", "PIL.Image", "scipy.sparse",
        "tifffile", "jinja2", "pydantic", "torch.utils.tensorboard", "multiprocessing.pool",
    ]  # fmt: skip
    imports = ["\n".join(f"import {name}" for name in names) for names in (libraries, modules)]
    program = imports[0] + LACKING + imports[1]
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- Memory and signals of Windows


class Kernel32:
    """What is asked of Windows: 16 GB in all, 5 GB free; this process has had 2 GB at most."""

    def __init__(self) -> None:
        self.GetCurrentProcess = lambda: -1

    def GlobalMemoryStatusEx(self, pointer: Any) -> int:
        status = pointer._obj
        assert status.length == 64  # bytes of MEMORYSTATUSEX
        status.total, status.available = 16 * 10**9, 5 * 10**9
        return 1

    def K32GetProcessMemoryInfo(self, process: Any, pointer: Any, length: int) -> int:
        counters: Any = pointer._obj
        assert isinstance(counters, Structure) and length == counters.length == 72  # of a 64-bit system
        counters.peak = 2 * 10**9
        return 1


def test_memory_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel32()
    kernel.GetCurrentProcess = type("Function", (), {"__call__": lambda self: -1})()
    monkeypatch.setattr(memory.ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)
    monkeypatch.setattr(memory, "read_fields", lambda path: {})
    monkeypatch.setattr(memory, "os", SimpleNamespace(name="nt"))
    assert memory.available_bytes() == 5 * 10**9
    assert memory.peak_bytes() == 2 * 10**9
    assert memory.total_bytes() == (16 * 10**9, None)


@pytest.mark.parametrize(
    ("returncode", "expected"),
    [(-9, "SIGKILL"), (-signal.SIGINT, "SIGINT"), (0xC000013A, "SIGINT"), (0xC0000409, "SIGABRT"), (3, "")],
)
def test_what_ended_a_process(returncode: int, expected: str) -> None:
    assert name_signal(returncode) == expected


# ---- Files of Windows


def test_rows_without_preadv_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 2**16, (9, 4, 4, 3), dtype=np.uint16)
    np.save(tmp_path / "images.npy", images)
    monkeypatch.setattr(rows, "READS_AT", False)
    monkeypatch.delattr(os, "preadv", raising=False)
    file = rows.RowFile(tmp_path / "images.npy")
    assert not hasattr(file, "_handle")
    assert np.array_equal(file.read(np.array([8, 0, 3])), images[[8, 0, 3]])


def test_a_pack_that_another_program_maps_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pack", "pack.partial"):
        (tmp_path / name).mkdir()

    def refuse(source: object, target: object) -> None:
        raise PermissionError(13, "Access is denied")

    monkeypatch.setattr(place, "os", SimpleNamespace(replace=refuse, name="nt"))
    with pytest.raises(DataError, match=r"pack: .*while another program reads it; .*data\.packs=FOLDER"):
        move_into_place(tmp_path / "pack.partial", tmp_path / "pack", files=())


# ---- Processes that start afresh


def make_folder(folder: Path, *, px: int, num: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(px)
    for number in range(num):
        pixels = rng.integers(0, 256, (px, px, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return folder


def pack_folder(folder: Path, into: Path) -> Packed:
    source = open_folder(folder)
    return pack(
        source, folder=into, stored_px=12, view_px=10, channels=None, max_bad=0.0, num_workers=2
    )  # fmt: skip


def pack_with_children(folder: Path, into: Path, num_children: int) -> None:
    """In a process of its own: reads by so many children, however few files there are."""
    parallel.PROCESS_MIN_IMAGES, parallel.count_cores = 1, lambda: 2
    started = []

    class Noted(parallel.Reader):
        def __init__(self, look: Any, *, stop: bool) -> None:
            super().__init__(look, stop=stop)
            started.append(self)

    parallel.Reader = Noted  # type: ignore[misc]
    pack_folder(folder, into)
    assert len(started) == num_children, len(started)


def measure_step() -> None:
    config = load_config(
        None,
        ["network.name=test_resnet", "network.stem=standard", "data_transforms.input_shape=[16,16,3]",
         "trainer.device=cpu", "trainer.batch_size=8", "trainer.accumulation_steps=1", "trainer.max_epochs=1",
         "network.projection_head.mlp_hidden_size=16", "network.projection_head.projection_size=8"],
        preset="default",
    )  # fmt: skip
    assert benchmark_step(config, channels=3, stored_px=18, bits=8).step_s > 0.0


def run_spawned(target: Any, *arguments: object) -> None:
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    process.join(300)
    assert process.exitcode == 0


@pytest.mark.slow
@pytest.mark.parametrize(("px", "num_children"), [(8, 2), (90, 0)], ids=["small files", "large files"])
def test_packing_in_a_spawned_process(tmp_path: Path, px: int, num_children: int) -> None:
    folder = make_folder(tmp_path / "images", px=px, num=70)
    assert (open_folder(folder).file_bytes < 2 * 4096) == (num_children > 0)
    run_spawned(pack_with_children, folder, tmp_path / "spawned", num_children)
    found = open_pack(tmp_path / "spawned")
    assert digest_file(found.folder / "images.npy") == found.fingerprint
    assert found.fingerprint == pack_folder(folder, tmp_path / "here").fingerprint


@pytest.mark.slow
def test_the_step_is_measured_in_a_spawned_process() -> None:
    run_spawned(measure_step)


def test_a_program_without_a_main_guard_packs(tmp_path: Path) -> None:
    """Children do not run the program again, as those of `multiprocessing` would where they are spawned."""
    folder = make_folder(tmp_path / "images", px=8, num=70)
    program = tmp_path / "program.py"
    program.write_text(
        f"print('started')\nfrom pathlib import Path\nimport sys\nsys.path[:0] = {sys.path!r}\n"
        "from byol.data.sources import parallel\nfrom byol.data.pack.packing import pack\n"
        "from byol.data.sources.opening import open_folder\n"
        "parallel.PROCESS_MIN_IMAGES, parallel.count_cores = 1, lambda: 2\n"
        f"pack(open_folder(Path({str(folder)!r})), folder=Path({str(tmp_path / 'pack')!r}), stored_px=8, "
        "view_px=8, channels=None, max_bad=0.0, num_workers=2)\n",
        encoding="utf-8",
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "started\n" and len(open_pack(tmp_path / "pack")) == 70
