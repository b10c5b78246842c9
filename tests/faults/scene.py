"""A small run for every fault, and what must be the same at its end, however often it was stopped."""

import hashlib
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from byol.runfolder import checkpoint
from faults.children import Ended, run
from runs import TINY

IMAGES, TAR, RUN = "images", "images.tar", "runs/a"
OUTPUT = r"/(runs|packs|check)(/|$)"  # what the shim looks at: all that byol writes
_CLASSES = {"dark": (40, 40, 40), "red": (200, 40, 40), "blue": (40, 40, 200)}
_TINY = (*TINY, "trainer.device=cpu", "trainer.log_interval=1", "evaluation.num_bootstrap=50")
SHORT = ("trainer.max_epochs=2", "trainer.checkpoint_interval=3", "trainer.health_interval=3")  # 8 steps
LONG = ("trainer.max_epochs=8", "trainer.checkpoint_interval=2", "trainer.health_interval=4")  # 32 steps
_TIMES = ("images_per_s", "data_wait")


def write_images(folder: Path, *, num: int = 11, px: int = 16) -> None:
    """`num` images of each of three colours."""
    rng = np.random.default_rng(0)
    for name, colour in _CLASSES.items():
        (folder / name).mkdir(parents=True)
        for index in range(num):
            image = np.array(colour) + rng.normal(0.0, 25.0, size=(px, px, 3))
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / name / f"{index:03d}.png")


def write_tar(path: Path, folder: Path) -> None:
    """A tar file of the images in a folder, in a fixed order and with fixed times."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for file in sorted(folder.rglob("*.png")):
            info = tarfile.TarInfo(file.relative_to(folder).as_posix())
            info.size = file.stat().st_size
            with file.open("rb") as content:
                tar.addfile(info, content)


def train_command(length: tuple[str, ...] = SHORT, *, images: str = IMAGES, output: str = RUN) -> list[str]:
    """The arguments of `byol` for the run."""
    return ["train", images, "-o", output, *_TINY, *length]


def start_anew(*folders: str) -> None:
    """Remove what earlier runs have left."""
    for folder in folders or ("runs", "packs"):
        shutil.rmtree(folder, ignore_errors=True)


def take_fingerprint(run_dir: Path) -> dict[str, str]:
    """Hashes of all that a run's end consists of, but for times."""
    state, problems = checkpoint.read_latest(run_dir)
    assert state is not None and not problems, problems
    found = {f"checkpoint {name}": _hash_state(state[name]) for name in ("done", "byol", "optimizer", "best")}
    for name in (
        "encoder.safetensors", "encoder.json", "target/encoder.safetensors", "target/encoder.json",
        "best/encoder.safetensors", "best.json", "start.json", "config.yaml",
    ):  # fmt: skip
        path = run_dir / name
        found[name] = hashlib.sha256(path.read_bytes().rstrip()).hexdigest() if path.exists() else "missing"
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in line.items() if key not in _TIMES} for line in lines]
    found["metrics"] = json.dumps(kept)
    for path in sorted(run_dir.parent.glob("packs/*/images.npy")):
        found[f"pack {path.parent.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _hash_state(value: object) -> str:
    digest = hashlib.sha256()

    def feed(part: object) -> None:
        if isinstance(part, torch.Tensor):
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode() + part.contiguous().numpy().tobytes())
        elif isinstance(part, dict):
            for key in sorted(part, key=repr):
                digest.update(repr(key).encode())
                feed(part[key])
        elif isinstance(part, list | tuple):
            for each in part:
                feed(each)
        else:
            digest.update(repr(part).encode())

    feed(value)
    return digest.hexdigest()


def find_losses(run_dir: Path, expected: dict[str, str]) -> list[str]:
    """What of a finished run is not as it should be; [] if nothing is."""
    try:
        found = take_fingerprint(run_dir)
    except Exception as error:
        return [f"the run cannot be read: {type(error).__name__} {error}"]
    problems = [f"{name} differs" for name in expected if expected[name] != found.get(name)]
    steps = [json.loads(line)["done"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    if steps != sorted(set(steps)):
        problems.append(f"metrics.jsonl: steps {steps}")
    left = [path.name for path in run_dir.rglob(".*") if not path.name.endswith(".lock")]
    left += [path.name for path in run_dir.parent.glob("packs/*.partial")]
    return problems + [f"left behind: {name}" for name in left]


def finish(command: list[str], run_dir: Path, expected: dict[str, str]) -> list[str]:
    """Give the command again, without a fault; what is wrong with its end."""
    newest = find_newest(run_dir)
    ended = run(*command)
    if ended.code != 0:
        return [f"the same command ended with {ended.code}: {ended.complaint}"]
    problems = find_losses(run_dir, expected)
    is_done = newest == find_newest(run_dir)  # then there was nothing to start
    if not is_done and (began := find_first_step(run_dir)) != newest:
        problems.append(f"continued at step {began}, the newest whole checkpoint was of step {newest}")
    return problems


def find_newest(run_dir: Path) -> int:
    """The step of the newest checkpoint that is whole; 0: there is none."""
    for path in checkpoint.list_checkpoints(run_dir):
        try:
            return int(checkpoint.read(path)["done"])
        except Exception:
            continue
    return 0


def find_first_step(run_dir: Path) -> int:
    """The step that the latest start of the run began at, by `environment.json`."""
    content = json.loads((run_dir / "environment.json").read_text())
    return int(content["starts"][-1]["first_step"])


def explain(ended: Ended) -> str:
    """How a command ended, for a report of what went wrong."""
    return f"exit {ended.code}, {ended.complaint or 'nothing on standard error'}"
