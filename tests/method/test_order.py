"""The order of images in windows of shards: complete, random, the same at any step and for any ranks."""

from dataclasses import replace

import numpy as np
import pytest

from byol.config import load_config
from byol.method import order
from byol.method.schedule import Plan

SHARDS = tuple(int(num) for num in np.random.default_rng(0).integers(0, 60, 43))


def make_plan(shards: tuple[int, ...], *, batch: int = 16, seed: int = 1) -> Plan:
    config = load_config(None, [f"trainer.batch_size={batch}", "trainer.max_epochs=3"], preset="classic")
    config = config.model_copy(update={"trainer": config.trainer.model_copy(update={"seed": seed})})
    return Plan.of(config, num_images=sum(shards), shards=shards)


@pytest.mark.parametrize("shards", [SHARDS, (50,) * 9, (1,) * 100, (30,) * 8, (100, 3)])
def test_nothing_is_lost_or_seen_twice(shards: tuple[int, ...]) -> None:
    plan = make_plan(shards)
    for epoch in range(3):
        whole = order.visit_windows(shards, key=plan.key, epoch=epoch, start=0, stop=sum(shards))
        assert sorted(whole.tolist()) == list(range(sum(shards)))
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        np.testing.assert_array_equal(
            np.concatenate([plan.indices(step) for step in steps]), whole[: len(steps) * plan.batch_size]
        )


def test_any_step_can_come_first() -> None:
    """So a run goes on exactly in mid-epoch: nothing but the step is needed."""
    plan = make_plan(SHARDS)
    expected = [plan.indices(step) for step in range(plan.total_steps)]
    for step in np.random.default_rng(1).permutation(plan.total_steps)[:40].tolist():
        order.list_windows.cache_clear()
        order.permute.cache_clear()
        order.permute_window.cache_clear()
        np.testing.assert_array_equal(make_plan(SHARDS).indices(step), expected[step])


def test_seed_epoch_and_shards_change_the_order() -> None:
    plan = make_plan(SHARDS)
    orders = [
        plan.indices(0),
        plan.indices(plan.steps_per_epoch),
        make_plan(SHARDS, seed=2).indices(0),
        make_plan((*SHARDS[:-2], SHARDS[-2] + SHARDS[-1])).indices(0),
    ]
    assert len({tuple(rows.tolist()) for rows in orders}) == len(orders)


def test_a_step_needs_only_shards_that_were_announced() -> None:
    plan = make_plan(SHARDS)
    owner = np.repeat(np.arange(len(SHARDS)), SHARDS)
    before: tuple[int, ...] = ()
    for step in range(plan.total_steps):
        ahead = plan.shards_ahead(step)
        assert set(owner[plan.indices(step)]) <= set(ahead) and len(ahead) <= 2 * order.WINDOW
        if before and before != ahead:  # the window that comes next was announced before it is needed
            assert set(owner[plan.indices(step)]) <= set(before)
        before = ahead


def test_few_shards_are_shuffled_as_one_file() -> None:
    windows = make_plan((30,) * order.WINDOW)
    whole = replace(windows, shards=())
    for step in (0, 5, windows.steps_per_epoch + 3):
        np.testing.assert_array_equal(windows.indices(step), whole.indices(step))
    assert windows.shards_ahead(0) == tuple(range(order.WINDOW)) and whole.shards_ahead(0) == ()
    np.testing.assert_array_equal(windows.first_images(), np.arange(30 * order.WINDOW))


def test_neighbours_in_the_set_are_spread_over_an_epoch() -> None:
    shards = (100,) * 64
    plan = make_plan(shards)
    visited = order.visit_windows(shards, key=plan.key, epoch=0, start=0, stop=6400)
    owners = visited.reshape(-1, 800) // 100
    assert all(len(set(window)) == order.WINDOW for window in owners.tolist())
    first = plan.first_images()
    assert len(first) == 800 and set(first // 100) == set(owners[0])
