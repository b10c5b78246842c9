"""Load the weights to start from: random, the networks of a run, or a trained encoder with new heads.

The first gradients of new heads would damage a trained encoder. So the first `warm_steps` steps train only
the heads: the encoder's learning rate is 0 and its BatchNorm statistics do not change. Then its learning rate
rises over as many steps. This depends only on the step and on `start.json`, which is written at step 0.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from byol.base.errors import CheckpointError
from byol.base.files import read_fields, write_fields
from byol.config import Config, NetworkConfig
from byol.encoder import encoder as encoder_files
from byol.encoder.spec import SPEC_NAME, read_spec
from byol.method.networks import Byol, stem_of
from byol.method.schedule import Plan
from byol.metrics.health import Measures
from byol.runfolder import checkpoint
from byol.weights.files import State, holds_weights, read_weights, split_source
from byol.weights.pretrained import (
    ADVICE,
    KEY,
    TIMM,
    check_stem,
    compare_states,
    find_timm,
    fit_weights,
)

FORMAT = 1
FILE_NAME = "start.json"
_WARM_SHARE, _WARM_MAX_STEPS = 0.05, 500
_ENCODER_LR = 0.3  # learning rate of a trained encoder with new heads, as a fraction of that of the heads

Heads = Literal["random", "new", "kept"]


@dataclass(frozen=True)
class InitialWeights:
    """The weights that a run started from: the content of `start.json`."""

    heads: Heads  # random: encoder too; new: random heads on a trained encoder; kept: of the earlier run
    warm_steps: int  # number of first steps that do not train the encoder
    encoder_lr: float  # learning rate of the encoder afterwards, as a fraction of that of the heads
    measures: Measures | None = None  # of the fixed images at step 0; None: unknown

    @classmethod
    def of(cls, network: NetworkConfig, *, heads: Heads, plan: Plan) -> "InitialWeights":
        """Use the values of the configuration. Defaults apply only to new heads on a trained encoder."""
        warm = min(_WARM_MAX_STEPS, round(_WARM_SHARE * plan.total_steps)) if heads == "new" else 0
        rate = _ENCODER_LR if heads == "new" else 1.0
        return cls(
            heads,
            warm if network.warm_heads is None else network.warm_heads,
            rate if network.encoder_lr is None else network.encoder_lr,
        )

    @property
    def has_encoder_group(self) -> bool:
        """Whether the learning rate of the encoder ever differs from that of the heads."""
        return self.warm_steps > 0 or self.encoder_lr != 1.0

    def encoder_share(self, step: int) -> float:
        """Return the learning rate of the encoder at a step, as a fraction of that of the heads."""
        if self.warm_steps == 0:
            return self.encoder_lr
        return self.encoder_lr * min(max(step + 1 - self.warm_steps, 0) / self.warm_steps, 1.0)

    def explain(self) -> list[str]:
        """Return a line if encoder and heads are trained differently."""
        if not self.has_encoder_group:
            return []
        warm = f"the first {self.warm_steps} steps train only the heads (network.warm_heads); "
        rate = (
            f"the encoder's learning rate is {self.encoder_lr:g} times that of the heads (network.encoder_lr)"
        )
        return [(warm if self.warm_steps else "") + rate]


def begin(run_dir: Path, byol: Byol, *, config: Config, plan: Plan) -> tuple[InitialWeights, list[str]]:
    """Load the weights to start from into `byol`. For a run with checkpoints, only read `start.json`.

    Raises:
        ConfigError, CheckpointError: the weights of `network.fine_tune_from` cannot be used, or `start.json`
            is damaged.
    """
    if checkpoint.list_checkpoints(run_dir):
        begun = read(run_dir)
        if begun is None:  # an early version, which did not warm up heads
            fresh = config.network.fine_tune_from is None
            begun = InitialWeights.of(config.network, heads="random" if fresh else "kept", plan=plan)
        return begun, []
    source = config.network.fine_tune_from
    heads: Heads = "random"
    notes: list[str] = []
    if source is not None:
        found = _find(source, byol, name=config.network.name)
        heads, notes = found.heads, found.notes
        if found.networks is not None:
            byol.load_state_dict(found.networks)
        if found.encoder is not None:
            for branch in (byol.online, byol.target):
                branch.encoder.load_state_dict(found.encoder)
    return InitialWeights.of(config.network, heads=heads, plan=plan), notes


def rehearse(config: Config, *, channels: int) -> list[str]:
    """Return the lines that `begin` would return for images with `channels`, or raise its error.

    Raises:
        ConfigError, CheckpointError: as `begin`.
    """
    source = config.network.fine_tune_from
    if source is None:
        return []
    with torch.device("meta"):  # allocates no memory and draws no random weights
        byol = Byol.of(config, channels=channels, seed_key=0)
    return _find(source, byol, name=config.network.name).notes


def check_source(source: str) -> None:
    """Refuse a source that cannot hold weights, before images are read.

    Raises:
        ConfigError, CheckpointError: it is no folder, file with tensors, or timm model on this machine.
    """
    if source.startswith(TIMM):
        find_timm(source.removeprefix(TIMM))
    elif (path := _find_path(source)[0]).is_file():
        read_weights(path, key=KEY)


def _find_path(source: str) -> tuple[Path, str | None]:
    """Return the folder or file that a source names, and the prefix in it."""
    path, select = split_source(source)
    if not path.is_dir() and not path.is_file():
        raise CheckpointError(
            f"{KEY}: {source} is neither a folder nor a weights file; "
            "give a run folder, a weights file, FILE:PREFIX, or timm:MODEL"
        )
    return path, select


def read(run_dir: Path) -> InitialWeights | None:
    """Read `start.json`; None: there is none, as in runs of early versions.

    Raises:
        CheckpointError: the file is damaged or has another format.
    """
    advice = "start again in another folder with -o"
    return read_fields(run_dir / FILE_NAME, versions=(FORMAT,), make=_make_start, advice=advice)


def _make_start(fields: dict[str, Any]) -> InitialWeights:
    measures = fields.pop("measures")
    return InitialWeights(**fields, measures=None if measures is None else Measures(**measures))


def write(run_dir: Path, start: InitialWeights) -> None:
    """Write `start.json`.

    Raises:
        CheckpointError: it cannot be written.
    """
    write_fields(run_dir / FILE_NAME, {"format": FORMAT, **asdict(start)})


@dataclass
class Statistics:
    """The BatchNorm statistics of some networks. Each batch changes them unless they are held."""

    networks: tuple[nn.Module, ...]
    _momenta: dict[_BatchNorm, float | None] = field(init=False)

    def __post_init__(self) -> None:
        layers = (layer for network in self.networks for layer in network.modules())
        self._momenta = {layer: layer.momentum for layer in layers if isinstance(layer, _BatchNorm)}

    def hold(self, held: bool) -> None:
        """Hold or release the statistics. BatchNorm normalises with those of the batch either way."""
        for layer, momentum in self._momenta.items():
            layer.momentum = 0.0 if held else momentum


# ---- Sources of weights


@dataclass(frozen=True)
class _Found:
    """Weights to start from: for the encoder, or for all networks."""

    heads: Heads
    notes: list[str]
    encoder: State | None = None
    networks: State | None = None


def _find(source: str, byol: Byol, *, name: str) -> _Found:
    """Find weights for `byol` in a run folder, a file or timm's cache. Do not change `byol`."""
    if source.startswith(TIMM):
        model = source.removeprefix(TIMM)
        found = read_weights(find_timm(model), key=KEY)
        if model.partition(".")[0] != name.partition(".")[0]:
            raise CheckpointError(
                f"{KEY}: {source} does not match network.name={name}; "
                f"set network.name={model.partition('.')[0]}"
            )
        with_encoder = _find_encoder(found, byol, where=source)
        own = stem_of(byol.online.encoder)
        if own == "standard":
            return with_encoder
        changed = f"the weights were trained with the standard stem, but this network has '{own}'"
        return replace(with_encoder, notes=[*with_encoder.notes, changed])
    path, select = _find_path(source)
    if path.is_dir() and not holds_weights(path):
        return _find_run(path, byol)
    stem = _read_stem(path)
    return _find_encoder(read_weights(path, key=KEY), byol, where=source, select=select, stem=stem)


