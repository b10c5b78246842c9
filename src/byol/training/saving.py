"""Save a run: the checkpoint, both encoders, and the record of its starts."""

from pathlib import Path
from typing import Any

from byol.encoder.encoder import save_encoder
from byol.encoder.spec import EncoderSpec
from byol.runfolder import checkpoint, environment
from byol.training.setup import Setup


class Saver:
    """Writes the files of one run. Does nothing on ranks other than the first."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self.record = environment.begin(
            setup.run_dir,
            num_images=len(setup.images),
            num_bad=setup.images.num_bad,
            first_step=setup.done,
            ranks=setup.ranks,
        )
        if setup.done:  # the encoders may be older than the checkpoint, missing or damaged
            self.save_encoders(setup.done)

    def save(self, done: int, *, num_microbatches: int, best: dict[str, Any], watch: dict[str, Any]) -> None:
        """Write all files after `done` steps. `num_microbatches`: the current number per batch.

        Raises:
            CheckpointError: a file cannot be written; the files of the previous checkpoint are unchanged.
        """
        setup = self._setup
        if not setup.ranks.is_main:
            return
        checkpoint.save(
            setup.run_dir,
            done,
            byol=setup.byol,
            optimizer=setup.optimizer,
            data_fingerprint=setup.images.fingerprint,
            visits_windows=bool(setup.plan.shards),
            num_microbatches=num_microbatches,
            time_budget=setup.budget.state(),
            best=best,
            watch=watch,
        )
        self.save_encoders(done)
        self.save_record(done)

    def save_encoders(self, done: int) -> None:
        """Write the online encoder into the run folder and the target encoder into its folder `target/`."""
        if self._setup.ranks.is_main:
            self.save_online(self._setup.run_dir, done)
            target = EncoderSpec.of(self._setup.config, self._setup.images, which="target", done=done)
            save_encoder(self._setup.run_dir / "target", self._setup.byol.target.encoder, target)

    def save_online(self, folder: Path, done: int) -> None:
        """Write the online encoder into `folder`."""
        if self._setup.ranks.is_main:
            spec = EncoderSpec.of(self._setup.config, self._setup.images, which="online", done=done)
            save_encoder(folder, self._setup.byol.online.encoder, spec)

    def save_record(self, done: int) -> None:
        """Write `environment.json`; this start now has `done` finished steps."""
        if self._setup.ranks.is_main:
            environment.write(self._setup.run_dir, self.record, done=done)
