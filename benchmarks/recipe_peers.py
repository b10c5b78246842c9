"""Accuracy per minute of a peer: lightly's BYOL or FastSiam, as their PyTorch examples ship, on one core.

    pip install lightly==1.6.0
    taskset -c 1 python benchmarks/recipe_peers.py byol cifar10 sets/ --minutes 27

`sets/` is what `recipe.py prepare` fills. The row goes into the same trials.csv, with the same evaluation.
From the package: transforms, heads, loss and momentum update. Network, batch, learning rate and heads are
those of the examples (ResNet-18 of torchvision, 256, 0.06, SGD without momentum); the loop around them is
ours. The images are in memory before the clock starts, as those of byol are packed. The process that trains
also makes the views.
"""

import argparse
import copy
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import recipe
import torch
import torchvision
from lightly.data.multi_view_collate import MultiViewCollate
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import (
    BYOLPredictionHead,
    BYOLProjectionHead,
    SimSiamPredictionHead,
    SimSiamProjectionHead,
)
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import FastSiamTransform
from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
from lightly.transforms.utils import IMAGENET_NORMALIZE
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

BATCH, LR, PX = 256, 0.06, 32
TAU, EPOCHS = 0.996, 10  # tau rises to 1 over the epochs of the example; a longer training keeps 1


class ByolExample(nn.Module):
    """The networks and the loss of examples/pytorch/byol.py."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = _backbone()
        self.projector, self.predictor = (
            BYOLProjectionHead(512, 1024, 256),
            BYOLPredictionHead(256, 1024, 256),
        )
        self.targets = nn.ModuleList([copy.deepcopy(self.backbone), copy.deepcopy(self.projector)])
        deactivate_requires_grad(self.targets)
        self.transform = BYOLTransform(
            BYOLView1Transform(PX, gaussian_blur=0.0), BYOLView2Transform(PX, gaussian_blur=0.0)
        )

    def loss(self, views: list[Tensor], *, epoch: float) -> Tensor:
        share = min(1.0, int(epoch) / (EPOCHS - 1))
        tau = 1.0 - (1.0 - TAU) * (1.0 + np.cos(np.pi * share)) / 2.0
        for online, target in zip((self.backbone, self.projector), self.targets, strict=True):
            update_momentum(online, target, m=tau)
        predictions = [self.predictor(self.projector(self.backbone(view))) for view in views]
        with torch.no_grad():
            projections = [self.targets[1](self.targets[0](view)) for view in views]
        criterion = NegativeCosineSimilarity()
        first, second = criterion(predictions[0], projections[1]), criterion(predictions[1], projections[0])
        return 0.5 * (first + second)


class FastSiamExample(nn.Module):
    """The networks and the loss of examples/pytorch/fastsiam.py."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = _backbone()
        self.projector, self.predictor = (
            SimSiamProjectionHead(512, 512, 128),
            SimSiamPredictionHead(128, 64, 128),
        )
        self.transform = FastSiamTransform(input_size=PX)

    def loss(self, views: list[Tensor], *, epoch: float) -> Tensor:
        del epoch
        projections = [self.projector(self.backbone(view)) for view in views]
        predictions = [self.predictor(each) for each in projections]
        targets = torch.stack(projections).detach()
        losses = []
        for place, prediction in enumerate(predictions):
            others = torch.arange(len(views)) != place
            losses.append(NegativeCosineSimilarity()(prediction, targets[others].mean(dim=0)))
        return torch.stack(losses).mean()


PEERS = {"byol": ByolExample, "fastsiam": FastSiamExample}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("peer", choices=tuple(PEERS))
    parser.add_argument("set", choices=tuple(recipe.SETS))
    parser.add_argument("sets", type=Path, help="the folder that `recipe.py prepare` fills")
    parser.add_argument("--minutes", type=float, required=True, help="CPU time of the training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=recipe.TRIALS, help="the CSV file of the rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    folder = options.sets / options.set
    peer = PEERS[options.peer]()
    passes = train(
        peer, _read(recipe.list_files(folder / "train")), seconds=60.0 * options.minutes, seed=options.seed
    )
    result = recipe.evaluate(partial(embed, peer), folder, options.set)
    row = recipe.Row(
        commit=recipe.find_commit(), change=f"lightly's {options.peer}", set=options.set, seed=options.seed,
        passes=passes, minutes=options.minutes, **result,
    )  # fmt: skip
    recipe.append(row, options.out)


def train(peer: Any, images: list[Image.Image], *, seconds: float, seed: int) -> int:
    """Train for this CPU time; return the number of images seen."""
    parameters = [parameter for parameter in peer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=LR)
    collate, start_s, passes = MultiViewCollate(), time.process_time(), 0
    for rows in _order(len(images), seed=seed):
        if time.process_time() - start_s >= seconds:
            break
        views, _, _ = collate([(peer.transform(images[row]), 0, "") for row in rows])
        peer.loss(views, epoch=passes / len(images)).backward()
        optimizer.step()
        optimizer.zero_grad()
        passes += len(rows)
    return passes


def embed(peer: Any, folder: Path) -> tuple[Any, list[str]]:
    """Return the backbone's features of the images, and their paths."""
    files = recipe.list_evaluated(folder)
    prepare = v2.Compose(
        [
            v2.Resize((PX, PX), antialias=True),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_NORMALIZE["mean"], IMAGENET_NORMALIZE["std"]),
        ]
    )
    images, blocks = _read(files), []
    with torch.inference_mode():
        peer.backbone.eval()
        for first in range(0, len(images), BATCH):
            block = torch.stack([prepare(image) for image in images[first : first + BATCH]])
            blocks.append(peer.backbone(block).numpy())
    return np.concatenate(blocks), [str(path) for path in files]


def _backbone() -> nn.Module:
    return nn.Sequential(*list(torchvision.models.resnet18().children())[:-1], nn.Flatten())


def _order(num_images: int, *, seed: int) -> Iterator[Any]:
    """Yield the rows of batches, in a new order in each epoch, for ever."""
    generator = np.random.default_rng(seed)
    while True:
        order = generator.permutation(num_images)
        yield from order[: num_images // BATCH * BATCH].reshape(-1, BATCH)


def _read(files: list[Path]) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in files]


if __name__ == "__main__":
    main()
