"""benchmarks/gpu.sh: a part is done once, repeated when cut off, told when it fails; then all in small."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gpu import images, parts
from gpu.masked_views import MaskedViews
from gpu.parts import EXIT_USAGE
from gpu.runner import EXIT_FAILED, EXIT_REMAIN, GRACE_S, Part, State, run_parts

from byol.config import load_config
from byol.method.views import Pixels, draw_views, make_views

ROOT = Path(__file__).parents[2]


def python(program: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return (("run", (sys.executable, "-c", program)),)


def run(made: list[Part], results: Path, *, seconds: float = 100.0, retry: bool = False) -> int:
    """One call that has so many seconds beside those it keeps free at its end."""
    deadline = time.monotonic() + GRACE_S + seconds
    return run_parts(made, results, deadline=deadline, environment=dict(os.environ), retry=retry)


def call(results: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [str(ROOT / "benchmarks" / "gpu.sh"), str(results), "--tiny", "--device", "cpu", *arguments],
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition: Callable[[], bool], *, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ---- Parts


def test_parts_are_done_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = [Part("one", python("print('hello')")), Part("two", python("pass"))]
    assert run(made, tmp_path) == 0
    assert "all parts are done" in capfd.readouterr().out
    assert (tmp_path / "one" / "log.txt").read_text().endswith("hello\n")
    written = (tmp_path / "one" / "state.json").read_text()
    assert run(made, tmp_path) == 0
    assert "..." not in capfd.readouterr().out
    assert (tmp_path / "one" / "state.json").read_text() == written
    assert (tmp_path / "summary.md").read_text().count("| done |") == 2


def test_a_part_that_fails_is_told_and_stops_no_other(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad, later = Part("bad", python("raise SystemExit('no such thing')")), Part("later", python("pass"))
    needs = Part("needs", python("pass"), after="bad")
    assert run([bad, needs, later], tmp_path) == EXIT_FAILED
    table = (tmp_path / "summary.md").read_text()
    assert "| bad | failed | run 0 | run: exit status 1; no such thing |" in table
    assert "| needs | failed |  | needs bad |" in table and "| later | done |" in table
    assert run([bad, needs, later], tmp_path) == EXIT_FAILED
    assert capfd.readouterr().out.count("bad ...") == 1, "it is not tried again unasked"
    mended = Part("bad", python("pass"))
    assert run([mended, needs, later], tmp_path, retry=True) == 0


def test_a_part_is_left_out_where_something_is_missing(tmp_path: Path) -> None:
    assert run([Part("one", python("pass"), missing="no folder given")], tmp_path) == 0
    assert "| one | left out |  | no folder given |" in (tmp_path / "summary.md").read_text()
    assert not (tmp_path / "one").exists()


def test_what_does_not_fit_waits_for_the_next_call_unless_it_is_the_first(tmp_path: Path) -> None:
    long, short = Part("long", python("pass"), expect_s=3600.0), Part("short", python("pass"), expect_s=0.0)
    assert run([short, long], tmp_path) == EXIT_REMAIN
    assert State.read(tmp_path / "long") is None
    assert run([short, long], tmp_path) == 0


def test_a_part_cut_off_is_repeated_and_one_too_long_for_a_whole_call_has_failed(tmp_path: Path) -> None:
    quick = Part("quick", python("pass"))
    slow = Part("slow", python("import time; print('begun', flush=True); time.sleep(60)"), expect_s=0.0)
    assert run([quick, slow], tmp_path, seconds=2.0) == EXIT_REMAIN
    assert State.read(tmp_path / "slow").state == "running"
    assert run([quick, slow], tmp_path, seconds=1.0) == EXIT_FAILED
    state = State.read(tmp_path / "slow")
    assert (state.state, state.why, state.calls) == ("failed", "run: not finished after 1 s", 1)
    assert (tmp_path / "slow" / "log.txt").read_text().count("\nbegun") == 1, "it started from nothing"


def test_a_part_that_passes_its_own_limit_has_failed(tmp_path: Path) -> None:
    slow = Part("slow", python("import time; time.sleep(60)"), expect_s=0.0, limit_s=0.5)
    assert run([Part("quick", python("pass")), slow], tmp_path) == EXIT_FAILED
    assert "not finished after 0 s" in State.read(tmp_path / "slow").why


TRAINING = """
import json, signal, sys, time
from pathlib import Path
run = Path(sys.argv[1])
run.mkdir(exist_ok=True)
(run / "config.yaml").write_text("trainer:\\n  batch_size: 10 # images\\n  max_epochs: 4\\n")
begun = (run / "metrics.jsonl").exists()
with (run / "metrics.jsonl").open("a") as file:
    line = {"done": 20 if begun else 10, "epoch": 4.0 if begun else 2.0}
    line |= {"images_per_s": 50.0 if begun else 20.0, "data_wait": 0.5 if begun else 0.1}
    file.write(json.dumps(line) + "\\n")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
