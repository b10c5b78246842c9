"""Make two random views of every image, in batches on the device, with separate random numbers per image.

`draw_views` draws all random numbers of the global batch on the host, from a generator seeded by the step. So
views depend neither on the device, nor on workers, nor on the number of ranks. `apply_view` applies:

    crop + flip (+ rotation) + quarter turn -> gamma, then colour jitter in an order drawn for the batch
    -> grey or channel drop -> blur -> noise -> solarize -> invert -> (x - mean) / std

Without 3 channels, brightness, contrast and gamma have a factor per channel, saturation and hue do nothing,
and channel drop replaces grey. Images with one channel have neither grey nor channel drop.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Real
from torch import Tensor

from byol.config import DataTransforms, View
from byol.device.devices import send, to_float32
from byol.method import pixelwise
from byol.method.pixelwise import Jitter

WEAK_CROP_AREA = (0.4, 1.0)  # of the weak view, as a fraction of the image
_CHANGES = ("jitter", "grey", "blur", "solarize", "invert", "noise", "channel_drop")  # that it leaves out
_WEAK = 0x5EA7  # makes the seed of the weak view from that of the others
SIGMA_PX = 224  # view size for which blur_sigma is given in pixels
_FULL_SCALES = {torch.uint8: 255.0, torch.uint16: 65535.0}
CROP_TRIES = 10  # boxes drawn per image before the fallback, as in torchvision's RandomResizedCrop


@dataclass(frozen=True)
class Pixels:
    """Scaling per channel: a stored v becomes x = clip((v - low) / (high - low), 0, 1), and (x - mean) / std.

    `smallest` and `largest` are the extremes of v in training; (): an early version did not record them.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    smallest: tuple[float, ...] = ()
    largest: tuple[float, ...] = ()


