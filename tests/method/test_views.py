"""Views against torchvision's operations given the same numbers; the draws by their distributions."""

import dataclasses
import math

import pytest
import torch
import torchvision.transforms.v2.functional as V
from torch import Tensor
from torchvision.transforms import v2

from byol.config import DataTransforms, View
from byol.method.views import (
    WEAK_CROP_AREA,
    Draws,
    Pixels,
    apply_view,
    draw_views,
    draw_weak_view,
    find_whole_px,
    make_training_views,
    make_views,
    whole_view,
)

PLAIN = View(  # the whole image, nothing done to it
    crop_area=(1.0, 1.0),
    crop_aspect=(1.0, 1.0),
    flip=0.0,
    vertical_flip=0.0,
    turn=0.0,
    rotation=0.0,
    jitter=0.0,
    brightness=0.4,
    contrast=0.4,
    saturation=0.2,
    hue=0.1,
    grey=0.0,
    blur=0.0,
    blur_sigma=(0.1, 2.0),
    solarize=0.0,
    invert=0.0,
    gamma=0.0,
    noise=0.0,
    channel_drop=0.0,
)
EVERYTHING = {
    "crop_area": (0.08, 1.0),
    "crop_aspect": (0.75, 4 / 3),
    "flip": 0.5,
    "vertical_flip": 0.5,
    "turn": 0.75,
    "jitter": 0.8,
    "grey": 0.2,
    "blur": 0.5,
    "solarize": 0.2,
    "invert": 0.2,
    "gamma": 0.5,
    "noise": 0.1,
    "channel_drop": 0.2,
}


def view(**changes) -> View:
    """PLAIN with some fields changed."""
    return View(**{name: changes.pop(name, getattr(PLAIN, name)) for name in view_fields()}, **changes)


def view_fields() -> list[str]:
    return list(View.__annotations__)


def transforms(px: int, view1: View = PLAIN, view2: View = PLAIN, *, s: float = 1.0) -> DataTransforms:
    return DataTransforms(
        domain=None,
        s=s,
        input_shape=(px, px, 3),
        whole_px=None,
        whole_mirrored=False,
        target_view="other",
        view1=view1,
        view2=view2,
    )


def identity(channels: int, full: float = 255.0) -> Pixels:
    """Normalisation that leaves x in [0, 1]."""
    return Pixels((0.0,) * channels, (full,) * channels, (0.0,) * channels, (1.0,) * channels)


def stored(batch: int, channels: int, px: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, torch.iinfo(dtype).max + 1, (batch, channels, px, px), generator=generator)
    return images.to(dtype).contiguous(memory_format=torch.channels_last)


def sizes(batch: int, height: float = 96.0, width: float = 96.0) -> Tensor:
    return torch.tensor([[float(height), float(width)]]).repeat(batch, 1)


