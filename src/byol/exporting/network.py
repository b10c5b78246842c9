"""The network of an encoder as timm and torchvision make it, without byol's layers for CPUs."""

import torch
from torch import nn

from byol.encoder.encoder import Encoder
from byol.method.networks import build_encoder


def make_plain(encoder: Encoder) -> nn.Module:
    """A copy of the encoder's network on the CPU, frozen, whose layers are PyTorch's own."""
    spec = encoder.spec
    with torch.random.fork_rng(devices=[]):  # first weights are drawn, then replaced
        network = build_encoder(spec.name, channels=spec.channels, view_px=spec.view_px, stem=spec.stem)
    network.load_state_dict(encoder.module.state_dict(), strict=True)
    return network.eval().requires_grad_(False)
