"""Lock a run folder, so that only one training or fine-tuning writes into it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from byol.base.errors import CheckpointError, RunInUseError
from byol.base.files import reason_of
from byol.base.locks import Holder, hold

FILE_NAME = ".lock"
LOCK_FILES = frozenset({FILE_NAME, f"{FILE_NAME}.json"})


@contextmanager
def only_writer(folder: Path, *, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of `folder` during the block. Commands that only read do not need it.

    In a job of several ranks only the first one writes, so only it calls this. `say` receives a line if the
    file system has no locks. A folder that this function created is removed if the block left it empty.

    Raises:
        RunInUseError: another process holds the lock; the message names it.
        CheckpointError: the folder cannot be created.
    """

    def refuse(holder: Holder | None) -> None:
        raise RunInUseError(_explain(folder, holder))

    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be written ({reason_of(error)}); choose another place with -o"
        ) from None
    with hold(folder / FILE_NAME, while_busy=refuse) as refusal:
        if refusal is not None:
            say(
                f"{folder}: cannot be locked ({reason_of(refusal)}): make sure that no second process writes "
                "into it at the same time"
            )
        try:
            yield
        finally:
            if is_new:
                _remove_if_empty(folder)


def _explain(folder: Path, holder: Holder | None) -> str:
    who = "another process" if holder is None else str(holder)
    text = (
        f"{folder}: {who} is writing to this folder; wait until it ends, stop it, or choose another with -o"
    )
    if holder is not None and holder.is_gone:
        return (
            f"{text} (this host has no such process: if no other host or container has it either, the lock "
            f"is stale, delete {folder / FILE_NAME})"
        )
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "WORLD_SIZE" not in os.environ:
        return f"{text} (Slurm started this command several times: use srun -n 1, or torchrun for ranks)"
    return text


def _remove_if_empty(folder: Path) -> None:
    """Remove the folder if it holds only lock files, so that a refused command leaves nothing behind."""
    with suppress(OSError):
        names = {path.name for path in folder.iterdir()}
        if names <= LOCK_FILES:
            for name in names:
                (folder / name).unlink()
            folder.rmdir()