def smooth(batch: int, channels: int = 3, px: int = 32) -> Tensor:
    """Float images in [0, 1] with grey, black, white and saturated pixels among them."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(batch, channels, px, px, generator=generator)
    x[:, :, 0], x[:, :, 1, :4], x[:, :, 1, 4:8] = 0.3, 0.0, 1.0
    x[:, 0, 2] = 1.0
    x[:, 0, 3] = x[:, -1, 3]
    return x


def draw(transform: View, *, px: int = 32, batch: int = 4, channels: int = 3, **changes) -> Draws:
    draws, _ = draw_views(3, sizes=sizes(batch), transforms=transforms(px, transform), channels=channels)
    return dataclasses.replace(draws, **changes)


# ---- Crop


@pytest.mark.parametrize("stored_px", [32, 40, 64])
def test_crop_and_flips_equal_torchvision(stored_px: int) -> None:
    x = smooth(4, px=stored_px)
    pixels = torch.tensor([[0, 0, stored_px, stored_px], [3, 5, 20, 9], [1, 0, 8, 31], [7, 7, 1, 2]])
    flip = torch.tensor([False, True, False, True])
    vertical_flip = torch.tensor([False, False, True, True])
    draws = draw(PLAIN, box=pixels / stored_px, flip=flip, vertical_flip=vertical_flip)
    out = apply_view(x.clone(), draws, view_px=32, pixels=identity(3))
    for i, box in enumerate(pixels.tolist()):
        expected = V.resized_crop(x[i], *box, size=[32, 32], antialias=True)
        expected = V.horizontal_flip(expected) if flip[i] else expected
        expected = V.vertical_flip(expected) if vertical_flip[i] else expected
        torch.testing.assert_close(out[i], expected, atol=1e-5, rtol=0)


def test_crop_between_pixels_is_the_limit_of_finer_pixels() -> None:
    ramp = torch.linspace(0, 1, 64).expand(1, 1, 64, 64)
    box = torch.tensor([[0.2, 0.305, 0.4, 0.41]])
    out = apply_view(ramp, draw(PLAIN, batch=1, box=box), view_px=8, pixels=identity(1))
    steps = (torch.arange(8) + 0.5) / 8
    expected = ((0.305 + 0.41 * steps) * 64 - 0.5) / 63
    # Half-counted pixels at the border pull the outermost values inwards a little.
    torch.testing.assert_close(out[0, 0, 3, 1:-1], expected[1:-1], atol=1e-3, rtol=0)


def test_boxes_follow_torchvisions_distribution() -> None:
    """Quantiles of area, aspect and place of 4,000 boxes each, for a wide image."""
    batch, height, width = 4000, 60, 120
    wide = transforms(32, view(crop_area=(0.08, 1.0), crop_aspect=(0.75, 4 / 3)))
    draws, _ = draw_views(0, sizes=sizes(batch, height, width), transforms=wide, channels=3)
    ours = (draws.box * torch.tensor([height, width, height, width])).round()
    torch.testing.assert_close(
        draws.box * torch.tensor([height, width, height, width]), ours, atol=1e-4, rtol=0
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        crop = v2.RandomResizedCrop(32)
        image = torch.zeros(3, height, width)
        params = [crop.make_params([image]) for _ in range(batch)]
    theirs = torch.tensor([[p["top"], p["left"], p["height"], p["width"]] for p in params]).float()
    quantiles = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    for measure in (
        lambda box: box[:, 2] * box[:, 3] / (height * width),
        lambda box: (box[:, 3] / box[:, 2]).log(),
        lambda box: box[:, 0] / height,
        lambda box: box[:, 1] / width,
    ):
        difference = measure(ours).quantile(quantiles) - measure(theirs).quantile(quantiles)
        assert difference.abs().max() < 0.03


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(10, 100, (0, 43, 10, 13)), (100, 10, (43, 0, 13, 10))]
)
def test_a_box_that_never_fits_becomes_the_largest_centred_one(height, width, expected) -> None:
    whole = transforms(32, view(crop_area=(1.0, 1.0), crop_aspect=(0.75, 4 / 3)))
    draws, _ = draw_views(0, sizes=sizes(3, height, width), transforms=whole, channels=3)
    box = draws.box * torch.tensor([height, width, height, width])
    torch.testing.assert_close(box, torch.tensor([expected]).float().repeat(3, 1), atol=1e-4, rtol=0)


def test_aspect_counts_in_original_pixels() -> None:
    """A square box of an image twice as wide as high is half as wide in the stored square."""
    square = transforms(32, view(crop_area=(0.1, 0.4)))
    draws, _ = draw_views(0, sizes=sizes(50, 500, 1000), transforms=square, channels=3)
    torch.testing.assert_close(draws.box[:, 2], 2 * draws.box[:, 3], atol=3e-3, rtol=0)


def test_a_quarter_turn_equals_rot90() -> None:
    x = smooth(2)
    angle = torch.tensor([math.pi / 2, 0.0])
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.25, 0.5, 0.5, 0.5]])
    out = apply_view(x, draw(PLAIN, batch=2, angle=angle, box=box), view_px=32, pixels=identity(3))
    torch.testing.assert_close(out[0], x[0].rot90(1, dims=(1, 2)), atol=1e-4, rtol=0)
    expected = V.resized_crop(x[1], 8, 16, 16, 16, size=[32, 32])
    torch.testing.assert_close(out[1, :, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=1e-4, rtol=0)


def test_rotation_is_rigid_in_the_original_geometry() -> None:
    """A disc that was squashed for storage comes out of any rotation of a square box as the same disc."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-2, 2, 64), indexing="ij")
    disc = (0.25 - (x**2 + y**2)).clamp_min(0).expand(2, 1, 64, 64)
    draws, _ = draw_views(0, sizes=sizes(2, 100, 200), transforms=transforms(32), channels=1)
    box = torch.tensor([[0.0, 0.25, 1.0, 0.5]]).repeat(2, 1)
    turned = dataclasses.replace(draws, angle=torch.tensor([0.7, 0.0]), box=box)
    out = apply_view(disc, turned, view_px=32, pixels=identity(1))
    assert out.max() > 0.24
    torch.testing.assert_close(out[0], out[1], atol=0.02, rtol=0)


