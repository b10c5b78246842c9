"""Spreads and ratios on given numbers; memory and time of real processes."""

import mmap
import os
import subprocess
import sys
from pathlib import Path

import measure
import pytest

needs_proc = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="this is not Linux")


def test_spread() -> None:
    assert measure.spread([4.0, 1.0, 2.0, 3.0, 10.0]) == {
        "median": 3.0,
        "min": 1.0,
        "low_quartile": 2.0,
        "high_quartile": 4.0,
        "max": 10.0,
    }
    assert set(measure.spread([7.0]).values()) == {7.0}


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.123456], "0.123 (0.123-0.123)"),
        ([3.0, 1.0, 2.0], "2.00 (1.00-3.00)"),
        ([1234.5], "1,234 (1,234-1,234)"),
    ],
)
def test_a_range_has_three_digits(values: list[float], shown: str) -> None:
    assert measure.show_range(measure.spread(values)) == shown


def test_ratios_are_taken_within_each_alternation() -> None:
    # Both systems slow down by 2 in the second alternation: their ratio does not move.
    assert measure.paired_ratios([30.0, 15.0], [10.0, 5.0]) == [3.0, 3.0]
    # The other one failed after the first.
    assert measure.paired_ratios([30.0, 15.0], [10.0]) == [3.0]


@needs_proc
def test_memory_of_a_group_counts_what_forked_processes_share_once() -> None:
    program = (
        "import os, sys, time\n"
        "block = bytearray(os.urandom(1)) * 100_000_000\n"
        "children = [os.fork() for _ in range(1)]\n"
        "print('ready', flush=True) if children[0] else None\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        memory = measure.read_memory(process.pid)
        cpu_s = measure.read_cpu_seconds(process.pid)
    finally:
        os.killpg(process.pid, 9)
        process.communicate()
    assert memory is not None and 100e6 < memory.own_bytes < 150e6
    assert memory.all_bytes == memory.own_bytes + memory.mapped_bytes and memory.mapped_bytes > 1e6
    assert cpu_s is not None and 0.0 < cpu_s < 30.0
    assert measure.read_memory(process.pid) is None


@needs_proc
def test_own_memory_grows_with_what_is_held() -> None:
    before = measure.read_own_memory()
    with mmap.mmap(-1, 50_000_000) as block:  # not from what the C library has kept of earlier tests
        block.write(b"x" * len(block))
        after, peak = measure.read_own_memory(), measure.read_own_peak_bytes()
    assert before is not None and after is not None and peak is not None
    assert after.own_bytes - before.own_bytes > 45e6
    assert peak > after.own_bytes


def test_the_machine_is_described() -> None:
    lines = "\n".join(measure.machine_lines(measure.describe_machine(threads=1)))
    assert "CPU: " in lines and "1 used" in lines and "torch " in lines
