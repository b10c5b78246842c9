"""Byol against closed formulas and a step by hand; encoders by name."""

import copy
import math

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from byol.base.errors import ConfigError
from byol.config import load_config
from byol.kernels.convolution import accelerate
from byol.method.networks import (
    Byol,
    build_encoder,
    byol_loss,
    count_features,
    resolve_stem,
    vicreg_penalty,
)


def tiny_encoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def tiny_byol(seed: int = 0) -> Byol:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Byol(tiny_encoder(), num_features=6, hidden_size=16, projection_size=4)


def images(seed: int, batch: int = 8, channels: int = 3, px: int = 8) -> Tensor:
    return torch.randn(batch, channels, px, px, generator=torch.Generator().manual_seed(seed))


def of(
    name: str = "resnet18", *, seed_key: int = 1, px: int = 32, channels: int = 3, stem: str = "auto"
) -> Byol:
    overrides = [
        f"network.name={name}",
        f"network.stem={stem}",
        "network.projection_head.mlp_hidden_size=16",
        "network.projection_head.projection_size=8",
        f"data_transforms.input_shape=[{px}, {px}, 3]",
    ]
    return Byol.of(load_config(None, overrides, preset="classic"), channels=channels, seed_key=seed_key)


# ---- The loss


@pytest.mark.parametrize(("angle", "expected"), [(0.0, 0.0), (math.pi / 2, 2.0), (math.pi, 4.0), (1.0, None)])
def test_loss_is_2_minus_2_cos_whatever_the_lengths(angle: float, expected: float | None) -> None:
    prediction = torch.tensor([[3.0, 0.0], [0.0, 1e-3]])
    target = torch.tensor([[math.cos(angle), math.sin(angle)], [-7 * math.sin(angle), 7 * math.cos(angle)]])
    expected = 2 - 2 * math.cos(angle) if expected is None else expected
    torch.testing.assert_close(byol_loss(prediction, target), torch.full((2,), expected), atol=1e-6, rtol=0)