# ---- Quarter turns


@pytest.mark.parametrize("angle", [0.0, 0.3])
@pytest.mark.parametrize(("height", "width"), [(96.0, 96.0), (40.0, 120.0)])
def test_turns_equal_rot90_of_the_view(angle: float, height: float, width: float) -> None:
    """Whatever the crop, the flips, the rotation and the shape of the original: a view is a square."""
    table = view(crop_area=(0.2, 1.0), crop_aspect=(0.5, 2.0), flip=0.5, vertical_flip=0.5)
    batch = 16
    draws, _ = draw_views(4, sizes=sizes(batch, height, width), transforms=transforms(24, table), channels=3)
    plain = dataclasses.replace(draws, angle=torch.full((batch,), angle))
    turn, atol = torch.arange(batch) // 2 % 4, 1e-5 if angle else 1e-6
    x = smooth(batch)
    before = apply_view(x, plain, view_px=24, pixels=identity(3))
    after = apply_view(x, dataclasses.replace(plain, turn=turn), view_px=24, pixels=identity(3))
    for i in range(batch):
        torch.testing.assert_close(after[i], before[i].rot90(int(turn[i]), dims=(1, 2)), atol=atol, rtol=0)


def test_turns_are_drawn_as_stated_and_change_no_other_draw() -> None:
    def drawn(probability: float) -> tuple[Draws, Draws]:
        tables = view(turn=probability), view(turn=probability)
        return draw_views(2, sizes=sizes(4000), transforms=transforms(32, *tables), channels=3)

    never, often = drawn(0.0), drawn(0.75)
    assert not never[0].turn.any() and not never[1].turn.any()
    for draws in often:
        shares = torch.bincount(draws.turn, minlength=4) / 4000
        torch.testing.assert_close(shares, torch.full((4,), 0.25), atol=0.03, rtol=0)
    assert not torch.equal(often[0].turn, often[1].turn)
    for one, other in zip(never, often, strict=True):
        for field in dataclasses.fields(Draws):
            if field.name not in ("turn", "order"):
                assert torch.equal(getattr(one, field.name), getattr(other, field.name))


# ---- Colour


@pytest.mark.parametrize("first", range(4))
def test_jitter_equals_torchvision(first: int) -> None:
    """To 1e-5 per value, in each order; hue included, as no pixel lies at a jump of the hue formula."""
    names = ("brightness", "contrast", "saturation", "hue")
    order = names[first:] + names[:first]
    draws = draw(view(jitter=1.0, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.5), order=order)
    x = smooth(4)
    out = apply_view(x, draws, view_px=32, pixels=identity(3))
    for i in range(4):
        expected = x[i]
        for name in order:
            adjust = getattr(V, f"adjust_{name}")
            expected = adjust(expected, float(getattr(draws, name)[i, 0]))
        torch.testing.assert_close(out[i], expected, atol=1e-5, rtol=0)


