"""A run whose images lie at another path than before: they must be the same, which packing shows."""

from pathlib import Path

from byol.base.errors import DataError, RunMismatchError
from byol.base.files import write_atomically
from byol.config import Config, dump_config, load_config
from byol.data.pack.images import packs_of
from byol.data.pack.packed_source import open_any_source
from byol.runfolder import checkpoint, environment


def find_earlier_source(config: Config, run_dir: Path) -> str | None:
    """`data.source` of the run in `run_dir`, if it has begun with another one.

    Raises:
        RunMismatchError: there are more or fewer images than before. So a wrong path is refused before the
            images are packed.
    """
    if not checkpoint.has_begun(run_dir):
        return None
    before = load_config(run_dir / "config.yaml", [], preset=None).data.source
    if before == config.data.source:
        return None
    record = environment.read(run_dir)
    try:
        num = len(open_any_source(config.data, packs_of(config, run_dir)))
    except DataError:  # said when they are opened
        return before
    if record is not None and num != record.num_images + record.num_bad:
        raise RunMismatchError(
            f"{run_dir}: was trained on {record.num_images + record.num_bad} images of {before}, "
            f"{config.data.source} holds {num}; give the same images, or choose another folder with -o"
        )
    return before


def note_new_source(config: Config, run_dir: Path, *, before: str) -> str:
    """Write the path that has proved to hold the same images into `config.yaml`; a line that says so.

    Raises:
        CheckpointError: the file cannot be written.
    """
    path = run_dir / "config.yaml"
    saved = load_config(path, [], preset=None)
    data = saved.data.model_copy(update={"source": config.data.source})
    write_atomically(path, dump_config(saved.model_copy(update={"data": data})).encode())
    return f"{config.data.source} holds the same images as {before}, so the run continues"
