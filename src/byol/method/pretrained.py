"""Weights that others have trained, fitted to an encoder: timm or torchvision keys, any number of channels.

Nothing is downloaded, and nothing here runs pickled code.
"""

import pickle
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from byol.errors import CheckpointError, ConfigError

KEY = "network.fine_tune_from"
TIMM = "timm:"  # in front of a model's name
SUFFIXES = (".safetensors", ".pth", ".pt")
_HEADS = (
    "fc.",
    "classifier.",
    "head.",
    "heads.",
    "head_dist.",
)  # where timm and torchvision keep classifiers
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")

State = dict[str, Tensor]


def read_weights(path: Path, *, key: str = KEY) -> State:
    """The tensors of a `.safetensors` file, or of a state dict that `torch.save` wrote, on the CPU.

    Messages name the setting `key`, also below.

    Raises:
        CheckpointError: the file cannot be read, or holds something else than tensors by name.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(
            f"{key}: {path} cannot be read ({reason}); give a file of tensors by name (state dict)"
        ) from None
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        found = ", ".join(map(str, list(state)[:3])) if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(
            f"{key}: {path} holds {found or 'nothing'}, not tensors by name; "
            "save the model's state_dict() alone"
        )
    return state


def find_timm(name: str, *, key: str = KEY) -> Path:
    """The file of timm's weights for a model, `resnet18` or `resnet18.a1_in1k`, if it is on this machine.

    Looked for where Hugging Face and torch.hub keep what they have downloaded; the network is not asked.

    Raises:
        ConfigError: timm knows no such model, or has no weights for it.
        CheckpointError: they are not on this machine; the message says where they were looked for.
    """
    import timm
    from huggingface_hub import constants, try_to_load_from_cache

    given: Any = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if given is None or not given.has_weights:
        raise ConfigError(f"{key}: timm has no weights of '{name}'; `timm.list_pretrained()` lists the names")
    if given.hf_hub_id:
        files = dict.fromkeys((given.hf_hub_filename or _HUB_FILES[0], *_HUB_FILES))
        for file in files:
            found = try_to_load_from_cache(given.hf_hub_id, file, cache_dir=constants.HF_HUB_CACHE)
            if isinstance(found, str):
                return Path(found)
    downloads = Path(torch.hub.get_dir()) / "checkpoints"
    if given.url and (path := downloads / Path(given.url).name).is_file():
        return path
    raise CheckpointError(
        f"{key}: the weights {given.hf_hub_id or given.url} of '{name}' are not on this machine (looked in "
        f"{constants.HF_HUB_CACHE} and {downloads}); download them there, or give a .safetensors file"
    )


def fit_weights(found: State, encoder: nn.Module, *, where: str, key: str = KEY) -> tuple[State, list[str]]:
    """`found` as a state dict of `encoder`, and in words what was done to it.

    A classifier is left out, the first convolution fitted to the encoder's channels (`fit_channels`); of all
    other keys names and shapes must agree. `num_batches_tracked`, which old files lack, may be missing.

    Raises:
        CheckpointError: names the first key that does not agree, and for the stem the setting to change.
    """
    wanted = encoder.state_dict()
    left_out = [name for name in found if name not in wanted and name.startswith(_HEADS)]
    state = {name: value for name, value in found.items() if name not in left_out}
    for name, value in wanted.items():
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, value)
    notes = [f"its classifier ({', '.join(left_out)}) is left out"] if left_out else []
    stem = _first_convolution(encoder)
    if stem in state and stem in wanted and state[stem].ndim == 4:
        given, shape = state[stem].shape, wanted[stem].shape
        if given[2:] != shape[2:]:
            setting = "standard" if given[2] > shape[2] else "small"
            raise CheckpointError(
                f"{key}: {where} has a first convolution ({stem}) of {given[2]}x{given[3]}, this network of "
                f"{shape[2]}x{shape[3]}; set network.stem={setting}"
            )
        if given[1] != shape[1] and given[0] == shape[0]:
            state[stem] = fit_channels(state[stem], channels=shape[1])
            notes.append(f"its first convolution is fitted from {given[1]} to {shape[1]} channels")
    problem = compare_states(state, wanted, there=where)
    if problem is not None:
        raise CheckpointError(
            f"{key}: {where} does not fit the encoder: {problem}; choose its model with network.name"
        )
    return state, notes


def fit_channels(
    weight: Float[Tensor, "out given height width"], *, channels: int
) -> Float[Tensor, "out channels height width"]:
    """The sum over the given channels, shared equally: with equal channels the response is the same."""
    total = weight.float().sum(dim=1, keepdim=True)
    return (total / channels).expand(-1, channels, -1, -1).contiguous().to(weight.dtype)


def compare_states(found: State, wanted: State, *, there: str) -> str | None:
    """The first difference in names or shapes between two state dicts, in words, or None."""
    for key in [*wanted, *(key for key in found if key not in wanted)]:
        one, other = found.get(key), wanted.get(key)
        if one is None or other is None:
            return f"{key} is only in {'this network' if one is None else there}"
        if one.shape != other.shape:
            return f"{key} is {tuple(one.shape)} in {there}, {tuple(other.shape)} here"
    return None


def _first_convolution(encoder: nn.Module) -> str:
    names = (name for name, layer in encoder.named_modules() if isinstance(layer, nn.Conv2d))
    return cast(str, next(names, "")) + ".weight"