def test_grey_solarize_and_invert_equal_torchvision() -> None:
    x = smooth(3)
    is_first, is_second, is_third = torch.eye(3, dtype=torch.bool)
    draws = draw(PLAIN, batch=3, grey=is_first, solarize=is_second, invert=is_third)
    out = apply_view(x, draws, view_px=32, pixels=identity(3))
    expected = [V.rgb_to_grayscale(x[0], num_output_channels=3), V.solarize(x[1], 0.5), V.invert(x[2])]
    torch.testing.assert_close(out, torch.stack(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("px", "kernel_size"), [(32, 3), (96, 9), (224, 23)])
def test_blur_equals_torchvision(px: int, kernel_size: int) -> None:
    x = smooth(2, px=px)
    sigma = torch.tensor([0.3, 2.0])
    draws = draw(PLAIN, batch=2, sigma=sigma, blur=torch.tensor([True, True]))
    out = apply_view(x, draws, view_px=px, pixels=identity(3))
    for i in range(2):
        expected = V.gaussian_blur(x[i], [kernel_size, kernel_size], [float(sigma[i]) * px / 224])
        torch.testing.assert_close(out[i], expected, atol=1e-5, rtol=0)


def test_strengths_span_the_stated_ranges() -> None:
    table = view(brightness=0.4, contrast=0.2, saturation=0.8, hue=0.1, gamma=0.5, noise=0.2, rotation=30.0)
    draws, _ = draw_views(1, sizes=sizes(2000), transforms=transforms(32, table, s=2.0), channels=3)
    for values, low, high in (
        (draws.brightness, 0.2, 1.8),
        (draws.contrast, 0.6, 1.4),
        (draws.saturation, 0.0, 2.6),
        (draws.hue, -0.2, 0.2),
        (draws.gamma, math.exp(-0.5), math.exp(0.5)),
        (draws.noise, 0.0, 0.2),
        (draws.sigma, 0.1, 2.0),
        (draws.angle, -math.pi / 6, math.pi / 6),
    ):
        assert low <= values.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < values.max() <= high


@pytest.mark.parametrize(
    ("setting", "field"),
    [
        ("flip", "flip"),
        ("vertical_flip", "vertical_flip"),
        ("jitter", "jitter"),
        ("grey", "grey"),
        ("blur", "blur"),
        ("solarize", "solarize"),
        ("invert", "invert"),
        ("channel_drop", "drop"),
    ],
)
def test_probabilities(setting: str, field: str) -> None:
    """0 is never, 1 always, 0.3 three in ten; no setting changes what another one draws."""

    def drawn(probability: float) -> Draws:
        table = view(**{setting: probability})
        return draw_views(2, sizes=sizes(2000), transforms=transforms(32, table), channels=3)[0]

    never, sometimes, always = drawn(0.0), drawn(0.3), drawn(1.0)
    assert not getattr(never, field).any()
    assert getattr(always, field).all()
    assert abs(getattr(sometimes, field).float().mean() - 0.3) < 0.04
    for other in dataclasses.fields(Draws):
        if other.name not in (field, "order"):
            assert torch.equal(getattr(never, other.name), getattr(always, other.name))


def test_orders_of_the_jitter_differ_between_batches_and_leave_out_what_is_off() -> None:
    def orders(table: View, channels: int) -> set[tuple[str, ...]]:
        drawn = [
            draw_views(key, sizes=sizes(1), transforms=transforms(32, table), channels=channels)[0].order
            for key in range(40)
        ]
        return set(drawn)

    assert len(orders(PLAIN, 3)) > 12
    assert orders(view(saturation=0.0, hue=0.0), 3) == {
        ("brightness", "contrast"),
        ("contrast", "brightness"),
    }
    assert orders(view(gamma=0.3, brightness=0.0), 5) == {("gamma", "contrast")}


# ---- Other numbers of channels, 16 bit, noise


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_every_operation_is_defined_for_any_channels(channels: int, dtype: torch.dtype) -> None:
    but_noise = EVERYTHING | {"noise": 0.0}  # which may reach beyond 0 and 1
    everything = transforms(16, view(**but_noise), view(**but_noise, rotation=90.0))
    full = float(torch.iinfo(dtype).max)
    out1, out2 = make_views(
        stored(24, channels, 20, dtype),
        sizes(24),
        everything,
        key=5,
        rows=slice(0, 24),
        pixels=identity(channels, full),
    )
    for out in (out1, out2):
        assert out.shape == (24, channels, 16, 16)
        assert out.dtype == torch.float32
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert out.min() >= -1e-5
        assert out.max() <= 1 + 1e-5


def test_channels_that_are_not_rgb_are_jittered_one_by_one() -> None:
    x = smooth(2, channels=5)
    table = view(jitter=1.0, gamma=0.5)
    draws = draw(table, batch=2, channels=5, order=("gamma", "contrast", "brightness"))
    out = apply_view(x, draws, view_px=32, pixels=identity(5))
    for i in range(2):
        for channel in range(5):
            expected = x[i, channel : channel + 1] ** draws.gamma[i, channel]
            expected = V.adjust_contrast(expected, float(draws.contrast[i, channel]))
            expected = V.adjust_brightness(expected, float(draws.brightness[i, channel]))
            torch.testing.assert_close(out[i, channel : channel + 1], expected, atol=1e-5, rtol=0)


def test_greying_is_channel_drop_unless_rgb_and_nothing_for_one_channel() -> None:
    for channels in (1, 2, 3, 5):
        draws = draw(view(grey=1.0), channels=channels)
        x = smooth(4, channels=channels)
        out = apply_view(x, draws, view_px=32, pixels=identity(channels))
        flat = out.std(dim=(2, 3)) < 1e-6
        if channels == 1:
            torch.testing.assert_close(out, x, atol=1e-6, rtol=0)
        elif channels == 3:
            torch.testing.assert_close(out[:, 0], out[:, 2])
        else:
            assert flat.sum(dim=1).tolist() == [1] * 4
            torch.testing.assert_close(out.mean(dim=(2, 3)), x.mean(dim=(2, 3)), atol=1e-5, rtol=0)


def test_stored_values_are_clipped_to_their_range_and_normalised() -> None:
    images = torch.tensor([0, 100, 150, 200, 65535]).to(torch.uint16).view(1, 1, 1, 5).expand(1, 2, 5, 5)
    pixels = Pixels(low=(100.0, 0.0), high=(200.0, 65535.0), mean=(0.5, 0.0), std=(0.25, 2.0))
    out = whole_view(images.contiguous(), 5, pixels=pixels)
    assert out[0, 0, 0].tolist() == [-2.0, -2.0, 0.0, 2.0, 2.0]
    torch.testing.assert_close(out[0, 1, 0], torch.tensor([0, 100, 150, 200, 65535]) / 65535 / 2)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_one_range_whatever_the_depth_and_the_images_stay_as_they_are(dtype: torch.dtype) -> None:
    images = (stored(4, 2, 20) // 2).to(dtype)
    before = images.clone()
    pixels = Pixels(low=(10.0, 20.0), high=(100.0, 120.0), mean=(0.4, 0.5), std=(0.2, 0.3))
    args = {"key": 3, "rows": slice(0, 4), "pixels": pixels}
    made = make_views(images, sizes(4), transforms(16, view(**EVERYTHING), view(**EVERYTHING)), **args)
    deep = make_views(
        (stored(4, 2, 20) // 2).to(torch.uint16),
        sizes(4),
        transforms(16, view(**EVERYTHING), view(**EVERYTHING)),
        **args,
    )
    assert torch.equal(images, before) and images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(made[0], deep[0]) and torch.equal(made[1], deep[1])


def test_floats_of_any_range_are_scaled() -> None:
    images = torch.tensor([-1024.0, 0.0, 976.0, 9000.0]).expand(1, 1, 4, 4).contiguous()
    pixels = Pixels(low=(-1024.0,), high=(976.0,), mean=(0.0,), std=(1.0,))
    out = whole_view(images, 4, pixels=pixels)[0, 0, 0]
    torch.testing.assert_close(out, torch.tensor([0.0, 0.512, 1.0, 1.0]))


# ---- The whole


@pytest.mark.parametrize("rotation", [0.0, 45.0])
def test_a_slice_of_the_batch_gets_the_views_it_has_in_the_whole(rotation: float) -> None:
    everything = transforms(16, view(**EVERYTHING), view(**EVERYTHING, rotation=rotation))
    images, pixels = stored(24, 3, 20), Pixels((0.0,) * 3, (255.0,) * 3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    both = make_views(images, sizes(24), everything, key=9, rows=slice(0, 24), pixels=pixels)
    for rows in (slice(0, 8), slice(8, 9), slice(9, 24)):
        parts = make_views(images[rows], sizes(24), everything, key=9, rows=rows, pixels=pixels)
        for part, whole in zip(parts, both, strict=True):
            torch.testing.assert_close(part, whole[rows], atol=2e-6, rtol=0)


def test_views_are_a_function_of_the_key_and_leave_images_and_global_generator_alone() -> None:
    everything = transforms(16, view(**EVERYTHING), view(**EVERYTHING))
    images = stored(8, 3, 16)
    before, state = images.clone(), torch.get_rng_state()

    def views(key: int) -> tuple[Tensor, Tensor]:
        return make_views(images, sizes(8), everything, key=key, rows=slice(0, 8), pixels=identity(3))

    first, again, other = views(2**62 + 1), views(2**62 + 1), views(2**62 + 2)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    for i in range(8):
        assert not torch.allclose(first[0][i], other[0][i])
        assert not torch.allclose(first[0][i], first[1][i]), "the two views of an image are drawn apart"
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_weak_view_is_a_third_one_and_changes_no_other() -> None:
    """Large crops, turned as the first view, in the colours of the image."""
    strong = view(**EVERYTHING, rotation=30.0)
    plain = transforms(16, strong, view())
    weak = plain.model_copy(update={"target_view": "weak"})
    images, pixels = stored(64, 3, 16), identity(3)
    options = {"key": 5, "rows": slice(None), "pixels": pixels}
    two, three = (make_training_views(images, sizes(64), each, **options) for each in (plain, weak))
    assert (len(two), len(three)) == (2, 3)
    for one, other in zip(
        (*two, *make_views(images, sizes(64), weak, **options)), 2 * three[:2], strict=True
    ):
        assert torch.equal(one, other)
    draws = draw_weak_view(5, sizes=sizes(500), transforms=weak, channels=3)
    areas = draws.box[:, 2] * draws.box[:, 3]
    assert areas.min() >= WEAK_CROP_AREA[0] - 0.02 and areas.min() < 0.45 and areas.max() > 0.9
    for name in ("flip", "vertical_flip"):
        assert getattr(draws, name).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert (draws.turn > 0).float().mean().item() == pytest.approx(0.75, abs=0.1) and draws.angle.std() > 0.1
    constant = torch.tensor([20, 100, 200], dtype=torch.uint8).view(1, 3, 1, 1).expand(64, 3, 16, 16)
    made = make_training_views(constant, sizes(64), weak, **options)[2]
    torch.testing.assert_close(made, constant / 255.0, atol=1e-5, rtol=0)
    some = make_training_views(images[8:16], sizes(64), weak, key=5, rows=slice(8, 16), pixels=pixels)[2]
    torch.testing.assert_close(some, three[2][8:16])


def test_changing_one_view_leaves_the_other_alone() -> None:
    images = stored(4, 3, 16)
    outs = [
        make_views(
            images,
            sizes(4),
            transforms(16, table, view(**EVERYTHING)),
            key=1,
            rows=slice(0, 4),
            pixels=identity(3),
        )
        for table in (PLAIN, view(**EVERYTHING))
    ]
    assert torch.equal(outs[0][1], outs[1][1])


@pytest.mark.parametrize("px", [16, 20, 40])
def test_the_whole_view_is_torchvisions_resize(px: int) -> None:
    images = stored(2, 3, 40)
    out = whole_view(images, px, pixels=Pixels((0.0,) * 3, (255.0,) * 3, (0.5,) * 3, (0.25,) * 3))
    expected = (V.resize(images.float() / 255, [px, px], antialias=True) - 0.5) / 0.25
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    assert out.is_contiguous(memory_format=torch.channels_last)
    if px == 40:
        assert torch.equal(out, expected)


def test_a_plain_view_is_the_whole_view() -> None:
    images = stored(4, 3, 20)
    view1, _ = make_views(
        images, sizes(4, 20, 20), transforms(16), key=0, rows=slice(0, 4), pixels=identity(3)
    )
    torch.testing.assert_close(view1, whole_view(images, 16, pixels=identity(3)), atol=1e-6, rtol=0)


# ---- On a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize("rotation", [0.0, 45.0])
def test_views_on_a_gpu_are_those_of_the_cpu(channels: int, dtype: torch.dtype, rotation: float) -> None:
    everything = transforms(16, view(**EVERYTHING), view(**EVERYTHING, rotation=rotation))
    images, full = stored(24, channels, 20, dtype), float(torch.iinfo(dtype).max)
    pixels = Pixels((0.0,) * channels, (full,) * channels, (0.5,) * channels, (0.25,) * channels)
    on_cpu, on_gpu = (
        make_views(images.to(device), sizes(24), everything, key=9, rows=slice(0, 24), pixels=pixels)
        for device in ("cpu", "cuda")
    )
    for expected, out in zip(on_cpu, on_gpu, strict=True):
        assert out.is_cuda and out.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(out.float().cpu(), expected, atol=5e-4, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_on_a_gpu_the_host_does_not_wait_for_views() -> None:
    everything = transforms(16, view(**EVERYTHING), view(**EVERYTHING, rotation=45.0))
    images = stored(24, 3, 20).cuda()

    def views(key: int) -> tuple[Tensor, Tensor]:
        return make_views(images, sizes(24), everything, key=key, rows=slice(0, 24), pixels=identity(3))

    views(0)  # constants are sent once
    torch.cuda.set_sync_debug_mode("error")
    try:
        for key in range(1, 6):
            views(key)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_whole_images_are_as_large_as_their_mean_crop() -> None:
    def whole_px(view_px: int, *areas: tuple[float, float]) -> int:
        return find_whole_px(transforms(view_px, *(view(crop_area=area) for area in areas)))

    assert whole_px(64, (0.2, 1.0), (0.2, 1.0)) == 88  # 64 x 1.382
    assert whole_px(64, (0.2, 1.0), (1.0, 1.0)) == 80  # 64 x (1.382 + 1) / 2 = 76.2
    assert whole_px(40, (0.7, 0.7), (0.7, 0.7)) == 48
    assert whole_px(32, (1.0, 1.0), (1.0, 1.0)) == 32
