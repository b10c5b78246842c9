"""A time budget: on time at any speed, schedules complete, the same when continued."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest

from byol.config import load_config
from byol.method.schedule import Plan
from byol.training.time_budget import TimeBudget


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def make_plan(*, expected_steps: int, hours: float = 0.05) -> Plan:
    config = load_config(None, [f"trainer.max_hours={hours}", "trainer.batch_size=64"], preset="default")
    return Plan.of(config, num_images=640, expected_steps=expected_steps)


def run(
    plan: Plan, speed: Callable[[int], float], *, stop_at: tuple[int, ...] = ()
) -> tuple[list[float], float, int]:
    """Positions of all steps, seconds, and steps; `speed` gives the seconds of each step."""
    clock, positions, done = Clock(), [], 0
    saved = None
    while True:
        budget = TimeBudget(plan, saved=saved, now=clock)
        budget.start()
        while not budget.is_last(done):
            positions.append(budget.position(done))
            clock.now_s += speed(done)
            done += 1
            budget.follow(done)
            if done in stop_at:
                break
        if budget.is_last(done):
            return positions, budget.elapsed_s, budget.end
        saved = budget.state()
        clock.now_s += 12345.0  # time between two starts is nobody's


def test_abandoned_time_counts_as_used_but_not_as_speed() -> None:
    """A run of 180 s at 0.5 s a step fails after 100 s and goes back to its checkpoint at 60 s."""
    plan, clock = make_plan(expected_steps=360), Clock()
    budget = TimeBudget(plan, saved=None, now=clock)
    budget.start()
    for done in range(1, 121):
        clock.now_s += 0.5
        budget.follow(done)
    saved = budget.state()
    assert saved is not None and saved["elapsed_s"] == 60.0
    budget = TimeBudget(plan, saved=saved, abandoned_s=40.0, now=clock)
    budget.start()
    done, positions = 120, []
    while not budget.is_last(done):
        positions.append(budget.position(done))
        clock.now_s += 0.5
        done += 1
        budget.follow(done)
    assert budget.elapsed_s == pytest.approx(180.0, abs=1.0)
    assert done == pytest.approx(120 + 160, abs=2)  # 80 s are left at 0.5 s a step
    assert positions == sorted(positions) and budget.position(done) == pytest.approx(plan.total_steps)


SPEEDS: dict[str, Callable[[int], float]] = {
    "as expected": lambda step: 0.5,
    "five times faster": lambda step: 0.1,
    "five times slower": lambda step: 2.5,
    "slow first step": lambda step: 20.0 if step == 0 else 0.5,
    "slower in the middle": lambda step: 0.25 if step < 300 else 1.0,
    "now and then a check": lambda step: 0.5 + 3.0 * (step % 50 == 49),
    "noise": lambda step: 0.5 + 0.4 * math.sin(step * step),
}


@pytest.mark.parametrize("name", SPEEDS)
def test_on_time_and_complete(name: str) -> None:
    """180 s, planned for 360 steps of 0.5 s: within 3 %, though the speed is another."""
    plan = make_plan(expected_steps=360)
    positions, elapsed_s, end = run(plan, SPEEDS[name])
    assert elapsed_s == pytest.approx(180.0, rel=0.03)
    assert len(positions) == end and positions[0] == 0.0
    steps = [after - before for before, after in pairwise(positions)]
    assert min(steps) > 0.0
    # The last step ends at the end of the schedules, and begins one step before it.
    assert 0.0 < plan.total_steps - positions[-1] < 20.0
    assert plan.lr(positions[-1]) < 0.01 * plan.base_lr and plan.tau(positions[-1]) > 0.9999


def test_the_end_is_reached_exactly() -> None:
    plan = make_plan(expected_steps=100)
    budget = TimeBudget(plan, saved=None, now=Clock())
    assert budget.position(budget.end) == plan.total_steps and budget.is_last(budget.end)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPEEDS)
def test_stopped_twice_is_never_stopped(name: str) -> None:
    plan = make_plan(expected_steps=360)
    positions, elapsed_s, end = run(plan, SPEEDS[name])
    stopped = run(plan, SPEEDS[name], stop_at=(3, end // 2))
    assert stopped[0] == pytest.approx(positions, rel=1e-9) and stopped[2] == end
    assert stopped[1] == pytest.approx(elapsed_s)


def test_a_run_whose_time_is_up_makes_one_more_step() -> None:
    plan = make_plan(expected_steps=100)
    positions, elapsed_s, end = run(plan, lambda step: 1.0 if step < 40 else 500.0)
    assert end <= 45 and elapsed_s > 180.0 and len(positions) == end


def test_few_expected_steps_are_no_bound() -> None:
    positions, elapsed_s, end = run(make_plan(expected_steps=2), lambda step: 1.0)
    assert elapsed_s == pytest.approx(180.0, abs=2.0) and end == len(positions) >= 178
    assert run(make_plan(expected_steps=1), lambda step: 400.0)[2] == 1


def test_the_first_ranks_clock_decides() -> None:
    """A rank whose own clock is slow follows what it is told."""
    plan, clock = make_plan(expected_steps=360), Clock()
    told: list[float] = []

    def agree(seconds: float) -> float:
        told.append(seconds)
        return 10.0 * len(told)

    budget = TimeBudget(plan, saved=None, agree=agree, now=clock)
    budget.start()
    for done in range(1, 5):
        budget.follow(done)
    # 10 s have gone by, 20 are kept for the end.
    assert told == [0.0, 0.0] and budget.end == 4 + round(150.0 / 2.5)


def test_time_is_kept_for_what_comes_after_the_last_step() -> None:
    plan, clock = make_plan(expected_steps=360), Clock()
    budget = TimeBudget(plan, saved=None, now=clock)
    budget.reserve(12.0)
    budget.start()
    clock.now_s += 2.0
    budget.follow(4)
    assert budget.end == 4 + round((180.0 - 12.0 - 2.0) / 0.5)


def test_without_a_budget_a_position_is_a_step() -> None:
    plan = Plan.of(
        load_config(None, ["trainer.max_epochs=3", "trainer.batch_size=64"], preset="default"), num_images=640
    )
    budget = TimeBudget(plan, saved=None)
    budget.start()
    for done in range(plan.total_steps):
        position = budget.position(done)
        assert position == done and not budget.is_last(done)
        budget.follow(done)
    assert budget.is_last(30) and budget.end == 30 and budget.state() is None
    assert budget.left_s(20, step_s=1.5) == 15.0


def test_time_left_is_that_of_the_budget() -> None:
    plan, clock = make_plan(expected_steps=360), Clock()
    budget = TimeBudget(plan, saved=None, now=clock)
    budget.start()
    clock.now_s += 30.0
    assert budget.left_s(10, step_s=1.0) == 150.0
    clock.now_s += 300.0
    assert budget.left_s(10, step_s=1.0) == 0.0 == budget.left_s(budget.end, step_s=1.0)
