"""What is printed: on any console, any name, into a closed or broken pipe; and never a bar into a file."""

import ast
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from byol.base import console as console_module
from byol.base.console import complain, make_console, print_line, say, say_block, show_bar
from byol.base.errors import ConfigError, DataError, OutputError, printable
from byol.data.pack.images import open_images
from runs import configure

EVIL = "Käfer_漢字\x1b[2J\n\udcff\u202e.yaml"  # a name may hold every byte but 0 and /
SHOWN = r"\x1b[2J\n\xff\u202e.yaml"


def run(
    *arguments: str, shell: str = "", timeout: float = 300.0, **variables: str
) -> subprocess.CompletedProcess[bytes]:
    """`byol` in a child that knows nothing but these variables; `shell` follows the command."""
    known = {
        name: os.environ[name] for name in ("PATH", "PYTHONPATH", "OMP_NUM_THREADS") if name in os.environ
    }
    command = f'"$@" {shell}'
    return subprocess.run(
        ["bash", "-c", command, "bash", sys.executable, "-m", "byol", *map(os.fsencode, arguments)],
        capture_output=True,
        env=known | variables,
        timeout=timeout,
        check=False,
    )


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "cp1252"},
        {"PYTHONIOENCODING": "cp437", "COLUMNS": "20"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LANG": "C", "HOME": "/nonexistent", "TERM": "dumb", "NO_COLOR": "1"},
    ],
)
def test_any_console_shows_any_name_on_one_line(variables: dict[str, str]) -> None:
    done = run("config", EVIL, **variables)
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith(b"byol: ")
    assert b"\x1b" not in done.stderr and rb"\x1b[2J\n" in lines[0]


@pytest.mark.parametrize("columns", ["20", "40", "200"])
def test_help_on_a_narrow_console_that_has_no_dashes(columns: str) -> None:
    done = run("eval", "--help", PYTHONIOENCODING="ascii", COLUMNS=columns, TERM="dumb")
    assert done.returncode == 0 and done.stderr == b"" and b"--labels" in done.stdout


def test_a_refused_argument_cannot_steer_the_terminal() -> None:
    done = run("train", "images", "--\x1b[2J")
    assert done.returncode == 2 and b"\x1b" not in done.stderr and rb"\x1b[2J" in done.stderr


def test_closed_and_broken_outputs_are_no_traceback() -> None:
    for shell, code in ((">&-", 0), (">&- 2>&-", 0), ("| head -1; exit ${PIPESTATUS[0]}", None)):
        done = run("config", shell=shell)
        assert b"Traceback" not in done.stderr and b"Exception" not in done.stderr
        assert done.returncode == code or (code is None and done.returncode in (0, 141))


@pytest.mark.slow
def test_a_check_of_images_with_any_name_into_a_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(70):
        name = f"Käfer_漢字_{number}.png" if number % 2 else f"a\nb\x1b[2J_{number}.png"
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / name)
    with open(os.fsencode(folder) + b"/\xff\x1b[2J.png", "wb") as file:
        file.write(b"no image")
    report = tmp_path / "report"
    done = run("check", str(folder), "-o", str(report), PYTHONIOENCODING="ascii", FORCE_COLOR="1", HOME="/")
    assert b"Traceback" not in done.stderr and b"\x1b" not in done.stdout + done.stderr
    assert done.stdout.isascii() and b"looking at images" not in done.stdout  # a bar is for a terminal
    (report / "report.html").read_bytes().decode()  # it is UTF-8
    assert b"\xff\x1b[2J.png" in (report / "bad_files.csv").read_bytes()  # tables keep the bytes of names


def test_lines_and_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"saved in {EVIL}")
    say_block("first\n\x1b[2Jsecond")
    complain("a\nb")
    print_line(make_console(), "[red]not markup[/red] \x1b[2J" + "x" * 200)
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert lines[0] == f"saved in Käfer_漢字{SHOWN}" and lines[1:3] == ["first", r"\x1b[2Jsecond"]
    assert lines[3:] == [r"[red]not markup[/red] \x1b[2J" + "x" * 200]
    assert told.err == "byol: a\\nb\n"


