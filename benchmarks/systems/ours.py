"""This package, as `byol train IMAGES/` runs it."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from byol.config import Config, load_config
from byol.data.pack.batches import Batches
from byol.data.pack.images import open_images
from byol.data.pack.packed import Packed
from byol.device.ranks import connect, keep_freed_memory
from byol.kernels.build import explain_kernels
from byol.kernels.winograd import constant_weights
from byol.method.networks import Byol
from byol.method.optimizers import build_optimizer, set_lr
from byol.method.schedule import Plan
from byol.method.views import make_views
from systems import Job


def configure(job: Job) -> Config:
    """The preset, with the setting's network and sizes; nothing is tuned."""
    setting = job.setting
    overrides = [
        f"data.source={job.files}",
        f"data.packs={job.packs}",
        f"network.name={setting.network}",
        f"network.stem={'small' if setting.small_stem else 'standard'}",
        f"network.projection_head.mlp_hidden_size={setting.hidden_size}",
        f"network.projection_head.projection_size={setting.projection_size}",
        f"data_transforms.input_shape=[{setting.view_px},{setting.view_px},3]",
        "data_transforms.domain=null",
        f"trainer.batch_size={setting.batch}",
        "trainer.accumulation_steps=1",
        f"trainer.device={job.device}",
        "trainer.max_epochs=100000",  # longer than any measurement
    ]
    if job.bf16 is not None:
        overrides.append(f"trainer.precision={'bf16' if job.bf16 else 'fp32'}")
    return load_config(None, [*overrides, *job.overrides], preset=setting.preset)


def pack_files(job: Job) -> Packed:
    """The packed copy, made unless it is there."""
    return open_images(configure(job), run_dir=Path("run"), console=None)


class System:
    """The parts of `byol.training.loop`, without its log lines, health checks and checkpoints."""

    description = "this package with the preset's views, from a packed copy of the default size"

    def __init__(self, job: Job) -> None:
        self._job = job
        self._open = ExitStack()

    def prepare(self) -> None:
        keep_freed_memory()
        self.config = config = configure(self._job)
        self.ranks = ranks = self._open.enter_context(connect(config.trainer))
        self.images = images = pack_files(self._job)
        self.plan = plan = Plan.of(config, num_images=len(images))
        byol = Byol.of(config, channels=images.channels, seed_key=plan.key("init", 0))
        self.byol = byol.to(ranks.device, memory_format=torch.channels_last)
        self.optimizer = build_optimizer(self.byol, config.optimizer, plan=plan)
        self.network = ranks.wrap(self.byol)
        self.rows = ranks.rows(plan.batch_size)
        self.batches = self._open.enter_context(
            Batches(
                images,
                plan,
                rows=self.rows,
                device=ranks.device,
                first_step=0,
                memory=config.data.memory,
            )
        )
        self.done = 0
        self.description += f"; networks in {str(ranks.dtype).removeprefix('torch.')}"
        if ranks.device.type == "cpu" and config.trainer.convolution == "fast":
            self.description += f", {explain_kernels()}"

    def step(self, mark: Callable[[str], None] = lambda part: None) -> None:
        """`mark` is told the name of each part at its end."""
        batch = next(self.batches)
        mark("data wait")
        view1, view2 = make_views(
            batch.images,
            batch.sizes,
            self.config.data_transforms,
            key=self.plan.key("views", self.done),
            rows=self.rows,
            pixels=self.images.pixels,
        )
        mark("views")
        with constant_weights():
            for view, other in ((view1, view2), (view2, view1)):
                with self.ranks.autocast():
                    loss, _ = self.network(view, other, symmetric=False)
                mark("loss")
                loss.backward()
                mark("backward")
        set_lr(self.optimizer, self.plan.lr(self.done))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        mark("optimizer")
        self.byol.update_target(self.plan.tau(self.done))
        mark("target update")
        self.done += 1

    def weights(self) -> tuple[list[Tensor], list[Tensor]]:
        return [*self.byol.online.parameters()], [*self.byol.target.parameters()]

    def close(self) -> None:
        """End the reading threads, and leave the other ranks."""
        self._open.close()
