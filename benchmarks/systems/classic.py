"""The classic PyTorch BYOL pipeline, rebuilt from its description.

Pillow transforms of each image in DataLoader workers, the blur as two small convolutions of that image, no
normalisation; fp32, eager, NCHW; SGD at a constant rate; the target updated one parameter at a time.
"""

import copy
import random
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms as T
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from systems import Job, build_torchvision
from systems.loading import read_files

_LR, _MOMENTUM, _WEIGHT_DECAY = 0.03, 0.9, 0.0004
_TAU = 0.996


class _Blur:
    """Gaussian blur of one image: kernel a tenth of the view, sigma uniform in 0.1 .. 2 px."""

    def __init__(self, view_px: int) -> None:
        self._radius = max(1, view_px // 20)

    def __call__(self, image: Image.Image) -> Image.Image:
        sigma = random.uniform(0.1, 2.0)
        offsets = torch.arange(-self._radius, self._radius + 1, dtype=torch.float32)
        kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
        kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
        pixels = pil_to_tensor(image).float()[None] / 255.0
        padded = F.pad(pixels, [self._radius] * 4, mode="reflect")
        rows = F.conv2d(padded, kernel, groups=3)
        return to_pil_image(F.conv2d(rows, kernel.transpose(2, 3), groups=3)[0])


class _TwoViews:
    """Two views from the one distribution of SimCLR with s = 1."""

    def __init__(self, view_px: int) -> None:
        self._view = T.Compose(
            [
                T.RandomResizedCrop(view_px),
                T.RandomHorizontalFlip(),
                T.RandomApply([T.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
                T.RandomGrayscale(p=0.2),
                _Blur(view_px),
                T.ToTensor(),
            ]
        )

    def __call__(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        return self._view(image), self._view(image)


def _mlp(num_in: int, hidden_size: int, num_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(num_in, hidden_size),
        nn.BatchNorm1d(hidden_size),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_size, num_out),
    )


def _loss(prediction: Tensor, projection: Tensor) -> Tensor:
    return 2.0 - 2.0 * (F.normalize(prediction, dim=1) * F.normalize(projection, dim=1)).sum(dim=-1)


class System:
    """The classic pipeline."""

    description = "the classic pipeline rebuilt: Pillow transforms in workers, fp32, eager, NCHW"

    def __init__(self, job: Job) -> None:
        self._job = job

    def prepare(self) -> None:
        job, setting = self._job, self._job.setting
        encoder: Any = build_torchvision(setting)
        projector = _mlp(encoder.fc.in_features, setting.hidden_size, setting.projection_size)
        encoder.fc = nn.Identity()
        self._online = nn.Sequential(encoder, projector).to(job.device)
        self._target = copy.deepcopy(self._online).requires_grad_(False)
        predictor = _mlp(setting.projection_size, setting.hidden_size, setting.projection_size)
        self._predictor = predictor.to(job.device)
        self._optimizer = torch.optim.SGD(
            [*self._online.parameters(), *self._predictor.parameters()],
            lr=_LR,
            momentum=_MOMENTUM,
            weight_decay=_WEIGHT_DECAY,
        )
        self._batches = read_files(
            job.files, _TwoViews(setting.view_px), batch=setting.batch, workers=job.workers
        )

    def step(self) -> None:
        (view1, view2), _ = next(self._batches)
        view1, view2 = view1.to(self._job.device), view2.to(self._job.device)
        prediction1 = self._predictor(self._online(view1))
        prediction2 = self._predictor(self._online(view2))
        with torch.no_grad():
            target2, target1 = self._target(view1), self._target(view2)
        loss = (_loss(prediction1, target1) + _loss(prediction2, target2)).mean()
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        for old, new in zip(self._target.parameters(), self._online.parameters(), strict=True):
            old.data = old.data * _TAU + new.data * (1.0 - _TAU)

    def weights(self) -> tuple[list[Tensor], list[Tensor]]:
        return [*self._online.parameters()], [*self._target.parameters()]