def test_a_bar_on_a_terminal_shows_any_label() -> None:
    output = io.StringIO()
    with show_bar(Console(file=output, force_terminal=True, width=80), "[/a]\x1b[2J") as count:
        assert count is not None
        count(1, 2)
    assert r"[/a]\x1b[2J" in output.getvalue() and "50%" in output.getvalue()


def test_a_bar_in_a_notebook_and_in_a_file(notebook: list[str]) -> None:
    with show_bar(Console(file=io.StringIO(), force_jupyter=True), "looking") as count:
        assert count is not None
        count(1, 2)
    assert notebook[0] == "Output"
    with show_bar(Console(file=io.StringIO()), "looking") as count:
        assert count is None


def test_errors_hold_no_control_characters() -> None:
    assert str(DataError("a\nb\x9b")) == r"a\nb\x9b"
    assert str(ConfigError("one\x1b", "two")) == "one\\x1b\ntwo"  # one line a problem
    assert printable("👩\u200d🔬 قط\u200c") == "👩\u200d🔬 قط\u200c"


@pytest.mark.parametrize(
    "failure", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device")]
)
def test_a_console_that_goes_on_says_once_that_nothing_is_printed(
    failure: OSError, capsys: pytest.CaptureFixture[str]
) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise failure

    console = make_console(goes_on=True)
    console.file = Closed()
    print_line(console, "one")
    print_line(console, "two")
    assert capsys.readouterr().err.count("\n") == 1
    console = make_console()
    console.file = Closed()
    with pytest.raises((BrokenPipeError, OutputError)):
        print_line(console, "one")


def test_only_the_console_module_prints() -> None:
    """What prints beside it could raise, or let a name steer the terminal."""
    source = Path(console_module.__file__).parents[1]
    # Helper processes print answers for their parents.
    allowed = {"api/probe.py", "base/console.py", "training/step_benchmark.py"}
    found = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and (getattr(node.func, "id", "") == "print" or getattr(node.func, "attr", "") == "print")
    }
    assert found == allowed


def test_names_of_a_source_cannot_steer_bar_or_terminal(tmp_path: Path) -> None:
    """A folder called as a tag of rich's, and a file with a control character in its suffix."""
    folder = tmp_path / "[" / "bold]x[red]"
    folder.mkdir(parents=True)
    for number in range(4):
        Image.fromarray(np.full((16, 16, 3), 60 * number, np.uint8)).save(folder / f"{number}.png")
    (folder / "a.\x1bxyz").write_bytes(b"")
    output = io.StringIO()
    open_images(
        configure(folder),
        tmp_path / "runs" / "a",
        console=Console(file=output, force_terminal=True, width=200),
    )
    lines = [line for line in output.getvalue().splitlines() if line.startswith("skipped")]
    assert len(lines) == 1 and "\x1b" not in lines[0] and r".\x1bxyz" in lines[0]
    assert "[/bold]x[red]" in output.getvalue()


FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")


@FULL
@pytest.mark.parametrize("arguments", [("config",), ("config", "--schema"), ("--help",), ("--version",)])
def test_a_full_disk_behind_standard_output_is_one_line(arguments: tuple[str, ...]) -> None:
    done = run(*arguments, shell=">/dev/full")
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and len(lines) == 1
    assert lines[0].startswith(b"byol: standard output") and b"send it elsewhere" in lines[0]


@FULL
def test_a_check_into_a_full_disk_is_one_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "set").mkdir()
    for number in range(4):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "set" / f"{number}.png")
    done = run("check", str(tmp_path / "set"), "-o", str(tmp_path / "report"), shell=">/dev/full")
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and len(lines) == 1 and lines[0].startswith(b"byol: standard output")


@FULL
def test_what_cannot_be_complained_of_keeps_its_exit_code() -> None:
    assert run("config", "nowhere.yaml", shell="2>/dev/full").returncode == 2
    assert run("config", "nowhere.yaml", shell="2>&-").returncode == 2
    assert run("config", shell=">/dev/full 2>/dev/full").returncode == 1
