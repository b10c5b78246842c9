"""The arithmetic of views on batches, each image with its own numbers: resampling, colour, blur, noise.

Images are float32 in [0, 1], (batch, channel, height, width), planes contiguous; names that end in _ work in
place. Colour is torchvision's arithmetic (`adjust_brightness` and so on, clipped each).

Cost on CPU is passes over planes, one of 96x96 px about 1 microsecond; `where` and `gather` cost 20 to 30
passes, so choices are written as products with 0 and 1.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # of red, green, blue (ITU-R 601-2, as torchvision)
Jitter = Literal["gamma", "brightness", "contrast", "saturation", "hue"]


# ---- Resampling


@dataclass(frozen=True)
class Taps:
    """Pixels of a side that an output pixel reads, and their weights; one side of each image."""

    index: Int64[Tensor, "batch out tap"]
    weight: Float[Tensor, "batch out tap"]


def resampling(
    start: Float[Tensor, " batch"],
    length: Float[Tensor, " batch"],
    flip: Bool[Tensor, " batch"],
    *,
    num_in: int,
    num_out: int,
) -> Taps:
    """Resize the interval [start, start + length) of a side of length 1 from `num_in` to `num_out` pixels.

    A triangle filter as wide as the larger of the two pixels, so equal to torchvision's antialiased bilinear
    `resized_crop` where the interval ends between pixels; a pixel partly inside counts by its part.
    """
    start, length = start[:, None, None] * num_in, length[:, None, None] * num_in
    scale = length / num_out
    radius = scale.clamp_min(1.0)
    step = (torch.arange(num_out, device=start.device) + 0.5)[None, :, None]
    centre = start + scale * torch.where(flip[:, None, None], num_out - step, step)
    num_taps = math.ceil(2.0 * max(num_in / num_out, 1.0))
    pixel = (centre - radius + 0.5).floor() + torch.arange(num_taps, device=start.device)
    weight = (1.0 - (pixel + 0.5 - centre).abs() / radius).clamp_(min=0.0)
    inside = torch.minimum(pixel + 1.0, start + length) - torch.maximum(pixel, start)
    weight *= inside.clamp_(0.0, 1.0)
    weight /= weight.sum(dim=2, keepdim=True)
    return Taps(pixel.clamp_(0, num_in - 1).long(), weight)


def resize(
    x: Float[Tensor, "batch channel height width"], rows: Taps, columns: Taps
) -> Float[Tensor, "batch channel height_out width_out"]:
    """Resample both sides of each image. Reads channels_last without a copy; gives planes."""
    batch, channels, _, width = x.shape
    lines = _weigh(x.permute(0, 2, 3, 1).flatten(2), rows)
    lines = lines.view(batch, -1, width, channels).permute(0, 2, 3, 1)  # width, channel, height_out
    height_out = lines.shape[3]
    lines = _weigh(lines.flatten(2), columns).view(batch, -1, channels, height_out)
    return lines.permute(0, 2, 3, 1).contiguous()


def _weigh(lines: Tensor, taps: Taps) -> Tensor:
    """(batch, out, values): weighted sums of lines (batch, in, values) as one embedding bag.

    On CPU a third of the time of products with resampling matrices, at 96 px.
    """
    first_line = torch.arange(len(lines), device=lines.device)[:, None, None] * lines.shape[1]
    index = (taps.index + first_line).flatten(0, 1)
    weight = taps.weight.flatten(0, 1)
    summed = F.embedding_bag(index, lines.flatten(0, 1), mode="sum", per_sample_weights=weight)
    return summed.view(len(lines), -1, lines.shape[2])


# ---- Colour


def jitter_(
    x: Float[Tensor, "batch channel height width"],
    gamma: Float[Tensor, "batch factor"],
    brightness: Float[Tensor, "batch factor"],
    contrast: Float[Tensor, "batch factor"],
    saturation: Float[Tensor, "batch 1"],
    hue: Float[Tensor, "batch 1"],
    *,
    order: tuple[Jitter, ...],
) -> None:
    """The operations of `order`, one after the other; factors per image, or per image and channel."""
    for name in order:
        match name:
            case "gamma":
                x.pow_(gamma[:, :, None, None])
            case "brightness":
                x.mul_(brightness[:, :, None, None]).clamp_(0.0, 1.0)
            case "contrast":
                adjust_contrast_(x, contrast)
            case "saturation":
                adjust_saturation_(x, saturation)
            case "hue":
                turn_hue_(x, hue)


def adjust_contrast_(
    x: Float[Tensor, "batch channel height width"], factor: Float[Tensor, "batch factor"]
) -> None:
    """clip(factor * x + (1 - factor) * mean): of RGB the mean of grey, otherwise each channel's."""
    factor = factor[:, :, None, None]
    mean = x.mean(dim=(2, 3), keepdim=True)
    if x.shape[1] == 3:
        mean = _grey(mean)
    x.mul_(factor).add_(mean * (1.0 - factor)).clamp_(0.0, 1.0)


