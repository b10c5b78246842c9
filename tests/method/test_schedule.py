"""The plan: rates by closed formulas, order as a permutation, keys, and derived values with reasons."""

import math

import numpy as np
import pytest

from byol.base.errors import ConfigError, DataError
from byol.config import load_config
from byol.method.schedule import Plan, reference_lr


def make_plan(*overrides: str, preset: str = "default", num_images: int = 1000) -> Plan:
    chosen = ("trainer.batch_size=64", "trainer.max_epochs=100") if preset == "default" else ()
    return Plan.of(load_config(None, [*chosen, *overrides], preset=preset), num_images=num_images)


def test_steps_drop_the_incomplete_batch() -> None:
    plan = make_plan("trainer.batch_size=64", "trainer.max_epochs=3")
    assert (plan.steps_per_epoch, plan.total_steps) == (15, 45)


def test_lr_rises_linearly_and_falls_as_a_cosine() -> None:
    plan = make_plan("trainer.max_epochs=10", "optimizer.warmup_epochs=2", "optimizer.params.lr=0.5")
    warmup, total = 30, 150
    assert plan.warmup_steps == warmup and plan.total_steps == total
    for step in range(total):
        if step < warmup:
            expected = 0.5 * (step + 1) / warmup
        else:
            expected = 0.25 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
        assert plan.lr(step) == pytest.approx(expected, rel=1e-12)
    assert plan.lr(total - 1) < 0.001


def test_tau_rises_to_1_as_a_cosine() -> None:
    plan = make_plan("trainer.max_epochs=4", "trainer.m=0.9")
    for step in range(plan.total_steps):
        expected = 1 - 0.1 * (1 + math.cos(math.pi * step / plan.total_steps)) / 2
        assert plan.tau(step) == pytest.approx(expected, rel=1e-12)
    assert plan.tau(0) == pytest.approx(0.9)


def test_the_weight_of_vicreg_terms_falls_to_0_at_half_of_the_run() -> None:
    plan = make_plan("trainer.max_epochs=4", "trainer.vicreg_weight=2")
    half = plan.total_steps / 2
    weights = [plan.vicreg_weight(step) for step in range(plan.total_steps)]
    assert weights == pytest.approx([2.0 * max(0.0, 1.0 - step / half) for step in range(plan.total_steps)])
    assert weights[-1] == 0.0
    # A run of before this setting has no value for it, and continues without the terms.
    for preset in ("default", "demo", "classic", "paper"):
        assert make_plan(preset=preset, num_images=10_000).vicreg_weight(0) == 0.0


def test_constant_schedules_stay() -> None:
    plan = make_plan(preset="classic")
    assert {plan.lr(step) for step in range(plan.total_steps)} == {0.03}
    assert {plan.tau(step) for step in range(plan.total_steps)} == {0.996}


def test_warmup_may_be_all_there_is() -> None:
    plan = make_plan("trainer.max_epochs=2", "optimizer.warmup_epochs=2", "optimizer.params.lr=1.0")
    assert plan.lr(plan.total_steps - 1) == 1.0


def test_an_epoch_is_a_permutation_without_its_tail() -> None:
    plan = make_plan(num_images=200)
    epochs = [np.concatenate([plan.indices(3 * epoch + i) for i in range(3)]) for epoch in range(3)]
    for epoch in epochs:
        assert len(np.unique(epoch)) == 192 and epoch.min() >= 0 and epoch.max() < 200
    assert not np.array_equal(epochs[0], epochs[1])
    again = make_plan(num_images=200)
    assert np.array_equal(again.indices(8), plan.indices(8))
    assert not np.array_equal(make_plan("trainer.seed=1", num_images=200).indices(0), plan.indices(0))


def test_keys_differ_by_stream_index_and_seed_and_fit_63_bits() -> None:
    plan, other = make_plan(), make_plan("trainer.seed=1")
    keys = [
        p.key(stream, index) for p in (plan, other) for stream in ("views", "order") for index in range(100)
    ]
    assert len(set(keys)) == len(keys) and all(0 <= key < 2**63 for key in keys)
    assert make_plan().key("views", 5) == plan.key("views", 5)


def test_moments() -> None:
    plan = make_plan(
        "trainer.max_epochs=1",
        "trainer.log_interval=4",
        "trainer.health_interval=5",
        "trainer.checkpoint_interval=6",
    )
    moments = range(1, plan.total_steps + 1)
    assert [done for done in moments if plan.log_at(done, last=done == 15)] == [4, 8, 12, 15]
    assert [done for done in moments if plan.health_at(done, last=done == 15)] == [5, 10, 15]
    assert [done for done in moments if plan.save_at(done, last=done == 14)] == [6, 12, 14]