@dataclass(frozen=True)
class Draws:
    """The random numbers of one view of a batch. `factor`: 1 for 3 channels, else the number of channels."""

    box: Float[Tensor, "batch 4"]  # top, left, height, width as fractions of the image
    sizes: Float[Tensor, "batch 2"]  # original height, width; any unit
    flip: Bool[Tensor, " batch"]
    vertical_flip: Bool[Tensor, " batch"]
    turn: Int64[Tensor, " batch"]  # quarter turns counter-clockwise, 0..3
    angle: Float[Tensor, " batch"]  # radians
    jitter: Bool[Tensor, " batch"]
    brightness: Float[Tensor, "batch factor"]
    contrast: Float[Tensor, "batch factor"]
    gamma: Float[Tensor, "batch factor"]  # exponents
    saturation: Float[Tensor, "batch 1"]
    hue: Float[Tensor, "batch 1"]  # turns of the colour circle
    grey: Bool[Tensor, " batch"]
    drop: Bool[Tensor, " batch"]
    drop_channel: Int64[Tensor, " batch"]
    blur: Bool[Tensor, " batch"]
    sigma: Float[Tensor, " batch"]  # pixels at a view of SIGMA_PX
    noise: Float[Tensor, " batch"]  # standard deviation; full scale is 1
    noise_seed: Int64[Tensor, " batch"]
    solarize: Bool[Tensor, " batch"]
    invert: Bool[Tensor, " batch"]
    order: tuple[Jitter, ...]  # the jitter operations in order, without those that would change nothing

    def rows(self, rows: slice) -> "Draws":
        """Return the random numbers of some images of the batch."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "order"}
        return replace(self, **{name: tensor[rows] for name, tensor in tensors.items()})


def make_views(
    images: Real[Tensor, "batch channel stored stored"],
    sizes: Float[Tensor, "global_batch 2"],
    transforms: DataTransforms,
    *,
    key: int,
    rows: slice,
    pixels: Pixels,
) -> tuple[Float[Tensor, "batch channel view view"], Float[Tensor, "batch channel view view"]]:
    """Make two normalised views of each image, channels_last. They depend only on the images and on `key`.

    `images` are the `rows` of a global batch; `sizes` are the original (height, width) of the global batch,
    on the host. Images are stored as squares, but crops are drawn in their original geometry.
    """
    draws = draw_views(key, sizes=sizes, transforms=transforms, channels=images.shape[1])
    view1, view2 = _apply_all(images, draws, rows=rows, view_px=transforms.view_px, pixels=pixels)
    return view1, view2


def make_training_views(
    images: Real[Tensor, "batch channel stored stored"],
    sizes: Float[Tensor, "global_batch 2"],
    transforms: DataTransforms,
    *,
    key: int,
    rows: slice,
    pixels: Pixels,
) -> tuple[Float[Tensor, "batch channel view view"], ...]:
    """Make the two views of `make_views` and, if the target network sees a weak view, that one as a third."""
    draws = [*draw_views(key, sizes=sizes, transforms=transforms, channels=images.shape[1])]
    if transforms.target_view == "weak":
        draws.append(draw_weak_view(key, sizes=sizes, transforms=transforms, channels=images.shape[1]))
    return _apply_all(images, draws, rows=rows, view_px=transforms.view_px, pixels=pixels)


def make_view(
    images: Real[Tensor, "batch channel stored stored"],
    sizes: Float[Tensor, "batch 2"],
    transforms: DataTransforms,
    *,
    key: int,
    pixels: Pixels,
) -> Float[Tensor, "batch channel view view"]:
    """Make one normalised view of each image with the settings `view1`, for training with labels."""
    draws, _ = draw_views(key, sizes=sizes, transforms=transforms, channels=images.shape[1])
    return apply_view(_to_unit(images, pixels), draws, view_px=transforms.view_px, pixels=pixels)


def whole_view(
    images: Real[Tensor, "batch channel stored stored"], view_px: int, *, pixels: Pixels
) -> Float[Tensor, "batch channel view view"]:
    """Resize whole images to `view_px` (antialiased as in torchvision) and normalise them, for evaluation."""
    x = _to_unit(images, pixels)
    stored_px = x.shape[-1]
    if stored_px != view_px:
        start = torch.zeros(len(x), device=x.device)
        flip = start > 0.0
        taps = pixelwise.resampling(start, start + 1.0, flip, num_in=stored_px, num_out=view_px)
        x = pixelwise.resize(x, taps, taps)
    return _normalise(x, pixels)


def find_whole_px(transforms: DataTransforms) -> int:
    """Return the side (px, a multiple of 8) at which whole images show objects as large as the crops do.

    Crops are enlarged to the size of a view, so in a whole image of that size all objects would be smaller
    than in training (arXiv 1906.06423). A crop with the fraction a of the area is enlarged by 1 / sqrt(a),
    crops with fractions from a to b on average by 2 / (sqrt(a) + sqrt(b)).
    """
    areas = (view.crop_area for view in (transforms.view1, transforms.view2))
    enlarged = sum(2 / (math.sqrt(low) + math.sqrt(high)) for low, high in areas) / 2
    return max(transforms.view_px, 8 * round(transforms.view_px * enlarged / 8))


def encode_whole(
    encode: Callable[[Tensor], Tensor],
    views: Float[Tensor, "batch channel height width"],
    *,
    mirrored: bool,
) -> Float[Tensor, "batch feature"]:
    """Return `encode` of whole views or, if `mirrored`, the mean over them and their mirror images."""
    features = encode(views)
    return (features + encode(views.flip(3))) / 2.0 if mirrored else features


def chooses_mirrored(transforms: DataTransforms) -> bool:
    """Return whether features are the mean over an image and its mirror image. auto: if views are flipped."""
    wanted = transforms.whole_mirrored
    return transforms.view1.flip > 0.0 and transforms.view2.flip > 0.0 if wanted == "auto" else wanted


# ---- Random numbers, on the host


def draw_views(
    key: int, *, sizes: Float[Tensor, "batch 2"], transforms: DataTransforms, channels: int
) -> tuple[Draws, Draws]:
    """Draw the random numbers of both views of a batch, independent of each other, from one seed."""
    generator = torch.Generator().manual_seed(key)
    tables = (transforms.view1, transforms.view2)
    draws = [_draw(generator, view, sizes=sizes, s=transforms.s, channels=channels) for view in tables]
    # Drawn last, so that views without turns equal those of versions that had no turns.
    turns = [_draw_turns(generator, view, batch=len(sizes)) for view in tables]
    return replace(draws[0], turn=turns[0]), replace(draws[1], turn=turns[1])


def draw_weak_view(
    key: int, *, sizes: Float[Tensor, "batch 2"], transforms: DataTransforms, channels: int
) -> Draws:
    """Draw the random numbers of the weak view: crops of WEAK_CROP_AREA, turned as the first view, no more.

    They come from a seed of their own, so that the other views are the same with and without it.
    """
    weak = transforms.view1.model_copy(update={"crop_area": WEAK_CROP_AREA, **dict.fromkeys(_CHANGES, 0.0)})
    generator = torch.Generator().manual_seed(key ^ _WEAK)
    draws = _draw(generator, weak, sizes=sizes, s=transforms.s, channels=channels)
    return replace(draws, turn=_draw_turns(generator, weak, batch=len(sizes)))


def _draw(
    generator: torch.Generator, view: View, *, sizes: Float[Tensor, "batch 2"], s: float, channels: int
) -> Draws:
    """Draw equally many numbers for all settings, so that a changed probability changes no other draw."""
    batch = len(sizes)
    factors = 1 if channels == 3 else channels

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(batch, *shape, generator=generator) * (high - low) + low

    def happens(probability: float) -> Tensor:
        return torch.rand(batch, generator=generator) < probability

    def strength(value: float, *shape: int) -> Tensor:
        return uniform(max(0.0, 1.0 - s * value), 1.0 + s * value, *shape)

    hue, angle = min(s * view.hue, 0.5), math.radians(view.rotation)
    drop = happens(view.channel_drop)
    grey = happens(view.grey)
    return Draws(
        order=_draw_order(generator, view, s=s, channels=channels),
        box=_draw_boxes(generator, view, sizes=sizes),
        sizes=sizes.float(),
        flip=happens(view.flip),
        vertical_flip=happens(view.vertical_flip),
        turn=torch.zeros(batch, dtype=torch.int64),
        angle=uniform(-angle, angle),
        jitter=happens(view.jitter),
        brightness=strength(view.brightness, factors),
        contrast=strength(view.contrast, factors),
        gamma=uniform(-view.gamma, view.gamma, factors).exp(),
        saturation=strength(view.saturation, 1),
        hue=uniform(-hue, hue, 1),
        grey=grey if channels == 3 else torch.zeros_like(grey),
        drop=torch.zeros_like(drop) if channels == 1 else drop if channels == 3 else drop | grey,
        drop_channel=torch.randint(channels, (batch,), generator=generator),
        blur=happens(view.blur),
        sigma=uniform(*view.blur_sigma),
        noise=uniform(0.0, view.noise),
        noise_seed=torch.randint(2**31, (batch,), generator=generator),
        solarize=happens(view.solarize),
        invert=happens(view.invert),
    )


def _draw_turns(generator: torch.Generator, view: View, *, batch: int) -> Int64[Tensor, " batch"]:
    """Draw 0 with probability 1 - view.turn, otherwise 1, 2 or 3 with equal probability."""
    happens = torch.rand(batch, generator=generator) < view.turn
    return happens * torch.randint(1, 4, (batch,), generator=generator)


def _draw_order(generator: torch.Generator, view: View, *, s: float, channels: int) -> tuple[Jitter, ...]:
    """Return gamma, then the other operations in random order; only those in use for these channels."""
    shuffled = torch.randperm(4, generator=generator).tolist()
    names: tuple[Jitter, ...] = ("brightness", "contrast", "saturation", "hue")
    strengths = (view.brightness, view.contrast, view.saturation, view.hue)
    defined = names if channels == 3 else names[:2]
    order = [names[i] for i in shuffled if s * strengths[i] > 0 and names[i] in defined]
    return ("gamma", *order) if view.gamma > 0 else tuple(order)


def _draw_boxes(
    generator: torch.Generator, view: View, *, sizes: Float[Tensor, "batch 2"]
) -> Float[Tensor, "batch 4"]:
    """Draw boxes like torchvision's RandomResizedCrop, in whole pixels of the original.

    The area and the log of the aspect ratio are uniform. The first of CROP_TRIES boxes that fits is used,
    else the largest centred box with an allowed aspect ratio.
    """
    shape = (CROP_TRIES, len(sizes))
    area_low, area_high = view.crop_area
    aspect_low, aspect_high = view.crop_aspect
    full_height, full_width = sizes.double().unbind(1)
    area = torch.rand(shape, generator=generator, dtype=torch.float64) * (area_high - area_low) + area_low
    log_aspect = torch.rand(shape, generator=generator, dtype=torch.float64)
    aspect = torch.exp(log_aspect * math.log(aspect_high / aspect_low) + math.log(aspect_low))
    pixels = area * full_height * full_width
    heights, widths = (pixels / aspect).sqrt().round(), (pixels * aspect).sqrt().round()
    fits = (heights >= 1) & (heights <= full_height) & (widths >= 1) & (widths <= full_width)
    first = fits.int().argmax(dim=0, keepdim=True)
    found = fits.any(dim=0)
    fallback_height = torch.minimum(full_height, (full_width / aspect_low).round()).clamp_min(1.0)
    fallback_width = torch.minimum(full_width, (full_height * aspect_high).round()).clamp_min(1.0)
    height = torch.where(found, heights.gather(0, first)[0], fallback_height)
    width = torch.where(found, widths.gather(0, first)[0], fallback_width)
    where = torch.rand(2, len(sizes), generator=generator, dtype=torch.float64)
    top = torch.where(found, where[0] * (full_height - height + 1), (full_height - height) / 2).floor()
    left = torch.where(found, where[1] * (full_width - width + 1), (full_width - width) / 2).floor()
    box = [top / full_height, left / full_width, height / full_height, width / full_width]
    return torch.stack(box, dim=1).float()


# ---- Application, on the device


def _apply_all(
    images: Tensor, draws: Sequence[Draws], *, rows: slice, view_px: int, pixels: Pixels
) -> tuple[Tensor, ...]:
    """Make one view of the `rows` of a global batch for each of the draws."""
    assert len(draws[0].flip[rows]) == len(images)
    unit = _to_unit(images, pixels)
    return tuple(apply_view(unit, one.rows(rows), view_px=view_px, pixels=pixels) for one in draws)


def apply_view(
    unit: Float[Tensor, "batch channel stored stored"], draws: Draws, *, view_px: int, pixels: Pixels
) -> Float[Tensor, "batch channel view view"]:
    """Make one normalised view of each image, channels_last, from images with values in [0, 1].

    Each operation is applied to the images that drew it. The host knows them, so it does not wait.
    """
    x = _crop_and_turn(unit, draws, view_px=view_px)
    jitter = partial(pixelwise.jitter_, order=draws.order)
    factors = (draws.gamma, draws.brightness, draws.contrast, draws.saturation, draws.hue)
    if draws.order:
        _on(x, draws.jitter, jitter, *factors)
    _on(x, draws.grey, pixelwise.to_grey_)
    _on(x, draws.drop, pixelwise.drop_channel_, draws.drop_channel)
    _on(x, draws.blur, pixelwise.blur_, draws.sigma * (view_px / SIGMA_PX))
    _on(x, draws.noise > 0, pixelwise.add_noise_, draws.noise, draws.noise_seed)
    _on(x, draws.solarize, pixelwise.solarize_)
    _on(x, draws.invert, pixelwise.invert_)
    return _normalise(x, pixels)


def _crop_and_turn(unit: Tensor, draws: Draws, *, view_px: int) -> Tensor:
    """Crop and turn. Turns are flips, which a crop does for free, and a transposition for odd turns."""
    flip = draws.flip ^ ((draws.turn == 1) | (draws.turn == 2))
    vertical_flip = draws.vertical_flip ^ (draws.turn >= 2)
    x = _crop(unit, replace(draws, flip=flip, vertical_flip=vertical_flip), view_px=view_px)
    odd = (draws.turn % 2).nonzero()[:, 0]
    if len(odd):
        on_device = send(odd, x.device)
        x.index_copy_(0, on_device, x[on_device].transpose(2, 3))
    return x


def _crop(unit: Tensor, draws: Draws, *, view_px: int) -> Tensor:
    if draws.angle.any():
        # Not antialiased, because a stored image is only slightly larger than a view.
        theta = send(_affine(draws), unit.device)[:, None, None]
        steps = (torch.arange(view_px, device=unit.device) * 2 + 1) / view_px - 1
        grid = theta[..., 0] * steps[:, None] + theta[..., 1] * steps[:, None, None] + theta[..., 2]
        return F.grid_sample(unit, grid, padding_mode="reflection", align_corners=False).contiguous()
    box = send(draws.box, unit.device)
    flip, vertical_flip = send(draws.flip, unit.device), send(draws.vertical_flip, unit.device)
    rows = pixelwise.resampling(box[:, 0], box[:, 2], vertical_flip, num_in=unit.shape[2], num_out=view_px)
    columns = pixelwise.resampling(box[:, 1], box[:, 3], flip, num_in=unit.shape[3], num_out=view_px)
    return pixelwise.resize(unit, rows, columns)


def _affine(draws: Draws) -> Tensor:
    """Return (batch, 2, 3) matrices from view to image coordinates (-1..1), rotated about the box centre.

    The rotation is in original pixels, so that images that were squashed for storage are not sheared.
    """
    top, left, height, width = draws.box.unbind(1)
    aspect = draws.sizes[:, 1] / draws.sizes[:, 0]
    right, down = 1.0 - 2.0 * draws.flip.float(), 1.0 - 2.0 * draws.vertical_flip.float()
    cos, sin = draws.angle.cos(), draws.angle.sin()
    to_x = [cos * width * right, -sin * height / aspect * down, 2.0 * left + width - 1.0]
    to_y = [sin * width * aspect * right, cos * height * down, 2.0 * top + height - 1.0]
    return torch.stack([torch.stack(to_x, dim=1), torch.stack(to_y, dim=1)], dim=1)


def _on(x: Tensor, which: Tensor, operation: Callable[..., None], *numbers: Tensor) -> None:
    """Apply an in-place operation with parameters per image to the images that drew it."""
    if which.all():
        operation(x, *(send(number, x.device) for number in numbers))
    elif which.any():
        index = which.nonzero()[:, 0]
        on_device = send(index, x.device)
        part = x[on_device]
        operation(part, *(send(number[index], x.device) for number in numbers))
        x.index_copy_(0, on_device, part)


# ---- Scaling


def _to_unit(images: Tensor, pixels: Pixels) -> Tensor:
    """Scale stored values to float32 in [0, 1]; the memory order stays channels_last."""
    low, high = pixels.low, pixels.high
    x = to_float32(images)  # always a copy, so that the images do not change
    full_scale = _FULL_SCALES.get(images.dtype)
    if set(low) == {0} and set(high) == {full_scale}:
        return x.div_(high[0])
    span = tuple(upper - lower for lower, upper in zip(low, high, strict=True))
    return x.sub_(_per_channel(low, x.device)).div_(_per_channel(span, x.device)).clamp_(0.0, 1.0)


def _normalise(x: Tensor, pixels: Pixels) -> Tensor:
    x.sub_(_per_channel(pixels.mean, x.device)).div_(_per_channel(pixels.std, x.device))
    return x.contiguous(memory_format=torch.channels_last)


@cache
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]