time.sleep(0 if begun else 60)
"""


def test_a_training_run_goes_on_in_the_next_call(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    step = ("train", (sys.executable, "-c", TRAINING, str(run_dir)))
    part = Part("training", (step,), limit_s=float("inf"), run_dir=run_dir)
    assert run([part], tmp_path, seconds=2.0) == EXIT_REMAIN
    told = json.loads((tmp_path / "training" / "training.json").read_text())
    assert (told["done"], told["total_steps"], told["loop_s"], told["whole_run_s"]) == (10, 20, 5.0, 10.0)
    first = State.read(tmp_path / "training")
    assert first.state == "running" and 1.5 < first.seconds["train"] < 10.0
    assert run([part], tmp_path) == 0
    state = State.read(tmp_path / "training")
    assert (state.state, state.calls) == ("done", 2) and state.seconds["train"] > first.seconds["train"]
    told = json.loads((tmp_path / "training" / "training.json").read_text())
    assert told == {
        "done": 20,
        "total_steps": 20,
        "loop_s": 7.0,
        "whole_run_s": 7.0,
        "images_per_s": 28.6,
        "data_wait": 0.3,
    }


# ---- Calls


def test_a_call_killed_at_any_moment_is_repeated(tmp_path: Path) -> None:
    killed = call(tmp_path, "--only", "environment")
    wait_for(lambda: (tmp_path / "environment" / "state.json").exists())
    killed.kill()
    killed.communicate()
    assert State.read(tmp_path / "environment").state == "running"
    again = call(tmp_path, "--only", "environment")  # waits for what the killed one had started
    out, _ = again.communicate(timeout=120)
    assert again.returncode == 0, out
    assert "| environment | done |" in out
    assert json.loads((tmp_path / "environment" / "environment.json").read_text())["packages"]["torch"]


def test_a_call_that_is_asked_to_stop_ends_what_it_runs(tmp_path: Path) -> None:
    stopped = call(tmp_path, "--only", "stl10")
    log = tmp_path / "stl10" / "log.txt"
    wait_for(lambda: log.exists() and "-m byol train" in log.read_text())
    stopped.send_signal(signal.SIGTERM)
    stopped.communicate(timeout=60)
    assert stopped.returncode == 128 + signal.SIGTERM
    assert State.read(tmp_path / "stl10").state == "running"


def test_arguments_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    unknown = call(tmp_path, "--only", "environment,throughput-z")
    out, _ = unknown.communicate(timeout=60)
    assert unknown.returncode == EXIT_USAGE and "no part is called throughput-z" in out
    (tmp_path / "options.json").write_text('{"device": "cuda", "tiny": false}')
    other = call(tmp_path, "--only", "environment")
    out, _ = other.communicate(timeout=60)
    assert other.returncode == EXIT_USAGE and "was begun with" in out


def test_only_names_a_part_and_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(parts, "run_parts", lambda made, *_, **__: ran.extend(part.name for part in made))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    parts.main([str(tmp_path), "--only", "cifar10-eval,packing"])
    assert ran == ["cifar10", "cifar10-eval", "packing"]


def test_wheels_are_unpacked_for_the_parts_alone(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "carried-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried.py", "")
        wheel.writestr(
            "carried-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carried\nVersion: 1.0\n"
        )
        wheel.writestr("carried-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("carried-1.0.dist-info/RECORD", "")
    (tmp_path / "work").mkdir()
    options = parts.parse([str(tmp_path), str(tmp_path / "wheels")])
    environment = parts.make_environment(options)
    program = "import byol, carried; print(carried.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(tmp_path / "work" / "site" / "carried.py")


# ---- What the parts use


def test_pinned_wheels_are_the_versions_the_tests_pass_with() -> None:
    def read(path: Path) -> dict[str, str]:
        lines = [line for line in path.read_text().splitlines() if "==" in line]
        return {
            name.lower().replace("_", "-"): version
            for name, _, version in (line.partition("==") for line in lines)
        }

    wheels, constraints = read(ROOT / "benchmarks" / "gpu" / "wheels.txt"), read(ROOT / "constraints.txt")
    peers = read(ROOT / "benchmarks" / "requirements.txt")
    shared = [name for name in wheels if name in constraints]
    assert {"pydantic", "pydantic-core", "beartype", "pytest"} <= set(shared)
    assert {name: wheels[name] for name in shared} == {name: constraints[name] for name in shared}
    assert {name: wheels[name] for name in peers} == peers


@pytest.mark.parametrize("name", ["cifar10", "stl10"])
def test_configurations_are_valid(name: str) -> None:
    config = load_config(ROOT / "benchmarks" / "gpu" / f"{name}.yaml", [], preset=None)
    assert (config.trainer.max_epochs, config.network.name) == (
        {"cifar10": 200, "stl10": 40}[name],
        "resnet18",
    )


def test_given_images_are_linked_or_unpacked(tmp_path: Path) -> None:
    images.save_folder(tmp_path / "given", count=4, px=16)
    images.take_folder(tmp_path / "given", tmp_path / "linked")
    for split in ("train", "test"):
        with tarfile.open(tmp_path / f"{split}.tar.gz", "w:gz") as tar:
            for path in sorted((tmp_path / "given" / split).iterdir()):
                tar.add(path, path.name)
    images.take_folder(tmp_path, tmp_path / "unpacked")
    names = [path.relative_to(tmp_path / "given") for path in (tmp_path / "given").rglob("*.jpg")]
    assert len(names) == 6
    for name in names:
        expected = (tmp_path / "given" / name).read_bytes()
        assert (tmp_path / "linked" / name).read_bytes() == expected
        assert (tmp_path / "unpacked" / name).read_bytes() == expected
    with pytest.raises(SystemExit, match=r"neither a folder train nor train\.tar\.gz"):
        images.take_folder(tmp_path / "given" / "train", tmp_path / "none")


def test_generated_images_differ(tmp_path: Path) -> None:
    images.save_array(tmp_path / "images.npy", count=images._CHUNK + 5, px=16)
    made = np.load(tmp_path / "images.npy")
    assert made.shape == (images._CHUNK + 5, 16, 16, 3) and made.dtype == np.uint8
    assert len(np.unique(made.reshape(len(made), -1), axis=0)) == len(made)


@pytest.mark.parametrize(("preset", "px", "stored_px"), [("default", 32, 32), ("classic", 48, 56)])
@pytest.mark.parametrize("backend", [None, "eager"])
def test_masked_views_are_the_views(preset: str, px: int, stored_px: int, backend: str | None) -> None:
    shape = f"data_transforms.input_shape=[{px},{px},3]"
    transforms = load_config(None, [shape], preset=preset).data_transforms
    pixels = Pixels((0.0,) * 3, (255.0,) * 3, (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
    stored = torch.from_numpy(images.draw(16, stored_px, seed=0)).permute(0, 3, 1, 2)
    sizes = torch.full((16, 2), float(stored_px))
    masked = MaskedViews(
        stored_px, px, pixels=pixels, dtype=torch.float32, device=torch.device("cpu"), backend=backend
    )
    views = make_views(stored, sizes, transforms, key=3, rows=slice(0, 16), pixels=pixels)
    draws = draw_views(3, sizes=sizes, transforms=transforms, channels=3)
    for view, draw in zip(views, draws, strict=True):
        torch.testing.assert_close(masked(stored, draw), view, atol=1e-4, rtol=0)


# ---- The whole


# Their scripts run in another part with another setting, or in other tests of this folder in the same small
# size; benchmarks/gpu.sh --tiny runs all parts.
ALIKE = {
    "throughput-a", "throughput-b", "throughput-c", "breakdown-a", "breakdown-b", "breakdown-c", "variants-b",
    "scaling-view", "scaling-batch", "packing", "evaluation", "tests-method",
}  # fmt: skip


def test_one_part_of_each_script_in_small(tmp_path: Path) -> None:
    every = [part.name for part in parts.list_parts(parts.parse([str(tmp_path), "--tiny"]))]
    assert len(every) == 19 and set(every) > ALIKE
    names = [name for name in every if name not in ALIKE]
    only = ("--only", ",".join(names))
    first = call(tmp_path, "--minutes", "25", *only)
    out, _ = first.communicate(timeout=1600)
    assert first.returncode == 0, out
    for name in names:
        assert State.read(tmp_path / name).state == "done", name
    assert (tmp_path / "summary.md").read_text().count("| done |") == len(names)
    assert json.loads((tmp_path / "cifar10-eval" / "eval.json").read_text())["rows"]
    for name in ("cifar10", "stl10"):
        told = json.loads((tmp_path / name / "training.json").read_text())
        assert told["done"] == told["total_steps"] > 0
    second = call(tmp_path, *only)
    out, _ = second.communicate(timeout=60)
    assert second.returncode == 0 and "..." not in out
