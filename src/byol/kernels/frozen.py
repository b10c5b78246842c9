"""Features of a network whose weights stay, faster on CPU: its operations are recorded once and fused.

`recording.py` records, `fusing.py` fuses. A few images at a time are computed, so that their maps stay in the
cache. The features differ by rounding errors from those of the module. If a network cannot be recorded, or
the features of a sample differ by more than `TOLERANCE`, the module computes.
"""

import threading
from collections.abc import Callable
from itertools import chain
from operator import is_, itemgetter
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from byol.kernels.cpu import instruction_set
from byol.kernels.eager import runs_eagerly
from byol.kernels.flat import flatten
from byol.kernels.fusing import Packs, fuse
from byol.kernels.onednn_faults import TakePixels
from byol.kernels.recording import record

TOLERANCE = 1e-4  # of the features of a sample, relative to the largest
PIXELS = 2**18  # of the images that a thread computes at a time

Program = Callable[[Tensor], Tensor]
_COMMON = vars(nn.Module()).keys()  # attributes of every module
_DICTS = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")


class FrozenNetwork:
    """Compute the features of images as a module in evaluation mode does. Threads may share it.

    Weights and layers may change between calls: the next call starts anew. (What is written through
    `Tensor.data` or NumPy counts as no change in PyTorch, and is not noticed.)
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._lock = threading.Lock()
        self._state: _State | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenNetwork, (self.module,)

    def __call__(
        self, images: Float[Tensor, "image channel height width"]
    ) -> Float32[Tensor, "image feature"] | None:
        """Compute features in float32, without gradients; None: only the module can.

        It must if it has hooks, is in training mode, or does something that cannot be recorded; and for
        images that are not float32 on CPU.
        """
        if torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return self(images)
        if not can_run(images) or (state := self._current()) is None:
            return None
        at_once = max(1, PIXELS // (images.shape[2] * images.shape[3]) * torch.get_num_threads())
        images = images.contiguous(memory_format=torch.channels_last)
        if len(images) <= at_once and (program := state.programs.get(images.shape)) is not None:
            return program(images)
        parts = images.split(_split(len(images), at_once))  # type: ignore[no-untyped-call]
        features = list[Tensor]()
        for part in parts:
            if (program := self._program(state, part.shape)) is None:
                return None
            features.append(program(part))
        return torch.cat(features)

    def _current(self) -> "_State | None":
        """Return the state of the module, with its programs; None: it must compute itself."""
        state = self._state
        if state is None or not state.is_current():
            state = self._state = _State(self.module)
        return state if state.can_be_frozen else None

    def _program(self, state: "_State", shape: tuple[int, ...]) -> Program | None:
        if shape not in state.programs:
            with self._lock:
                if shape not in state.programs:
                    state.programs[shape] = _make(self.module, shape, state.packs)
        return state.programs[shape]


def _split(count: int, largest: int) -> list[int]:
    """Return sizes with the sum `count`: powers of two, so that there are few programs, up to `largest`."""
    sizes = []
    while count > 0:
        sizes.append(1 << (min(count, largest).bit_length() - 1))
        count -= sizes[-1]
    return sizes


def can_run(images: Tensor) -> bool:
    return (
        runs_eagerly(images)
        and images.dtype == torch.float32
        and images.ndim == 4
        and len(images) > 0
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and instruction_set() != "neon"
        and not nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
    )


def _make(module: nn.Module, shape: tuple[int, ...], packs: Packs) -> Program | None:
    """Return a program for images of a shape; None: there is none that computes the same."""
    samples = [_draw(shape, seed) for seed in (0, 1)]
    try:
        # Packing does not work with the tensors of inference mode.
        with torch.inference_mode(False), torch.no_grad():
            recording = record(module, samples[0])
            fuse(recording, packs)
            program: Program = flatten(recording) or recording.compiled().forward
        with torch.inference_mode():
            expected, got = module(samples[1]), program(samples[1])
    except Exception:  # of any network and of any operation: the module computes, or says what is wrong
        return None
    allowed = TOLERANCE * expected.abs().max()
    return program if bool((got - expected).abs().max() <= allowed) else None


def _draw(shape: tuple[int, ...], seed: int) -> Float32[Tensor, "image channel height width"]:
    images = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return images.contiguous(memory_format=torch.channels_last)


class _State:
    """What a module consisted of at some time, and the programs for it."""

    def __init__(self, module: nn.Module) -> None:
        self.programs: dict[tuple[int, ...], Program | None] = {}
        self.packs: Packs = {}
        modules = list(module.modules())
        self.can_be_frozen = not any(each.training for each in modules) and all(
            isinstance(hook, TakePixels)
            for each in modules
            for hook in (*each._forward_hooks.values(), *each._forward_pre_hooks.values())
        )
        self._tensors = [*module.parameters(), *module.buffers()]
        self._fields = [vars(each) for each in modules]
        settings = [fields.keys() - _COMMON for fields in self._fields]
        self._settings = [itemgetter("training", "_modules", *names) for names in settings]
        dicts = [fields[name] for fields in self._fields for name in _DICTS]
        self._filled = [each for each in dicts if each]
        self._empty = [each for each in dicts if not each]
        self._numbers, self._objects = self._look()

    def is_current(self) -> bool:
        """Return whether the module still consists of the same objects, with the same values.

        This takes 0.5 us for each layer and tensor, which counts when single images are embedded.
        """
        try:
            numbers, objects = self._look()
        except (KeyError, RuntimeError):  # an attribute is gone, or tensors that count no changes
            return False
        is_same = numbers == self._numbers and len(objects) == len(self._objects)
        return is_same and not any(self._empty) and all(map(is_, objects, self._objects))

    def _look(self) -> tuple[list[int], list[Any]]:
        numbers = [*map(len, self._fields), *[each._version for each in self._tensors]]
        numbers += [each.data_ptr() for each in self._tensors]
        settings = [find(fields) for find, fields in zip(self._settings, self._fields, strict=True)]
        return numbers, list(chain(*settings, *[each.values() for each in self._filled]))
