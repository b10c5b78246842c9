"""The network of an encoder as timm and torchvision build it, without the CPU layers of byol."""

import torch
from torch import nn

from byol.encoder.encoder import Encoder
from byol.method.networks import build_encoder


def make_plain(encoder: Encoder) -> nn.Module:
    """Return a frozen copy of the network on the CPU, with the layers of PyTorch."""
    spec = encoder.spec
    with torch.random.fork_rng(devices=[]):  # the random initial weights are replaced below
        network = build_encoder(spec.name, channels=spec.channels, view_px=spec.view_px, stem=spec.stem)
    network.load_state_dict(encoder.module.state_dict(), strict=True)
    return network.eval().requires_grad_(False)