def _read_stem(path: Path) -> str | None:
    """Read the stem of weights that byol wrote from the `encoder.json` of their run; None: unknown.

    Checkpoints, and encoders of early versions, do not state their stem.
    """
    if path.name == encoder_files.WEIGHTS_NAME:
        spec = path.with_name(SPEC_NAME)
    elif path.parent.name == "checkpoints":
        spec = path.parent.with_name(SPEC_NAME)
    else:
        return None
    return read_spec(spec).stem if spec.is_file() else None


def _find_run(folder: Path, byol: Byol) -> _Found:
    """Find all networks of a run if they fit, else its encoder. The folder may hold only an encoder."""
    state, _ = checkpoint.read_latest(folder)
    if state is None:
        if not (folder / SPEC_NAME).is_file():
            raise CheckpointError(
                f"{KEY}: {folder} holds neither a checkpoint nor an encoder; give a run folder"
            )
        encoder = encoder_files.load(folder, device="cpu")
        weights, spec = encoder.module.state_dict(), encoder.spec
        return _find_encoder(weights, byol, where=str(folder), stem=spec.stem, advice=_advise_model(folder))
    stem = _read_stem(folder / encoder_files.WEIGHTS_NAME)
    problem = compare_states(state["byol"], byol.state_dict(), there="the run")
    if problem is None:
        check_stem(stem, byol.online.encoder, where=str(folder))
        notes = [f"starting from the networks of {folder}, step {state['done']}"]
        return _Found("kept", notes, networks=state["byol"])
    prefix = "online.encoder."
    found = {key.removeprefix(prefix): value for key, value in state["byol"].items() if prefix in key}
    with_encoder = _find_encoder(found, byol, where=str(folder), stem=stem, advice=_advise_model(folder))
    left_out = f"its heads are not used, because {problem}"
    return replace(with_encoder, notes=[*with_encoder.notes, left_out])


def _advise_model(folder: Path) -> str:
    """Return the settings that choose the network of an earlier run."""
    try:
        spec = read_spec(folder / SPEC_NAME)
    except CheckpointError:  # there is none yet
        return ADVICE
    return f"choose the network of that run: network.name={spec.name} network.stem={spec.stem}"


def _find_encoder(
    found: State,
    byol: Byol,
    *,
    where: str,
    select: str | None = None,
    stem: str | None = None,
    advice: str = ADVICE,
) -> _Found:
    """Fit weights to the encoders of both branches. The heads keep their random weights."""
    encoder = byol.online.encoder
    state, notes = fit_weights(found, encoder, where=where, select=select, stem=stem, advice=advice)
    notes = [f"starting from the encoder of {where}, with new heads", *notes]
    return _Found("new", notes, encoder=state)
