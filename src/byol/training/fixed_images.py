"""The same images at every health check: measured whole and in two views, and what views leave of them."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from byol.config import DataTransforms
from byol.data.pack.packed import Packed
from byol.device.devices import measured_on, send_stored
from byol.device.ranks import Ranks
from byol.method.networks import Byol
from byol.method.schedule import Plan
from byol.method.views import Pixels, make_views, whole_view
from byol.metrics import health
from byol.training.loggers import Embedding
from byol.training.runlog import stretch

_PART = 64  # images that the network sees at once
_THUMBNAIL_PX = 32


@dataclass(frozen=True)
class FixedImages:
    """Some images of the run, in random order, on the device; their labels are only reported on."""

    stored: Tensor
    sizes: Tensor
    labels: Tensor
    pixels: Pixels
    transforms: DataTransforms
    key: int  # of the random numbers of their views
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, images: Packed, plan: Plan, *, transforms: DataTransforms, ranks: Ranks) -> "FixedImages":
        """At most `health.NUM_IMAGES` images, a function of the seed."""
        generator = torch.Generator().manual_seed(plan.key("health", 0))
        # Not sorted: BatchNorm is to see a mixture, and files of a class often follow each other.
        chosen = torch.randperm(len(images), generator=generator)[: health.NUM_IMAGES].numpy()
        stored = torch.from_numpy(images.read(chosen)).permute(0, 3, 1, 2)
        return cls(
            send_stored(stored, ranks.device),
            torch.from_numpy(images.sizes[chosen].astype(np.float32)),
            torch.from_numpy(images.labels[chosen]).to(ranks.device),
            images.pixels,
            transforms,
            plan.key("health", 1),
            tuple(images.names[int(index)] for index in chosen),
        )

    def whole(self, rows: slice = slice(None)) -> Float[Tensor, "image channel view view"]:
        """The whole images as the network is to see them."""
        return whole_view(self.stored[rows], self.transforms.view_px, pixels=self.pixels)

    def views(
        self, rows: slice = slice(None), *, transforms: DataTransforms | None = None
    ) -> tuple[Tensor, Tensor]:
        """Two random views of each image, the same at every call; `transforms`: by other settings."""
        return make_views(
            self.stored[rows],
            self.sizes,
            transforms or self.transforms,
            key=self.key,
            rows=rows,
            pixels=self.pixels,
        )

    @torch.no_grad()
    def look(self, byol: Byol, *, ranks: Ranks) -> tuple[health.Health, health.Measures]:
        """The health of projections, and measures of representations. The host waits here.

        In train mode, as the loss sees the network, but on copies of its buffers: nothing changes. First and
        second views pass it in other company, so that what BatchNorm knows of the batch helps to find none.
        """
        stretches = self._stretches()
        combs = [slice(at, None, len(stretches)) for at in range(len(stretches))]
        encoder, projector = (_Frozen(part) for part in (byol.online.encoder, byol.online.projector))
        with ranks.autocast():
            whole = [encoder(self.whole(rows)) for rows in stretches]
            projections = torch.cat([projector(features) for features in whole])
            first = torch.cat([encoder(self.views(rows)[0]) for rows in stretches])
            second = torch.empty_like(first)
            for rows in combs:
                second[rows] = encoder(self.views(rows)[1])
        features, first, second = (measured_on(x) for x in (torch.cat(whole), first, second))
        measures = health.Measures(
            float(health.measure_retrieval(first, second)),
            float(health.measure_rank(features)),
            health.measure_knn(features, measured_on(self.labels)),
            float(health.measure_alignment(first, second)),
            float(health.measure_uniformity(first)),
        )
        return health.judge(measured_on(projections)), measures

    @torch.no_grad()
    def embed(self, byol: Byol, *, done: int, ranks: Ranks) -> Embedding:
        """Representations of the whole images after `done` steps, as `look` has them, and small pictures."""
        encoder = _Frozen(byol.online.encoder)
        with ranks.autocast():
            features = torch.cat([encoder(self.whole(rows)) for rows in self._stretches()])
        side = min(_THUMBNAIL_PX, self.transforms.view_px)
        small = whole_view(self.stored, side, pixels=self.pixels)
        return Embedding(done, features.float().cpu(), stretch(small), self.names)

    def _stretches(self) -> list[slice]:
        """Rows that the network sees at once, of nearly equal number."""
        num_parts = -(-len(self.stored) // _PART)
        size = -(-len(self.stored) // num_parts)
        return [slice(at, at + size) for at in range(0, len(self.stored), size)]


class _Frozen:
    """A module whose buffers are copied for the calls, so that they leave no trace."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(self._module, self._buffers, (x,))
        return result
