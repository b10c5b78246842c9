"""What has no counterpart in torchvision; everything else is compared with it in test_views.py."""

import pytest
import torch

from byol.method import pixelwise


def test_noise_is_gaussian_and_different_in_every_image_and_channel() -> None:
    x = torch.full((3, 2, 96, 96), 0.5)
    noisy = x.clone()
    pixelwise.add_noise_(noisy, torch.tensor([0.1, 0.1, 0.0]), torch.tensor([11, 12, 13]))
    noise = (noisy - x) / 0.1
    planes = noise[:2].flatten(0, 1).flatten(1)
    assert planes.mean().abs() < 0.02
    assert abs(planes.std() - 1) < 0.02
    assert abs((planes.abs() < 1).float().mean() - 0.6827) < 0.01
    assert (torch.corrcoef(planes) - torch.eye(4)).abs().max() < 0.04
    neighbours = torch.corrcoef(torch.stack([planes[0, :-1], planes[0, 1:]]))[0, 1]
    assert neighbours.abs() < 0.04
    assert torch.equal(noisy[2], x[2])


def test_noise_does_not_brighten_a_dark_background() -> None:
    x = torch.zeros(1, 1, 96, 96)
    pixelwise.add_noise_(x, torch.tensor([0.1]), torch.tensor([11]))
    assert x.mean().abs() < 0.004


@pytest.mark.parametrize(("num_in", "num_out"), [(5, 5), (37, 32), (32, 37), (200, 8)])
def test_resampling_keeps_a_constant_and_reads_only_the_interval(num_in: int, num_out: int) -> None:
    generator = torch.Generator().manual_seed(0)
    length = torch.rand(50, generator=generator) * 0.98 + 0.02
    start = torch.rand(50, generator=generator) * (1 - length)
    flip = torch.rand(50, generator=generator) < 0.5
    taps = pixelwise.resampling(start, length, flip, num_in=num_in, num_out=num_out)
    torch.testing.assert_close(taps.weight.sum(dim=2), torch.ones(50, num_out))
    assert taps.weight.min() >= 0
    first, last = (start * num_in - 1e-3).floor(), ((start + length) * num_in + 1e-3).ceil()
    read = (taps.index >= first[:, None, None]) & (taps.index < last[:, None, None])
    assert read[taps.weight > 1e-3].all()
    centres = (taps.weight * (taps.index + 0.5)).sum(dim=2)
    steps = centres.diff(dim=1)[flip]
    assert (steps <= 1e-4).all(), "flipped: read from the end"


def test_hue_turns_add_up_and_a_whole_turn_changes_nothing() -> None:
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    turned = x.clone()
    for turns in (0.3, 0.4, -0.2, 0.5):
        pixelwise.turn_hue_(turned, torch.full((4, 1), turns))
    torch.testing.assert_close(turned, x, atol=1e-5, rtol=0)
    third = x.clone()
    pixelwise.turn_hue_(third, torch.full((4, 1), 1 / 3))
    torch.testing.assert_close(third, x.roll(1, dims=1), atol=1e-5, rtol=0)
