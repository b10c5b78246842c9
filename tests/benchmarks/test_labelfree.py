"""The benchmark of what needs no labels in its smallest form."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_labelfree(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "benchmarks/labelfree.py", "--tiny", "--threads", "1", "--out", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": "src", "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=300,
    )
    result = json.loads((tmp_path / "labelfree.json").read_text(encoding="utf-8"))
    assert (result["images"], result["features"], result["machine"]["threads"]) == (500, 16, 1)
    assert list(result["parts"]) == [
        "copies",
        "10 nearest of each",
        "100 prototypes",
        "20 outliers",
        "rank, alignment, uniformity, retrieval of 500, for two encoders",
        "metadata, a column of 40 values",
    ]
    assert all(part["wall_s"] > 0 for part in result["parts"].values())
    table = (tmp_path / "labelfree.md").read_text(encoding="utf-8")
    assert "the figures mean nothing" in table and "| 100 prototypes | " in table
