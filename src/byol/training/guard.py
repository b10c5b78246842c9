"""Count and record the steps that are not applied because their loss or gradient is not finite.

After LIMIT such steps in a row the run goes back to its last checkpoint, once, with half the learning rate.
"""

from typing import Any

import torch
from torch import Tensor

from byol.base.console import Say
from byol.base.errors import CheckpointError
from byol.runfolder import checkpoint
from byol.training import alarms, best, rollback, skipped
from byol.training.rollback import Rollback
from byol.training.setup import Setup
from byol.training.skipped import Skipped
from byol.training.step import Computed
from byol.training.update import apply_step, measure

LIMIT = 3  # successive steps that are not applied, after which the run has failed


class Guard:
    """Applies the steps of a run, except those whose loss or gradient is not finite."""

    def __init__(self, setup: Setup, *, say: Say) -> None:
        self._setup, self._say = setup, say
        # Steps that the host has not looked at, each with `measure` and micro-batches per batch.
        self._unread: list[tuple[int, Tensor, int]] = []
        self.in_a_row = 0 if setup.watch is None else int(setup.watch.get("skipped", 0))
        self.failed_at: int | None = None  # the last of LIMIT successive steps that were not applied
        self._num_files = 0
        self._weights: str | None = None  # the file with the weights of the current series of such steps

    @property
    def state(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {"skipped": self.in_a_row}

    def apply(self, computed: Computed, *, step: int, tau: float) -> None:
        """Apply a step. The gradients are in the parameters, and are removed."""
        setup = self._setup
        measured = measure(computed.loss, setup.optimizer, ranks=setup.ranks)
        applied = apply_step(
            setup.byol,
            setup.optimizer,
            tau=tau,
            finite=torch.isfinite(measured).all(),
            statistics=computed.statistics,
        )
        if applied is not None:
            self._count(step, None if applied else measured.tolist(), computed.num_microbatches, since=0)
        else:
            self._unread.append((step, measured, computed.num_microbatches))

    def look(self) -> None:
        """Look at the steps since the last call. The host waits for a GPU here."""
        if self._unread:
            found = torch.stack([measured for _, measured, _ in self._unread])
            is_finite = torch.isfinite(found).all(dim=1).tolist()
            for place, (step, _, number) in enumerate(self._unread):
                values = None if is_finite[place] else found[place].tolist()
                self._count(step, values, number, since=sum(is_finite[place:]))
            self._unread.clear()

    def _count(self, step: int, bad: list[float] | None, num_microbatches: int, *, since: int) -> None:
        """Count a step; `bad`: loss and gradient norm of one that was not applied.

        `since`: steps after it that have been applied already, because the host looks late.
        """
        if self.failed_at is not None:
            return
        self.in_a_row = 0 if bad is None else self.in_a_row + 1
        if bad is None:
            self._weights = None
            return
        self._record(step, bad, num_microbatches, since=since)
        if self.in_a_row == LIMIT:
            self.failed_at = step

    def _record(self, step: int, values: list[float], num_microbatches: int, *, since: int) -> None:
        setup, plan = self._setup, self._setup.plan
        rows: list[int] = plan.indices(step).tolist()
        found = f"loss {values[0]:.3g}, gradient norm {values[1]:.3g}"
        where = ""
        if self._num_files < skipped.MAX_RECORDS and setup.ranks.is_main:
            record = Skipped(
                step=step,
                loss=f"{values[0]:.9g}",
                gradient_norm=f"{values[1]:.9g}",
                lr=setup.lr(step),
                seed=plan.seed,
                views_key=plan.key("views", step),
                network_key=plan.key("network", step),
                num_ranks=setup.ranks.world_size,
                accumulation_steps=num_microbatches,
                rows=rows,
                images=[setup.images.names[row] for row in rows],
                weights=self._save_weights(step),
                steps_between=since,
                data_fingerprint=setup.images.fingerprint,
                device=setup.ranks.device.type,
                dtype=str(setup.ranks.dtype).removeprefix("torch."),
                num_threads=torch.get_num_threads(),
                vicreg_weight=plan.vicreg_weight(setup.budget.position(step)),
            )
            path = skipped.write(setup.run_dir, record)
            self._num_files += 1
            where = f"; {path.relative_to(setup.run_dir)} names its images"
            if record.weights is not None:
                where += f", and `byol replay {setup.run_dir} {step}` finds where it begins"
        self._say(f"warning: byol did not apply step {step}, which is not finite ({found}){where}")

    def _save_weights(self, step: int) -> str | None:
        """Return the file with the weights, which all steps of a series share; None: the disk refuses it."""
        if self._weights is None:
            try:
                self._weights = skipped.write_weights(self._setup.run_dir, self._setup.byol, step=step)
            except CheckpointError as error:
                self._say(f"warning: {error}; without this file, `byol replay` cannot repeat step {step}")
        return self._weights


def roll_back(setup: Setup, *, failed_at: int, say: Say) -> int:
    """Let the run continue from its last checkpoint with half the learning rate; return the steps of that.

    It is recorded in `rollback.json`; `prepare` then goes on from there. All ranks call this.

    Raises:
        DivergedError: there is no checkpoint, or the run has already gone back once.
        CheckpointError: the record cannot be written, or all checkpoints are damaged.
    """
    state, _ = checkpoint.read_latest(setup.run_dir)
    if state is None or setup.rollback is not None:
        raise alarms.explain_divergence(
            setup.config,
            setup.plan,
            steps=(failed_at - LIMIT + 1, failed_at),
            lr=setup.lr(failed_at),
            again=setup.rollback is not None,
        )
    setup.ranks.wait()  # until all have read
    saved_s = 0.0 if state["pace"] is None else float(state["pace"]["elapsed_s"])
    abandoned_s = 0.0 if setup.plan.budget_s is None else max(0.0, setup.budget.elapsed_s - saved_s)
    record = Rollback(failed_at, back_to=int(state["done"]), abandoned_s=abandoned_s)
    if setup.ranks.is_main:
        best.forget(setup.run_dir, after=record.back_to)
        rollback.write(setup.run_dir, record)
    setup.ranks.wait()
    say(
        f"warning: steps {failed_at - LIMIT + 1} to {failed_at} are not finite; going back to the checkpoint "
        f"of step {record.back_to} with half the learning rate"
    )
    return record.back_to
