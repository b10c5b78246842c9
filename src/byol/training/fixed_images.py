"""The fixed images: the same images at every health check, measured as whole images and as two views each."""

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

_PART = 64  # images per forward pass
_THUMBNAIL_PX = 32


@dataclass(frozen=True)
class FixedImages:
    """Some images of the run, in random order, on the device. Labels are used only for the reported kNN."""

    stored: Tensor
    sizes: Tensor
    labels: Tensor
    pixels: Pixels
    transforms: DataTransforms
    key: int  # seed of their views
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, images: Packed, plan: Plan, *, transforms: DataTransforms, ranks: Ranks) -> "FixedImages":
        """Draw at most `health.NUM_IMAGES` images; they depend only on the seed.

        If epochs visit windows of shards, they are of the first window, so that few shards are fetched.
        """
        generator = torch.Generator().manual_seed(plan.key("health", 0))
        # Not sorted, so that each batch mixes classes: files of one class are often next to each other.
        candidates = plan.first_images()
        chosen = torch.randperm(len(candidates), generator=generator)[: health.NUM_IMAGES].numpy()
        chosen = candidates[chosen]
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
        """Return whole images, prepared for the network."""
        return whole_view(self.stored[rows], self.transforms.view_px, pixels=self.pixels)

    def views(
        self, rows: slice = slice(None), *, transforms: DataTransforms | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return two random views of each image, the same at every call. `transforms`: use these settings."""
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
        """Judge the health of the projections and measure the features. The host waits for the device here.

        The network runs in training mode, as in the loss, but on copies of its buffers, so nothing changes.
        The views of an image are encoded in different batches, so BatchNorm cannot leak which of them match.
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
        """Return features of the whole images after `done` steps, computed as in `look`, and thumbnails."""
        encoder = _Frozen(byol.online.encoder)
        with ranks.autocast():
            features = torch.cat([encoder(self.whole(rows)) for rows in self._stretches()])
        side = min(_THUMBNAIL_PX, self.transforms.view_px)
        small = whole_view(self.stored, side, pixels=self.pixels)
        return Embedding(done, features.float().cpu(), stretch(small), self.names)

    def _stretches(self) -> list[slice]:
        """Return slices of rows for the forward passes, of nearly equal length."""
        num_parts = -(-len(self.stored) // _PART)
        size = -(-len(self.stored) // num_parts)
        return [slice(at, at + size) for at in range(0, len(self.stored), size)]


class _Frozen:
    """A module that is called with copies of its buffers, so that calls do not change it."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(self._module, self._buffers, (x,))
        return result
