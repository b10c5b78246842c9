"""The packing benchmark in its smallest form."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_packing(tmp_path: Path) -> None:
    options = ["--tiny", "--threads", "2", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    subprocess.run(
        [sys.executable, "benchmarks/packing.py", *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": "src", "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=300,
    )
    result = json.loads((tmp_path / "out" / "packing.json").read_text(encoding="utf-8"))
    cores = result["machine"]["threads"]
    assert [case["name"] for case in result["cases"]] == ["photographs", "thumbnails", "large photographs"]
    for case in result["cases"]:
        assert all(rate["min"] > 0 for rate in case["images_per_s"].values())
        assert {"loop", "workers_1", f"workers_{cores}"} <= case["images_per_s"].keys()
        assert (case["efficiency"] is None) == (cores == 1)
        assert (case["fraction_over_whole"] is None) == (case["name"] != "large photographs")
        assert [point["images"] for point in case["peak"]] == sorted(
            point["images"] for point in case["peak"]
        )
    assert result["opening"]["rows"] == 1000 and result["opening"]["pack"]["seconds"]["median"] < 2
    table = (tmp_path / "out" / "packing.md").read_text(encoding="utf-8")
    assert "the figures mean nothing" in table and "| large photographs, 200 x 150 px JPG | 26 px |" in table
    assert not list((tmp_path / "work").glob("packing-opening-*"))  # a gigabyte at full size
