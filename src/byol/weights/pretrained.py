"""Weights that others have trained, fitted to an encoder: whoever saved them, any number of channels.

Nothing is downloaded, and nothing here runs pickled code.
"""

from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from byol.base.errors import CheckpointError, ConfigError
from byol.method.networks import stem_of
from byol.weights.conversion import find_conversion
from byol.weights.files import HUB_FILES, State, show
from byol.weights.layouts import layouts_of
from byol.weights.prefixes import (
    COUNTER,
    Place,
    compare_place,
    count_prefixes,
    drop_equal,
    find_places,
    prefer,
    repr_prefix,
)
from byol.weights.stem_mark import unmark_stem

KEY = "network.fine_tune_from"
TIMM = "timm:"  # in front of a model's name
ADVICE = "choose its model with network.name"
_EXAMPLES = 3
_POSITIONS = "pos_embed"
# Models whose weights are often met, by a tensor that tells their kind: what an error message recognises.
_KNOWN = {
    "layer4.0.conv1.weight": (
        *(
            "resnet18",
            "resnet34",
            "resnet50",
            "resnet101",
            "resnet152",
            "resnet18d",
            "resnet34d",
            "resnet50d",
        ),
        *("resnet10t", "resnet14t", "resnet26", "wide_resnet50_2", "wide_resnet101_2", "resnext50_32x4d"),
    ),
    "blocks.0.attn.qkv.weight": (
        *("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224", "vit_large_patch16_224"),
        *("vit_small_patch8_224", "vit_base_patch8_224", "vit_small_patch32_224", "vit_base_patch32_224"),
        *("vit_small_patch14_dinov2", "vit_base_patch14_dinov2", "vit_large_patch14_dinov2"),
    ),
    "stages.0.blocks.0.conv_dw.weight": ("convnext_tiny", "convnext_small", "convnext_base"),
    "blocks.0.0.conv_dw.weight": ("efficientnet_b0", "mobilenetv3_large_100"),
    "features.denseblock1.denselayer1.conv1.weight": ("densenet121",),
}


def find_timm(name: str, *, key: str = KEY) -> Path:
    """The file of timm's weights for a model, `resnet18` or `resnet18.a1_in1k`, if it is on this machine.

    Looked for where Hugging Face and torch.hub keep what they have downloaded; the network is not asked.

    Raises:
        ConfigError: timm knows no such model, or has no weights for it.
        CheckpointError: they are not on this machine; the message says where they were looked for.
    """
    import timm
    from huggingface_hub import constants, try_to_load_from_cache

    pretrained: Any = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if pretrained is None or not pretrained.has_weights:
        raise ConfigError(f"{key}: timm has no weights of '{name}'; `timm.list_pretrained()` lists the names")
    if pretrained.hf_hub_id:
        files = dict.fromkeys((pretrained.hf_hub_filename or HUB_FILES[0], *HUB_FILES))
        for file in files:
            found = try_to_load_from_cache(pretrained.hf_hub_id, file, cache_dir=constants.HF_HUB_CACHE)
            if isinstance(found, str):
                return Path(found)
    downloads = Path(torch.hub.get_dir()) / "checkpoints"
    if pretrained.url and (path := downloads / Path(pretrained.url).name).is_file():
        return path
    raise CheckpointError(
        f"{key}: the weights {pretrained.hf_hub_id or pretrained.url} of '{name}' are not on this machine "
        f"(looked in {constants.HF_HUB_CACHE} and {downloads}); download them there, or give a "
        ".safetensors file"
    )


