"""Define and read `encoder.json`, which says how to use an encoder.

Nothing here reads pickles.
"""

import functools
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from byol.base.disk import read_bytes
from byol.base.errors import CheckpointError, ConfigError
from byol.base.records import add_checksum, take_checksum
from byol.config import Config
from byol.data.decode.formats import Bits, Geometry, Layout
from byol.data.decode.reading import Alpha
from byol.data.pack.packed import Packed
from byol.data.sources.array_layout import TrainedLayout
from byol.method.networks import build_encoder, count_features, resolve_stem
from byol.method.views import Pixels, chooses_mirrored, find_whole_px

FORMAT = 2
SPEC_NAME = "encoder.json"
AGAIN = "repeat the `byol train` command to write it again"  # end of error messages


@dataclass(frozen=True)
class EncoderSpec:
    """The content of `encoder.json`, which describes the weights beside it."""

    name: str  # of a timm or torchvision model
    stem: str  # "standard", "small" or "strided"
    channels: int
    view_px: int  # side of the views in training
    stored_px: int  # side of the square to which an image is resized first
    num_features: int
    pixels: Pixels
    which: Literal["online", "target", "finetuned"]  # finetuned: trained with labels
    done: int  # training steps
    byol_version: str
    data_fingerprint: str  # of the packed training images
    data_name: str
    select: Literal["grey", "rgb"] | tuple[int, ...] | None = None  # data.channels
    bits: Bits = 8  # per value of the training images
    geometry: Geometry = "square"  # data.geometry
    layout: Layout = "auto"  # data.layout
    whole_px: int | None = None  # side of images for the encoder; None: view_px
    alpha: Alpha = "drop"  # data.alpha; this default is for files of early versions, which do not have it
    array_layout: Layout = "auto"  # of the training arrays with three axes, if there were any
    mirrored: bool = False  # features are the mean over a whole image and its mirror image

    @property
    def seen_px(self) -> int:
        """Side of a whole image for the encoder, in px."""
        return self.view_px if self.whole_px is None else self.whole_px

    @property
    def trained_layout(self) -> TrainedLayout | None:
        """The layout of new arrays; None: there were no arrays in training."""
        if self.array_layout == "auto":
            return None
        return TrainedLayout(self.array_layout, None if self.select is not None else self.channels)

    @classmethod
    def of(
        cls, config: Config, images: Packed, *, which: Literal["online", "target"], done: int
    ) -> "EncoderSpec":
        """Make the spec of an encoder trained on `images` for `done` steps."""
        from byol.base.version import __version__

        name, view_px = config.network.name, config.view_px
        stem = resolve_stem(config.network.stem, name=name, view_px=view_px)
        select = config.data.channels
        return cls(
            name=name,
            stem=stem,
            channels=images.channels,
            view_px=view_px,
            stored_px=images.stored_px,
            num_features=_count_features(name, channels=images.channels, view_px=view_px, stem=stem),
            pixels=images.pixels,
            which=which,
            done=done,
            byol_version=__version__,
            data_fingerprint=images.fingerprint,
            data_name=Path(config.data.source).name,
            select=tuple(select) if isinstance(select, list) else select,
            bits=images.bits,
            geometry=config.data.geometry,
            layout=config.data.layout,
            whole_px=choose_whole_px(config, channels=images.channels, stem=stem),
            alpha=config.data.alpha,
            array_layout=images.array_layout,
            mirrored=chooses_mirrored(config.data_transforms),
        )


@functools.cache
def _count_features(name: str, *, channels: int, view_px: int, stem: str) -> int:
    # The meta device allocates and computes nothing, and draws no random numbers.
    with torch.device("meta"):
        encoder = build_encoder(name, channels=channels, view_px=view_px, stem=stem)
    return count_features(encoder, channels=channels, view_px=view_px)


def choose_whole_px(config: Config, *, channels: int, stem: str) -> int | None:
    """Return `data_transforms.whole_px`; None for auto if the model accepts only images of `view_px`."""
    wanted = config.data_transforms.whole_px
    if wanted is None:
        return None
    name, view_px = config.network.name, config.view_px
    px = find_whole_px(config.data_transforms) if wanted == "auto" else wanted
    if _takes(name, channels=channels, view_px=view_px, stem=stem, whole_px=px):
        return px
    if wanted == "auto":
        return None
    raise ConfigError(f"data_transforms.whole_px: {name} does not accept images of {px} px; leave it out")


@functools.cache
def _takes(name: str, *, channels: int, view_px: int, stem: str, whole_px: int) -> bool:
    """Return whether the model, built for `view_px`, also accepts images of `whole_px`."""
    with torch.device("meta"):
        encoder = build_encoder(name, channels=channels, view_px=view_px, stem=stem)
    try:
        count_features(encoder, channels=channels, view_px=whole_px)
    except ConfigError:
        return False
    return True


def dump_spec(spec: EncoderSpec) -> bytes:
    """The content of `encoder.json`, with its checksum."""
    content = from_json(to_json({"format": FORMAT, **asdict(spec)}))
    return to_json(add_checksum(content), indent=2) + b"\n"


def read_spec(path: Path) -> EncoderSpec:
    """Read an `encoder.json`.

    Raises:
        CheckpointError: the file is damaged or of an unknown format.
    """
    try:
        content = from_json(read_bytes(path))
        if isinstance(content, dict):
            take_checksum(content)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); {AGAIN}") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found not in (1, FORMAT):
        raise CheckpointError(
            f"{path}: has format {found}, but this byol reads 1 and {FORMAT}; update byol, or {AGAIN}"
        )
    try:
        spec = TypeAdapter(EncoderSpec).validate_json(to_json(content))
        if found == 1 and (set(spec.pixels.low), set(spec.pixels.high)) != ({0.0}, {255.0}):
            spec = replace(spec, bits=16)  # format 1 had 8 and 16 bits, and did not write which
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{path}: {where}: {first['msg'].lower()}; {AGAIN}") from None
    pixels = spec.pixels
    lengths = {len(pixels.low), len(pixels.high), len(pixels.mean), len(pixels.std)}
    if lengths | ({len(pixels.smallest), len(pixels.largest)} - {0}) != {spec.channels}:
        raise CheckpointError(f"{path}: pixels: needs a value for each of {spec.channels} channels; {AGAIN}")
    return spec