def test_loss_is_the_squared_distance_of_unit_vectors_also_in_bf16() -> None:
    prediction, target = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    unit = F.normalize(prediction.double()), F.normalize(target.double())
    expected = (unit[0] - unit[1]).square().sum(dim=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        loss = byol_loss(prediction, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)


def test_vicreg_penalty_is_that_of_its_paper() -> None:
    projection = torch.randn(16, 6, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.2, 1.5, 6)
    covariance = np.cov(projection.double().numpy(), rowvar=False)
    variance_term = np.maximum(0.0, 1.0 - np.sqrt(np.diag(covariance) + 1e-4)).mean()
    covariance_term = (covariance[~np.eye(6, dtype=bool)] ** 2).sum() / 6
    with torch.autocast("cpu", torch.bfloat16):
        found = vicreg_penalty(projection)
    assert found.item() == pytest.approx(variance_term + 0.04 * covariance_term, rel=1e-5)


def test_vicreg_penalty_is_zero_for_projections_that_vary_and_are_not_correlated() -> None:
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert vicreg_penalty(corners).item() == pytest.approx(0.0, abs=1e-6)
    assert vicreg_penalty(torch.zeros(4, 2)).item() == pytest.approx(0.99)  # std 0.01, by the epsilon


def test_vicreg_terms_change_the_gradients_and_not_the_loss() -> None:
    """Those of the online branch: the predictor gets none."""
    gradients, losses = [], []
    for weight in (0.0, 0.5):
        learner = tiny_byol()
        loss, _ = learner(images(0), images(1), vicreg_weight=weight)
        loss.backward()
        losses.append(loss.item())
        gradients.append({n: p.grad for n, p in learner.named_parameters() if p.grad is not None})
    learner = tiny_byol()
    penalty = sum(vicreg_penalty(learner.online(images(seed))) for seed in (0, 1))
    penalty.backward()
    assert losses[0] == losses[1]
    for name, parameter in learner.named_parameters():
        if name in gradients[0]:
            added = 0.5 * parameter.grad if parameter.grad is not None else 0.0
            torch.testing.assert_close(gradients[1][name], gradients[0][name] + added, atol=1e-6, rtol=1e-4)
            assert name.startswith("predictor.") == (parameter.grad is None)


def test_a_target_that_was_computed_before_changes_nothing() -> None:
    learners = tiny_byol(), tiny_byol()
    with torch.no_grad():
        target = learners[0].target(images(1))
    losses = [
        learner(images(0), images(1), symmetric=False, target=given)[0]
        for learner, given in zip(learners, (target, None), strict=True)
    ]
    torch.stack(losses).sum().backward()
    assert losses[0].item() == losses[1].item()
    for one, other in zip(learners[0].parameters(), learners[1].parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(one.grad, other.grad)


class Constant(nn.Module):
    """Gives the same vector for every image."""

    def __init__(self, *vector: float) -> None:
        super().__init__()
        self.register_buffer("vector", torch.tensor(vector))

    def forward(self, images: Tensor) -> Tensor:
        return self.vector.expand(len(images), -1)


@pytest.mark.parametrize(("target", "expected"), [((2.0, 0.0), 0.0), ((0.0, 1.0), 4.0), ((-1.0, 0.0), 8.0)])
def test_symmetric_loss_of_equal_orthogonal_and_opposite_projections(target, expected: float) -> None:
    byol = tiny_byol()
    byol.online, byol.target, byol.predictor = Constant(1.0, 0.0), Constant(*target), nn.Identity()
    loss, projection = byol(images(0), images(1))
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert projection.tolist() == [[1.0, 0.0]] * 8


# ---- One step


def test_forward_equals_the_networks_called_by_hand_each_view_alone() -> None:
    byol = tiny_byol()
    by_hand = copy.deepcopy(byol)
    view1, view2 = images(0), 3 * images(1) + 1  # statistics that differ
    loss, projection = byol(view1, view2)
    z1, z2 = by_hand.online(view1), by_hand.online(view2)
    q1, q2 = by_hand.predictor(z1), by_hand.predictor(z2)
    t1, t2 = by_hand.target(view1), by_hand.target(view2)
    cosines = F.cosine_similarity(q1, t2) + F.cosine_similarity(q2, t1)
    torch.testing.assert_close(loss, (4 - 2 * cosines).mean())
    torch.testing.assert_close(projection, z1.detach())
    for ours, theirs in zip(byol.buffers(), by_hand.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    mixed = by_hand.online(torch.cat([view1, view2]))[:8]
    assert not torch.allclose(mixed, projection, atol=1e-2), "statistics of both views would differ"


def test_two_directions_with_a_backward_pass_each_equal_the_symmetric_loss() -> None:
    learner = tiny_byol().double()
    view1, view2 = images(0).double(), images(1).double()
    loss, projection = learner(view1, view2)
    loss.backward()
    wanted = {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}
    learner.zero_grad()
    first, projection1 = learner(view1, view2, symmetric=False)
    first.backward()
    second, _ = learner(view2, view1, symmetric=False)
    second.backward()
    torch.testing.assert_close(first + second, loss)
    torch.testing.assert_close(projection1, projection)
    assert wanted
    for name, parameter in learner.named_parameters():
        if name in wanted:
            torch.testing.assert_close(parameter.grad, wanted[name])


def test_gradients_reach_online_and_predictor_only() -> None:
    byol = tiny_byol()
    loss, projection = byol(images(0), images(1))
    loss.backward()
    assert not projection.requires_grad
    assert all(p.grad is None and not p.requires_grad for p in byol.target.parameters())
    assert all(p.grad is not None for p in byol.online.parameters())
    assert all(p.grad is not None for p in byol.predictor.parameters())


def test_outputs_are_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        loss, projection = tiny_byol()(images(0), images(1))
    assert loss.dtype == projection.dtype == torch.float32


def test_forward_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    tiny_byol()(images(0), images(1))
    of()(images(0, px=32), images(1, px=32))
    assert torch.equal(torch.get_rng_state(), state)


# ---- The target


def test_target_starts_equal_and_shares_no_storage() -> None:
    byol = tiny_byol()
    for (name, online), target in zip(
        byol.online.state_dict().items(), byol.target.state_dict().values(), strict=True
    ):
        assert torch.equal(online, target), name
        assert online.data_ptr() != target.data_ptr(), name
    keys = set(byol.state_dict())
    assert {key.split(".")[0] for key in keys} == {"online", "target", "predictor"}


def test_target_is_exactly_the_moving_average_after_each_step() -> None:
    """In float64 to the last bits of the recurrence, tau changing; buffers are the target's own."""
    byol = tiny_byol().double()
    optimizer = torch.optim.SGD([p for p in byol.parameters() if p.requires_grad], lr=0.5)
    average = [p.detach().clone() for p in byol.online.parameters()]
    for step in range(5):
        tau = 1 - 0.1 / (step + 1)
        loss, _ = byol(images(2 * step).double(), images(2 * step + 1).double())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        buffers = [b.clone() for b in byol.target.buffers()]
        byol.update_target(tau=tau)
        average = [tau * a + (1 - tau) * p for a, p in zip(average, byol.online.parameters(), strict=True)]
        for ours, expected in zip(byol.target.parameters(), average, strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-15, rtol=1e-14)
        assert all(torch.equal(b, c) for b, c in zip(byol.target.buffers(), buffers, strict=True))
    assert not torch.allclose(byol.target.encoder[0].weight, byol.online.encoder[0].weight, atol=1e-3)


def test_tau_one_keeps_the_target_and_tau_zero_copies_online() -> None:
    byol = tiny_byol()
    with torch.no_grad():
        for parameter in byol.online.parameters():
            parameter.add_(0.1)
    before = [p.clone() for p in byol.target.parameters()]
    byol.update_target(tau=1.0)
    assert all(torch.equal(p, b) for p, b in zip(byol.target.parameters(), before, strict=True))
    byol.update_target(tau=0.0)
    pairs = zip(byol.target.parameters(), byol.online.parameters(), strict=True)
    assert all(torch.equal(target, online) for target, online in pairs)


# ---- From a configuration


def test_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = of(seed_key=2**62 + 3), of(seed_key=2**62 + 3), of(seed_key=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.online.encoder.conv1.weight, other.online.encoder.conv1.weight)
    assert not torch.equal(first.predictor[0].weight, other.predictor[0].weight)


def test_convolution_setting_chooses_the_layers() -> None:
    plain, fast = nn.Conv2d(1, 1, 1), accelerate(nn.Conv2d(1, 1, 1))
    base = ["network.name=resnet18", "network.stem=auto", "data_transforms.input_shape=[32, 32, 3]"]
    heads = ["network.projection_head.mlp_hidden_size=8", "network.projection_head.projection_size=8"]
    for setting, layer in (("fast", fast), ("library", plain)):
        overrides = [*base, *heads, f"trainer.convolution={setting}"]
        byol = Byol.of(load_config(None, overrides, preset="classic"), channels=3, seed_key=0)
        for branch in (byol.online, byol.target):
            assert type(branch.encoder.conv1) is type(layer)


def test_encoder_loads_strictly_into_the_plain_timm_model() -> None:
    byol = of(px=96, stem="standard").eval()
    plain = timm.create_model("resnet18", num_classes=0).eval()
    plain.load_state_dict(byol.online.encoder.state_dict(), strict=True)
    x = images(0, px=96)
    with torch.no_grad():
        torch.testing.assert_close(plain(x), byol.online.encoder(x), atol=1e-5, rtol=1e-4)


# ---- Encoders


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("resnet18", 512),
        ("resnet50", 2048),
        ("resnet18.a1_in1k", 512),
        ("convnext_atto", 320),
        ("mobilenetv3_small_050", 1024),
        ("vit_tiny_patch16_224", 192),
        ("mnasnet0_5", 1280),  # this and the next ones are torchvision's alone
        ("shufflenet_v2_x0_5", 1024),
        ("squeezenet1_1", 512),
    ],
)
@pytest.mark.parametrize("channels", [3, 2])
def test_encoders_give_one_vector_per_image(name: str, features: int, channels: int) -> None:
    encoder = build_encoder(name, channels=channels, view_px=32, stem="standard")
    assert count_features(encoder, channels=channels, view_px=32) == features
    assert encoder(images(0, batch=4, channels=channels, px=32)).shape == (4, features)


def test_dry_run_leaves_the_encoder_and_the_global_generator_alone() -> None:
    encoder = build_encoder("mnasnet0_5", channels=3, view_px=32, stem="standard")
    next(encoder.children()).eval()
    modes = [module.training for module in encoder.modules()]
    before, rng = copy.deepcopy(encoder.state_dict()), torch.get_rng_state()
    count_features(encoder, channels=3, view_px=32)
    assert [module.training for module in encoder.modules()] == modes
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize(("stem", "side"), [("standard", 8), ("small", 32), ("strided", 16)])
def test_stems_keep_keys_and_change_resolution(stem: str, side: int) -> None:
    plain = build_encoder("resnet18", channels=4, view_px=32, stem="standard")
    encoder = build_encoder("resnet18", channels=4, view_px=32, stem=stem)
    assert list(encoder.state_dict()) == list(plain.state_dict())
    sides = []
    encoder.layer1.register_forward_hook(lambda module, inputs, output: sides.append(output.shape[-1]))
    encoder(images(0, channels=4, px=32))
    assert sides == [side]


def test_a_deep_stem_keeps_its_keys() -> None:
    plain = timm.create_model("resnet10t", num_classes=0)
    for stem, side in (("standard", 8), ("small", 32), ("strided", 16)):
        encoder = build_encoder("resnet10t", channels=3, view_px=32, stem=stem)
        plain.load_state_dict(encoder.state_dict(), strict=True)
        maps = encoder.maxpool(encoder.act1(encoder.bn1(encoder.conv1(torch.zeros(1, 3, 32, 32)))))
        assert maps.shape[2:] == (side, side)


def test_auto_stem_is_small_for_resnets_up_to_64_px() -> None:
    assert resolve_stem("auto", name="resnet18", view_px=64) == "small"
    assert resolve_stem("auto", name="resnet18", view_px=65) == "standard"
    assert resolve_stem("auto", name="resnet18d", view_px=32) == "small"  # a deep stem
    assert resolve_stem("auto", name="convnext_atto", view_px=32) == "standard"
    assert resolve_stem("auto", name="mobilenet_v2", view_px=32) == "standard"
    assert resolve_stem("strided", name="resnet18", view_px=32) == "strided"
    assert of(px=64).online.encoder.conv1.kernel_size == (3, 3)
    assert of(px=72).online.encoder.conv1.kernel_size == (7, 7)


@pytest.mark.parametrize("name", ["convnext_atto", "mobilenet_v2"])
def test_a_stem_the_model_has_not_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^network\.stem: 'small' .* '{name}' has none; set .*=standard$"):
        build_encoder(name, channels=3, view_px=32, stem="small")


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet5O", "resnet50"), ("ResNet-18", "resnet18"), ("mobilenet_v2x", "mobilenet_v2")],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"^network\.name: '{name}' is unknown .* did you mean '{near}'\?$"
    ):
        build_encoder(name, channels=3, view_px=32, stem="standard")


