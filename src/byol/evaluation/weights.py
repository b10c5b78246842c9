"""Open other pre-trained weights for one more row of the table, with their own preprocessing if known."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from byol.base.console import Say, silent
from byol.base.errors import CheckpointError
from byol.encoder.encoder import WEIGHTS_NAME, Encoder, load
from byol.encoder.spec import SPEC_NAME, EncoderSpec
from byol.evaluation.features import FrozenEncoder, trained
from byol.method.networks import build_encoder, count_features
from byol.weights.files import State, holds_weights, read_weights, split_source
from byol.weights.pretrained import TIMM, find_timm, fit_weights

KEY = "evaluation.weights"


def open_weights(source: str, *, spec: EncoderSpec, device: str, say: Say = silent) -> FrozenEncoder:
    """Open the encoder that `source` names, for images like those of the run's encoder (`spec`).

        timm:MODEL           a timm model with its own mean and std; its weights must be on this machine
        folder of a run      its encoder, with all of its preprocessing if the number of channels is the same
        FILE, FILE:PREFIX    weights for the run's network, with the run's preprocessing

    If the number of channels differs, `fit_channels` adapts the first convolution. `say` receives where in
    the file the encoder is, and what was changed or left out.

    Raises:
        CheckpointError, ConfigError: the weights are missing, unreadable, or belong to another network.
    """
    if source.startswith(TIMM):
        model = source.removeprefix(TIMM)
        found = read_weights(find_timm(model, key=KEY), key=KEY)
        return _fit(found, _as_timm(spec, model), where=source, device=device, say=say)
    path = Path(source)
    folder = path.parent if path.name == WEIGHTS_NAME else path
    if (folder / SPEC_NAME).is_file():
        encoder = load(folder, device=device)
        if encoder.spec.channels == spec.channels:
            return trained(encoder)
        theirs = replace(spec, name=encoder.spec.name, stem=encoder.spec.stem, which=encoder.spec.which)
        return _fit(encoder.module.state_dict(), theirs, where=source, device=device, say=say)
    path, select = split_source(source)
    if not holds_weights(path):
        raise CheckpointError(
            f"{KEY}: {source} is neither a folder with an encoder nor a file of weights; "
            "name a run's folder, such a file, FILE:PREFIX, or timm:MODEL"
        )
    return _fit(read_weights(path, key=KEY), spec, where=source, device=device, say=say, select=select)


def name_weights(source: str, *, which: str = "online") -> str:
    """Return the name of the row; `which` is the value in the encoder's spec."""
    if which == "finetuned":
        return f"{name_weights(source)}, finetuned"
    path = Path(source)
    if source.startswith(TIMM) or path.name != WEIGHTS_NAME:
        return f"weights {source if source.startswith(TIMM) else path.name or source}"
    return f"weights {path.resolve().parent.name}"


def _fit(
    found: State,
    spec: EncoderSpec,
    *,
    where: str,
    device: str,
    say: Say,
    select: str | None = None,
) -> FrozenEncoder:
    size = {"channels": spec.channels, "view_px": spec.view_px}
    with torch.random.fork_rng(devices=[]):  # keep the caller's random state
        module = build_encoder(spec.name, stem=spec.stem, **size)
    # The training option lets users choose the network; here it is the run's.
    advice = f"give weights of {spec.name}, a folder with {SPEC_NAME}, or timm:MODEL"
    state, notes = fit_weights(found, module, where=where, key=KEY, select=select, advice=advice)
    module.load_state_dict(state)
    if notes:
        for line in (f"comparing with the encoder of {where}", *notes):
            say(line)
    spec = replace(spec, num_features=count_features(module, **size), done=0)
    return trained(Encoder(spec, module, device=device))


def _as_timm(spec: EncoderSpec, model: str) -> EncoderSpec:
    """Return `spec` for this timm model, with the model's own mean and std (of pixels scaled to 0..1)."""
    import timm

    pretrained: Any = timm.get_pretrained_cfg(model)

    def per_channel(values: tuple[float, ...]) -> tuple[float, ...]:
        if len(values) == spec.channels:
            return tuple(values)
        return (sum(values) / len(values),) * spec.channels

    pixels = replace(spec.pixels, mean=per_channel(pretrained.mean), std=per_channel(pretrained.std))
    return replace(spec, name=model, stem="standard", pixels=pixels)
