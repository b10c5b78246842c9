"""Loss and gradient of one batch, computed in parts, one after another, to save memory."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from byol.training.distributed import Ranks

MakeViews = Callable[..., tuple[Tensor, Tensor]]  # (images, rows=their rows of the global batch)
ShowViews = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class Computed:
    """What a batch gave; the gradients are in the parameters."""

    loss: Float[Tensor, ""]  # of this rank's images, their mean
    projection: Float[Tensor, "part dim"]  # of the last part's first view, without gradient


def compute_gradients(
    network: nn.Module,
    images: Num[Tensor, "batch channel stored stored"],
    *,
    make: MakeViews,
    show: ShowViews | None,
    num_parts: int,
    ranks: Ranks,
) -> Computed:
    """The loss of this rank's images and its gradient, which is added to `.grad`; over ranks it is averaged.

    BatchNorm sees one of the `num_parts` parts at a time. `show` is given the first part's views.
    """
    parts = _split(images, ranks, num_parts=num_parts)
    loss = torch.zeros((), device=ranks.device)
    for number, (part, rows) in enumerate(parts):
        view1, view2 = make(part, rows=rows)
        if show is not None and number == 0:
            show(view1, view2)
        with ranks.exchange(network, last=number == num_parts - 1):
            with ranks.autocast():
                part_loss, projection = network(view1, view2)
            (part_loss / num_parts).backward()
        loss += part_loss.detach() / num_parts
    return Computed(loss, projection)


def _split(images: Tensor, ranks: Ranks, *, num_parts: int) -> list[tuple[Tensor, slice]]:
    """This rank's images in equal parts, each with its rows of the global batch."""
    size = images.shape[0] // num_parts
    step, first = ranks.world_size, ranks.rank
    return [
        (images[at : at + size], slice(first + at * step, first + (at + size) * step, step))
        for at in range(0, images.shape[0], size)
    ]
