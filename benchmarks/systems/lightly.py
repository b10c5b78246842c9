"""lightly's BYOL as its PyTorch example has it, from the published package.

From the package: the transforms, the heads, the loss and the momentum update. The loop around them is ours,
in the order of the example; heads have the setting's sizes. At 32 px there is no blur, as in its example.
"""

import copy

import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
from torch import Tensor, nn

from systems import Job, build_torchvision
from systems.loading import read_files

_LR, _TAU = 0.06, 0.996
_SMALL_PX = 32


def _make_transform(view_px: int) -> BYOLTransform:
    if view_px > _SMALL_PX:
        return BYOLTransform(BYOLView1Transform(view_px), BYOLView2Transform(view_px))
    return BYOLTransform(
        BYOLView1Transform(view_px, gaussian_blur=0.0), BYOLView2Transform(view_px, gaussian_blur=0.0)
    )


class System:
    """lightly's example."""

    description = "lightly's BYOL example, with heads of the sizes of the others"

    def __init__(self, job: Job) -> None:
        self._job = job

    def prepare(self) -> None:
        job, setting = self._job, self._job.setting
        network = build_torchvision(setting)
        num_features = network.fc.in_features
        backbone = nn.Sequential(*list(network.children())[:-1], nn.Flatten())
        sizes = setting.hidden_size, setting.projection_size
        self._backbone = backbone.to(job.device)
        self._projector = BYOLProjectionHead(num_features, *sizes).to(job.device)
        self._predictor = BYOLPredictionHead(setting.projection_size, *sizes).to(job.device)
        self._target_backbone = copy.deepcopy(self._backbone)
        self._target_projector = copy.deepcopy(self._projector)
        deactivate_requires_grad(self._target_backbone)
        deactivate_requires_grad(self._target_projector)
        self._criterion = NegativeCosineSimilarity()
        trained = nn.ModuleList([self._backbone, self._projector, self._predictor])
        self._optimizer = torch.optim.SGD(trained.parameters(), lr=_LR)
        transform = _make_transform(setting.view_px)
        self._batches = read_files(job.files, transform, batch=setting.batch, workers=job.workers)

    def step(self) -> None:
        (view1, view2), _ = next(self._batches)
        update_momentum(self._backbone, self._target_backbone, m=_TAU)
        update_momentum(self._projector, self._target_projector, m=_TAU)
        view1, view2 = view1.to(self._job.device), view2.to(self._job.device)
        with torch.autocast(self._job.device, torch.bfloat16, enabled=bool(self._job.bf16)):
            prediction1, target1 = self._predict(view1), self._project_by_target(view1)
            prediction2, target2 = self._predict(view2), self._project_by_target(view2)
            loss = 0.5 * (self._criterion(prediction1, target2) + self._criterion(prediction2, target1))
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _predict(self, view: Tensor) -> Tensor:
        return self._predictor(self._projector(self._backbone(view)))

    def _project_by_target(self, view: Tensor) -> Tensor:
        return self._target_projector(self._target_backbone(view)).detach()

    def weights(self) -> tuple[list[Tensor], list[Tensor]]:
        online = nn.ModuleList([self._backbone, self._projector])
        target = nn.ModuleList([self._target_backbone, self._target_projector])
        return [*online.parameters()], [*target.parameters()]
