"""Free memory within a container's limits, from files as Linux has them."""

from pathlib import Path

import pytest

from byol.device import memory
from byol.device.memory import available_bytes


@pytest.mark.parametrize(
    ("folder", "files", "expected"),
    [
        ("a/b", {"memory.max": "max", "memory.current": "5", "memory.stat": ""}, None),
        (
            "a/b",
            {"memory.max": "9000", "memory.current": "5000", "memory.stat": "inactive_file 1000\n"},
            5000,
        ),
        ("a", {"memory.max": "9000", "memory.current": "9500", "memory.stat": "inactive_file 0\n"}, 0),
    ],
)
def test_a_containers_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, files: dict[str, str], expected: int | None
) -> None:
    """Of the process's own group or of one above it; what is only a cache of files is not used up."""
    free = available_bytes()
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name, text in files.items():
        (tmp_path / folder / name).write_text(text)
    groups = [tmp_path / "a" / "b", tmp_path / "a", tmp_path]
    monkeypatch.setattr(memory, "list_cgroups", lambda controller: groups)
    if expected is None:
        assert available_bytes() > 0.5 * free
    else:
        assert available_bytes() == expected


def test_the_whole_memory_and_a_containers_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {"memory.max": "9000", "memory.current": "5", "memory.stat": ""}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "list_cgroups", lambda controller: [])
    total, limit = memory.total_bytes()
    assert total >= available_bytes() > 0 and limit is None
    monkeypatch.setattr(memory, "list_cgroups", lambda controller: [tmp_path])
    assert memory.total_bytes() == (total, 9000)
