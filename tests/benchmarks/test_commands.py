"""The benchmark commands in their smallest form, and the process that holds a system."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import isa
import process
import pytest
import settings
import systems
import throughput

import pictures

ROOT = Path(__file__).parents[2]


def run(script: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """The JSON of a command, after a look at its Markdown."""
    command = [sys.executable, f"benchmarks/{script}.py", "--tiny", "--threads", "1", *arguments]
    subprocess.run(
        [*command, "--work", str(folder / "work"), "--out", str(folder / "out")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": "src", "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=300,
    )
    (table,) = (folder / "out").glob("*.md")
    assert "the figures mean nothing" in table.read_text(encoding="utf-8")
    result: dict[str, Any] = json.loads(table.with_suffix(".json").read_text(encoding="utf-8"))
    assert result["tiny"] and result["machine"]["threads"] == 1 and result["command"].startswith("python b")
    return result


def test_throughput(tmp_path: Path) -> None:
    names = ["ours", "classic", "lightly"]
    result = run("throughput", tmp_path, "--setting", "b", "--workers", "1", "--systems", ",".join(names))
    assert list(result["systems"]) == names and result["setting"]["name"] == "b"
    measured = [name for name in names if "skipped" not in result["systems"][name]]
    assert measured[:2] == ["ours", "classic"]
    for name in measured:
        one = result["systems"][name]
        assert len(one["images_per_s"]["each"]) == 2 and one["images_per_s"]["min"] > 0
        assert one["first_step_s"] > 0 and one["device_bytes"] is None
        assert one["host_bytes"] is None or one["host_bytes"] > one["host_mapped_bytes"] > 0
    if "lightly" not in measured:  # as in CI, which has no peers
        assert result["systems"]["lightly"]["skipped"].startswith("not importable: ")
    assert list(result["ours_over"]) == measured[1:]
    rates = {name: result["systems"][name]["images_per_s"]["each"] for name in measured}
    each = result["ours_over"]["classic"]["each"]
    assert each == [one / two for one, two in zip(rates["ours"], rates["classic"], strict=True)]
    assert result["packing"]["images"] == settings.SETTINGS["b"].sized(batch=None, tiny=True).num_files


@pytest.mark.skipif(not isa.list_available(), reason="only an x86 CPU can stand for several kinds")
def test_throughput_as_several_kinds_of_cpu(tmp_path: Path) -> None:
    kinds = [isa.list_available()[0], isa.list_available()[-1]]
    command = [sys.executable, "benchmarks/throughput.py", "--tiny", "--threads", "1", "--workers", "1"]
    command += ["--setting", "a", "--isa", ",".join(kinds), "--systems", "ours,ours-library"]
    subprocess.run(
        [*command, "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": "src", "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=300,
    )
    table = (tmp_path / "out" / "isa-a.md").read_text(encoding="utf-8")
    for kind in kinds:
        stem = tmp_path / "out" / kind / "throughput-a-cpu.json"
        result = json.loads(stem.read_text(encoding="utf-8"))
        assert result["machine"]["isa"] == {"scalar": "baseline"}.get(kind, kind)
        assert len(result["ours_over"]["ours-library"]["each"]) == 2
        assert f"| {kind} | {throughput.show_range(result['systems']['ours']['images_per_s'])} |" in table


def test_a_kind_that_the_cpu_lacks_is_refused(tmp_path: Path) -> None:
    environment = isa.restrict("scalar") | {"PYTHONPATH": "src"}
    command = [sys.executable, "benchmarks/throughput.py", "--setting", "a", "--isa", "amx"]
    run = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert run.returncode != 0 and "--isa amx" in run.stderr and "Traceback" not in run.stderr


@pytest.mark.skipif(not isa.list_available(), reason="only an x86 CPU can stand for several kinds")
def test_steps_as_another_kind_of_cpu(tmp_path: Path) -> None:
    kind = isa.list_available()[0]
    result = run("steps", tmp_path, "--isa", kind)
    assert result["machine"]["isa"] == {"scalar": "baseline"}.get(kind, kind)
    assert f"--isa {kind}" in result["command"]
    assert {len(ways[way]) for ways in result["seconds"].values() for way in ("fast", "library")} == {2}


def test_breakdown(tmp_path: Path) -> None:
    result = run("breakdown", tmp_path, "--setting", "b")
    assert all(value > 0 for value in result["parts_ms"].values()) and result["step_ms"] > 0
    rates = result["flop_per_s"]
    assert set(rates) == {"step", "networks", "product bfloat16", "product float32"}
    assert all(rate > 0 for rate in rates.values())
    # ResNet-18 with the small stem at 32 px: 0.56 G multiplications and additions, each 2 FLOP; two views,
    # each once through online, once through the target, and backward at twice a forward.
    assert result["flop_a_step"] == pytest.approx(4 * 2 * (1 + 1 + 2) * 2 * 0.557e9, rel=0.03)


def test_ablation(tmp_path: Path) -> None:
    result = run("ablation", tmp_path, "--setting", "a")
    assert {len(values) for values in result["seconds"].values()} == {2}
    assert set(result["gains"]) == set(result["seconds"]) - {"all"} and len(result["gains"]) == 6
    first, second = (result["seconds"]["bfloat16"][i] / result["seconds"]["all"][i] for i in (0, 1))
    assert result["gains"]["bfloat16"]["median"] == pytest.approx((first + second) / 2)


def test_ablation_switches_off_what_it_says() -> None:
    import ablation

    from byol.kernels import convolution, normalisation

    looked_at = {
        "Winograd's convolution": lambda: convolution.choose_tile,
        "kernels packed once a pass": lambda: systems.ours.constant_weights,
        "products for narrow maps": lambda: convolution.choose_ways,
        "norm, addition and ReLU in one": lambda: normalisation.can_fuse,
        "norm, ReLU and pooling in one": lambda: normalisation.is_plain_pool,
    }
    for name, look in looked_at.items():
        before = look()
        with ablation.SWITCHES[name](None):
            assert look() is not before, name
        assert look() is before, name


def test_scaling(tmp_path: Path) -> None:
    result = run("scaling", tmp_path, "--what", "view")
    (point,) = result["points"]
    assert point["view"] == 16 and point["stem"] == "small" and point["images_per_s"]["min"] > 0


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this is not Linux")
def test_a_system_is_stopped_with_its_workers_between_commands(tmp_path: Path) -> None:
    setting = settings.SETTINGS["b"].sized(batch=None, tiny=True)
    files = pictures.make_files(setting, tmp_path)
    job = systems.Job("classic", setting, "cpu", 1, 1, files, tmp_path / "packs")
    system = process.SystemProcess(job, timeout_s=300)
    group = system._process.pid
    try:
        assert wait_for_states(group, "T") == ["T", "T"]
        chunk = system.run(1, timeout_s=300)
        assert chunk.seconds > 0 and chunk.cpu_s is not None and system.memory is not None
        assert wait_for_states(group, "T") == ["T", "T"]
    finally:
        system.kill()
    assert wait_for_states(group) == []


def test_a_system_that_fails_says_why(tmp_path: Path) -> None:
    setting = settings.SETTINGS["b"].sized(batch=None, tiny=True)
    job = systems.Job("classic", setting, "cpu", 1, 1, tmp_path / "nothing", tmp_path / "packs")
    with pytest.raises(process.SystemFailedError, match=r"FileNotFoundError: .*nothing"):
        process.SystemProcess(job, timeout_s=300)


def wait_for_states(group: int, *wanted: str) -> list[str]:
    """A signal takes effect when the process is next scheduled."""
    end = time.monotonic() + 60.0
    while set(found := states(group)) != set(wanted) and time.monotonic() < end:
        time.sleep(0.01)
    return found


def states(group: int) -> list[str]:
    """The state of each living process of a group: T is stopped."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":  # a worker that has ended is nobody's to wait for
            found.append(fields[0])
    return found


