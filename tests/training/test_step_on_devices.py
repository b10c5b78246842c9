"""A whole step on GPUs that are not there: no tensor on the wrong device, no waiting host, no missing kernel.

Traced: batch assembly (from RAM, and from images on the GPU), views, both networks, loss, backward, optimizer
and target, by the functions that the loop calls. Not traced, since they need values or other threads: the
threads that read batches ahead, DistributedDataParallel, and what happens at steps that are logged, checked
or saved. Values, speed, memory and the order of kernels on a device are not tested here; tests marked `gpu`
do that on CUDA.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from byol.config import Config, load_config
from byol.data.pack.batches import DeviceStore, HostStore
from byol.data.pack.packed import Packed
from byol.device.ranks import Ranks
from byol.method import networks, views
from byol.method.networks import Byol
from byol.method.optimizers import build_optimizer, set_lr
from byol.method.schedule import Plan
from byol.method.views import Pixels, make_training_views
from byol.training.step import compute_within_memory
from byol.training.update import apply_step, measure
from pretend import HostWaitsError, MixedDevicesError, NoKernelError, NoSuchTypeError, Trace, pretending

BATCH, STORED_PX = 16, 40
SMALL = ["trainer.batch_size=16", "trainer.accumulation_steps=2"]
CLOSED = {  # what a preset leaves open, for the images here
    "default": ["network.name=resnet10t", "data_transforms.domain=photo", "trainer.max_epochs=2"],
    "classic": ["network.name=resnet10t"],
    "paper": ["trainer.max_epochs=100", "network.name=resnet10t"],
    "demo": [],
}
VIEW_PX = {"default": 32, "classic": 96, "paper": 64, "demo": 32}
EVERYTHING = [
    "flip=0.5", "vertical_flip=0.5", "turn=0.5", "jitter=0.5", "brightness=0.4", "contrast=0.4",
    "saturation=0.2", "hue=0.1", "gamma=0.3", "grey=0.5", "channel_drop=0.5", "blur=0.5", "noise=0.1",
    "solarize=0.5", "invert=0.5",
]  # fmt: skip
TINY = [
    "network.name=test_resnet",
    "network.projection_head.mlp_hidden_size=16",
    "network.projection_head.projection_size=8",
]


def configure(preset: str, *overrides: str, channels: int = 3) -> Config:
    side = VIEW_PX[preset]
    shape = f"data_transforms.input_shape=[{side},{side},{channels}]"
    return load_config(None, [*SMALL, *CLOSED[preset], shape, *overrides], preset=preset)


class Stored(Packed):
    """A pack of which only the images are there."""

    def __init__(self, rows: np.ndarray) -> None:
        object.__setattr__(self, "file", rows)

    @property
    def images(self) -> np.ndarray:
        return self.file  # type: ignore[return-value]

    def read(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self.images[rows])


def trace_steps(
    config: Config,
    trace: Trace,
    *,
    channels: int = 3,
    bits: int = 8,
    bf16: bool = False,
    on_gpu: bool = False,
) -> None:
    """Two steps; in the second, when constants have been sent, no copy may make the host wait."""
    device = trace.device
    ranks = Ranks(0, 1, device, torch.bfloat16 if bf16 else torch.float32)
    plan = Plan.of(config, num_images=BATCH, expected_steps=10)
    byol = Byol.of(config, channels=channels, seed_key=plan.key("init", 0))
    byol = byol.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(byol, config.optimizer, plan=plan)
    for group in optimizer.param_groups:  # as by itself on a GPU, for tensors of PyTorch's own type
        group["foreach"] = True
    dtype = {8: np.uint8, 16: np.uint16, 32: np.float32}[bits]
    stored = np.zeros((BATCH, STORED_PX, STORED_PX, channels), dtype=dtype)
    store = DeviceStore(Stored(stored), device) if on_gpu else HostStore(stored, device)
    top = 1.0 if bits == 32 else 2.0**bits - 1.0
    pixels = Pixels(*((value,) * channels for value in (0.0, top, 0.5, 0.25)))
    for step in range(2):
        trace.strict = step > 0
        indices = plan.indices(step)
        images = store.deliver(store.prepare(indices)).permute(0, 3, 1, 2)
        sizes = torch.full((BATCH, 2), float(STORED_PX))
        make = partial(
            make_training_views, sizes=sizes, transforms=config.data_transforms, key=plan.key("views", step),
            pixels=pixels,
        )  # fmt: skip
        computed = compute_within_memory(
            byol, images, make=make, show=None, num_microbatches=2, ranks=ranks, seed=step, say=print
        )
        assert computed.loss.device == device and computed.num_microbatches == 2
        set_lr(optimizer, plan.lr(step))
        finite = torch.isfinite(measure(computed.loss, optimizer, ranks=ranks)).all()
        statistics = computed.statistics
        apply_step(byol, optimizer, tau=plan.tau(step), finite=finite, statistics=statistics)
    assert {parameter.device for parameter in byol.parameters()} == {device}


def check_operations(trace: Trace, *, bf16: bool) -> None:
    """The whole step was traced, in the type that was asked for."""
    found = trace.operations
    crop = "grid_sampler_2d" if "aten::grid_sampler_2d" in found else "_embedding_bag"
    for name in (crop, "convolution_backward", "native_batch_norm_backward", "_foreach_lerp_"):
        assert any(name in operation for operation in found), name
    assert found["aten::convolution"] == {torch.bfloat16 if bf16 else torch.float32}
    trace.check_kernels()


@pytest.mark.parametrize("preset", list(CLOSED))
@pytest.mark.parametrize(("kind", "bf16"), [("cuda", False), ("cuda", True), ("xpu", True), ("mps", False)])
def test_every_preset(kind: str, preset: str, bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with pretending(kind, monkeypatch) as trace:
        trace_steps(configure(preset), trace, bf16=bf16, on_gpu=bf16)
    check_operations(trace, bf16=bf16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("channels", "bits", "rotation"), [(1, 16, 0), (1, 8, 45), (3, 8, 0), (3, 32, 45), (5, 16, 0), (5, 8, 45)]
)
@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_every_operation_on_every_kind_of_image(
    kind: str, channels: int, bits: int, rotation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [*(f"data_transforms.view.{setting}" for setting in EVERYTHING)]
    config = configure(
        "default", *TINY, *given, f"data_transforms.view.rotation={rotation}", channels=channels
    )
    with pretending(kind, monkeypatch) as trace:
        trace_steps(config, trace, channels=channels, bits=bits, on_gpu=rotation == 0)
    check_operations(trace, bf16=False)
    assert ("aten::grid_sampler_2d" in trace.operations) == (rotation > 0)
    if kind != "cuda":  # few operations know uint16: it is only looked at as int16
        known = {name for name, types in trace.operations.items() if torch.uint16 in types}
        assert {name.partition(".")[0] for name in known} <= {
            "aten::view", "aten::permute", "aten::slice", "aten::alias", "aten::detach",
        }  # fmt: skip


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_every_optimizer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pretending("cuda", monkeypatch) as trace:
        trace_steps(configure("default", *TINY, f"optimizer.name={name}", "optimizer.params.lr=0.1"), trace)
    check_operations(trace, bf16=False)


# ---- The trace finds what it is for


def with_loss(change: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    own = networks.byol_loss
    monkeypatch.setattr(networks, "byol_loss", lambda prediction, target: change(own(prediction, target)))


def refused(error: type[Exception], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(error), pretending(kind, monkeypatch) as trace:
        trace_steps(configure("default", *TINY), trace)
        trace.check_kernels()


READS: dict[str, Callable[[Tensor], Tensor]] = {
    "item": lambda loss: loss * loss.mean().item(),
    "float": lambda loss: loss * float(loss[0]),
    "if": lambda loss: loss * 2.0 if loss[0] > 1.0 else loss,
    "all": lambda loss: loss if torch.isfinite(loss).all() else -loss,
    "nonzero": lambda loss: loss[(loss > 0.0).nonzero()[:, 0]],
    "boolean index": lambda loss: loss[loss > 0.0],
    "masked_select": lambda loss: loss.masked_select(loss > 0.0),
    "cpu": lambda loss: loss.cpu(),
    "to cpu": lambda loss: loss.to("cpu"),
    "to a device": lambda loss: loss.detach().to(device=torch.device("cpu")),
    "tolist": lambda loss: loss * loss.detach().tolist()[0],
    "numpy": lambda loss: loss * loss.detach().numpy()[0],
    "into a host tensor": lambda loss: torch.zeros(len(loss)).copy_(loss),
    "a number each step": lambda loss: loss * torch.tensor([2.0], device=loss.device),
    "a copy that is not pinned": lambda loss: loss * torch.ones(1).to(loss.device, non_blocking=True),
}


@pytest.mark.parametrize("what", list(READS))
def test_a_host_that_waits_is_found(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_loss(READS[what], monkeypatch)
    refused(HostWaitsError, "cuda", monkeypatch)


def test_a_host_that_waits_for_views_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "send", lambda tensor, device: tensor.to(device))
    refused(HostWaitsError, "cuda", monkeypatch)


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_a_host_tensor_in_the_step_is_found(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_loss(lambda loss: loss * torch.ones(len(loss)), monkeypatch)
    refused(MixedDevicesError, kind, monkeypatch)


def test_a_type_that_apple_gpus_lack_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with_loss(lambda loss: loss.double().float(), monkeypatch)
    refused(NoSuchTypeError, "mps", monkeypatch)


def test_a_kernel_that_a_device_lacks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with_loss(lambda loss: loss + torch.pdist(loss[:, None]).sum(), monkeypatch)
    refused(NoKernelError, "mps", monkeypatch)
