"""Encoders to export: untrained, but with statistics of BatchNorm as a training leaves them."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from byol.data.decode.formats import Bits
from byol.encoder.encoder import save_encoder
from byol.method.networks import build_encoder, count_features
from byol.method.views import Pixels
from runs import make_spec

_RANGES: dict[int, tuple[float, float]] = {8: (0.0, 255.0), 16: (100.0, 4000.0), 32: (-3.0, 7.0)}


@dataclass(frozen=True)
class Case:
    """An encoder: its network, its images and their sizes."""

    name: str
    stem: str = "standard"
    channels: int = 3
    bits: Bits = 8
    view_px: int = 32
    stored_px: int = 32
    whole_px: int | None = None
    mirrored: bool = False

    def __str__(self) -> str:
        return f"{self.name}-{self.stem}-{self.channels}-{self.bits}bit-{self.view_px}px"

    def save(self, folder: Path) -> Path:
        """The encoder's files, in a folder below `folder`."""
        size = {"channels": self.channels, "view_px": self.view_px}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            encoder = build_encoder(self.name, stem=self.stem, **size)
            with torch.no_grad():
                encoder.train()(torch.randn(8, self.channels, self.view_px, self.view_px))
        low, high = _RANGES[self.bits]
        mean = [0.3 + 0.05 * channel for channel in range(self.channels)]
        std = [0.3 - 0.02 * channel for channel in range(self.channels)]
        spec = replace(
            make_spec(),
            **size,
            name=self.name,
            stem=self.stem,
            bits=self.bits,
            stored_px=self.stored_px,
            whole_px=self.whole_px,
            mirrored=self.mirrored,
            num_features=count_features(encoder.eval(), **size),
            pixels=Pixels((low,) * self.channels, (high,) * self.channels, tuple(mean), tuple(std)),
            data_name="cells",
            data_fingerprint="abc",
        )
        save_encoder(folder / str(self), encoder, spec)
        return folder / str(self)