def test_budget(tmp_path: Path) -> None:
    """What it says of the end; not whether that was in time."""
    result = run("budget", tmp_path)
    assert result["budget_s"] == 3.6 and result["training_s"] > 0.0 and result["before_s"] > 0.0
    assert result["last"]["tau"] > 0.99 and any("timing a few" in line for line in result["said"])


def test_demo_and_where_its_evaluation_goes(tmp_path: Path) -> None:
    result = run("demo", tmp_path)
    (one,) = result["runs"]
    assert one["steps"] == 10 and one["seconds"]["all"] > one["seconds"]["training"] > 0.0
    assert {"pixels, knn", "untrained, logistic regression", "byol online, knn"} <= set(one["top1"])
    parts = run(
        "evaluation_breakdown", tmp_path / "parts", "--run", str(tmp_path / "work/demo-native-1-0/run")
    )
    seconds = {part: one["wall_s"] for part, one in parts["parts"].items()}
    assert min(seconds.values()) >= 0.0 and seconds["features of whole images"] > 0.0
    assert len(seconds) == 13  # no part has lost its function


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this is not Linux")
def test_embedding_soak(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    result = run("embedding_soak", tmp_path)
    assert all(result["found"].values()) and len(result["found"]) == 4
    assert [start["exit_code"] for start in result["starts"]] == [-9, -15, 0]
    ends = [(start["from"], start["to"]) for start in result["starts"]]
    assert ends[0][0] == 0 and ends[0][1] == ends[1][0] and ends[2] == (ends[1][1], 3000)
    assert all(one["peak_mb"] >= one["last_third_mb"] > 0 for one in result["memory"])


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this is not Linux")
def test_pack_soak(tmp_path: Path) -> None:
    result = run("pack_soak", tmp_path)
    assert [point["images"] for point in result["points"]] == [600, 1200]
    for point in result["points"]:
        assert point["pack"]["pack_bytes"] > point["images"] * 16 * 16 * 3
        assert len(point["open"]) == 2 and point["read"]["images_per_s"]["min"] > 0
        assert point["train"]["peak"]["own_bytes"] > 0 and point["train"]["images_per_cpu_s"] > 0
        assert point["eval"]["seconds"] > 0 and point["eval"]["peak_bytes"] > 0


def test_exchange(tmp_path: Path) -> None:
    result = run("exchange", tmp_path)
    (one,), (order,) = result["networks"], result["orders"]
    assert one["gradient_bytes"] > 4 * 4_000_000 and one["norm_exchanges"] > 50
    assert order["bytes"] == 8 * order["images"]


def test_embedding(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    result = run("embedding", tmp_path)
    (one,) = result["networks"].values()
    assert list(one["images_per_s"]) == ["byol", "onnxruntime", "pytorch"]
    assert all(len(rates["each"]) == 2 and rates["min"] > 0 for rates in one["images_per_s"].values())
    assert max(one["difference"].values()) < 1e-4 and one["num_features"] == 512
    assert list(one["ours_over"]) == ["onnxruntime", "pytorch"]


def test_the_demo_meets_a_bar_or_does_not() -> None:
    import demo

    top1 = {"byol online, knn": 80.0, "untrained, knn": 68.0, "pixels, knn": 68.1}
    bars = [demo.Bar(demo.KNN, above, 12.0) for above in ("untrained", "pixels")]
    assert [demo.is_met(bar, top1) for bar in bars] == [True, False]