def test_a_name_like_no_other_says_where_names_are() -> None:
    with pytest.raises(ConfigError, match=r"'%%%' is unknown .*timm\.list_models"):
        build_encoder("%%%", channels=3, view_px=32, stem="standard")


def test_an_encoder_that_cannot_take_the_images_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"'vit_b_16' cannot be built for 3 channels and 20 px: .*input_shape"
    ):
        build_encoder("vit_b_16", channels=3, view_px=20, stem="standard")
    assert resolve_stem("auto", name="resnet18.not_a_tag", view_px=32) == "small"
    with pytest.raises(ConfigError, match=r"'resnet18\.not_a_tag' cannot be built .*not_a_tag"):
        build_encoder("resnet18.not_a_tag", channels=3, view_px=32, stem="small")
    with pytest.raises(ConfigError, match=r"given images of 3 channels and 4 px, fails: .*input_shape"):
        count_features(nn.Conv2d(3, 4, 7), channels=3, view_px=4)
    with pytest.raises(ConfigError, match=r"gives \(1, 4, 3, 3\), not one vector per image"):
        count_features(nn.Conv2d(3, 4, 2), channels=3, view_px=4)


# ---- On a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_on_a_gpu_is_the_cpus() -> None:
    """Loss, gradients, BatchNorm statistics and target, in float64, channels_last."""
    learners = [
        tiny_byol().double().to(device, memory_format=torch.channels_last) for device in ("cpu", "cuda")
    ]
    losses = []
    for learner in learners:
        device = next(learner.parameters()).device
        view1, view2 = (images(seed).double().to(device) for seed in (0, 1))
        loss, _ = learner(view1, view2)
        loss.backward()
        torch.optim.SGD((p for p in learner.parameters() if p.requires_grad), lr=0.5).step()
        learner.update_target(tau=0.9)
        losses.append(loss.detach().cpu())
    torch.testing.assert_close(losses[1], losses[0], atol=1e-6, rtol=0)
    on_cpu, on_gpu = (learner.state_dict() for learner in learners)
    for name, expected in on_cpu.items():  # the loss is computed in float32
        torch.testing.assert_close(on_gpu[name].cpu(), expected, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_under_autocast_on_a_gpu_the_loss_is_float32_and_near_the_cpus() -> None:
    view1, view2 = images(0, batch=16, px=32), images(1, batch=16, px=32)
    expected, _ = of()(view1, view2)
    learner = of().cuda().to(memory_format=torch.channels_last)
    with torch.autocast("cuda", torch.bfloat16):
        loss, projection = learner(view1.cuda(), view2.cuda())
    loss.backward()
    assert loss.dtype == projection.dtype == torch.float32
    torch.testing.assert_close(loss.detach().cpu(), expected.detach(), atol=0.1, rtol=0)
    assert all(bool(p.grad.isfinite().all()) for p in learner.parameters() if p.requires_grad)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_target_of_a_resnet_is_updated_in_a_handful_of_launches() -> None:
    learner = of().cuda()
    learner.update_target(tau=0.9)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        learner.update_target(tau=0.9)
        torch.cuda.synchronize()
    launches = sum(event.count for event in profile.key_averages() if "LaunchKernel" in event.key)
    assert 1 <= launches <= 6, f"{launches} for {len(list(learner.target.parameters()))} parameters"
