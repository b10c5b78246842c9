"""Read and write checkpoints. They are complete or absent, have a checksum, and hold no pickled code.

`checkpoints/step-00005000.pt` holds networks (with BatchNorm statistics), optimizer, number of finished steps
and the fingerprint of the images; `step-00005000.pt.sha256` its checksum. The file also holds the number
of micro-batches, the state of the time budget, and the state of the health checks (best encoder, latest
measures, successive bad verdicts). Everything else that a run needs is a function of the step.
"""

import hashlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from byol.base.disk import read_bytes
from byol.base.errors import CheckpointError, ConfigError, DiskReadError, RunMismatchError
from byol.base.files import is_temporary, write_atomically
from byol.config import Config, diff_configs, dump_config, load_config
from byol.runfolder.lock import LOCK_FILES

FORMAT = 1
KEEP = 2  # number of checkpoints to keep: the newest, and one more in case the newest is damaged
_PATTERN = "step-*.pt"
# What each value of a checkpoint must be. Early versions did not write the last four.
_KINDS: dict[str, tuple[type, ...]] = {
    "done": (int,),
    "byol": (dict,),
    "optimizer": (dict,),
    "data_fingerprint": (str,),
    "num_parts": (int, type(None)),
    "pace": (dict, type(None)),
    "best": (dict, type(None)),
    "watch": (dict, type(None)),
}
# Files that a run folder may hold before its first checkpoint.
_BEFORE_A_CHECKPOINT = (
    "start.json",
    "environment.json",
    "metrics.jsonl",
    "tensorboard",
    "wandb",
    "best",
    "best.json",
    "checkpoints",
    "skipped",
)
# Files that training writes under a temporary name first, which a killed process may leave behind.
_WRITTEN = (
    *LOCK_FILES,
    "config.yaml",
    "start.json",
    "environment.json",
    "metrics.jsonl",
    "best.json",
    "rollback.json",
    "encoder.json",
    "encoder.safetensors",
)


def claim_run_folder(run_dir: Path, config: Config) -> None:
    """Write `config.yaml` into a new run folder, or check that the run there has the same configuration.

    A run without a checkpoint may start again with another configuration, because nothing would be lost.
    `data.source` may differ, if the images are the same: `restore` compares them.

    Raises:
        CheckpointError: the folder cannot be written, or holds something that is not a run.
        RunMismatchError: the run there has another configuration; the message lists the keys.
    """
    path = run_dir / "config.yaml"
    if has_begun(run_dir):
        changes = diff_configs(load_config(path, [], preset=None), config)
        if any(not change.startswith("data.source:") for change in changes):
            raise RunMismatchError(
                f"{run_dir} holds a run with another configuration ({'; '.join(changes)}); to continue it, "
                f"repeat the command that began it{_with_hours(changes)}; to start a new run, choose another "
                "folder with -o"
            )
        return
    check_run_folder(run_dir)
    write_atomically(path, dump_config(config).encode())


def _with_hours(changes: Sequence[str]) -> str:
    """Name the option of a run that was begun with --hours."""
    key = "trainer.max_hours: "
    hours = [each.removeprefix(key).partition(" -> ")[0] for each in changes if each.startswith(key)]
    return f", with --hours {hours[0]}" if hours and hours[0] != "null" else ""


def has_begun(run_dir: Path) -> bool:
    """Return whether the folder holds a run with a checkpoint. byol continues it with its configuration."""
    return (run_dir / "config.yaml").exists() and bool(list_checkpoints(run_dir))


def check_run_folder(run_dir: Path) -> None:
    """Refuse a folder that holds something that is not a run.

    Raises:
        CheckpointError: the path is a file, or the folder holds other files.
    """
    if has_begun(run_dir):
        return
    if run_dir.exists() and not run_dir.is_dir():
        raise CheckpointError(f"{run_dir}: is a file, not a folder; choose another name with -o")
    if run_dir.exists() and _list_names(run_dir) and not _is_young_run(run_dir):
        raise CheckpointError(f"{run_dir}: holds files but no run; choose another folder with -o")


def _list_names(run_dir: Path) -> set[str]:
    """Return the names in the folder, without locks and temporary files of killed processes."""
    names = {path.name for path in run_dir.iterdir()}
    return {name for name in names if name not in LOCK_FILES and not is_temporary(name, of=_WRITTEN)}


