"""Compute loss and gradient of one batch, accumulated over micro-batches to save memory.

If memory runs out, the step is repeated with twice as many micro-batches. Images and views stay the same, but
BatchNorm then sees half as many images at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from byol.base.console import Say
from byol.base.errors import ConfigError
from byol.device.devices import empty_cache
from byol.device.memory import is_out_of_memory
from byol.device.ranks import Ranks
from byol.kernels.winograd import constant_weights
from byol.training.snapshot import Snapshot

MIN_MICROBATCH = 8  # images; BatchNorm statistics of fewer images are too noisy

MakeViews = Callable[..., tuple[Tensor, ...]]  # (images, rows=their rows in the global batch) -> 2 or 3 views
ShowViews = Callable[..., None]  # of the views


@dataclass(frozen=True)
class Computed:
    """Loss and projections of a batch. The gradients are in the parameters."""

    loss: Float[Tensor, ""]  # mean over the images of this rank
    projection: Float[Tensor, "microbatch dim"]  # of the last micro-batch's second view, without gradient
    num_microbatches: int  # number of micro-batches that were used
    statistics: Snapshot  # the BatchNorm statistics before the step


def can_halve(batch_size: int, *, num_microbatches: int, world_size: int) -> bool:
    """Return whether a batch divides into twice as many equal micro-batches of at least MIN_MICROBATCH."""
    share = 2 * num_microbatches * world_size
    return batch_size % share == 0 and batch_size // share >= MIN_MICROBATCH


def compute_within_memory(
    network: nn.Module,
    images: Num[Tensor, "batch channel stored stored"],
    *,
    make: MakeViews,
    show: ShowViews | None,
    num_microbatches: int,
    ranks: Ranks,
    seed: int,
    say: Say,
    vicreg_weight: float = 0.0,
) -> Computed:
    """Call `compute_gradients`; if memory runs out, undo it and repeat it with twice as many micro-batches.

    `seed`: seed of PyTorch's generators, for example for dropout. `say` receives a line for each repetition.

    Raises:
        ConfigError: the smallest micro-batch does not fit; or one of several ranks runs out of memory,
            because the other ranks wait for it and cannot be informed.
    """
    statistics = Snapshot(network.buffers())
    while True:
        torch.manual_seed(seed)
        try:
            loss, projection = compute_gradients(
                network,
                images,
                make=make,
                show=show,
                num_microbatches=num_microbatches,
                ranks=ranks,
                vicreg_weight=vicreg_weight,
            )
            return Computed(loss, projection, num_microbatches, statistics)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Not in the except block, because the error keeps the memory of the attempt alive.
        statistics.restore()
        network.zero_grad(set_to_none=True)
        empty_cache(ranks.device)
        microbatch = images.shape[0] // num_microbatches
        if ranks.world_size > 1:
            raise ConfigError(
                f"trainer.accumulation_steps: rank {ranks.rank} ran out of memory on {microbatch} images at "
                f"once; continue with trainer.accumulation_steps={2 * num_microbatches} in the same command"
            )
        if not can_halve(images.shape[0], num_microbatches=num_microbatches, world_size=1):
            raise ConfigError(
                f"trainer.batch_size: out of memory on {microbatch} images at a time, and a batch of "
                f"{images.shape[0]} has no smaller, equal micro-batches of {MIN_MICROBATCH} or more; set a "
                "smaller network.name or data_transforms.input_shape, or a batch that is a power of two"
            )
        num_microbatches *= 2
        say(
            f"out of memory: continuing with trainer.accumulation_steps={num_microbatches} (set it to skip "
            f"this retry); BatchNorm then sees {microbatch // 2} images at a time"
        )


def compute_gradients(
    network: nn.Module,
    images: Num[Tensor, "batch channel stored stored"],
    *,
    make: MakeViews,
    show: ShowViews | None,
    num_microbatches: int,
    ranks: Ranks,
    vicreg_weight: float = 0.0,
) -> tuple[Float[Tensor, ""], Float[Tensor, "microbatch dim"]]:
    """Compute the loss of this rank's images; add its gradient, averaged over ranks, to `.grad`.

    BatchNorm sees one micro-batch at a time, and so do VICReg's terms with `vicreg_weight`. `show` receives
    the views of the first micro-batch. Returns loss and projection as in `Computed`.
    """
    microbatches = _split(images, ranks, num_microbatches=num_microbatches)
    loss = torch.zeros((), device=ranks.device)
    with constant_weights():
        for number, (microbatch, rows) in enumerate(microbatches):
            views = make(microbatch, rows=rows)
            view1, view2, *weak = views
            if show is not None and number == 0:
                show(*views)
            target = None
            if weak:
                with torch.no_grad(), ranks.autocast():
                    target = ranks.unwrap(network).target(weak[0])
            # One direction after the other, so that memory holds the activations of only one view.
            for view, other in ((view1, view2), (view2, view1)):
                with ranks.exchange(network, last=number == num_microbatches - 1 and view is view2):
                    with ranks.autocast():
                        microbatch_loss, projection = network(
                            view,
                            weak[0] if weak else other,
                            symmetric=False,
                            vicreg_weight=vicreg_weight,
                            target=target,
                        )
                    (microbatch_loss / num_microbatches).backward()
                loss += microbatch_loss.detach() / num_microbatches
    return loss, projection


def _split(images: Tensor, ranks: Ranks, *, num_microbatches: int) -> list[tuple[Tensor, slice]]:
    """Divide this rank's images into equal micro-batches, each with its rows in the global batch."""
    size = images.shape[0] // num_microbatches
    step, first = ranks.world_size, ranks.rank
    return [
        (images[at : at + size], slice(first + at * step, first + (at + size) * step, step))
        for at in range(0, images.shape[0], size)
    ]
