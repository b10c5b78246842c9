"""Views without a choice per image: a candidate for the GPU, measured by variants.py.

Every operation is applied to the whole batch, with numbers that change nothing where it was not drawn, so
that shapes are the same in every step and the operations can be compiled. The views are those of
`byol.method.views.make_views`, to rounding, as far as the presets `default`, `paper` and `classic` go: RGB,
without rotation, vertical flip, turn, gamma, noise, inversion or channel drop.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from byol.method.pixelwise import GREY_WEIGHTS
from byol.method.views import SIGMA_PX, Draws, Pixels

_COLOURS = ("brightness", "contrast", "saturation", "hue")


class MaskedViews:
    """Makes a view of each image, in `dtype` and channels_last. `backend`: of torch.compile; None: eager."""

    def __init__(
        self,
        stored_px: int,
        view_px: int,
        *,
        pixels: Pixels,
        dtype: torch.dtype,
        device: torch.device,
        backend: str | None,
    ) -> None:
        self._view_px, self._device, self._dtype = view_px, device, dtype
        rows = torch.tensor([pixels.low, pixels.high, pixels.mean, pixels.std], device=device)
        self._low, high, self._mean, self._std = rows[:, :, None, None]
        self._span = high - self._low
        self._stored = torch.arange(stored_px, device=device) + 0.5
        self._steps = (torch.arange(view_px, device=device) + 0.5)[:, None]
        self._shift, self._reflect = _reflections(view_px, device)

        def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
            return function if backend is None else torch.compile(function, backend=backend, dynamic=False)

        self._crop, self._finish = compiled(self._crop_eager), compiled(self._finish_eager)
        self._colours = {name: compiled(_COLOUR_OF[name]) for name in _COLOURS}

    def __call__(
        self, images: UInt8[Tensor, "batch 3 stored stored"], draws: Draws
    ) -> Float[Tensor, "batch 3 view view"]:
        numbers = self._send(draws)
        x = self._crop(images, numbers)
        for name in draws.order:
            x = self._colours[name](x, numbers[5 + _COLOURS.index(name)])
        return self._finish(x, numbers)

    def _send(self, draws: Draws) -> Float[Tensor, "number batch 1 1"]:
        """All numbers in one copy: box, flip, colours, grey, sigma, solarize."""
        unused = (draws.angle, draws.noise, draws.invert, draws.drop, draws.vertical_flip, draws.turn)
        assert not any(bool((number != 0).any()) for number in unused) and "gamma" not in draws.order
        neutral = [
            torch.where(draws.jitter, getattr(draws, name)[:, 0], float(name != "hue")) for name in _COLOURS
        ]
        sigma = torch.where(draws.blur, draws.sigma, 0.0) * (self._view_px / SIGMA_PX)
        numbers = [*draws.box.unbind(1), draws.flip, *neutral, draws.grey, sigma, draws.solarize]
        stacked = torch.stack([number.float() for number in numbers])[:, :, None, None]
        if self._device.type == "cuda":
            stacked = stacked.pin_memory()
        return stacked.to(self._device, non_blocking=True)

    def _crop_eager(self, images: Tensor, numbers: Tensor) -> Tensor:
        top, left, height, width, flip = numbers[:5]
        x = ((images - self._low) / self._span).clamp(0.0, 1.0)
        rows = self._weigh(top, height, torch.zeros_like(flip))
        columns = self._weigh(left, width, flip)
        return (rows[:, None] @ x @ columns[:, None].mT).clamp(0.0, 1.0)

    def _weigh(self, start: Tensor, length: Tensor, flip: Tensor) -> Tensor:
        """(batch, view, stored): the weights of `byol.method.pixelwise.resampling`, with the zeros."""
        num_in, num_out = len(self._stored), self._view_px
        start, length = start * num_in, length * num_in
        scale = length / num_out
        centre = start + scale * (self._steps + flip * (num_out - 2.0 * self._steps))
        weight = (1.0 - (self._stored - centre).abs() / scale.clamp_min(1.0)).clamp_min(0.0)
        upper, lower = (
            torch.minimum(self._stored + 0.5, start + length),
            torch.maximum(self._stored - 0.5, start),
        )
        weight = weight * (upper - lower).clamp(0.0, 1.0)
        return weight / weight.sum(dim=2, keepdim=True)

    def _finish_eager(self, x: Tensor, numbers: Tensor) -> Tensor:
        grey, sigma, solarize = numbers[9:]
        x = torch.lerp(x, _grey(x), grey[:, None])
        kernel = torch.softmax(-0.5 * (self._shift / sigma[:, 0].clamp_min(1e-3)) ** 2, dim=1)
        side = self._view_px
        blur = (kernel @ self._reflect).view(-1, 1, side, side)
        x = blur @ x @ blur.mT
        x = torch.where((x >= 0.5) & (solarize[:, None] > 0.0), 1.0 - x, x)
        x = (x - self._mean) / self._std
        return x.to(self._dtype).contiguous(memory_format=torch.channels_last)


def _reflections(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Distances of a blur's taps (tap,), and which pixel each tap of each pixel reads, (tap, side * side)."""
    radius = max(side // 20, 1)
    shift = torch.arange(-radius, radius + 1, device=device)
    source = (torch.arange(side, device=device) + shift[:, None]).abs()
    source = (side - 1) - (side - 1 - source).abs()
    return shift, torch.nn.functional.one_hot(source, side).float().flatten(1)


# ---- Colour: functions of images and of one number for each, (batch, 1, 1)


def _grey(x: Tensor) -> Tensor:
    red, green, blue = GREY_WEIGHTS
    return red * x[:, :1] + green * x[:, 1:2] + blue * x[:, 2:]


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor[:, None]).clamp(0.0, 1.0)


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    mean = _grey(x.mean(dim=(2, 3), keepdim=True))
    return torch.lerp(mean, x, factor[:, None]).clamp(0.0, 1.0)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_grey(x), x, factor[:, None]).clamp(0.0, 1.0)


def _hue(x: Tensor, turns: Tensor) -> Tensor:
    """As `byol.method.pixelwise.turn_hue_`."""
    red, green, blue = x.unbind(1)
    value, low = x.amax(dim=1), x.amin(dim=1)
    chroma = value - low
    sixths = torch.where(
        value == red,
        green - blue,
        torch.where(value == green, blue - red + 2.0 * chroma, red - green + 4.0 * chroma),
    )
    hue = sixths / (6.0 * chroma).clamp_min(1e-12) + turns + 1.0
    k = [((hue + n / 6.0).frac() - 1.0 / 3.0).abs().clamp(1.0 / 6.0, 1.0 / 3.0) for n in (5, 3, 1)]
    return ((low - chroma)[:, None] + 6.0 * chroma[:, None] * torch.stack(k, dim=1)).clamp(0.0, 1.0)


_COLOUR_OF = {"brightness": _brightness, "contrast": _contrast, "saturation": _saturation, "hue": _hue}
