"""What a run needs to go on: written whole or not at all, checked when read, never unpickled code.

`checkpoints/step-00005000.pt` holds networks (with BatchNorm statistics), optimizer, number of finished steps
and what images the run has; `step-00005000.pt.sha256` its checksum. All else is a function of the step, but
for what the machine had to say (the number of micro-batches, the state of the time budget) and what health
checks have found so far: the best encoder, the latest measures, how many checks in a row found it ill.
"""

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from byol.base.errors import CheckpointError, ConfigError, RunMismatchError
from byol.base.files import is_temporary, write_atomically
from byol.config import Config, diff_configs, dump_config, load_config
from byol.runfolder.lock import LOCK_FILES

FORMAT = 1
KEEP = 2  # the newest, and one before it in case the newest is damaged
_PATTERN = "step-*.pt"
# What may lie in a run folder before the first one.
_BEFORE_A_CHECKPOINT = (
    "start.json",
    "environment.json",
    "metrics.jsonl",
    "tensorboard",
    "wandb",
    "best",
    "best.json",
    "checkpoints",
)
# What training writes as a whole: a kill may leave these under temporary names.
_WRITTEN = (
    "config.yaml",
    "start.json",
    "environment.json",
    "metrics.jsonl",
    "best.json",
    "encoder.json",
    "encoder.safetensors",
)


def claim_run_folder(run_dir: Path, config: Config) -> None:
    """Write `config.yaml` into a new run folder, or see that the run there is of the same configuration.

    A run that has not come to its first checkpoint has nothing to lose: it may start again with another.
    `data.source` may differ, if it holds the same images: `restore` compares them.

    Raises:
        CheckpointError: the folder cannot be written, or holds something that is not a run.
        RunMismatchError: the run there has another configuration; the message lists the keys.
    """
    path = run_dir / "config.yaml"
    if has_begun(run_dir):
        changes = diff_configs(load_config(path, [], preset=None), config)
        if any(not change.startswith("data.source:") for change in changes):
            raise RunMismatchError(
                f"{run_dir} holds a run of another configuration ({'; '.join(changes)}); "
                "go back to its values, or choose another folder with -o"
            )
        return
    check_run_folder(run_dir)
    write_atomically(path, dump_config(config).encode())


def has_begun(run_dir: Path) -> bool:
    """Whether the folder holds a run with a checkpoint, which is continued as it was configured."""
    return (run_dir / "config.yaml").exists() and bool(list_checkpoints(run_dir))


def check_run_folder(run_dir: Path) -> None:
    """Refuse a folder that holds something that is not a run.

    Raises:
        CheckpointError: it is a file, or holds other things.
    """
    if has_begun(run_dir):
        return
    if run_dir.exists() and not run_dir.is_dir():
        raise CheckpointError(f"{run_dir}: is a file, a run is a folder; choose another name with -o")
    if run_dir.exists() and _list_names(run_dir) and not _is_young_run(run_dir):
        raise CheckpointError(f"{run_dir}: is not empty and not a run; choose another folder with -o")


def _list_names(run_dir: Path) -> set[str]:
    """What lies in the folder, but for locks and for what a kill has left under temporary names."""
    names = {path.name for path in run_dir.iterdir()}
    return {name for name in names if name not in LOCK_FILES and not is_temporary(name, of=_WRITTEN)}


def remove_temporaries(run_dir: Path) -> None:
    """Delete what killed trainings have left half-written; call it only as the one writer of the run."""
    for folder in (run_dir, run_dir / "target", run_dir / "best", run_dir / "checkpoints"):
        for path in folder.iterdir() if folder.is_dir() else ():
            if is_temporary(path.name, of=_WRITTEN) or path.name.startswith(".step-"):
                path.unlink(missing_ok=True)


def _is_young_run(run_dir: Path) -> bool:
    """Nothing but what a run has before its first checkpoint; a `config.yaml` by hand is somebody's work."""
    names = {name for name in _list_names(run_dir) if not name.startswith(".")}
    path = run_dir / "config.yaml"
    if not names <= {path.name, *_BEFORE_A_CHECKPOINT} or not path.is_file():
        return False
    try:
        return path.read_bytes() == dump_config(load_config(path, [], preset=None)).encode()
    except ConfigError:
        return False


def save(
    run_dir: Path,
    done: int,
    *,
    byol: nn.Module,
    optimizer: torch.optim.Optimizer,
    data_fingerprint: str,
    num_microbatches: int,
    time_budget: dict[str, Any] | None,
    best: dict[str, Any],
    watch: dict[str, Any] | None,
) -> Path:
    """Write the state after `done` steps and drop all but the last KEEP checkpoints.

    `num_microbatches` is how many a batch is computed in by now, `time_budget` the `TimeBudget.state()` of a
    run with a time budget, `best` the state of `training/best.py`, `watch` that of the other health checks.

    Raises:
        CheckpointError: it cannot be written; the earlier checkpoints are as they were.
    """
    state = {
        "format": FORMAT,
        "done": done,
        "byol": byol.state_dict(),
        "optimizer": optimizer.state_dict(),
        "data_fingerprint": data_fingerprint,
        "num_parts": num_microbatches,
        "pace": time_budget,
        "best": best,
        "watch": watch,
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    path = run_dir / "checkpoints" / f"step-{done:08d}.pt"
    # The checksum first: a checkpoint without one is never seen.
    write_atomically(_checksum_path(path), hashlib.sha256(data).hexdigest().encode())
    write_atomically(path, data)
    for old in list_checkpoints(run_dir)[KEEP:]:
        old.unlink(missing_ok=True)
        _checksum_path(old).unlink(missing_ok=True)
    return path


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, newest first."""
    return sorted((run_dir / "checkpoints").glob(_PATTERN), reverse=True)


def read(path: Path) -> dict[str, Any]:
    """A checkpoint's content, on the CPU.

    Raises:
        CheckpointError: it is missing, damaged, or of a format this version does not know.
    """
    try:
        data = path.read_bytes()
        wanted = _checksum_path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    if hashlib.sha256(data).hexdigest() != wanted:
        raise CheckpointError(f"{path}: is damaged (its checksum differs)")
    try:
        state = cast(dict[str, Any], torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: is not a checkpoint of plain values ({str(error).splitlines()[0]})"
        ) from None
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: is of format {state.get('format')}; this version of byol reads {FORMAT}"
        )
    return state


def read_latest(run_dir: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest readable checkpoint (None: there is none), and a line for each damaged one passed over.

    Raises:
        CheckpointError: there are checkpoints, and every one is damaged.
    """
    problems: list[str] = []
    for path in list_checkpoints(run_dir):
        try:
            state = read(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        return state, [
            f"{problem}; going on from the one before, step {state['done']}" for problem in problems
        ]
    if problems:
        raise CheckpointError(f"{'; '.join(problems)}; start again in another folder with -o")
    return None, problems


def restore(
    run_dir: Path,
    state: dict[str, Any],
    *,
    byol: nn.Module,
    optimizer: torch.optim.Optimizer,
    data_fingerprint: str,
) -> int:
    """Load what `read_latest` found in `run_dir`, in place; the number of finished steps.

    Raises:
        RunMismatchError: the run was made with other images.
    """
    if state["data_fingerprint"] != data_fingerprint:
        raise RunMismatchError(
            f"{run_dir}: its images have changed since it started; put the old ones back, or choose another "
            f"folder with -o (network.fine_tune_from={run_dir} starts from its networks)"
        )
    byol.load_state_dict(state["byol"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["done"])


def _checksum_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