def remove_temporaries(run_dir: Path) -> None:
    """Delete temporary files of killed processes. The caller must hold the lock of the run folder."""
    for folder in (run_dir, *(run_dir / name for name in ("target", "best", "checkpoints", "skipped"))):
        for path in folder.iterdir() if folder.is_dir() else ():
            if is_temporary(path.name, of=_WRITTEN) or path.name.startswith(".step-"):
                path.unlink(missing_ok=True)


def _is_young_run(run_dir: Path) -> bool:
    """Return whether the folder holds only a new run, with a `config.yaml` that byol wrote."""
    names = {name for name in _list_names(run_dir) if not name.startswith(".")}
    path = run_dir / "config.yaml"
    if not names <= {path.name, *_BEFORE_A_CHECKPOINT} or not path.is_file():
        return False
    try:
        return read_bytes(path) == dump_config(load_config(path, [], preset=None)).encode()
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
    visits_windows: bool = False,
) -> Path:
    """Write a checkpoint after `done` steps, and delete all but the last KEEP checkpoints. Return its path.

    `num_microbatches` is the current number per batch; `time_budget` is `TimeBudget.state()` or None; `best`
    is the state of `training/best.py`, and `watch` the state of the other health checks. `visits_windows`:
    epochs visit windows of shards.

    Raises:
        CheckpointError: it cannot be written; the earlier checkpoints are unchanged.
    """
    state = {
        "format": FORMAT,
        "done": done,
        "byol": byol.state_dict(),
        "optimizer": optimizer.state_dict(),
        "data_fingerprint": data_fingerprint,
        "windows": visits_windows,
        "num_parts": num_microbatches,
        "pace": time_budget,
        "best": best,
        "watch": watch,
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    path = run_dir / "checkpoints" / f"step-{done:08d}.pt"
    # Write the checksum first, so that no checkpoint ever exists without one.
    write_atomically(_checksum_path(path), hashlib.sha256(data).hexdigest().encode())
    write_atomically(path, data)
    for old in list_checkpoints(run_dir)[KEEP:]:
        old.unlink(missing_ok=True)
        _checksum_path(old).unlink(missing_ok=True)
    return path


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Return the paths of the checkpoints of a run, newest first."""
    return sorted((run_dir / "checkpoints").glob(_PATTERN), reverse=True)


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint; its tensors are on the CPU.

    Raises:
        CheckpointError: it is missing or damaged, or this version does not know its format.
    """
    try:
        data = read_bytes(path)
        wanted = read_bytes(_checksum_path(path)).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    if hashlib.sha256(data).hexdigest() != wanted:
        raise CheckpointError(f"{path}: is damaged (its checksum differs)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other kinds of files
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # content that byol did not write can raise any error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path}: is not a checkpoint of tensors and plain values ({reason[:200]})"
        ) from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: is not a checkpoint of byol, but a {type(state).__name__}")
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: has format {str(state.get('format'))[:20]}; this version of byol reads {FORMAT}"
        )
    for key, kinds in _KINDS.items():
        if not isinstance(state.get(key), kinds):
            raise CheckpointError(f"{path}: is damaged ({key} is a {type(state.get(key)).__name__})")
    return state


def read_latest(run_dir: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """Read the newest undamaged checkpoint (None: there is none); return a line for each damaged, newer one.

    Raises:
        CheckpointError: there are checkpoints, but all of them are damaged.
        DiskReadError: the system could not read the newest one that may be undamaged.
    """
    problems: list[str] = []
    for path in list_checkpoints(run_dir):
        try:
            state = read(path)
        except DiskReadError as error:
            raise DiskReadError(f"{error}, or delete the file to continue from an earlier one") from None
        except CheckpointError as error:
            problems.append(str(error))
            continue
        return state, [
            f"{problem}; continuing from an earlier one, step {state['done']}" for problem in problems
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
    """Load a state of `read_latest` into the networks and the optimizer; return the number of finished steps.

    Raises:
        RunMismatchError: the run was trained on other images.
    """
    if state["data_fingerprint"] != data_fingerprint:
        raise RunMismatchError(
            f"{run_dir}: its images have changed since it started; restore them, or choose another folder "
            f"with -o (network.fine_tune_from={run_dir} starts from the networks of this run)"
        )
    try:
        byol.load_state_dict(state["byol"])
        optimizer.load_state_dict(state["optimizer"])
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(
            f"{run_dir}: its checkpoint of step {state['done']} does not fit the networks of its "
            f"configuration ({reason}); start again in another folder with -o"
        ) from None
    return int(state["done"])


def _checksum_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
