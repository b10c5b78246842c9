"""The systems that are compared: each builds its whole pipeline in `prepare` and trains a step in `step`.

A step goes from image files, or packed images, to updated online and target weights.
"""

import json
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

from settings import Setting
from torch import Tensor, nn

# name: module, whether the network runs under bfloat16 autocast (None: by our own rule)
_SYSTEMS: dict[str, tuple[str, bool | None]] = {
    "ours": ("ours", None),
    "ours-library": ("ours_library", None),
    "classic": ("classic", False),
    "lightly": ("lightly", False),
    "lightly-bf16": ("lightly", True),
    "byol-pytorch": ("byol_pytorch", False),
    "byol-pytorch-bf16": ("byol_pytorch", True),
    "ours-fp32": ("ours", False),
}
NAMES = tuple(_SYSTEMS)


@dataclass(frozen=True)
class Job:
    """A system, and what it is given."""

    system: str
    setting: Setting
    device: str  # "cpu" or "cuda"
    threads: int
    workers: int  # processes of a DataLoader
    files: Path  # one folder of images below it; ours takes any source
    packs: Path  # where ours keeps them packed
    overrides: tuple[str, ...] = ()  # of our configuration

    @property
    def bf16(self) -> bool | None:
        """Whether the networks run under bfloat16 autocast; None: the system decides itself."""
        return _SYSTEMS[self.system][1]

    def to_json(self) -> str:
        """For the command line of a process."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "Job":
        content = json.loads(text)
        content["setting"] = Setting(**content["setting"])
        content["files"], content["packs"] = Path(content["files"]), Path(content["packs"])
        content["overrides"] = tuple(content["overrides"])
        return cls(**content)


class System(Protocol):
    """One way to train BYOL."""

    description: str  # what it is and in what it departs from its documentation

    def __init__(self, job: Job) -> None: ...

    def prepare(self) -> None:
        """Networks, optimizer and data pipeline."""

    def step(self) -> None:
        """One training step; on a GPU it may return before the work is done."""

    def weights(self) -> tuple[list[Tensor], list[Tensor]]:
        """Parameters of the online network (encoder and projector) and of the target, in the same order."""


def load(name: str) -> type[System]:
    """The class of a system.

    Raises:
        ImportError: its package is not installed.
    """
    module, _ = _SYSTEMS[name]
    return import_module(f"systems.{module}").System  # type: ignore[no-any-return]


def build_torchvision(setting: Setting) -> nn.Module:
    """torchvision's ResNet with random weights, with the small stem where the setting has it."""
    import torchvision

    network: nn.Module = torchvision.models.get_model(setting.network, weights=None)
    if setting.small_stem:
        network.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        network.maxpool = nn.Identity()
    return network