@pytest.mark.parametrize(
    ("epochs", "lr", "weight_decay", "tau"),
    [(40, 0.45, 1e-6, 0.97), (100, 0.45, 1e-6, 0.99), (200, 0.3, 1e-6, 0.99), (1000, 0.2, 1.5e-6, 0.996)],
)
def test_the_papers_table(epochs: int, lr: float, weight_decay: float, tau: float) -> None:
    plan = make_plan(f"trainer.max_epochs={epochs}", preset="paper", num_images=8192)
    assert plan.base_lr == pytest.approx(lr * 4096 / 256)
    assert (plan.weight_decay, plan.base_tau) == (weight_decay, tau)
    assert plan.warmup_steps == 20
    assert f"learning rate {lr:g}" in plan.explain()[0] and "times batch size 4096 / 256" in plan.explain()[0]
    assert ("as in the paper for 300 epochs, the next longer run in its table" in plan.explain()[0]) == (
        epochs == 200
    )


def test_open_values_are_derived_and_given_ones_kept() -> None:
    plan = make_plan("trainer.m=0.5", "optimizer.warmup_epochs=1")
    assert plan.base_tau == 0.5 and plan.warmup_steps == plan.steps_per_epoch
    lines = plan.explain()
    assert len(lines) == 4 and "x batch size / 64" in lines[0]
    assert lines[3] == (
        "EMA decay of the target network (trainer.m) 0.5 at the start (from the preset or your settings)"
    )
    assert f"{plan.base_lr:.4g}" in lines[0] and f"{plan.weight_decay:.4g}" in lines[2]


def test_derived_tau_grows_with_the_number_of_steps() -> None:
    taus = [make_plan(num_images=n).base_tau for n in (100, 1_000, 10_000, 100_000)]
    assert taus == sorted(taus) and 0.9 < taus[0] < taus[-1] < 1.0


def test_health_is_checked_early() -> None:
    plan = make_plan("trainer.health_interval=300", "trainer.max_epochs=50")
    assert [done for done in range(1, 650) if plan.health_at(done, last=False)] == [
        20,
        50,
        100,
        200,
        300,
        600,
    ]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["trainer.batch_size=64"], 0.06),
        (["trainer.batch_size=64", "optimizer.params.lr=1", "optimizer.scale_lr=true"], 0.24),
        (["trainer.batch_size=64", "optimizer.name=lars", "optimizer.params.lr=1"], 0.45 / 4),
        (["trainer.batch_size=64", "optimizer.name=adamw", "optimizer.params.lr=1"], 0.0005 / 4),
    ],
)
def test_the_rate_that_suits_optimizer_and_batch(overrides: list[str], expected: float) -> None:
    config = load_config(None, [*overrides, "trainer.max_epochs=10"], preset="default")
    assert reference_lr(config, Plan.of(config, num_images=6400)) == pytest.approx(expected)


def test_fewer_images_than_a_batch() -> None:
    with pytest.raises(DataError, match=r"20 images are fewer than a batch of 64; .*trainer\.batch_size=10"):
        make_plan(num_images=20)


# ---- A time budget


def test_a_budget_is_planned_for_the_expected_steps() -> None:
    config = load_config(None, ["trainer.max_hours=0.5", "trainer.batch_size=64"], preset="default")
    plan = Plan.of(config, num_images=1000, expected_steps=60)
    assert (plan.total_steps, plan.budget_s, plan.steps_per_epoch) == (60, 1800.0, 15)
    assert plan.warmup_steps == 3 and "5 % of the run, at most 10 epochs" in plan.explain()[1]
    same = make_plan("trainer.max_epochs=4")
    assert [plan.lr(step) for step in range(60)] == [same.lr(step) for step in range(60)]
    assert [plan.tau(step) for step in range(60)] == [same.tau(step) for step in range(60)]
    assert same.budget_s is None


def test_rates_between_two_steps() -> None:
    plan = make_plan("trainer.max_epochs=10", "optimizer.warmup_epochs=2", "optimizer.params.lr=0.5")
    assert plan.lr(14.5) == pytest.approx(0.5 * 15.5 / 30)
    assert plan.lr(29.5) == 0.5  # never above the highest
    assert plan.lr(100) > plan.lr(100.5) > plan.lr(101)
    assert plan.tau(100) < plan.tau(100.5) < plan.tau(101)


def test_a_warmup_longer_than_the_time() -> None:
    overrides = ["trainer.max_hours=0.1", "trainer.batch_size=64", "optimizer.warmup_epochs=5"]
    config = load_config(None, overrides, preset="default")
    with pytest.raises(
        ConfigError, match=r"warmup_epochs: 5 is longer .*about 2 epochs in trainer\.max_hours 0\.1"
    ):
        Plan.of(config, num_images=1000, expected_steps=30)


def test_a_run_needs_a_length() -> None:
    with pytest.raises(ConfigError, match=r"^trainer\.max_epochs: .*trainer\.max_hours"):
        make_plan("trainer.max_epochs=null")
