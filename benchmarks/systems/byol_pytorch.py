"""lucidrains' byol-pytorch as its README has it, from the published package.

The package augments inside the model, one draw for the whole batch; the workers only decode and resize the
files. Heads have the setting's sizes.
"""

import torch
from byol_pytorch import BYOL
from torch import Tensor
from torchvision import transforms as T

from systems import Job, build_torchvision
from systems.loading import read_files

_LR = 3e-4


class System:
    """The README's loop."""

    description = "byol-pytorch's README, with heads of the sizes of the others; one random draw a batch"

    def __init__(self, job: Job) -> None:
        self._job = job

    def prepare(self) -> None:
        job, setting = self._job, self._job.setting
        self._learner = BYOL(
            build_torchvision(setting).to(job.device),
            image_size=setting.view_px,
            hidden_layer="avgpool",
            projection_size=setting.projection_size,
            projection_hidden_size=setting.hidden_size,
        )
        self._optimizer = torch.optim.Adam(self._learner.parameters(), lr=_LR)
        transform = T.Compose([T.Resize(setting.view_px), T.CenterCrop(setting.view_px), T.ToTensor()])
        self._batches = read_files(job.files, transform, batch=setting.batch, workers=job.workers)

    def step(self) -> None:
        images, _ = next(self._batches)
        images = images.to(self._job.device)
        with torch.autocast(self._job.device, torch.bfloat16, enabled=bool(self._job.bf16)):
            loss = self._learner(images)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._learner.update_moving_average()

    def weights(self) -> tuple[list[Tensor], list[Tensor]]:
        online, target = self._learner.online_encoder, self._learner.target_encoder
        return [*online.parameters()], [*target.parameters()]
