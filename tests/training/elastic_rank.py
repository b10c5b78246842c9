"""One rank of `test_elastic.py`, under torchrun or alone: train in fp64 and note the images.

    python -m torch.distributed.run --nproc-per-node=4 elastic_rank.py JOB

JOB is JSON: `overrides` of the configuration, `run_dir`, `notes` (a folder), and `stop_after`: steps of this
start after which the last rank alone sends itself SIGTERM (null: never).
"""

import json
import os
import signal
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from byol.config import load_config
from byol.method.networks import Byol
from byol.training import fixed_images, loop
from byol.training.loop import train


def main(job: dict[str, Any], setattr: Callable[..., None] = setattr) -> None:
    """Do the job. `setattr`: pytest's, so that the changes to the modules end with the test."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    compute_in_fp64(setattr)
    stop_after = job["stop_after"] if rank == world_size - 1 else None
    note_steps(Path(job["notes"]) / f"{rank}.jsonl", stop_after, setattr)
    outcome = train(load_config(None, job["overrides"], preset="demo"), Path(job["run_dir"]))
    answer = {"done": outcome.done, "stopped_by": outcome.stopped_by}
    (Path(job["notes"]) / f"{rank}.outcome").write_text(json.dumps(answer))


def compute_in_fp64(setattr: Callable[..., None]) -> None:
    """Make networks and views fp64, so that rounding stays far below what a wrong image would change."""
    make_views, whole_view, make_byol = loop.make_training_views, fixed_images.whole_view, Byol.of

    def make_views_in_fp64(*arguments: Any, **others: Any) -> tuple[Tensor, ...]:
        return tuple(view.double() for view in make_views(*arguments, **others))

    setattr(Byol, "of", lambda *a, **k: make_byol(*a, **k).double())
    setattr(loop, "make_training_views", make_views_in_fp64)
    setattr(fixed_images, "make_views", lambda *a, **k: make_views_in_fp64(*a, **k)[:2])
    setattr(fixed_images, "whole_view", lambda *a, **k: whole_view(*a, **k).double())


def note_steps(path: Path, stop_after: int | None, setattr: Callable[..., None]) -> None:
    """Write a line per step, the checksums of the images that reach the networks; stop when told to."""
    compute, num_steps = loop.compute_within_memory, 0

    def compute_and_note(network: Any, images: Tensor, **others: Any) -> Any:
        nonlocal num_steps
        num_steps += 1
        if num_steps == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        checksums = [zlib.crc32(image.contiguous().numpy().tobytes()) for image in images]
        with path.open("a") as file:
            file.write(json.dumps(checksums) + "\n")
        return compute(network, images, **others)

    setattr(loop, "compute_within_memory", compute_and_note)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(json.loads(sys.argv[1]))
