"""Winograd's convolution against the library's in double precision, in each direction."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from byol.kernels import build, winograd
from byol.kernels.build import run_kernel
from byol.kernels.winograd import choose_tile, constant_weights, convolve

pytestmark = pytest.mark.skipif(
    build.load_kernels() is None, reason=f"no kernels on this machine: {build.explain_kernels()}"
)
CASES = [(torch.float32, m) for m in (2, 3, 4)] + [(torch.bfloat16, m) for m in (2, 3)]
# Relative error, root mean square. Of the library's own convolution: 4e-7 and 0.0023.
LIMITS = {2: 2e-6, 3: 4e-6, 4: 8e-6}, {2: 0.008, 3: 0.016}


def limit(dtype: torch.dtype, m: int) -> float:
    return LIMITS[dtype == torch.bfloat16][m]


def draw(
    dtype: torch.dtype, *, batch: int = 3, channels: int = 64, out: int = 128, size: tuple[int, int] = (7, 10)
) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    images = torch.randn(batch, channels, *size).relu().to(dtype)
    weight = torch.randn(out, channels, 3, 3) * (2 / 9 / channels) ** 0.5
    return (
        images.contiguous(memory_format=torch.channels_last).requires_grad_(),
        weight.contiguous(memory_format=torch.channels_last).requires_grad_(),
    )


def error(got: Tensor, expected: Tensor) -> float:
    expected = expected.detach()
    return float((got.detach().double() - expected).norm() / expected.norm())


@pytest.fixture
def has_dtype(request: pytest.FixtureRequest):
    dtype = request.getfixturevalue("dtype")
    found = build.load_kernels()
    if found is None or not found.has("winograd_convolution_2", dtype):
        pytest.skip(f"this CPU does not multiply {dtype}")


@pytest.mark.usefixtures("has_dtype")
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("size", [(3, 3), (4, 4), (7, 10), (12, 12)])
@pytest.mark.parametrize(("dtype", "m"), CASES)
def test_equals_the_library_in_every_direction(
    dtype: torch.dtype, m: int, size: tuple[int, int], padding: int
) -> None:
    images, weight = draw(dtype, size=size)
    output = convolve(images, weight, padding=padding, m=m)
    doubles = [tensor.detach().double().requires_grad_() for tensor in (images, weight)]
    expected = F.conv2d(*doubles, padding=padding)
    assert output.shape == expected.shape and output.dtype == dtype
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert error(output, expected) < limit(dtype, m)
    gradient = torch.randn(output.shape).to(dtype)
    got = torch.autograd.grad(output, (images, weight), gradient)
    wanted = torch.autograd.grad(expected, doubles, gradient.double())
    for one, other, of in zip(got, wanted, (images, weight), strict=True):
        assert one.shape == of.shape and one.dtype == of.dtype
        assert error(one, other) < limit(dtype, m)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("has_dtype")
def test_many_images_are_summed_in_parts(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    images, weight = draw(dtype, batch=9, out=64)
    whole = torch.autograd.grad(convolve(images, weight, padding=1, m=2).sum(), weight)[0]
    monkeypatch.setattr(winograd, "CHUNK_BYTES", 2**16)
    parts = torch.autograd.grad(convolve(images, weight, padding=1, m=2).sum(), weight)[0]
    assert not torch.equal(parts, whole)
    assert error(parts, whole.double()) < limit(dtype, 2)


def test_any_memory_format_and_number_of_threads_gives_the_same_bits() -> None:
    images, weight = draw(torch.float32)
    expected = convolve(images, weight, padding=1, m=2)
    planes = convolve(images.contiguous(), weight.contiguous(), padding=1, m=2)
    assert torch.equal(planes, expected)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(convolve(images, weight, padding=1, m=2), expected)
    finally:
        torch.set_num_threads(threads)


def test_nan_stays_where_it_is_seen() -> None:
    images, weight = draw(torch.float32, size=(12, 12))
    with torch.no_grad():
        images[0, 5, 11, 11] = float("nan")
        output = convolve(images, weight, padding=1, m=2)
    assert output[0, :, 11, 11].isnan().all()
    assert output[0, :, :8].isfinite().all() and output[1:].isfinite().all()


def test_weights_are_packed_once_in_a_block_and_anew_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    images, weight = draw(torch.float32)
    made: list[str] = []

    def count(name: str, *arguments: Tensor | int | float | None, dtype: torch.dtype) -> None:
        made.extend([name] if "pack" in name else [])
        run_kernel(name, *arguments, dtype=dtype)

    monkeypatch.setattr(winograd, "run_kernel", count)
    with torch.no_grad():
        with constant_weights():
            first = convolve(images, weight, padding=1, m=2)
            assert torch.equal(convolve(images, weight, padding=1, m=2), first)
        assert made == ["winograd_pack_2"]
        weight.data.mul_(2.0)  # a change that PyTorch does not count
        with constant_weights():
            assert torch.equal(convolve(images, weight, padding=1, m=2), 2.0 * first)
        assert torch.equal(convolve(images, weight, padding=1, m=2), 2.0 * first)
    assert made == ["winograd_pack_2"] * 3


def test_weights_in_any_memory_format_are_told_apart() -> None:
    images, _ = draw(torch.float32)
    weights = [torch.randn(64, 64, 3, 3) for _ in range(4)]  # planes: each is copied to be packed
    with torch.no_grad():
        expected = [convolve(images, weight, padding=1, m=2) for weight in weights]
        with constant_weights():
            for weight, one in zip(weights * 2, expected * 2, strict=True):
                assert torch.equal(convolve(images, weight, padding=1, m=2), one)


def test_the_rule_leaves_to_the_library_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "wins", lambda *_, **__: True)

    def choose(channels: int = 64, out: int = 64, side: int = 8, dtype: torch.dtype = torch.float32):
        return choose_tile(channels, out, height=side, width=side, dtype=dtype)

    assert [choose(side=side) for side in (1, 2, 3, 4, 6, 7, 24)] == [None, 2, 3, 4, 3, 4, 4]
    assert choose(channels=3) is None and choose(out=72) is None
    assert choose(dtype=torch.float64) is None and choose(dtype=torch.float16) is None


@pytest.mark.slow
def test_kernels_of_a_cpu_without_avx512_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled for AVX2, which any CPU with AVX-512 can run."""
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this CPU has no AVX2")
    found, why = build.load_for("avx2")
    if found is None:
        pytest.skip(why)
    for module in (winograd, build):
        monkeypatch.setattr(module, "load_kernels", lambda: found)
    assert not found.has("winograd_convolution_2", torch.bfloat16)
    assert choose_tile(64, 64, height=8, width=8, dtype=torch.bfloat16) is None
    test_equals_the_library_in_every_direction(torch.float32, 4, (7, 10), 1)
    test_equals_the_library_in_every_direction(torch.float32, 2, (4, 4), 1)