def fit_weights(
    found: State,
    encoder: nn.Module,
    *,
    where: str,
    key: str = KEY,
    select: str | None = None,
    stem: str | None = None,
    advice: str = ADVICE,
) -> tuple[State, list[str]]:
    """`found` as a state dict of `encoder`, and in words what was done to it.

    The encoder may lie behind any prefix (`prefixes`), and have the names of another library (`layouts`); of
    several the one within the prefix `select` is taken, else the one that the method's authors evaluate.
    Heads are left out. The first convolution is fitted to the encoder's channels (`fit_channels`), embeddings
    of positions to its size of images. `num_batches_tracked`, which old files lack, may be missing. `stem` is
    that of weights without a mark, if it is known.

    Raises:
        CheckpointError: no prefix holds such an encoder, or several do: lists them, and what to set.
    """
    wanted = encoder.state_dict()
    found, marked = unmark_stem(found)
    may_differ = _find_fitted(encoder)
    places = find_places(found, wanted, select=select, may_differ=may_differ)
    file = where.removesuffix(f":{select}")
    if not any(place.fits for place in places):
        problem = _explain(places, found, wanted, select=select)
        if select is not None and not places:
            advice = f"name one of these prefixes, or {file} alone"
        else:
            compare = partial(compare_place, wanted=wanted, prefix="", layout="", may_differ=may_differ)
            advice = _advise(found, places, compare, file=file, wanted=next(iter(wanted)), advice=advice)
        raise CheckpointError(f"{key}: {where} does not fit the encoder: {problem}; {advice}")
    place, notes = _choose_place(places, file=file, where=where, key=key)
    check_stem(marked or stem, encoder, where=where, key=key, advice=advice)
    state = dict(place.state)
    for name, value in wanted.items():
        if name.endswith(COUNTER) and (name not in state or state[name].shape != value.shape):
            state[name] = torch.zeros(value.shape, dtype=value.dtype)
    bad = next((n for n, v in state.items() if v.is_floating_point() and not bool(v.isfinite().all())), None)
    if bad is not None:
        raise CheckpointError(
            f"{key}: {where}: {bad} is not finite; give weights from a run that did not diverge"
        )
    notes += _fit_stem(state, wanted, _first_convolution(encoder), where=where, key=key, advice=advice)
    notes += _fit_positions(state, encoder)
    return state, notes


def _choose_place(places: list[Place], *, file: str, where: str, key: str) -> tuple[Place, list[str]]:
    """The one place that fits, and a line about it if it is not the file itself."""
    fitting = [place for place in places if place.fits]
    fitting = [place for place in fitting if not place.layout] or fitting
    best = drop_equal(prefer(fitting))
    if len(best) > 1:
        names = ", ".join(repr_prefix(place.prefix) for place in best)
        named = next(place for place in best if place.name)
        raise CheckpointError(
            f"{key}: {where} holds {len(best)} different encoders, with the prefixes {names}; choose one by "
            f"writing its prefix after the file, for example {file}:{show(named.name)}"
        )
    place = best[0]
    notes = [f"its encoder has the prefix '{show(place.prefix)}'"] if place.prefix else []
    notes += [f"its tensors are named as in {place.layout}"] if place.layout else []
    others = drop_equal([place, *fitting])[1:]
    if others:
        names = ", ".join(repr_prefix(other.prefix) for other in others)
        choose = f" ({file}:{show(others[0].name)} selects it)" if others[0].name else ""
        notes.append(f"not used: {names}{choose}")
    if place.beside:
        shown = place.beside if len(place.beside) <= 4 else [*place.beside[:_EXAMPLES], "..."]
        notes.append(f"its heads ({', '.join(map(show, shown))}) are not used")
    return place, notes


def _explain(places: list[Place], found: State, wanted: State, *, select: str | None) -> str:
    """What is there instead, and what the nearest prefix lacks."""
    within = "" if select is None else f" within '{show(select)}'"
    listed = f"its prefixes, with their numbers of tensors, are {count_prefixes(found)}"
    if not places:
        return f"no prefix{within} has tensors of this network; {listed}"
    nearest = places[0]
    shapes = [
        f"{name} {tuple(nearest.state[name].shape)} for {tuple(wanted[name].shape)}" for name in nearest.other
    ]
    parts = [
        _list("lacks", nearest.missing),
        _list("has with another shape", shapes),
        _list("also has", nearest.unknown),
    ]
    at = f"with the prefix {repr_prefix(nearest.prefix)} it" if nearest.prefix else "it"
    return f"{at} {' and '.join(filter(None, parts))}; {listed}"


def _list(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _EXAMPLES} more" if len(names) > _EXAMPLES else ""
    return f"{what} {', '.join(map(show, names[:_EXAMPLES]))}{more}"