def adjust_saturation_(x: Float[Tensor, "batch 3 height width"], factor: Float[Tensor, "batch 1"]) -> None:
    """clip(factor * x + (1 - factor) * grey)."""
    factor = factor[:, :, None, None]
    grey = _grey(x)
    x.mul_(factor).add_(grey.mul_(1.0 - factor)).clamp_(0.0, 1.0)


def turn_hue_(x: Float[Tensor, "batch 3 height width"], turns: Float[Tensor, "batch 1"]) -> None:
    """Add to the hue of HSV, in turns of the colour circle (-0.5..0.5).

    A channel is low + chroma * clip(|k - 2| - 1, 0, 1) with k = (n + 6 hue) mod 6 and n = 5, 3, 1 for red,
    green, blue: the table by sectors that torchvision and PIL use, without a table.
    """
    red, green, blue = x.unbind(1)
    value, low = x.amax(dim=1), x.amin(dim=1)
    chroma = value - low
    is_red = value.clone().eq_(red)  # in place, so 0.0 and 1.0
    is_green = value.eq_(green).mul_(1.0 - is_red)
    is_blue = 1.0 - is_red - is_green
    sixths = is_red.mul_(green - blue)
    sixths += is_green.mul_((blue - red).add_(chroma, alpha=2.0))
    sixths += is_blue.mul_((red - green).add_(chroma, alpha=4.0))
    six_chroma = chroma * 6.0
    # One turn more keeps everything positive, where frac is the same as modulo. A grey pixel has any hue.
    hue = sixths.div_(six_chroma.clamp_min(1e-12)).add_(turns[:, :, None] + 1.0)
    base = low.sub_(chroma)
    for channel, n in ((red, 5), (green, 3), (blue, 1)):
        k = (hue + n / 6).frac_().sub_(1 / 3).abs_().clamp_(1 / 6, 1 / 3)
        torch.addcmul(base, six_chroma, k, out=channel)
    x.clamp_(0.0, 1.0)


def to_grey_(x: Float[Tensor, "batch 3 height width"]) -> None:
    """Every channel becomes 0.2989 red + 0.587 green + 0.114 blue."""
    x.copy_(_grey(x).expand_as(x))


def _grey(x: Tensor) -> Tensor:
    red, green, blue = GREY_WEIGHTS
    return (x[:, :1] * red).add_(x[:, 1:2], alpha=green).add_(x[:, 2:], alpha=blue)


def drop_channel_(x: Float[Tensor, "batch channel height width"], channel: Int64[Tensor, " batch"]) -> None:
    """One channel of each image becomes its mean."""
    image = torch.arange(len(x), device=x.device)
    mean = x[image, channel].mean(dim=(1, 2), keepdim=True)
    x[image, channel] = mean.expand(-1, *x.shape[2:])


def solarize_(x: Float[Tensor, "batch channel height width"]) -> None:
    """1 - x where x >= 0.5."""
    above = torch.ge(x, 0.5).to(x.dtype)
    x.add_(above.mul_(1.0 - 2.0 * x))


def invert_(x: Float[Tensor, "batch channel height width"]) -> None:
    """1 - x."""
    x.neg_().add_(1.0)


# ---- Blur and noise


def blur_(x: Float[Tensor, "batch channel side side"], sigma: Float[Tensor, " batch"]) -> None:
    """Gaussian of sigma pixels, a tenth of the side wide (9 px at 96, 23 at 224), reflected at borders."""
    side = x.shape[-1]
    radius = max(side // 20, 1)
    shift = torch.arange(-radius, radius + 1, device=x.device)
    kernel = torch.softmax(-0.5 * (shift / sigma.clamp_min(1e-3)[:, None]) ** 2, dim=1)
    source = (torch.arange(side, device=x.device)[:, None] + shift).abs_()
    source = (side - 1) - (side - 1 - source).abs_()
    num_planes = x.shape[0] * x.shape[1]
    taps = Taps(
        source.expand(num_planes, -1, -1),
        kernel.repeat_interleave(x.shape[1], dim=0)[:, None].expand(-1, side, -1),
    )
    across = _weigh(x.flatten(0, 1), taps).mT.contiguous()
    x.copy_(_weigh(across, taps).mT.view_as(x))


def add_noise_(
    x: Float[Tensor, "batch channel height width"],
    std: Float[Tensor, " batch"],
    seed: Int64[Tensor, " batch"],
) -> None:
    """Gaussian noise, a hash of (seed, place): the same on every device and in whatever batch.

    Not clipped: on a dark background that would brighten the image, by as much as there is noise. Where
    brightness is what tells cells apart, such noise hides it.
    """
    place = torch.arange(x[0].numel(), device=x.device)
    bits = (seed[:, None] + place * 0x9E3779B1) & 0xFFFFFFFF
    # The finaliser of MurmurHash3, 32 bits in an int64 (which may wrap: the low bits are right).
    bits = ((bits ^ (bits >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    bits = ((bits ^ (bits >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    bits = (bits ^ (bits >> 16)) >> 9
    symmetric = (bits.float() * 2.0 + 1.0) / 2**23 - 1.0  # odd multiples of 2^-23 in (-1, 1), exact
    normal = symmetric.erfinv_().mul_(math.sqrt(2.0)).view_as(x)
    x.add_(normal.mul_(std[:, None, None, None]))
