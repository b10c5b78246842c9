"""The evaluation benchmark in its smallest form."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_evaluation(tmp_path: Path) -> None:
    options = ["--tiny", "--threads", "1", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    subprocess.run(
        [sys.executable, "benchmarks/evaluation.py", "--settings", "b", *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": "src", "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=300,
    )
    result = json.loads((tmp_path / "out" / "evaluation-cpu.json").read_text(encoding="utf-8"))
    assert list(result["networks"]) == ["b"] and result["machine"]["threads"] == 1
    network = result["networks"]["b"]
    rates = {name: one["each"] for name, one in network["images_per_s"].items()}
    assert len(rates["training"]) == 2 and min(rates["training"]) > 0
    expected = [one / two for one, two in zip(rates["features"], rates["training"], strict=True)]
    assert network["features_over_training"]["wall"]["each"] == pytest.approx(expected)
    for name, chosen in (("knn", {"k", "temperature"}), ("logistic regression", {"C"})):
        classifier = result["classifiers"][name]
        assert classifier["wall_s"]["min"] > 0 and classifier["cpu_s"]["min"] > 0
        assert classifier["chosen"].keys() == chosen and 0.0 < classifier["top1"] <= 1.0
    table = (tmp_path / "out" / "evaluation-cpu.md").read_text(encoding="utf-8")
    assert "the figures mean nothing" in table and "| knn | " in table


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this is not Linux")
def test_the_peak_can_be_forgotten() -> None:
    """In a process of its own: what other tests left allocated would hide it."""
    script = (
        "import numpy as np, evaluation\n"
        "large = np.ones(2**27, dtype=np.uint8)\n"
        "print(evaluation.read_own_peak_bytes())\n"
        "del large\n"
        "evaluation.forget_peak()\n"
        "print(evaluation.read_own_peak_bytes())\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'benchmarks'}"},
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    with_large, without = map(int, said.stdout.split())
    assert with_large - without > 2**26
