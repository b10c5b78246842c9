"""The benchmark: real steps in a process of their own, the batch in as many parts as fit, clear refusals."""

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from byol.base.errors import ConfigError
from byol.config import Config, load_config
from byol.training import step_benchmark
from byol.training.step_benchmark import StepBenchmark, benchmark_step, choose_batch

TINY = [
    "network.name=test_resnet",
    "network.stem=standard",
    "network.projection_head.mlp_hidden_size=32",
    "network.projection_head.projection_size=16",
    "data_transforms.input_shape=[16,16,null]",
    "trainer.device=cpu",
    "trainer.precision=fp32",
    "trainer.batch_size=64",
    "trainer.accumulation_steps=1",
    "trainer.max_epochs=1",
]
IMAGES = {"channels": 3, "stored_px": 20, "bits": 8}


def configure(*overrides: str) -> Config:
    return load_config(None, [*TINY, *overrides], preset="default")


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """What has been tried by a child that needs 1 GB, and 0.1 GB for each image of a part; 4 GB may be used.

    A part of more than 100 images makes it fail.
    """
    seen: list[Config] = []

    def answer(config: Config, *, may_use_fewer_threads: bool, **images: int) -> StepBenchmark | None:
        assert images == IMAGES
        seen.append(config)
        trainer = config.trainer
        part = trainer.batch_size // trainer.accumulation_steps
        result = StepBenchmark(
            trainer.batch_size, trainer.accumulation_steps, 0.5, 10**9 + part * 10**8, 4 * 10**9
        )
        return result if part <= 100 else None

    monkeypatch.setattr(step_benchmark, "try_step", answer)
    return seen


@pytest.mark.slow
def test_real_steps_in_a_child() -> None:
    config = configure("trainer.batch_size=16", "trainer.accumulation_steps=2")
    measured = benchmark_step(config, channels=2, stored_px=20, bits=16)
    assert (measured.batch_size, measured.accumulation_steps) == (16, 2)
    assert 0.0 < measured.step_s < 60.0
    # Python and PyTorch alone take more than 100 MB.
    assert 10**8 < measured.peak_bytes < measured.limit_bytes and measured.fits


@pytest.mark.parametrize(
    ("most", "seconds", "chosen", "all_threads_s"),
    [
        (1, {1: 1.0}, 1, None),
        (2, {2: 1.0, 1: 1.8}, 2, None),
        (2, {2: 1.0, 1: 0.9}, 2, None),  # no more than noise
        (2, {2: 2.9, 1: 0.4}, 1, 2.9),  # a core is shared with another program
        (8, {8: 3.0, 4: 2.0, 2: 1.0, 1: 1.9}, 2, 3.0),
        (8, {8: 3.0, 4: 4.0}, 8, None),
        (2, {2: 5.0}, 2, None),  # trying would take too long
    ],
)
def test_fewer_threads_are_taken_if_they_are_faster(
    most: int, seconds: dict[int, float], chosen: int, all_threads_s: float | None
) -> None:
    """A number that is not to be tried raises KeyError."""
    found = step_benchmark.measure_threads(seconds.__getitem__, most)
    assert found == {"step_s": seconds[chosen], "num_threads": chosen, "all_threads_s": all_threads_s}


def test_parts_are_halved_until_they_fit(tried: list[Config]) -> None:
    chosen = choose_batch(configure("trainer.batch_size=8"), wanted=256, **IMAGES)
    assert (chosen.batch_size, chosen.accumulation_steps) == (256, 16)
    assert [config.trainer.accumulation_steps for config in tried] == [1, 2, 4, 8, 16]
    assert {config.trainer.batch_size for config in tried} == {256}


def test_it_begins_with_the_parts_of_the_configuration(tried: list[Config]) -> None:
    chosen = choose_batch(configure("trainer.accumulation_steps=4"), wanted=64, **IMAGES)
    assert chosen.accumulation_steps == 4 and len(tried) == 1


def test_nothing_fits(tried: list[Config], monkeypatch: pytest.MonkeyPatch) -> None:
    fake = step_benchmark.try_step
    monkeypatch.setattr(
        step_benchmark,
        "try_step",
        lambda c, **k: replace(fake(c, **k) or StepBenchmark(0, 0, 0, 9, 0), limit_bytes=5),
    )
    with pytest.raises(
        ConfigError, match=r"trainer\.batch_size: 64 images do not fit .* 8 at a time .*1\.8 of"
    ):
        choose_batch(configure(), wanted=64, **IMAGES)
    assert tried[-1].trainer.accumulation_steps == 8


def test_a_batch_that_cannot_be_halved(tried: list[Config]) -> None:
    with pytest.raises(
        ConfigError, match=r"250 .*not even 125 at a time \(allocation failed\).*power of two"
    ):
        choose_batch(configure(), wanted=250, **IMAGES)


def test_a_benchmark_that_runs_out_of_memory_names_the_key(tried: list[Config]) -> None:
    with pytest.raises(ConfigError, match=r"128 images .*set trainer\.accumulation_steps=2"):
        benchmark_step(configure("trainer.batch_size=128"), **IMAGES)


def test_a_child_that_may_not_allocate_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux limits what a process allocates")
    monkeypatch.setattr(step_benchmark, "available_bytes", lambda: 200 * 10**6)
    with pytest.raises(ConfigError, match="runs out of memory"):
        benchmark_step(configure(), channels=3, stored_px=200, bits=8)


def test_what_the_networks_refuse_comes_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure("network.name=mobilenetv3_small_100", "network.stem=small")
    job = {"config": config.model_dump_json(), "images": IMAGES, "threads": 1, "may_allocate": 10**9}
    job["may_use_fewer_threads"] = True
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(job)))
    monkeypatch.setattr(step_benchmark, "limit_memory", lambda num_bytes: None)
    step_benchmark.main()
    said = capsys.readouterr().out

    class Child:
        returncode = 0

        def communicate(self, job: str) -> tuple[str, str]:
            return said, ""

        def kill(self) -> None:
            pass

        def wait(self) -> None:
            pass

    monkeypatch.setattr(step_benchmark.subprocess, "Popen", lambda *a, **k: Child())
    with pytest.raises(ConfigError, match=r"network\.stem: 'small' needs a ResNet"):
        benchmark_step(config, **IMAGES)


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGSEGV, RuntimeError)]
)
def test_a_child_that_is_ended(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, expected: type[BaseException]
) -> None:
    class Child(subprocess.Popen[str]):
        def communicate(self, *arguments: object, **others: object) -> tuple[str, str]:
            os.kill(self.pid, number)
            return super().communicate(*arguments, **others)  # type: ignore[arg-type]

    # The default action of Ctrl-C: Python's own handler is not there yet when the process starts.
    monkeypatch.setattr(step_benchmark.subprocess, "Popen", Child)
    with pytest.raises(expected):
        benchmark_step(configure(), **IMAGES)
