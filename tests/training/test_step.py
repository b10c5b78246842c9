"""A step's gradients: parts, and what happens when memory runs out in the middle."""

import copy

import pytest
import torch
from torch import Tensor, nn

from byol.base.errors import ConfigError
from byol.device.memory import available_bytes, is_out_of_memory, peak_bytes
from byol.device.ranks import Ranks
from byol.method.networks import Byol, byol_loss, vicreg_penalty
from byol.training.step import MIN_MICROBATCH, Computed, can_halve, compute_gradients, compute_within_memory

ALONE = Ranks(0, 1, torch.device("cpu"), torch.float32)
IMAGES = torch.randint(0, 256, (32, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
FAILURES = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
]


def make_byol() -> Byol:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    return Byol(encoder, num_features=8, hidden_size=8, projection_size=4)


class MakeViews:
    """Views that are a function of the rows; the calls `fail_on` raise."""

    def __init__(self, *fail_on: int, error: Exception | None = None, weak: bool = False) -> None:
        self.rows: list[slice] = []
        self._weak = weak
        self._fail_on, self._error = fail_on, error or MemoryError()

    def __call__(self, images: Tensor, *, rows: slice) -> tuple[Tensor, ...]:
        self.rows.append(rows)
        if len(self.rows) in self._fail_on:
            raise self._error
        factors = torch.arange(32.0)[rows].view(-1, 1, 1, 1) / 32.0
        views = images / 255.0 * factors, images / 255.0 + factors
        return (*views, images / 255.0 - factors) if self._weak else views


def compute(byol: Byol, make: MakeViews, *, num_microbatches: int, said: list[str] | None = None) -> Computed:
    say = print if said is None else said.append
    return compute_within_memory(
        byol, IMAGES, make=make, show=None, num_microbatches=num_microbatches, ranks=ALONE, seed=3, say=say
    )


def state(byol: Byol) -> dict[str, Tensor]:
    gradients = {f"{name}.grad": p.grad for name, p in byol.named_parameters() if p.grad is not None}
    return copy.deepcopy({**byol.state_dict(), **gradients})


def test_parts_have_the_mean_loss_and_the_sum_of_gradients() -> None:
    byol, make = make_byol(), MakeViews()
    shown: list[Tensor] = []
    torch.manual_seed(3)
    loss, projection = compute_gradients(
        byol,
        IMAGES,
        make=make,
        show=lambda one, two: shown.extend((one, two)),
        num_microbatches=4,
        ranks=ALONE,
    )
    assert make.rows == [slice(at, at + 8, 1) for at in (0, 8, 16, 24)]
    assert projection.shape == (8, 4)
    assert [view.shape for view in shown] == [(8, 1, 4, 4)] * 2
    other = make_byol()
    torch.manual_seed(3)
    pairs = [MakeViews()(IMAGES[rows], rows=rows) for rows in make.rows]
    directions = [pair[::step] for pair in pairs for step in (1, -1)]  # dropout draws in this order
    losses = [other(*views, symmetric=False)[0] / 4 for views in directions]
    torch.stack(losses).sum().backward()
    torch.testing.assert_close(loss, torch.stack(losses).sum().detach())
    for name, value in state(other).items():
        torch.testing.assert_close(state(byol)[name], value, msg=name)


def test_both_views_predict_the_weak_one() -> None:
    """The target network computes it once; loss and gradients are those of two directions by hand."""
    byol, shown, seen = make_byol(), list[Tensor](), list[Tensor]()
    byol.target.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    torch.manual_seed(3)
    loss, _ = compute_gradients(
        byol,
        IMAGES,
        make=MakeViews(weak=True),
        show=lambda *views: shown.extend(views),
        num_microbatches=2,
        ranks=ALONE,
        vicreg_weight=0.5,
    )
    other, losses = make_byol(), []
    torch.manual_seed(3)
    for rows in (slice(0, 16, 1), slice(16, 32, 1)):
        view1, view2, weak = MakeViews(weak=True)(IMAGES[rows], rows=rows)
        with torch.no_grad():
            target = other.target(weak)
        for view in (view1, view2):
            projection = other.online(view)
            penalty = vicreg_penalty(projection)
            prediction_loss = byol_loss(other.predictor(projection), target).mean()
            losses.append((prediction_loss + 0.5 * (penalty - penalty.detach())) / 2)
    torch.stack(losses).sum().backward()
    torch.testing.assert_close(loss, torch.stack(losses).sum().detach())
    for name, value in state(other).items():
        torch.testing.assert_close(state(byol)[name], value, msg=name)
    assert [view.shape for view in shown] == [(16, 1, 4, 4)] * 3
    assert len(seen) == 2 and torch.equal(seen[0], shown[2])


@pytest.mark.parametrize("error", FAILURES)
def test_out_of_memory_leaves_no_trace(error: Exception) -> None:
    """At the second part of two, when gradients and statistics have changed: equal to four parts at once."""
    byol, said = make_byol(), list[str]()
    computed = compute(byol, MakeViews(2, error=error), num_microbatches=2, said=said)
    wanted = make_byol()
    expected = compute(wanted, MakeViews(), num_microbatches=4)
    assert computed.num_microbatches == 4 and torch.equal(computed.loss, expected.loss)
    assert [name for name, value in state(wanted).items() if not torch.equal(value, state(byol)[name])] == []
    (line,) = said
    assert "8 images" in line and "BatchNorm" in line and "trainer.accumulation_steps=4" in line


def test_halved_as_often_as_need_be() -> None:
    said: list[str] = []
    assert (
        compute(make_byol(), MakeViews(1, 2), num_microbatches=1, said=said).num_microbatches == 4
        and len(said) == 2
    )


def test_the_smallest_part() -> None:
    with pytest.raises(
        ConfigError, match=r"trainer\.batch_size: out of memory on 8 images at a time.*network\.name"
    ):
        compute(make_byol(), MakeViews(1), num_microbatches=4)


def test_one_of_several_ranks() -> None:
    """The others wait in the middle of the step, and cannot be told: the run ends, and says what to do."""
    ranks = Ranks(1, 2, torch.device("cpu"), torch.float32)
    with pytest.raises(
        ConfigError,
        match=r"rank 1 ran out of memory on 32 images.*continue with trainer.accumulation_steps=2",
    ):
        compute_within_memory(
            make_byol(),
            IMAGES,
            make=MakeViews(1),
            show=None,
            num_microbatches=1,
            ranks=ranks,
            seed=3,
            say=print,
        )


def test_other_errors_are_not_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        compute(
            make_byol(), MakeViews(1, error=RuntimeError("shapes cannot be multiplied")), num_microbatches=1
        )
    assert not is_out_of_memory(ValueError("can't allocate memory"))


def test_pytorchs_own_error_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_smallest_parts() -> None:
    assert can_halve(2 * MIN_MICROBATCH, num_microbatches=1, world_size=1)
    assert not can_halve(2 * MIN_MICROBATCH, num_microbatches=2, world_size=1)
    assert not can_halve(2 * MIN_MICROBATCH, num_microbatches=1, world_size=2)
    assert not can_halve(90, num_microbatches=2, world_size=1)


def test_memory_of_machine_and_process() -> None:
    assert peak_bytes() > 10**7 and 10**7 < available_bytes() < 10**15