def _advise(
    found: State,
    places: list[Place],
    compare: Callable[[State], Place],
    *,
    file: str,
    wanted: str,
    advice: str,
) -> str:
    """The model that the weights are of, if it is a known one, or how to convert them."""
    model = recognise(found)
    if model is not None:
        setting = f" (network.name={model})" if advice == ADVICE else ""
        return f"these are weights for {model}: {advice}{setting}"
    nearest = next((place for place in places if not place.layout), None)
    conversion = None if nearest is None else find_conversion(found, nearest, compare)
    if conversion is not None:
        return f"they fit after this conversion in Python: {conversion.write(file)}"
    return (
        f"{advice}, or save the encoder's state_dict() under this network's names, such as "
        f"{wanted}, as .safetensors"
    )


def recognise(found: State) -> str | None:
    """The known model of timm that the tensors are of, or None; takes up to seconds."""
    import timm

    names = {name for state in layouts_of(found).values() for name in state}
    told = (models for tell, models in _KNOWN.items() if any(name.endswith(tell) for name in names))
    for name in chain.from_iterable(told):
        with torch.device("meta"):  # nothing is allocated or drawn
            model = timm.create_model(name, num_classes=0)
        wanted = model.state_dict()
        if (
            sum(value.numel() for value in wanted.values())
            > sum(value.numel() for value in found.values()) + 1e6
        ):
            continue
        places = find_places(found, wanted, select=None, may_differ=_find_fitted(model))
        if any(place.fits for place in places):
            return name
    return None


def check_stem(
    given: str | None, encoder: nn.Module, *, where: str, key: str = KEY, advice: str = ADVICE
) -> None:
    """Refuse weights of another stem than the encoder's: they may fit, and mean something else.

    Raises:
        CheckpointError: `given` is a stem, and not the encoder's.
    """
    if given is None or given == (own := stem_of(encoder)):
        return
    setting = f"set network.stem={given}" if advice == ADVICE else advice
    raise CheckpointError(f"{key}: {where} has the stem '{given}', but this network has '{own}'; {setting}")


def _fit_stem(state: State, wanted: State, stem: str, *, where: str, key: str, advice: str) -> list[str]:
    if stem not in wanted:
        return []
    found, shape = state[stem].shape, wanted[stem].shape
    if found[2:] != shape[2:]:
        setting = f"set network.stem={'standard' if found[2] > shape[2] else 'small'}"
        raise CheckpointError(
            f"{key}: {where} has a first convolution ({stem}) of {found[2]}x{found[3]}, but this network "
            f"has {shape[2]}x{shape[3]}; {setting if advice == ADVICE else advice}"
        )
    if found[1] == shape[1]:
        return []
    state[stem] = fit_channels(state[stem], channels=shape[1])
    return [f"its first convolution is converted from {found[1]} to {shape[1]} channels"]


def _fit_positions(state: State, encoder: nn.Module) -> list[str]:
    """Embeddings of positions of a ViT for images of another size, as timm resamples them."""
    from timm.layers.pos_embed import resample_abs_pos_embed

    module = cast(Any, encoder)
    wanted, positions = encoder.state_dict().get(_POSITIONS), state.get(_POSITIONS)
    if wanted is None or positions is None or positions.shape == wanted.shape:
        return []
    grid, prefix = module.patch_embed.grid_size, module.num_prefix_tokens
    if module.no_embed_class:
        prefix = 0
    state[_POSITIONS] = resample_abs_pos_embed(positions.float(), list(grid), num_prefix_tokens=prefix)
    return [f"its position embeddings are resampled to {grid[0]}x{grid[1]} patches"]


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


def _find_fitted(encoder: nn.Module) -> frozenset[str]:
    """Tensors that can be fitted: of the first convolution, and of positions that timm can resample."""
    has_grid = all(hasattr(encoder, name) for name in ("patch_embed", "num_prefix_tokens", "no_embed_class"))
    return frozenset((_first_convolution(encoder), *([_POSITIONS] if has_grid else [])))


def _first_convolution(encoder: nn.Module) -> str:
    names = (name for name, layer in encoder.named_modules() if isinstance(layer, nn.Conv2d))
    return cast(str, next(names, "")) + ".weight"
