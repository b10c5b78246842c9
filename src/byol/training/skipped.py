"""The steps that were not applied, in the folder `skipped/` of a run: a record of each, and their weights.

`step-00000009.json` holds all that the step depends on, and names the file with the weights that it was
computed with, which `byol replay` needs. Steps in a row share one file, because none of them changed the
weights. The first characters of its checksum are in its name, so a record can never meet other weights.
"""

import hashlib
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from byol.base.disk import read_bytes
from byol.base.errors import CheckpointError
from byol.base.files import read_fields, write_atomically, write_fields

FORMAT = 1
FOLDER = "skipped"
MAX_RECORDS = 20  # of each start: a run that skips one step after the other must not fill the disk
KEEP_WEIGHTS = 2  # files of weights in a run folder, each about two thirds of a checkpoint
_RECORD = re.compile(r"step-([0-9]{8,12})\.json")
_WEIGHTS = re.compile(r"step-[0-9]{8,12}-[0-9a-f]{12}\.safetensors")
_AGAIN = "the run is not affected; only this step cannot be replayed"


@dataclass(frozen=True)
class Skipped:
    """The content of `skipped/step-*.json`: all that a step depends on. Early versions lack the last ones."""

    step: int
    loss: str  # as text, because JSON has no NaN
    gradient_norm: str
    lr: float
    seed: int  # `trainer.seed`
    views_key: int  # seed of the views
    network_key: int  # seed of PyTorch's generators on the first rank; that of rank r is larger by r
    num_ranks: int
    accumulation_steps: int
    rows: list[int]  # of the images in the pack, in the order of the batch
    images: list[str]  # their names
    weights: str | None = None  # name of the file beside it; None: they could not be written
    steps_between: int = 0  # steps that changed the weights after this one, before they were written
    data_fingerprint: str = ""  # of the packed images
    device: str = ""  # its kind, such as "cpu" or "cuda"
    dtype: str = ""  # in which the networks computed, such as "float32"
    num_threads: int = 0  # of PyTorch on a CPU
    vicreg_weight: float = 0.0  # of VICReg's terms in this step


def write(run_dir: Path, skipped: Skipped) -> Path:
    """Write the record of a step; return its path.

    Raises:
        CheckpointError: it cannot be written.
    """
    path = run_dir / FOLDER / f"step-{skipped.step:08d}.json"
    write_fields(path, {"format": FORMAT, **asdict(skipped)})
    return path


def list_steps(run_dir: Path) -> list[int]:
    """Return the steps that have a record, in order."""
    folder = run_dir / FOLDER
    names = (_RECORD.fullmatch(path.name) for path in (folder.iterdir() if folder.is_dir() else ()))
    return sorted(int(name[1]) for name in names if name)


def read(run_dir: Path, step: int) -> Skipped | None:
    """Read the record of a step; None: there is none.

    Raises:
        CheckpointError: the file is damaged or has another format.
    """
    path = run_dir / FOLDER / f"step-{step:08d}.json"
    return read_fields(path, versions=(FORMAT,), make=_check, advice=_AGAIN)


def _check(fields: dict[str, object]) -> Skipped:
    skipped = Skipped(**fields)  # type: ignore[arg-type]
    for name, kind in (("rows", int), ("images", str)):
        values = getattr(skipped, name)
        if not isinstance(values, list) or not all(type(value) is kind for value in values):
            raise ValueError(f"{name} is not a list of {kind.__name__}")
    numbers = (skipped.views_key, skipped.network_key, skipped.num_ranks, skipped.accumulation_steps)
    if not all(type(value) is int and value >= 0 for value in (*numbers, skipped.num_threads)):
        raise ValueError("a number is missing or negative")
    if not isinstance(skipped.vicreg_weight, float) or not 0.0 <= skipped.vicreg_weight < float("inf"):
        raise ValueError("vicreg_weight is not a finite number of at least 0")
    if len(skipped.rows) != len(skipped.images) or not skipped.rows or skipped.accumulation_steps < 1:
        raise ValueError("its images do not fit together")
    if skipped.weights is not None and not _WEIGHTS.fullmatch(str(skipped.weights)):
        raise ValueError("weights is not the name of a file beside it")
    return skipped


def write_weights(run_dir: Path, byol: nn.Module, *, step: int) -> str:
    """Write the weights of all networks as they are now; return the name of the file.

    Of the earlier files the one with the largest step stays.

    Raises:
        CheckpointError: they cannot be written.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in byol.state_dict().items()}
    content = to_safetensors(state)
    name = f"step-{step:08d}-{_digest(content)}.safetensors"
    folder = run_dir / FOLDER
    write_atomically(folder / name, content)
    others = sorted(path for path in folder.iterdir() if _WEIGHTS.fullmatch(path.name) and path.name != name)
    for path in others[: max(0, len(others) + 1 - KEEP_WEIGHTS)]:
        path.unlink(missing_ok=True)
    return name


def read_weights(run_dir: Path, skipped: Skipped) -> dict[str, Tensor]:
    """Read the weights that a step was computed with.

    Raises:
        CheckpointError: they were not written, have been deleted, or are damaged.
    """
    if skipped.weights is None:
        raise CheckpointError(
            f"{run_dir / FOLDER}: has no weights for step {skipped.step}, so the step cannot be replayed: "
            "the disk was full, or an earlier version of byol wrote the record"
        )
    path = run_dir / FOLDER / skipped.weights
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no such file; byol keeps the weights of the last {KEEP_WEIGHTS} places where steps "
            "were not finite, so `byol replay RUN` without a step replays the latest one"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); {_AGAIN}") from None
    try:
        if _digest(content) not in path.name:
            raise ValueError("its checksum differs")
        return load_tensors(content)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: is damaged ({error}); {_AGAIN}") from None


def load_weights(run_dir: Path, skipped: Skipped, byol: nn.Module) -> None:
    """Put the weights of a step into the networks.

    Raises:
        CheckpointError: as `read_weights`, or they are of other networks.
    """
    weights = read_weights(run_dir, skipped)
    try:
        with torch.no_grad():
            byol.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:200]
        raise CheckpointError(
            f"{run_dir / FOLDER / str(skipped.weights)}: does not fit the networks of config.yaml ({reason})"
        ) from None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
